//! Gradients with respect to a U-Net's own tensors against an independent PyTorch in float64 (python/fixtures/full_loss.py).

use std::collections::BTreeMap;

use seedpo_align::objective::{ProbeLossSettings, accumulate_step_pairs};
use seedpo_model::{Policy, PolicyWeights};
use seedpo_rollout::{Ddim, GuidedPolicy};
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::fixture::{batch_of, cases, model, off};

/// As for adapters: PyTorch's own f32 is up to 1.4e-5 off in these cases.
const TOLERANCE: f64 = 1e-4;

/// The entries of `data` below `prefix`, by what follows it.
fn below(data: &BTreeMap<String, Tensor>, prefix: &str) -> BTreeMap<String, Tensor> {
    let rest = |(key, tensor): (&String, &Tensor)| Some((key.strip_prefix(prefix)?.to_owned(), tensor.shallow_clone()));
    data.iter().filter_map(rest).collect()
}

/// All at once, pair by pair, and stage by stage.
#[test]
fn gradients_of_whole_unets_equal_pytorch() {
    let model = model();
    let (data, metadata) = cases("full");
    let trained = below(&data, "policy.");
    let unet = model.unet.trainable_copy(Kind::Float).unwrap();
    tch::no_grad(|| trained.iter().for_each(|(name, t)| unet.parameters()[name].shallow_clone().copy_(t)));
    let weights = PolicyWeights::Full(Box::new(unet));
    let settings: Vec<Value> = serde_json::from_str(&metadata["cases"]).unwrap();
    let mut worst = 0f64;
    for (n, case) in settings.into_iter().enumerate() {
        let method = case["method"].as_str().unwrap();
        let (batch, conditioning) = batch_of(method, &below(&data, &format!("{method}.")));
        let mut probe = case.clone();
        probe["adapter"] = "none".into();
        let objective = serde_json::from_value::<ProbeLossSettings>(probe).unwrap().objective().unwrap();
        let ddim = Ddim::new(&model.schedule, 20, 1.0).unwrap();
        let guided = |weights| {
            GuidedPolicy::new(Policy::of(&model, weights), &conditioning, case["guidance_scale"].as_f64().unwrap())
        };
        for (rows, checkpointing) in [(64, false), (1, false), (64, true)] {
            let policy = guided(Some(&weights)).with_checkpointing(checkpointing);
            let output = accumulate_step_pairs(&policy, &guided(None), &ddim, &batch, &objective, rows, 1.0).unwrap();
            for (found, what) in [(&output.loss, "loss"), (&output.margin, "margin")] {
                let apart = off(&found.reshape([-1]), &data[&format!("{n}.{what}")]);
                assert!(apart < TOLERANCE, "{case}: {what} is {apart:.1e} off");
            }
            let expected = below(&data, &format!("{n}.grad."));
            assert_eq!(expected.len(), trained.len());
            for (name, tensor) in weights.trainable() {
                let gradient = tensor.grad().copy();
                tensor.shallow_clone().zero_grad();
                if let Some(expected) = expected.get(&name) {
                    let apart = off(&gradient, expected);
                    assert!(apart < TOLERANCE, "{case} {rows} {checkpointing}: {name} is {apart:.1e} off");
                    worst = worst.max(apart);
                }
            }
        }
    }
    println!("gradients of whole U-Nets: {worst:.1e} from PyTorch's float64");
}
