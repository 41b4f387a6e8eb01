//! Optimizers, gradient clipping, learning-rate schedules and averaging, each equal to the library it is named after.

mod adafactor;
mod adamw;
mod ema;
mod lr_schedule;
mod saved;

pub use adafactor::Adafactor;
pub use adamw::{AdamW, AdamWOptions};
pub use ema::Ema;
pub use lr_schedule::LrSchedule;
pub use saved::SavedState;

use crate::config::TrainConfig;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use tch::Tensor;

/// The optimizer a run's settings name.
#[derive(Debug)]
pub enum Optimizer {
    /// `adamw`.
    AdamW(AdamW),
    /// `adafactor`.
    Adafactor(Adafactor),
}

impl Optimizer {
    /// The names the setting `optimizer` takes.
    pub const NAMES: &[&str] = &["adamw", "adafactor"];

    /// The optimizer of `config` over named f32 parameters, which it updates in place.
    ///
    /// Errors: [`Error::Setting`] for an unknown name.
    pub fn from_settings(config: &TrainConfig, parameters: Vec<(String, Tensor)>) -> Result<Self> {
        let options = AdamWOptions {
            beta1: config.adam_beta1,
            beta2: config.adam_beta2,
            epsilon: config.adam_epsilon,
            weight_decay: config.adam_weight_decay,
        };
        match config.optimizer.as_str() {
            "adamw" => Ok(Self::AdamW(AdamW::new(parameters, options))),
            "adafactor" => Ok(Self::Adafactor(Adafactor::new(parameters, config.adam_weight_decay))),
            other => Err(Error::Setting {
                key: "optimizer".into(),
                expected: format!("one of {}", Self::NAMES.join(", ")),
                found: format!("`{other}`"),
            }),
        }
    }

    /// The parameters, in the order gradients are given.
    pub fn parameters(&self) -> &[(String, Tensor)] {
        match self {
            Self::AdamW(optimizer) => optimizer.parameters(),
            Self::Adafactor(optimizer) => optimizer.parameters(),
        }
    }

    /// One update with learning rate `lr`; `gradients` in the order of [`Optimizer::parameters`].
    pub fn step(&mut self, gradients: &[Tensor], lr: f64) -> Result<()> {
        match self {
            Self::AdamW(optimizer) => optimizer.step(gradients, lr),
            Self::Adafactor(optimizer) => optimizer.step(gradients, lr),
        }
    }

    /// Bytes of the state's tensors.
    pub fn state_bytes(&self) -> u64 {
        match self {
            Self::AdamW(optimizer) => optimizer.state_bytes(),
            Self::Adafactor(optimizer) => optimizer.state_bytes(),
        }
    }

    /// The state as tensors, which share the optimizer's memory.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        match self {
            Self::AdamW(optimizer) => optimizer.state(),
            Self::Adafactor(optimizer) => optimizer.state(),
        }
    }

    /// Takes back what [`Optimizer::state`] gave, bit for bit, one tensor at a time. Errors: naming the first tensor that
    /// does not fit, before anything is changed; those of reading.
    pub fn load_state<'s>(&mut self, state: impl Into<SavedState<'s>>, path: &Path) -> Result<()> {
        match self {
            Self::AdamW(optimizer) => optimizer.load_state(state, path),
            Self::Adafactor(optimizer) => optimizer.load_state(state, path),
        }
    }

    /// As new: before the first update.
    pub fn reset(&mut self) {
        match self {
            Self::AdamW(optimizer) => optimizer.reset(),
            Self::Adafactor(optimizer) => optimizer.reset(),
        }
    }
}

/// Scales gradients in place so that their global 2-norm is at most `max_norm`; returns the norm before.
///
/// Equal to `torch.nn.utils.clip_grad_norm_`; `max_norm` 0 measures only. A non-finite norm leaves them unscaled.
pub fn clip_grad_norm(gradients: &mut [Tensor], max_norm: f64) -> Result<f64> {
    let _guard = tch::no_grad_guard();
    if gradients.is_empty() {
        return Ok(0.0);
    }
    let norms = gradients.iter().map(Tensor::f_norm).collect::<Result<Vec<_>, _>>()?;
    let total = Tensor::f_stack(&norms, 0)?.f_norm()?;
    let norm = total.f_double_value(&[])?;
    if max_norm > 0.0 && norm.is_finite() {
        let scale = total.f_add_scalar(1e-6)?.f_reciprocal()?.f_mul_scalar(max_norm)?.f_clamp_max(1.0)?;
        for gradient in gradients {
            let _ = gradient.f_mul_(&scale)?;
        }
    }
    Ok(norm)
}

#[cfg(test)]
mod tests;
