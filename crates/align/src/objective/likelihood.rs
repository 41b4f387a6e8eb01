//! Log-likelihoods as the loss wants them: the log-ratio to the reference, and the reference's own value.

use seedpo_rollout::ddim::per_row_mean;
use seedpo_rollout::{Result, Transition};
use tch::Tensor;

/// One side (winner or loser) of a batch of pairs.
#[derive(Debug)]
pub struct Side {
    /// r = ℓ_θ − ℓ_ref, `[B]` nats; carries the gradient.
    pub log_ratio: Tensor,
    /// ℓ_ref, `[B]` nats; no gradient.
    pub reference: Tensor,
}

impl Side {
    /// From a DDIM step under both policies (docs/methods.md section 2): `next` `[B, C, h, w]` is x_t'.
    /// Errors: where σ is 0, or policy and reference belong to different steps.
    pub fn transition(policy: &Transition, reference: &Transition, next: &Tensor) -> Result<Self> {
        Ok(Self { log_ratio: policy.log_ratio(reference, next)?, reference: reference.log_prob(next)?.detach() })
    }

    /// From the denoising-error surrogate (docs/methods.md section 4.2): ℓ = −½·mean((ε − ε_θ)²).
    ///
    /// `noise` is ε, `policy` and `reference` the two predictions, all `[B, C, h, w]`. The log-ratio is written
    /// ½·mean((ε_θ−ε_ref)(2ε−ε_θ−ε_ref)), so that nearly equal errors are never subtracted.
    pub fn denoising(policy: &Tensor, reference: &Tensor, noise: &Tensor) -> Self {
        let reference = reference.detach();
        let apart = policy - &reference;
        let log_ratio = per_row_mean(&(apart * (noise * 2.0 - policy - &reference))) * 0.5;
        Self { log_ratio, reference: denoising_error(&reference, noise) * -0.5 }
    }
}

/// mean((ε − ε_θ)²) per row: `noise_pred`, `noise` `[B, C, h, w]` -> `[B]`, at least 0.
pub fn denoising_error(noise_pred: &Tensor, noise: &Tensor) -> Tensor {
    let apart = noise - noise_pred;
    per_row_mean(&(&apart * &apart))
}
