//! The numbers of one step of each sampler.

use seedpo_model::config::PredictionType;

use super::levels::Level;
use crate::ddim::Coefficients;

/// One step: the U-Net is asked for its output at `input · x` and `timestep`; then
/// `x̂0 = x0_from_latents · x + x0_from_output · output` and
/// `x' = latents · x + x0 · x̂0 + previous_x0 · (x̂0 of the step before) + noise · z`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    pub timestep: f64,
    pub input: f64,
    pub x0_from_latents: f64,
    pub x0_from_output: f64,
    pub latents: f64,
    pub x0: f64,
    pub previous_x0: f64,
    pub noise: f64,
}

impl Stage {
    /// DDIM from ᾱ `alpha` to `next`, latents in the variance-preserving scale.
    pub fn ddim(timestep: f64, alpha: f64, next: f64, eta: f64, output: PredictionType) -> Self {
        let c = Coefficients::new(alpha, next, eta);
        Self {
            // ε of the step's direction, written out: (x − √ᾱ x̂0) / √(1−ᾱ).
            latents: c.direction / c.sqrt_one_minus_alpha,
            x0: c.sqrt_alpha_prev - c.direction * c.sqrt_alpha / c.sqrt_one_minus_alpha,
            noise: c.sigma,
            ..Self::variance_preserving(timestep, c.sqrt_alpha, c.sqrt_one_minus_alpha, output)
        }
    }

    /// DPM-Solver++ (2M, midpoint) from a level to σ `next`; second order where σ of the step `before` is given.
    pub fn dpm_solver(level: Level, next: f64, before: Option<f64>, output: PredictionType) -> Self {
        let alpha = |sigma: f64| 1.0 / sigma.hypot(1.0);
        let sigma = level.sigma;
        // α' (1 − e^{−h}), h the step in log-SNR, e^{−h} = σ' / σ.
        let whole = alpha(next) * (1.0 - next / sigma);
        // D1 / 2 = (x̂0 − previous) / (2 r), r the ratio of the steps in log-SNR.
        let half = before.map_or(0.0, |before| 0.5 * (sigma / next).ln() / (before / sigma).ln());
        Self {
            latents: next * alpha(next) / (sigma * alpha(sigma)),
            x0: whole * (1.0 + half),
            previous_x0: -whole * half,
            ..Self::variance_preserving(level.timestep, alpha(sigma), sigma * alpha(sigma), output)
        }
    }

    /// Euler from a level to σ `next`, latents x_0 + σ ε; ancestral steps go further down and add noise.
    pub fn euler(level: Level, next: f64, ancestral: bool, output: PredictionType) -> Self {
        let sigma = level.sigma;
        let variance = sigma * sigma + 1.0;
        let up = if ancestral { next * (1.0 - (next / sigma).powi(2)).sqrt() } else { 0.0 };
        let down = (next * next - up * up).max(0.0).sqrt();
        let (x0_from_latents, x0_from_output) = match output {
            PredictionType::Epsilon => (1.0, -sigma),
            PredictionType::VPrediction => (1.0 / variance, -sigma / variance.sqrt()),
            PredictionType::Sample => (0.0, 1.0),
        };
        Self {
            timestep: level.timestep,
            input: 1.0 / variance.sqrt(),
            x0_from_latents,
            x0_from_output,
            latents: down / sigma,
            x0: 1.0 - down / sigma,
            previous_x0: 0.0,
            noise: up,
        }
    }

    /// x̂0 for latents `alpha x_0 + sigma ε`; no step yet.
    fn variance_preserving(timestep: f64, alpha: f64, sigma: f64, output: PredictionType) -> Self {
        let (x0_from_latents, x0_from_output) = match output {
            PredictionType::Epsilon => (1.0 / alpha, -sigma / alpha),
            PredictionType::VPrediction => (alpha, -sigma),
            PredictionType::Sample => (0.0, 1.0),
        };
        Self {
            timestep,
            input: 1.0,
            x0_from_latents,
            x0_from_output,
            latents: 0.0,
            x0: 0.0,
            previous_x0: 0.0,
            noise: 0.0,
        }
    }
}
