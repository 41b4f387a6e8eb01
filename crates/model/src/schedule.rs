//! The training noise schedule: how much signal and noise a latent has at each timestep.

use tch::{Device, Kind, Tensor};

use crate::config::{BetaSchedule, PredictionType, SchedulerConfig, TimestepSpacing};
use crate::{Error, Result};

/// The noise schedule of a diffusers folder (docs/methods.md section 1), whatever sampler the folder names.
///
/// The betas and their cumulative product are computed in f32 by the same libtorch kernels as diffusers' schedulers,
/// then widened: so [`alphas_cumprod`](Self::alphas_cumprod) equals theirs bit for bit. All-f64 arithmetic would be
/// 1e-6 (relative) away from the values that the published models were trained with.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseSchedule {
    /// ᾱ_t for t = 0 .. `num_train_timesteps`: in (0, 1), strictly falling; the last is 0 where the betas are rescaled to
    /// zero terminal signal-to-noise ratio.
    pub alphas_cumprod: Vec<f64>,
    /// What the U-Net's output means.
    pub prediction_type: PredictionType,
    /// Added to every sampling timestep under leading spacing.
    pub steps_offset: i64,
    /// Whether the step below timestep 0 has ᾱ = 1 rather than ᾱ_0.
    pub set_alpha_to_one: bool,
    /// Which timesteps a sampler visits; `None` where the folder leaves it to the sampler.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// How the betas grow.
    pub beta_schedule: BetaSchedule,
    /// How many timesteps the model was trained on.
    pub num_train_timesteps: i64,
}

impl NoiseSchedule {
    /// From the folder's configuration.
    ///
    /// Errors: [`Error::Argument`] where betas are outside (0, 1), where ᾱ does not fall strictly, and where it reaches 0
    /// without `rescale_betas_zero_snr`.
    pub fn new(config: &SchedulerConfig) -> Result<Self> {
        let rescaled = config.rescale_betas_zero_snr;
        let betas = betas(config)?;
        let betas = if rescaled { rescaled_to_zero_terminal_snr(&betas)? } else { betas };
        let values = Vec::<f64>::try_from(betas.to_kind(Kind::Double))?;
        if let Some(beta) = values.iter().find(|&&beta| !(beta > 0.0 && (beta < 1.0 || rescaled && beta == 1.0))) {
            return Err(wrong("betas", "numbers between 0 and 1", beta));
        }
        let alphas: Tensor = 1.0 - betas;
        let alphas_cumprod = Vec::<f64>::try_from(alphas.cumprod(0, Kind::Float).to_kind(Kind::Double))?;
        let falls = alphas_cumprod.windows(2).all(|pair| pair[1] < pair[0]);
        match alphas_cumprod.last() {
            Some(&last) if falls && (last > 0.0 || rescaled && last == 0.0) => {}
            last => return Err(wrong("alphas_cumprod", "a strictly falling row above 0", format!("last {last:?}"))),
        }
        Ok(Self {
            alphas_cumprod,
            prediction_type: config.prediction_type,
            steps_offset: config.steps_offset,
            set_alpha_to_one: config.set_alpha_to_one,
            timestep_spacing: config.timestep_spacing,
            beta_schedule: config.beta_schedule,
            num_train_timesteps: config.num_train_timesteps,
        })
    }

    /// ᾱ at a timestep; below 0 it is 1 with `set_alpha_to_one`, else ᾱ_0 (docs/methods.md section 2). Above the last
    /// timestep it is the last ᾱ.
    pub fn alpha_cumprod(&self, timestep: i64) -> f64 {
        match usize::try_from(timestep) {
            Err(_) if self.set_alpha_to_one => 1.0,
            Err(_) => self.alphas_cumprod.first().copied().unwrap_or(1.0),
            Ok(t) => self.alphas_cumprod.get(t).or(self.alphas_cumprod.last()).copied().unwrap_or(1.0),
        }
    }

    /// `x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε`, f32.
    ///
    /// `x0` and `noise` `[B, ...]`, `timesteps` i64 `[B]` or `[1]`. Equal to diffusers' `add_noise`.
    /// Errors: [`Error::Argument`] for a timestep outside the schedule, [`Error::Torch`] where shapes do not fit.
    pub fn add_noise(&self, x0: &Tensor, noise: &Tensor, timesteps: &Tensor) -> Result<Tensor> {
        let (signal, sigma) = self.coefficients(timesteps, x0)?;
        Ok((signal.f_mul(&float(x0))?).f_add(&sigma.f_mul(&float(noise))?)?)
    }

    /// The v that a v-prediction model is trained on, `v = √ᾱ_t ε − √(1−ᾱ_t) x_0`, f32; shapes and errors as
    /// [`add_noise`](Self::add_noise). Equal to diffusers' `get_velocity`.
    pub fn velocity(&self, x0: &Tensor, noise: &Tensor, timesteps: &Tensor) -> Result<Tensor> {
        let (signal, sigma) = self.coefficients(timesteps, x0)?;
        Ok((signal.f_mul(&float(noise))?).f_sub(&sigma.f_mul(&float(x0))?)?)
    }

    /// The noise that a predicted v stands for, `ε = √ᾱ_t v + √(1−ᾱ_t) x_t`, f32; shapes and errors as
    /// [`add_noise`](Self::add_noise).
    pub fn eps_from_v(&self, v: &Tensor, latents: &Tensor, timesteps: &Tensor) -> Result<Tensor> {
        let (signal, sigma) = self.coefficients(timesteps, latents)?;
        Ok((signal.f_mul(&float(v))?).f_add(&sigma.f_mul(&float(latents))?)?)
    }

    /// The noise that a predicted x_0 stands for, `ε = (x_t − √ᾱ_t x_0) / √(1−ᾱ_t)`, f32; shapes and errors as
    /// [`add_noise`](Self::add_noise).
    pub fn eps_from_clean(&self, x0: &Tensor, latents: &Tensor, timesteps: &Tensor) -> Result<Tensor> {
        let (signal, sigma) = self.coefficients(timesteps, latents)?;
        Ok(float(latents).f_sub(&signal.f_mul(&float(x0))?)?.f_div(&sigma)?)
    }

    /// The x_0 that predicted noise stands for, `(x_t − √(1−ᾱ_t) ε) / √ᾱ_t`, f32; shapes and errors as
    /// [`add_noise`](Self::add_noise), and [`Error::Argument`] for a timestep at which ᾱ is 0.
    pub fn clean_latents(&self, latents: &Tensor, epsilon: &Tensor, timesteps: &Tensor) -> Result<Tensor> {
        let last = self.num_train_timesteps - 1;
        if self.alpha_cumprod(last) == 0.0 && timesteps.max().int64_value(&[]) == last {
            let expected =
                format!("below {last}, where the rescaled betas leave nothing of the picture beside the noise");
            return Err(wrong("timestep", expected, last));
        }
        let (signal, sigma) = self.coefficients(timesteps, latents)?;
        Ok(float(latents).f_sub(&sigma.f_mul(&float(epsilon))?)?.f_div(&signal)?)
    }

    /// The network's raw output as noise ε, f32: itself for epsilon models, [`eps_from_v`](Self::eps_from_v) for v,
    /// [`eps_from_clean`](Self::eps_from_clean) where it is the clean latents.
    pub fn to_epsilon(&self, output: &Tensor, latents: &Tensor, timesteps: &Tensor) -> Result<Tensor> {
        match self.prediction_type {
            PredictionType::Epsilon => Ok(float(output)),
            PredictionType::VPrediction => self.eps_from_v(output, latents, timesteps),
            PredictionType::Sample => self.eps_from_clean(output, latents, timesteps),
        }
    }

    /// The clean latents that the network's raw output stands for, f32; shapes and errors as
    /// [`clean_latents`](Self::clean_latents), of epsilon models only.
    pub fn to_clean(&self, output: &Tensor, latents: &Tensor, timesteps: &Tensor) -> Result<Tensor> {
        match self.prediction_type {
            PredictionType::Epsilon => self.clean_latents(latents, output, timesteps),
            PredictionType::Sample => Ok(float(output)),
            PredictionType::VPrediction => {
                let (signal, sigma) = self.coefficients(timesteps, latents)?;
                Ok(signal.f_mul(&float(latents))?.f_sub(&sigma.f_mul(&float(output))?)?)
            }
        }
    }

    /// √ᾱ_t and √(1−ᾱ_t), f32 `[B, 1, ...]`, on `like`'s device and with its number of axes.
    fn coefficients(&self, timesteps: &Tensor, like: &Tensor) -> Result<(Tensor, Tensor)> {
        let steps = Vec::<i64>::try_from(timesteps.to_device(Device::Cpu).to_kind(Kind::Int64).flatten(0, -1))?;
        let last = self.num_train_timesteps - 1;
        if let Some(step) = steps.iter().find(|&&t| t < 0 || t > last) {
            return Err(wrong("timestep", format!("0 to {last}"), step));
        }
        let mut shape = vec![1; like.dim().max(1)];
        shape[0] = steps.len() as i64;
        let alphas: Vec<f64> = steps.iter().map(|&t| self.alpha_cumprod(t)).collect();
        let column = |f: fn(f64) -> f64| {
            let values: Vec<f32> = alphas.iter().map(|&alpha| f(alpha) as f32).collect();
            Tensor::from_slice(&values).reshape(&shape).to_device(like.device())
        };
        Ok((column(f64::sqrt), column(|alpha| (1.0 - alpha).sqrt())))
    }
}

fn float(tensor: &Tensor) -> Tensor {
    tensor.to_kind(Kind::Float)
}

/// diffusers' betas, f32 `[num_train_timesteps]`.
fn betas(config: &SchedulerConfig) -> Result<Tensor> {
    let (count, options) = (config.num_train_timesteps, (Kind::Float, Device::Cpu));
    let (start, end) = (config.beta_start, config.beta_end);
    if let Some(trained) = &config.trained_betas {
        let values: Vec<f32> = trained.iter().map(|&beta| beta as f32).collect();
        return Ok(Tensor::from_slice(&values));
    }
    Ok(match config.beta_schedule {
        BetaSchedule::Linear => Tensor::f_linspace(start, end, count, options)?,
        BetaSchedule::ScaledLinear => Tensor::f_linspace(start.sqrt(), end.sqrt(), count, options)?.f_square()?,
        BetaSchedule::SquaredcosCapV2 => Tensor::from_slice(&cosine_betas(count)),
    })
}

/// diffusers' `rescale_zero_terminal_snr` by the same f32 kernels (algorithm 1 of Lin et al. 2023): √ᾱ moved and stretched
/// so that the last is 0 and the first what it was.
fn rescaled_to_zero_terminal_snr(betas: &Tensor) -> Result<Tensor> {
    let alphas: Tensor = 1.0 - betas;
    let roots = alphas.f_cumprod(0, Kind::Float)?.f_sqrt()?;
    let count = roots.size()[0];
    let (first, last) = (roots.f_narrow(0, 0, 1)?, roots.f_narrow(0, count - 1, 1)?);
    let roots = (&roots - &last) * (&first / (&first - &last));
    let bars = roots.f_square()?;
    let alphas = bars.f_narrow(0, 1, count - 1)?.f_div(&bars.f_narrow(0, 0, count - 1)?)?;
    Ok(1.0 - Tensor::f_cat(&[&bars.f_narrow(0, 0, 1)?, &alphas], 0)?)
}

/// `betas_for_alpha_bar` of diffusers: f64 until the last cast.
fn cosine_betas(count: i64) -> Vec<f32> {
    let alpha_bar = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos().powi(2);
    let at = |i: i64| i as f64 / count as f64;
    (0..count).map(|i| (1.0 - alpha_bar(at(i + 1)) / alpha_bar(at(i))).min(0.999) as f32).collect()
}

fn wrong(key: &str, expected: impl Into<String>, found: impl std::fmt::Display) -> Error {
    Error::Argument { what: format!("noise schedule: `{key}`"), expected: expected.into(), found: found.to_string() }
}
