//! Adafactor.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Kind, Tensor};

use super::saved::{self, SavedState};
use crate::error::Result;

/// Added to squared gradients.
const EPSILON: f64 = 1e-30;
/// The second moment's decay at update t is 1 − t^this.
const DECAY_RATE: f64 = -0.8;
/// Updates are scaled down to this root mean square.
const CLIP_THRESHOLD: f64 = 1.0;

/// Adafactor, step for step equal to `transformers.Adafactor` as the public Diffusion-DPO code calls it for SDXL:
/// `clip_threshold=1.0, scale_parameter=False, relative_step=False`, no first moment.
///
/// The second moment of a parameter with two or more dimensions is kept as the means of its rows and columns (the last two
/// dimensions), f32. Source: Shazeer & Stern 2018; `transformers/optimization.py`.
#[derive(Debug)]
pub struct Adafactor {
    weight_decay: f64,
    parameters: Vec<(String, Tensor)>,
    moments: Vec<Moment>,
    steps: u64,
}

/// A parameter's second moment.
#[derive(Debug)]
enum Moment {
    Factored { row: Tensor, column: Tensor },
    Whole(Tensor),
}

impl Moment {
    fn zeros(parameter: &Tensor) -> Self {
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, parameter.device()));
        match shapes(&parameter.size()) {
            Some([row, column]) => Self::Factored { row: zeros(&row), column: zeros(&column) },
            None => Self::Whole(zeros(&parameter.size())),
        }
    }

    /// Takes in squared gradients and gives 1/√ of the estimate.
    fn inverse_root(&mut self, squares: &Tensor, beta2: f64) -> Result<Tensor> {
        let update = |moment: &mut Tensor, fresh: &Tensor| -> Result<()> {
            let _ = moment.f_mul_scalar_(beta2)?.f_add_(&(fresh * (1.0 - beta2)))?;
            Ok(())
        };
        match self {
            Self::Whole(moment) => {
                update(moment, squares)?;
                Ok(moment.f_rsqrt()?)
            }
            Self::Factored { row, column } => {
                update(row, &mean(squares, -1)?)?;
                update(column, &mean(squares, -2)?)?;
                let share = row.f_div(&row.f_mean_dim(-1, true, None)?)?;
                Ok(share.f_rsqrt()?.f_unsqueeze(-1)?.f_mul(&column.f_unsqueeze(-2)?.f_rsqrt()?)?)
            }
        }
    }
}

fn mean(values: &Tensor, dim: i64) -> Result<Tensor> {
    Ok(values.f_mean_dim(dim, false, None)?)
}

/// Shapes of the means over the last and the last but one dimension; none for vectors and scalars.
fn shapes(shape: &[i64]) -> Option<[Vec<i64>; 2]> {
    let last = shape.len().checked_sub(2)?;
    let without = |dim: usize| {
        let mut kept = shape.to_vec();
        kept.remove(dim);
        kept
    };
    Some([without(last + 1), without(last)])
}

impl Adafactor {
    /// An optimizer over named f32 parameters (the tensors are shared, and updated in place). `weight_decay` is 0 or more,
    /// decoupled.
    pub fn new(parameters: Vec<(String, Tensor)>, weight_decay: f64) -> Self {
        let moments = parameters.iter().map(|(_, p)| Moment::zeros(p)).collect();
        Self { weight_decay, parameters, moments, steps: 0 }
    }

    /// The parameters, in the order gradients are given.
    pub fn parameters(&self) -> &[(String, Tensor)] {
        &self.parameters
    }

    /// One update with learning rate `lr`; `gradients` in the order of [`Adafactor::parameters`], same shapes.
    ///
    /// Errors: [`crate::Error::Torch`] if a shape differs.
    pub fn step(&mut self, gradients: &[Tensor], lr: f64) -> Result<()> {
        let _guard = tch::no_grad_guard();
        self.steps += 1;
        let beta2 = 1.0 - (self.steps as f64).powf(DECAY_RATE);
        for ((gradient, moment), (_, parameter)) in gradients.iter().zip(&mut self.moments).zip(&self.parameters) {
            let squares = gradient.f_mul(gradient)?.f_add_scalar(EPSILON)?;
            let mut update = moment.inverse_root(&squares, beta2)?.f_mul(gradient)?;
            let rms = update.f_norm()?.f_div_scalar((update.numel() as f64).sqrt())?;
            let _ = update.f_div_(&rms.f_div_scalar(CLIP_THRESHOLD)?.f_clamp_min(1.0)?)?.f_mul_scalar_(lr)?;
            let mut parameter = parameter.shallow_clone();
            if self.weight_decay != 0.0 {
                let decay = parameter.f_mul_scalar(-self.weight_decay * lr)?;
                let _ = parameter.f_add_(&decay)?;
            }
            let _ = parameter.f_sub_(&update)?;
        }
        Ok(())
    }

    /// Bytes of the moments.
    pub fn state_bytes(&self) -> u64 {
        saved::bytes(self.moments())
    }

    /// The state as tensors: `row.<name>` and `column.<name>`, or `second.<name>`, sharing the moments' memory, and
    /// `steps`.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        saved::state(self.steps, self.moments())
    }

    /// Takes back what [`Adafactor::state`] gave, in the way and with the errors of [`super::AdamW::load_state`].
    pub fn load_state<'s>(&mut self, state: impl Into<SavedState<'s>>, path: &Path) -> Result<()> {
        self.steps = saved::load(|| self.moments(), state.into(), path)?;
        Ok(())
    }

    /// As new: before the first update.
    pub fn reset(&mut self) {
        saved::clear(self.moments());
        self.steps = 0;
    }

    /// The moments by their keys in [`Adafactor::state`].
    fn moments(&self) -> impl Iterator<Item = (String, &Tensor)> {
        self.parameters.iter().zip(&self.moments).flat_map(|((name, _), moment)| match moment {
            Moment::Whole(second) => vec![(format!("second.{name}"), second)],
            Moment::Factored { row, column } => vec![(format!("row.{name}"), row), (format!("column.{name}"), column)],
        })
    }
}
