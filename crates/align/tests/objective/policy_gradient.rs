//! DDPO and DPOK: loss and every adapter gradient against an independent PyTorch in float64
//! (python/fixtures/policy_gradient.py), in one pass and in micro-batches of two.

use seedpo_align::objective::{
    Clip, Flipper, Objective, PairBatch, PairLatents, SelfEntropy, accumulate_step_pairs, step_pair_loss,
};
use seedpo_model::{Conditioning, Policy};
use seedpo_rollout::{Ddim, GuidedPolicy};
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::fixture::{adapter, cases, model, off};

const TOLERANCE: f64 = 1e-4;

#[test]
fn ddpo_and_dpok_equal_pytorch() {
    let model = model();
    let policy = adapter("policy.safetensors", &model);
    let (data, metadata) = cases("ddpo");
    let at = |key: &str| data[key].shallow_clone();
    let conditioning = Conditioning {
        prompt_embeds: at("prompt_embeds"),
        negative_prompt_embeds: at("negative_prompt_embeds"),
        added: None,
    };
    let timesteps = Vec::<i64>::try_from(at("timestep")).unwrap();
    let rows = timesteps.len();
    let ddim = Ddim::new(&model.schedule, 20, 1.0).unwrap();
    let settings: Vec<Value> = serde_json::from_str(&metadata["cases"]).unwrap();
    assert_eq!(settings.len(), 12);
    let mut cut = 0.0;
    for (n, case) in settings.iter().enumerate() {
        let number = |key: &str| case[key].as_f64().unwrap();
        let (guidance, kl_weight) = (number("guidance_scale"), number("kl_weight"));
        let old = at(&format!("old_log_probs.{guidance:.1}"));
        let latents = PairLatents::Single {
            latents: at("latents"),
            next_latents: at("next_latents"),
            scalars: Tensor::stack(&[old, at("advantages")], 1),
            regularised: kl_weight > 0.0,
        };
        let batch = PairBatch {
            latents,
            timesteps: timesteps.clone(),
            prompts: (0..rows).collect(),
            decided: vec![true; rows],
            weights: None,
        };
        let (entropy, clip) = (SelfEntropy::default(), Clip(Some(number("clip"))));
        let objective = Objective { beta: 1.0, entropy, clip, flipper: Flipper::Off, safeguard: None, kl_weight };
        let trained = GuidedPolicy::new(Policy::new(&model, Some(&policy)), &conditioning, guidance);
        let base = GuidedPolicy::new(Policy::new(&model, None), &conditioning, guidance);
        let expected = |what: &str| at(&format!("{n}.{what}"));
        for (max_rows, staged) in [(usize::MAX, false), (2, false), (usize::MAX, true)] {
            let parameters = policy.trainable();
            for (_, parameter) in &parameters {
                parameter.shallow_clone().set_requires_grad(true).zero_grad();
            }
            let trained = GuidedPolicy::new(Policy::new(&model, Some(&policy)), &conditioning, guidance)
                .with_checkpointing(staged);
            let output = accumulate_step_pairs(&trained, &base, &ddim, &batch, &objective, max_rows, 1.0).unwrap();
            let gradient =
                |p: &Tensor| if p.grad().defined() { p.grad().flatten(0, -1) } else { p.zeros_like().flatten(0, -1) };
            let found = Tensor::cat(&parameters.iter().map(|(_, p)| gradient(p)).collect::<Vec<_>>(), 0);
            let place = format!("case {n} {case}, {max_rows} rows, staged {staged}");
            let apart = [
                off(&output.loss.reshape([1]), &expected("loss")),
                off(&output.per_pair, &expected("per_sample")),
                off(&found, &expected("grads")),
            ];
            assert!(apart.iter().all(|apart| *apart < TOLERANCE), "{place}: {apart:?}");
            cut = f64::max(cut, output.clipped[0].to_kind(Kind::Double).mean(Kind::Double).double_value(&[]));
        }
        let output = step_pair_loss(&trained, &base, &ddim, &batch, &objective).unwrap();
        assert!(output.loss.requires_grad() && !output.margin.requires_grad());
    }
    assert!(cut > 0.3 && cut < 1.0, "some steps are clipped, {cut}");
}
