//! From pairs to gradients through the U-Net: identities, economies, micro-batches.

use std::cell::RefCell;

use seedpo_align::objective::step_pair::two_pass;
use seedpo_align::objective::{
    Clip, EntropyForm, Flipper, LossOutput, Objective, PairBatch, PairLatents, Preference, SelfEntropy,
    accumulate_step_pairs, step_pair_loss,
};
use seedpo_model::adapter::LoraConfig;
use seedpo_model::{Adapter, Conditioning, DiffusionModel, Policy};
use seedpo_rollout::{Ddim, GuidedPolicy, NoisePredictor, Result, StepPair, initial_noise, sample_pair};
use seedpo_tensor::NoiseKey;
use tch::{Kind, Tensor};

use crate::fixture::{adapter, batch, model, off};

const METHODS: [&str; 2] = ["spo", "d3po"];

/// Counts the rows of each pass.
struct Counting<'a> {
    inner: GuidedPolicy<'a>,
    rows: RefCell<Vec<usize>>,
}

impl<'a> Counting<'a> {
    fn new(model: &'a DiffusionModel, adapter: Option<&'a Adapter>, conditioning: &'a Conditioning) -> Self {
        let inner = GuidedPolicy::new(Policy::new(model, adapter), conditioning, 5.0);
        Self { inner, rows: RefCell::default() }
    }
}

impl NoisePredictor for Counting<'_> {
    fn predict(&self, latents: &Tensor, timesteps: &[i64], prompts: &[usize]) -> Result<Tensor> {
        self.rows.borrow_mut().push(prompts.len());
        self.inner.predict(latents, timesteps, prompts)
    }
}

fn settings(clip: Option<f64>, gamma: f64) -> Objective {
    Objective {
        beta: 2.0,
        entropy: SelfEntropy::new(gamma, EntropyForm::Flatten).unwrap(),
        clip: Clip(clip),
        flipper: Flipper::Off,
        safeguard: None,
        kl_weight: 0.0,
    }
}

fn sampler(model: &DiffusionModel) -> Ddim {
    Ddim::new(&model.schedule, 20, 1.0).unwrap()
}

/// All gradients of the adapter in one vector, after `run` has added to them.
fn gradients(adapter: &Adapter, run: impl FnOnce() -> LossOutput) -> (Tensor, LossOutput) {
    let parameters = adapter.trainable();
    for (_, parameter) in &parameters {
        parameter.shallow_clone().set_requires_grad(true).zero_grad();
    }
    let output = run();
    let flat = |(_, p): &(String, Tensor)| {
        let grad = p.grad();
        if grad.defined() { grad.copy().flatten(0, -1) } else { p.detach().zeros_like().flatten(0, -1) }
    };
    (Tensor::cat(&parameters.iter().map(flat).collect::<Vec<_>>(), 0), output)
}

#[test]
fn a_zero_adapter_has_ratio_one_and_only_the_entropy_in_its_margin() {
    let model = model();
    let (ddim, zero) = (sampler(&model), Adapter::lora(&model.unet, &LoraConfig::default(), 7).unwrap());
    for method in METHODS {
        let (batch, conditioning) = batch(method);
        let (policy, reference) =
            (Counting::new(&model, Some(&zero), &conditioning), Counting::new(&model, None, &conditioning));
        let run = |gamma| step_pair_loss(&policy, &reference, &ddim, &batch, &settings(Some(0.1), gamma)).unwrap();
        let plain = run(0.0);
        // B = 0: the adapter's branch adds exact zeros, so equality is exact, and the loss is ln 2.
        assert!(plain.log_ratios.iter().all(|r| r.eq(0.0).all().int64_value(&[]) == 1), "{method}");
        assert_eq!(plain.margin.abs().max().double_value(&[]), 0.0);
        assert!((plain.loss.double_value(&[]) - std::f64::consts::LN_2).abs() < 1e-7);
        assert_eq!((plain.clip_fraction(), plain.accuracy(), plain.ratio_mean()), (Some(0.0), Some(0.5), Some(1.0)));
        let see = run(0.5);
        let expected =
            (log_prob(&reference, &ddim, &batch, 0) - log_prob(&reference, &ddim, &batch, 1)) * (1.0 - 1.0 / 1.5);
        assert!((see.margin - &expected).abs().max().double_value(&[]) < 1e-6);
        assert!(expected.abs().min().double_value(&[]) > 1e-3);
    }
}

/// ℓ of one side under a predictor, straight from the definitions.
fn log_prob(predictor: &dyn NoisePredictor, ddim: &Ddim, batch: &PairBatch, side: usize) -> Tensor {
    let (latents, next) = match (&batch.latents, side) {
        (PairLatents::Shared { latents, next_latents_w, .. }, 0) => (latents, next_latents_w),
        (PairLatents::Shared { latents, next_latents_l, .. }, _) => (latents, next_latents_l),
        (PairLatents::Separate { latents_w, next_latents_w, .. }, 0) => (latents_w, next_latents_w),
        (PairLatents::Separate { latents_l, next_latents_l, .. }, _) => (latents_l, next_latents_l),
        (PairLatents::Noised { .. } | PairLatents::Winners { .. } | PairLatents::Single { .. }, _) => {
            panic!("a step's likelihood")
        }
    };
    let noise = tch::no_grad(|| predictor.predict(latents, &batch.timesteps, &batch.prompts)).unwrap();
    ddim.transition(&batch.timesteps, latents, &noise).unwrap().log_prob(next).unwrap()
}

#[test]
fn one_policy_pass_and_one_reference_pass_serve_both_sides() {
    let model = model();
    let adapter = adapter("policy.safetensors", &model);
    for (method, rows, reference_rows) in
        [("spo", 4, vec![4]), ("d3po", 8, vec![8]), ("seppo", 8, vec![8]), ("sft", 4, vec![])]
    {
        let (batch, conditioning) = batch(method);
        let (policy, reference) =
            (Counting::new(&model, Some(&adapter), &conditioning), Counting::new(&model, None, &conditioning));
        // The flipper reads the very predictions that the loss does.
        let flipper = if method == "seppo" { Flipper::Sign } else { Flipper::Off };
        let objective = Objective { flipper, ..settings(None, 0.5) };
        let output = step_pair_loss(&policy, &reference, &sampler(&model), &batch, &objective).unwrap();
        assert_eq!((policy.rows.take(), reference.rows.take()), (vec![rows], reference_rows), "{method}");
        assert!(output.loss.requires_grad() && !output.margin.requires_grad());
    }
}

#[test]
fn micro_batches_and_two_passes_give_the_gradient_of_one() {
    let model = model();
    let adapter = adapter("policy.safetensors", &model);
    let ddim = sampler(&model);
    for method in ["spo", "d3po", "diffusion-dpo", "seppo", "sft"] {
        let (mut batch, conditioning) = batch(method);
        batch.decided[1] = false;
        let (policy, reference) =
            (Counting::new(&model, Some(&adapter), &conditioning), Counting::new(&model, None, &conditioning));
        let flipper = if method == "seppo" { Flipper::Sign } else { Flipper::Off };
        // Supervision has neither clip nor reference.
        let objectives = match method {
            "sft" => vec![settings(None, 0.0)],
            _ => {
                let guarded = Objective { safeguard: Some(0.3), ..settings(None, 0.5) };
                vec![settings(None, 0.5), settings(Some(0.1), 0.0), guarded]
            }
        };
        for objective in objectives {
            let objective = Objective { flipper, ..objective };
            let run = |max_rows: usize| {
                gradients(&adapter, || {
                    accumulate_step_pairs(&policy, &reference, &ddim, &batch, &objective, max_rows, 0.25).unwrap()
                })
            };
            let (whole, loss) = run(usize::MAX);
            let (plain, direct) = gradients(&adapter, || {
                let output = step_pair_loss(&policy, &reference, &ddim, &batch, &objective).unwrap();
                (&output.loss * 0.25).backward();
                output
            });
            assert!(off(&whole, &plain) < 1e-5 && whole.norm().double_value(&[]) > 1e-4, "{method}: leaving ties out");
            let (found, wanted) = (loss.loss.double_value(&[]), direct.loss.double_value(&[]));
            // Another number of rows is another f32 kernel, and β multiplies its rounding.
            assert!((found - wanted).abs() < 1e-5, "{method}: {found} {wanted}");
            for max_rows in [1, 2, 3] {
                let (parts, output) = run(max_rows);
                assert!(off(&parts, &whole) < 1e-5, "{method} {max_rows} rows: {:.1e}", off(&parts, &whole));
                // Margins are small differences: f32 kernels of another batch size show at 1e-5 of them.
                let apart = off(&output.margin, &loss.margin);
                assert!(apart < 2e-4 && output.loss.size().is_empty(), "{method} {max_rows} rows: margins {apart:.1e}");
                assert_eq!((output.pairs(), output.decided_pairs()), (4, 3));
            }
            let (split, _) =
                gradients(&adapter, || two_pass(&policy, &reference, &ddim, &batch, &objective, 1, 0.25).unwrap());
            assert!(off(&split, &plain) < 1e-5, "{method}: two passes, {:.1e}", off(&split, &plain));
            for (max_rows, rows_at_once) in [(usize::MAX, usize::MAX), (3, 2), (1, usize::MAX)] {
                let policy = GuidedPolicy::new(Policy::new(&model, Some(&adapter)), &conditioning, 5.0);
                let policy = policy.with_checkpointing(true).with_max_rows(rows_at_once);
                let (staged, _) = gradients(&adapter, || {
                    accumulate_step_pairs(&policy, &reference, &ddim, &batch, &objective, max_rows, 0.25).unwrap()
                });
                // One stage at a time, other kernels in the recorded pass.
                assert!(off(&staged, &plain) < 1e-5, "{method}: checkpointing, {:.1e}", off(&staged, &plain));
            }
        }
    }
}

#[test]
fn ties_are_not_run_and_saturated_pairs_not_run_backward() {
    let model = model();
    let adapter = adapter("policy.safetensors", &model);
    let ddim = sampler(&model);
    let (mut tied, conditioning) = batch("d3po");
    let (policy, reference) =
        (Counting::new(&model, Some(&adapter), &conditioning), Counting::new(&model, None, &conditioning));
    let run = |batch: &PairBatch, clip: Option<f64>| {
        gradients(&adapter, || {
            accumulate_step_pairs(&policy, &reference, &ddim, batch, &settings(clip, 0.0), 2, 1.0).unwrap()
        })
    };
    tied.decided = vec![false; 4];
    let (gradient, output) = run(&tied, None);
    assert_eq!(gradient.abs().max().double_value(&[]), 0.0);
    assert!(policy.rows.borrow().is_empty() && reference.rows.borrow().is_empty());
    assert_eq!((output.loss.double_value(&[]), output.accuracy(), output.pairs()), (0.0, None, 4));
    tied.decided[2] = true;
    let (gradient, _) = run(&tied, None);
    assert!(gradient.abs().max().double_value(&[]) > 0.0);
    assert_eq!(policy.rows.take(), [2]);
    // A clip so narrow that every side is cut: forward only.
    tied.decided = vec![true; 4];
    let (gradient, output) = run(&tied, Some(1e-6));
    assert_eq!((gradient.abs().max().double_value(&[]), output.clip_fraction()), (0.0, Some(1.0)));
    let (_, output) = gradients(&adapter, || {
        two_pass(&policy, &reference, &ddim, &tied, &settings(Some(1e-6), 0.0), 1, 1.0).unwrap()
    });
    assert_eq!(output.needs_grad().any().int64_value(&[]), 0);
    assert_eq!(policy.rows.take().len(), 4 + 8, "the two-pass form runs no row again");
}

#[test]
fn trajectories_become_pairs_by_preference() {
    let model = model();
    let (_, conditioning) = batch("d3po");
    let policy = Counting::new(&model, None, &conditioning);
    let ddim = Ddim::new(&model.schedule, 4, 1.0).unwrap();
    let keys: Vec<NoiseKey> = (0..3).map(|row| NoiseKey::new(1, "pairs").prompt(row)).collect();
    let x_t = initial_noise(&keys, &[4, 8, 8]);
    let rollout = sample_pair(&policy, &x_t, &[2, 0, 1], &ddim, &keys, &mut |_, _| {}).unwrap();
    let preferences = [Preference::Second, Preference::Tie, Preference::First];
    let batch = PairBatch::from_trajectories(&rollout, &preferences, &[(0, 3), (1, 1), (2, 0)]).unwrap();
    assert_eq!((batch.decided.as_slice(), batch.prompts.as_slice()), (&[true, false, true][..], &[2, 0, 1][..]));
    let t = ddim.timesteps();
    assert_eq!(batch.timesteps, [t[3], t[1], t[0]]);
    let PairLatents::Separate { latents_w, next_latents_w, latents_l, next_latents_l } = &batch.latents else {
        panic!("trajectories have their own latents")
    };
    let [first, second] = &rollout.sides;
    assert_eq!(latents_w.get(0), second.latents[3].get(0));
    assert_eq!(next_latents_w.get(0), second.latents[4].get(0));
    assert_eq!(latents_l.get(0), first.latents[3].get(0));
    assert_eq!(next_latents_l.get(2), second.latents[1].get(2));
    let again = PairBatch::from_trajectories(&rollout, &preferences, &[(2, 0), (2, 1)]).unwrap();
    assert_eq!((again.prompts.as_slice(), again.timesteps.as_slice()), (&[1, 1][..], &[t[0], t[1]][..]));
    for wrong in [&[(0, 4)][..], &[(3, 0)], &[]] {
        assert!(PairBatch::from_trajectories(&rollout, &preferences, wrong).is_err());
    }
}

#[test]
fn step_pairs_stack_in_order() {
    let latents = |v: f64| Tensor::full([4, 2, 2], v, (Kind::Float, tch::Device::Cpu));
    let pair = |v: f64, prompt: usize| StepPair {
        latents: latents(v),
        next_latents_w: latents(v + 0.1),
        next_latents_l: latents(v + 0.2),
        pred_x0: [latents(v), latents(v)],
        timestep: 10 * prompt as i64,
        prompt,
        scores: [1.0, 0.0],
    };
    let (a, b) = (pair(1.0, 5), pair(2.0, 3));
    let batch = PairBatch::from_step_pairs(&[&b, &a]).unwrap();
    assert_eq!((batch.prompts.as_slice(), batch.timesteps.as_slice(), batch.len()), (&[3, 5][..], &[30, 50][..], 2));
    let PairLatents::Shared { latents, next_latents_w, next_latents_l } = &batch.latents else { panic!("shared") };
    assert_eq!(latents.get(1), a.latents);
    assert_eq!(next_latents_w.get(0), b.next_latents_w);
    assert_eq!(next_latents_l.get(1), a.next_latents_l);
    assert!(PairBatch::from_step_pairs(&[]).unwrap_err().to_string().contains("at least one"));
}
