//! AdamW.

use std::collections::BTreeMap;
use std::path::Path;

use tch::Tensor;

use super::saved::{self, SavedState};
use crate::error::Result;

/// AdamW's constants besides the learning rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the first moment, in [0, 1).
    pub beta1: f64,
    /// Decay of the second moment, in [0, 1).
    pub beta2: f64,
    /// Added to the denominator, above 0.
    pub epsilon: f64,
    /// Decoupled weight decay, 0 or more.
    pub weight_decay: f64,
}

/// AdamW with decoupled weight decay, step for step equal to `torch.optim.AdamW` (single-tensor form, torch 2.11).
///
/// State is f32 and lives where the parameters live. Source: Loshchilov & Hutter 2019; `torch/optim/adam.py`.
#[derive(Debug)]
pub struct AdamW {
    options: AdamWOptions,
    parameters: Vec<(String, Tensor)>,
    first: Vec<Tensor>,
    second: Vec<Tensor>,
    steps: u64,
}

impl AdamW {
    /// An optimizer over named f32 parameters (the tensors are shared, and updated in place).
    pub fn new(parameters: Vec<(String, Tensor)>, options: AdamWOptions) -> Self {
        let zeros = || parameters.iter().map(|(_, p)| p.detach().zeros_like()).collect();
        Self { first: zeros(), second: zeros(), options, parameters, steps: 0 }
    }

    /// The parameters, in the order gradients are given.
    pub fn parameters(&self) -> &[(String, Tensor)] {
        &self.parameters
    }

    /// Updates applied so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One update with learning rate `lr`; `gradients` in the order of [`AdamW::parameters`], same shapes.
    ///
    /// Errors: [`crate::Error::Torch`] if a shape differs.
    pub fn step(&mut self, gradients: &[Tensor], lr: f64) -> Result<()> {
        let _guard = tch::no_grad_guard();
        self.steps += 1;
        let AdamWOptions { beta1, beta2, epsilon, weight_decay } = self.options;
        let correction1 = 1.0 - beta1.powf(self.steps as f64);
        let correction2_root = (1.0 - beta2.powf(self.steps as f64)).sqrt();
        for (i, gradient) in gradients.iter().enumerate() {
            let mut parameter = self.parameters[i].1.shallow_clone();
            let _ = parameter.f_mul_scalar_(1.0 - lr * weight_decay)?;
            let _ = self.first[i].f_lerp_(gradient, 1.0 - beta1)?;
            let square = gradient.f_mul_scalar(1.0 - beta2)?.f_mul(gradient)?;
            let _ = self.second[i].f_mul_scalar_(beta2)?.f_add_(&square)?;
            let denominator = self.second[i].f_sqrt()?.f_div_scalar(correction2_root)?.f_add_scalar(epsilon)?;
            let _ = parameter.f_add_(&self.first[i].f_mul_scalar(-lr / correction1)?.f_div(&denominator)?)?;
        }
        Ok(())
    }

    /// Bytes of the moments.
    pub fn state_bytes(&self) -> u64 {
        saved::bytes(self.moments())
    }

    /// The state as tensors: `first.<name>`, `second.<name>` (shapes of the parameters, sharing the moments' memory) and
    /// `steps` (i64, one number).
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        saved::state(self.steps, self.moments())
    }

    /// Takes back what [`AdamW::state`] gave, bit for bit, into the memory that the moments have. `path` is where it
    /// came from, for errors.
    ///
    /// Errors: [`crate::Error::Run`] naming the first tensor that is missing, surplus or misshaped; nothing is changed
    /// then. Those of reading, which may leave the moments of neither.
    pub fn load_state<'s>(&mut self, state: impl Into<SavedState<'s>>, path: &Path) -> Result<()> {
        self.steps = saved::load(|| self.moments(), state.into(), path)?;
        Ok(())
    }

    /// As new: before the first update.
    pub fn reset(&mut self) {
        saved::clear(self.moments());
        self.steps = 0;
    }

    /// The moments by their keys in [`AdamW::state`].
    fn moments(&self) -> impl Iterator<Item = (String, &Tensor)> {
        let pairs = self.parameters.iter().zip(self.first.iter().zip(&self.second));
        pairs.flat_map(|((name, _), (first, second))| {
            [(format!("first.{name}"), first), (format!("second.{name}"), second)]
        })
    }
}
