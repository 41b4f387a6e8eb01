//! The check that rollout and training agree: before the first update the likelihood ratio between them must be 1.

use crate::error::{Error, Result};
use crate::objective::{PairBatch, PairLatents};
use seedpo_rollout::{Ddim, NoisePredictor};
use seedpo_tensor::tf32;
use tch::{Device, Kind, Tensor};

/// How far a ratio may be from 1 where a base in `kind` computes on `device`: merging rounds W + BA once, the training form
/// adds B(Ax) to Wx. In f32 that moves mean log-probabilities by about 1e-5; in bf16 and f16, whose weights carry 8 and 11
/// bits, by up to a few per cent, and so it does in f32 on a card that rounds factors to TF32's 11 bits.
pub fn tolerance(kind: Kind, device: Device) -> f64 {
    limit(kind, device.is_cuda() && tf32::allowed().any())
}

fn limit(kind: Kind, tf32: bool) -> f64 {
    match kind {
        Kind::BFloat16 => 0.1,
        Kind::Half => 0.03,
        _ if tf32 => 0.03,
        _ => 1e-3,
    }
}

/// Compares the training policy with the rollout policy (merged) on the pairs of a batch, without gradients.
///
/// Two things must hold: the likelihood ratio of every transition is 1 within `limit` ([`tolerance`]), and the noise implied by
/// the transitions under the training policy has mean square 1, as it has if the pairs were drawn from it at these
/// timesteps with this guidance (the mean over n elements strays by √(2/n); the judge's choice biases it a little).
/// Errors: [`Error::OffPolicy`].
pub fn check(
    training: &dyn NoisePredictor,
    rollout: &dyn NoisePredictor,
    ddim: &Ddim,
    batch: &PairBatch,
    limit: f64,
    update: u64,
) -> Result<()> {
    let _guard = tch::no_grad_guard();
    // Each x_t with what was drawn from it: one prediction serves all of those.
    let sides: Vec<(&Tensor, Vec<&Tensor>)> = match &batch.latents {
        PairLatents::Shared { latents, next_latents_w, next_latents_l } => {
            vec![(latents, vec![next_latents_w, next_latents_l])]
        }
        PairLatents::Separate { latents_w, next_latents_w, latents_l, next_latents_l } => {
            vec![(latents_w, vec![next_latents_w]), (latents_l, vec![next_latents_l])]
        }
        PairLatents::Single { latents, next_latents, .. } => vec![(latents, vec![next_latents])],
        // Noised images were drawn by no policy.
        PairLatents::Noised { .. } | PairLatents::Winners { .. } => return Ok(()),
    };
    let (mut low, mut high, mut squares, mut elements) = (f64::INFINITY, f64::NEG_INFINITY, 0.0, 0.0);
    for (latents, drawn) in sides {
        let of = |p: &dyn NoisePredictor| {
            ddim.transition(&batch.timesteps, latents, &p.predict(latents, &batch.timesteps, &batch.prompts)?)
        };
        let (trained, sampled) = (of(training)?, of(rollout)?);
        for next in drawn {
            let ratio = trained.log_ratio(&sampled, next)?.exp();
            low = low.min(ratio.min().double_value(&[]));
            high = high.max(ratio.max().double_value(&[]));
            let std = trained.std.reshape([-1, 1, 1, 1]);
            let noise = (next.to_device(std.device()) - &trained.mean) / std;
            squares += (&noise * &noise).sum(Kind::Double).double_value(&[]);
            elements += noise.numel() as f64;
        }
    }
    // Written so that NaN fails.
    let ratios_fit = low >= 1.0 - limit && high <= 1.0 + limit;
    let (mean_square, slack) = (squares / elements, (8.0 * (2.0 / elements).sqrt()).max(0.25));
    if ratios_fit && (mean_square - 1.0).abs() <= slack {
        return Ok(());
    }
    Err(Error::OffPolicy { low, high, tolerance: limit, mean_square, slack, update })
}

#[cfg(test)]
mod tests {
    use super::*;
    use seedpo_tensor::NoiseKey;

    /// ε = `0` · x.
    struct Linear(f64);

    impl NoisePredictor for Linear {
        fn predict(&self, latents: &Tensor, _: &[i64], _: &[usize]) -> seedpo_rollout::Result<Tensor> {
            Ok(latents * self.0)
        }
    }

    fn ddim() -> Ddim {
        let alphas = (0..100).map(|t| 0.999 - 0.0099 * f64::from(t)).collect();
        Ddim::from_alphas(alphas, 1, false, 10, 1.0).unwrap()
    }

    /// Steps drawn from `Linear(0.5)`.
    fn batch() -> PairBatch {
        let key = |candidate| NoiseKey::new(1, "test").candidate(candidate).normal(&[4, 2, 8, 8]);
        let (latents, timesteps) = (key(0), vec![41, 31, 21, 11]);
        let step = ddim().transition(&timesteps, &latents, &(&latents * 0.5)).unwrap();
        let (next_latents_w, next_latents_l) =
            (step.sample(Some(&key(1))).unwrap(), step.sample(Some(&key(2))).unwrap());
        let latents = PairLatents::Shared { latents, next_latents_w, next_latents_l };
        PairBatch { latents, timesteps, prompts: vec![0; 4], decided: vec![true; 4], weights: None }
    }

    #[test]
    fn tf32_is_given_what_f16_is_given() {
        assert_eq!(limit(Kind::Float, true), limit(Kind::Half, false));
        let [f32, f16, bf16] = [Kind::Float, Kind::Half, Kind::BFloat16].map(|kind| limit(kind, false));
        assert!(f32 < f16 && f16 < bf16);
        // TF32 is a card's; libtorch allows it for convolutions from the start.
        assert_eq!(tolerance(Kind::Float, Device::Cpu), f32);
        if std::env::var_os("NVIDIA_TF32_OVERRIDE").is_none() {
            assert_eq!(tolerance(Kind::Float, Device::Cuda(0)), f16);
        }
        assert_eq!(tolerance(Kind::BFloat16, Device::Cuda(0)), bf16);
    }

    #[test]
    fn equal_policies_pass_and_others_do_not() {
        let run = |training, rollout, batch: &PairBatch| {
            check(&Linear(training), &Linear(rollout), &ddim(), batch, 1e-3, 1).map_err(|e| e.to_string())
        };
        assert!(run(0.5, 0.5, &batch()).is_ok());
        assert!(run(0.5, 0.500001, &batch()).is_ok(), "rounding");
        let message = run(0.5, 0.55, &batch()).unwrap_err();
        assert!(message.contains("likelihood ratio") && message.contains("update 1"), "{message}");
        assert!(run(f64::NAN, 0.5, &batch()).is_err());
    }

    #[test]
    fn pairs_that_neither_policy_drew_do_not_pass() {
        let run = |batch| check(&Linear(0.5), &Linear(0.5), &ddim(), &batch, 1e-3, 1);
        let other_steps = PairBatch { timesteps: vec![81, 71, 91, 61], ..batch() };
        assert!(run(other_steps).unwrap_err().to_string().contains("mean square"));
        assert!(check(&Linear(0.9), &Linear(0.9), &ddim(), &batch(), 1e-3, 1).is_err(), "another guidance, say");
    }
}
