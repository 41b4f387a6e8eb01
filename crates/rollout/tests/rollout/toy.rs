//! A noise predictor in closed form that records its calls.

use std::cell::RefCell;

use seedpo_rollout::{Ddim, NoisePredictor, Result};
use seedpo_tensor::NoiseKey;
use tch::{Kind, Tensor};

/// ε = tanh(0.4·x + 0.2·prompt) + t/2000, elementwise: nonlinear, and different for each prompt and timestep.
#[derive(Default)]
pub struct Toy {
    /// Timestep and number of rows of each call.
    pub calls: RefCell<Vec<(i64, usize)>>,
}

impl NoisePredictor for Toy {
    fn predict(&self, latents: &Tensor, timesteps: &[i64], prompts: &[usize]) -> Result<Tensor> {
        self.calls.borrow_mut().push((timesteps[0], prompts.len()));
        let shift = |values: Vec<f32>| Tensor::from_slice(&values).reshape([-1, 1, 1, 1]);
        let prompt = shift(prompts.iter().map(|&p| 0.2 * p as f32).collect());
        let time = shift(timesteps.iter().map(|&t| t as f32 / 2000.0).collect());
        Ok((latents * 0.4 + prompt).tanh() + time)
    }

    fn branches(&self) -> usize {
        2
    }
}

/// Stable Diffusion's schedule in f64.
pub fn alphas() -> Vec<f64> {
    let (start, end) = (0.00085f64.sqrt(), 0.012f64.sqrt());
    let mut product = 1.0;
    (0..1000)
        .map(|i| {
            let root = start + (end - start) * i as f64 / 999.0;
            product *= 1.0 - root * root;
            product
        })
        .collect()
}

/// The sampler of the published methods with few steps.
pub fn sampler(steps: usize, eta: f64) -> Ddim {
    Ddim::from_alphas(alphas(), 1, false, steps, eta).unwrap()
}

/// One key per row.
pub fn keys(rows: usize) -> Vec<NoiseKey> {
    (0..rows).map(|row| NoiseKey::new(3, "test").prompt(row as u64)).collect()
}

pub fn same(a: &Tensor, b: &Tensor) -> bool {
    a.size() == b.size() && a.eq_tensor(b).all().int64_value(&[]) == 1
}

pub fn largest(difference: &Tensor) -> f64 {
    difference.abs().max().to_kind(Kind::Double).double_value(&[])
}
