//! Stochastic DDIM as a Markov chain of Gaussian steps (docs/methods.md section 2).

use std::f64::consts::PI;

use seedpo_model::config::TimestepSpacing;
use seedpo_model::schedule::NoiseSchedule;
use tch::{Kind, Tensor};

use crate::{Error, Result};

/// A DDIM sampler with a fixed number of steps: timesteps, and the Gaussian of each step.
///
/// Equals diffusers' `DDIMScheduler` with `timestep_spacing = "leading"`, `clip_sample = false`, no thresholding.
#[derive(Clone, Debug)]
pub struct Ddim {
    alphas_cumprod: Vec<f64>,
    final_alpha_cumprod: f64,
    timesteps: Vec<i64>,
    stride: i64,
    eta: f64,
}

/// The numbers of one step from t to t': square roots of ᾱ and the standard deviation σ.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Coefficients {
    pub(crate) sqrt_alpha: f64,
    pub(crate) sqrt_one_minus_alpha: f64,
    pub(crate) sqrt_alpha_prev: f64,
    pub(crate) direction: f64,
    pub(crate) sigma: f64,
}

impl Coefficients {
    /// The step from ᾱ to ᾱ' (`alpha_prev`).
    pub(crate) fn new(alpha: f64, alpha_prev: f64, eta: f64) -> Self {
        let variance = (1.0 - alpha_prev) / (1.0 - alpha) * (1.0 - alpha / alpha_prev);
        let sigma = eta * variance.max(0.0).sqrt();
        Self {
            sqrt_alpha: alpha.sqrt(),
            sqrt_one_minus_alpha: (1.0 - alpha).sqrt(),
            sqrt_alpha_prev: alpha_prev.sqrt(),
            direction: (1.0 - alpha_prev - sigma * sigma).max(0.0).sqrt(),
            sigma,
        }
    }
}

impl Ddim {
    /// A sampler of `steps` steps; `eta` in [0, 1] scales the noise (1 in every method that trains, 0 is deterministic).
    ///
    /// Timesteps are "leading" whatever the schedule says (docs/methods.md section 2): k·(T/steps) + `steps_offset`,
    /// descending, the offset 1 where the schedule's is meant for another spacing ([`Ddim::spacing_note`] says so). Below
    /// timestep 0 the previous ᾱ is ᾱ_0, or 1 where the schedule says `set_alpha_to_one`. Errors: [`Error::Setting`].
    pub fn new(schedule: &NoiseSchedule, steps: usize, eta: f64) -> Result<Self> {
        let offset = match other_spacing(schedule) {
            None => schedule.steps_offset,
            Some(_) => 1.min(schedule.num_train_timesteps - 1),
        };
        Self::from_alphas(schedule.alphas_cumprod.clone(), offset, schedule.set_alpha_to_one, steps, eta)
    }

    /// As [`Ddim::new`], with the last step as the published methods take it (docs/methods.md section 2), so that it has a
    /// density: offset 1 where the schedule has none, and ᾱ_0 below timestep 0 ([`Ddim::training_note`] says so).
    /// Errors: [`Error::Setting`].
    pub fn for_training(schedule: &NoiseSchedule, steps: usize, eta: f64) -> Result<Self> {
        let offset = schedule.steps_offset.max(1).min(schedule.num_train_timesteps - 1);
        Self::new(&NoiseSchedule { steps_offset: offset, set_alpha_to_one: false, ..schedule.clone() }, steps, eta)
    }

    /// What to tell the user of a schedule that [`Ddim::for_training`] does not take as it is.
    pub fn training_note(schedule: &NoiseSchedule) -> Option<String> {
        // For another spacing the offset is another anyway.
        let offset = if other_spacing(schedule).is_some() { 1 } else { schedule.steps_offset };
        let ends = match (schedule.set_alpha_to_one, offset) {
            (false, 1..) => return Self::spacing_note(schedule),
            (true, 1..) => "`set_alpha_to_one` true",
            (false, _) => "`steps_offset` 0",
            (true, _) => "`set_alpha_to_one` true and `steps_offset` 0",
        };
        let last = format!(
            "the model's scheduler_config.json says, or leaves it at, {ends}, which gives the last step no noise and so no \
             log-probability; training takes it as the published methods do, with `set_alpha_to_one` false and offset 1 \
             (docs/methods.md section 2)"
        );
        Some(Self::spacing_note(schedule).map_or(last.clone(), |spacing| format!("{spacing}; {last}")))
    }

    /// What to tell the user of a schedule that asks for another spacing than the one counted here.
    pub fn spacing_note(schedule: &NoiseSchedule) -> Option<String> {
        other_spacing(schedule).map(|spacing| {
            format!(
                "the model's scheduler_config.json says `timestep_spacing` {spacing}; the steps of training, its previews and \
                 the log-probabilities are counted as the published methods count them, leading with offset 1 \
                 (docs/methods.md section 2)"
            )
        })
    }

    /// As [`Ddim::new`], from the table ᾱ_0 .. ᾱ_{T−1} itself. The last may be 0 (zero terminal signal-to-noise ratio), but
    /// no step may begin there: the noise alone does not tell the picture.
    pub fn from_alphas(
        alphas_cumprod: Vec<f64>,
        steps_offset: i64,
        set_alpha_to_one: bool,
        steps: usize,
        eta: f64,
    ) -> Result<Self> {
        let total = alphas_cumprod.len();
        let falling = alphas_cumprod.windows(2).all(|pair| pair[1] < pair[0]);
        if total == 0 || !falling || alphas_cumprod[0] >= 1.0 || alphas_cumprod[total - 1] < 0.0 {
            return Err(Error::setting("alphas_cumprod", "strictly falling values in [0, 1)", "something else"));
        }
        if steps == 0 || steps > total {
            return Err(Error::setting("steps", format!("1 to {total}"), steps));
        }
        if !(0.0..=1.0).contains(&eta) {
            return Err(Error::setting("eta", "a number in [0, 1]", eta));
        }
        let stride = (total / steps) as i64;
        let timesteps: Vec<i64> = (0..steps as i64).rev().map(|k| k * stride + steps_offset).collect();
        if timesteps[0] >= total as i64 || steps_offset < 0 {
            let expected =
                format!("fewer steps: the first timestep would be {}, the last known is {}", timesteps[0], total - 1);
            return Err(Error::setting("steps", expected, steps));
        }
        if alphas_cumprod[timesteps[0] as usize] == 0.0 {
            return Err(Error::setting("steps", format!("fewer steps: {}", no_signal(timesteps[0])), steps));
        }
        let final_alpha_cumprod = if set_alpha_to_one { 1.0 } else { alphas_cumprod[0] };
        Ok(Self { alphas_cumprod, final_alpha_cumprod, timesteps, stride, eta })
    }

    /// The timesteps, descending; one U-Net evaluation at each.
    pub fn timesteps(&self) -> &[i64] {
        &self.timesteps
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.timesteps.len()
    }

    /// The noise scale η.
    pub fn eta(&self) -> f64 {
        self.eta
    }

    /// The timestep t' that the step from `timestep` leads to, not below 0.
    pub fn previous(&self, timestep: i64) -> i64 {
        (timestep - self.stride).max(0)
    }

    /// σ_t of the step from `timestep`. Errors: [`Error::Setting`] for a timestep outside the schedule.
    pub fn sigma(&self, timestep: i64) -> Result<f64> {
        Ok(self.coefficients(timestep)?.sigma)
    }

    /// dμ/dε of the step from `timestep`: the mean is linear in the noise prediction, with this one factor.
    /// Errors: as [`Ddim::sigma`].
    pub fn mean_slope(&self, timestep: i64) -> Result<f64> {
        let c = self.coefficients(timestep)?;
        Ok(c.direction - c.sqrt_alpha_prev * c.sqrt_one_minus_alpha / c.sqrt_alpha)
    }

    fn coefficients(&self, timestep: i64) -> Result<Coefficients> {
        let last = self.alphas_cumprod.len() as i64 - 1;
        if !(0..=last).contains(&timestep) {
            return Err(Error::setting("timestep", format!("0 to {last}"), timestep));
        }
        let alpha = self.alphas_cumprod[timestep as usize];
        if alpha == 0.0 {
            return Err(Error::setting("timestep", format!("at most {}: {}", last - 1, no_signal(timestep)), timestep));
        }
        let prev = timestep - self.stride;
        let alpha_prev = if prev >= 0 { self.alphas_cumprod[prev as usize] } else { self.final_alpha_cumprod };
        Ok(Coefficients::new(alpha, alpha_prev, self.eta))
    }

    /// The Gaussian of the step out of `latents` `[B, C, h, w]`, given the (guided) noise prediction of the same shape.
    ///
    /// `timesteps` has one entry per row, or one for all. Computed in f32 whatever the inputs' dtype. Gradients flow
    /// from the noise prediction into `mean` and `pred_x0`. Errors: [`Error::Shape`], [`Error::Setting`].
    pub fn transition(&self, timesteps: &[i64], latents: &Tensor, noise_pred: &Tensor) -> Result<Transition> {
        let size = latents.size();
        if size.is_empty() || noise_pred.size() != size {
            return Err(Error::shape("noise_pred", format!("{size:?} as latents"), format!("{:?}", noise_pred.size())));
        }
        let rows = size[0] as usize;
        if timesteps.len() != rows && timesteps.len() != 1 {
            return Err(Error::shape("timesteps", format!("1 or {rows} entries"), format!("{}", timesteps.len())));
        }
        let timesteps: Vec<i64> = (0..rows).map(|i| timesteps[if timesteps.len() == 1 { 0 } else { i }]).collect();
        let table = timesteps.iter().map(|&t| self.coefficients(t)).collect::<Result<Vec<_>>>()?;
        let column = |pick: fn(&Coefficients) -> f64| {
            let values: Vec<f32> = table.iter().map(|c| pick(c) as f32).collect();
            let mut shape = vec![1i64; size.len()];
            shape[0] = rows as i64;
            Tensor::from_slice(&values).reshape(shape).to_device(latents.device())
        };
        let latents = latents.f_to_kind(Kind::Float)?;
        let noise_pred = noise_pred.f_to_kind(Kind::Float)?;
        let pred_x0 = (latents - column(|c| c.sqrt_one_minus_alpha) * &noise_pred) / column(|c| c.sqrt_alpha);
        let mean = column(|c| c.sqrt_alpha_prev) * &pred_x0 + column(|c| c.direction) * noise_pred;
        let std = column(|c| c.sigma).reshape([-1]);
        let sigmas = table.iter().map(|c| c.sigma).collect();
        Ok(Transition { mean, std, pred_x0, sigmas, timesteps })
    }
}

/// The folder's spacing by its name, where it is not the one counted here.
fn other_spacing(schedule: &NoiseSchedule) -> Option<&'static str> {
    match schedule.timestep_spacing {
        None | Some(TimestepSpacing::Leading) => None,
        Some(TimestepSpacing::Trailing) => Some("trailing"),
        Some(TimestepSpacing::Linspace) => Some("linspace"),
    }
}

fn no_signal(timestep: i64) -> String {
    format!(
        "at timestep {timestep} the rescaled betas (`rescale_betas_zero_snr`) leave nothing of the picture, and its step is \
         not defined by the noise"
    )
}

/// The Gaussian N(mean, std²·I) of one DDIM step for a batch of rows; made by [`Ddim::transition`].
#[derive(Debug)]
pub struct Transition {
    /// μ_θ, `[B, C, h, w]` f32.
    pub mean: Tensor,
    /// σ_t, `[B]` f32.
    pub std: Tensor,
    /// x̂0, the clean latents the noise prediction implies, `[B, C, h, w]` f32.
    pub pred_x0: Tensor,
    sigmas: Vec<f64>,
    timesteps: Vec<i64>,
}

impl Transition {
    /// σ_t of every row, at full precision.
    pub fn sigmas(&self) -> &[f64] {
        &self.sigmas
    }

    /// x_t' = mean + std·noise. `noise` `[B, C, h, w]`, or one that broadcasts to it; `None` returns the mean.
    pub fn sample(&self, noise: Option<&Tensor>) -> Result<Tensor> {
        Ok(match noise {
            Some(noise) => &self.mean + self.std_column() * noise.f_to_device(self.mean.device())?,
            None => self.mean.shallow_clone(),
        })
    }

    /// log π(next | latents) per row, `[B]` f32 nats: the **mean** over the elements, not their sum.
    ///
    /// −(x−μ)²/(2σ²) − ln σ − ½ ln 2π, as D3PO and SPO use it (docs/methods.md section 2). Gradients flow through the
    /// mean only. Errors: [`Error::NoDensity`] where σ is 0, [`Error::Shape`].
    pub fn log_prob(&self, next: &Tensor) -> Result<Tensor> {
        let next = self.checked(next)?;
        Ok(self.log_density(&next, &self.std))
    }

    /// As [`log_prob`](Self::log_prob), but NaN for the rows where σ is 0. Errors: [`Error::Shape`].
    pub fn log_prob_where_defined(&self, next: &Tensor) -> Result<Tensor> {
        let next = self.fitting(next)?;
        let std = self.std.where_self(&self.std.gt(0.0), &self.std.full_like(f64::NAN));
        Ok(self.log_density(&next, &std))
    }

    fn log_density(&self, next: &Tensor, std: &Tensor) -> Tensor {
        let scaled = (next - &self.mean) / self.column(std);
        per_row_mean(&(&scaled * &scaled)) * -0.5 - std.log() - 0.5 * (2.0 * PI).ln()
    }

    /// log π_self(next) − log π_reference(next) per row, `[B]` f32 nats, for two Gaussians of equal std.
    ///
    /// Equals the difference of two [`Transition::log_prob`], written (μ−μ_ref)·(2x−μ−μ_ref)/(2σ²) so that two nearly
    /// equal numbers are never subtracted: exactly 0 where the means are equal. Errors: as `log_prob`; [`Error::Shape`]
    /// where the two transitions belong to different timesteps.
    pub fn log_ratio(&self, reference: &Transition, next: &Tensor) -> Result<Tensor> {
        if self.timesteps != reference.timesteps || self.sigmas != reference.sigmas {
            let (a, b) = (format!("{:?}", self.timesteps), format!("{:?}", reference.timesteps));
            return Err(Error::shape("timesteps of policy and reference", a, b));
        }
        let next = self.checked(next)?;
        let std = self.std_column();
        let apart = (&self.mean - &reference.mean) / &std;
        let offset = (next * 2.0 - &self.mean - &reference.mean) / std;
        Ok(per_row_mean(&(apart * offset)) * 0.5)
    }

    /// KL(self ‖ reference) per row and element, mean((μ−μ_ref)²)/(2σ²), `[B]` f32 nats without graph, for two Gaussians
    /// of equal std. Errors: [`Error::NoDensity`] where σ is 0.
    pub fn kl(&self, reference: &Transition) -> Result<Tensor> {
        let _ = self.checked(&reference.mean)?;
        let apart = (self.mean.detach() - reference.mean.detach()) / self.std_column();
        Ok(per_row_mean(&(&apart * &apart)) * 0.5)
    }

    /// d log π(next) / dε per element, `[B, C, h, w]` f32 without graph: (x−μ)/(σ²·N) · dμ/dε, N the elements of a row.
    ///
    /// `slopes` are [`Ddim::mean_slope`] per row. Errors: as [`Transition::log_prob`].
    pub fn log_prob_gradient(&self, next: &Tensor, slopes: &[f64]) -> Result<Tensor> {
        let next = self.checked(next)?;
        let elements = (self.mean.numel() / self.sigmas.len().max(1)) as f64;
        let factors: Vec<f32> =
            slopes.iter().zip(&self.sigmas).map(|(slope, sigma)| (slope / (sigma * sigma * elements)) as f32).collect();
        let mut shape = vec![1i64; self.mean.dim()];
        shape[0] = factors.len() as i64;
        let factors = Tensor::from_slice(&factors).f_reshape(shape)?.to_device(self.mean.device());
        Ok((next - self.mean.detach()) * factors)
    }

    fn checked(&self, next: &Tensor) -> Result<Tensor> {
        if let Some(row) = self.sigmas.iter().position(|&sigma| sigma <= 0.0) {
            return Err(Error::NoDensity { timestep: self.timesteps[row] });
        }
        self.fitting(next)
    }

    /// `next` in f32 and in the mean's place. Errors: [`Error::Shape`].
    fn fitting(&self, next: &Tensor) -> Result<Tensor> {
        if next.size() != self.mean.size() {
            return Err(Error::shape("next_latents", format!("{:?}", self.mean.size()), format!("{:?}", next.size())));
        }
        Ok(next.f_to_kind(Kind::Float)?.f_to_device(self.mean.device())?)
    }

    fn std_column(&self) -> Tensor {
        self.column(&self.std)
    }

    /// One number per row, to be multiplied with the rows.
    fn column(&self, values: &Tensor) -> Tensor {
        let mut shape = vec![1i64; self.mean.dim()];
        shape[0] = self.sigmas.len() as i64;
        values.reshape(shape)
    }
}

/// The mean over all dimensions but the first, `[B, ..]` -> `[B]`.
pub fn per_row_mean(values: &Tensor) -> Tensor {
    values.flatten(1, -1).mean_dim(&[-1i64][..], false, values.kind())
}
