//! An average of the trained weights over updates.

use tch::Tensor;

use crate::error::Result;

/// An exponential moving average of parameters, step for step equal to diffusers' `EMAModel` without warm-up:
/// s ← s − (1 − d)(s − p), with d = min(decay, (1+t)/(10+t)) and t the updates before this one; d = 0 at the first.
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    /// The averages; shared with whoever saves them.
    shadows: Vec<Tensor>,
}

impl Ema {
    /// An average kept in `shadows`, which are updated in place. `decay` is in (0, 1).
    pub fn new(shadows: Vec<Tensor>, decay: f64) -> Self {
        Self { decay, shadows }
    }

    /// The averages, in the order of the parameters.
    pub fn shadows(&self) -> &[Tensor] {
        &self.shadows
    }

    /// Takes in `parameters` after update number `update`, from 1. Errors: [`crate::Error::Torch`] if a shape differs.
    pub fn step<'t>(&mut self, parameters: impl Iterator<Item = &'t Tensor>, update: u64) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let kept = self.decay_at(update);
        for (shadow, parameter) in self.shadows.iter_mut().zip(parameters) {
            let apart = shadow.f_sub(parameter)?.f_mul_scalar(1.0 - kept)?;
            let _ = shadow.f_sub_(&apart)?;
        }
        Ok(())
    }

    /// d at update number `update`, from 1.
    fn decay_at(&self, update: u64) -> f64 {
        match update.saturating_sub(1) {
            0 => 0.0,
            before => ((1 + before) as f64 / (10 + before) as f64).min(self.decay),
        }
    }
}
