//! `scheduler/scheduler_config.json`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Reader, wrong};
use crate::Result;

/// How beta grows from `beta_start` to `beta_end` over the training timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly spaced.
    Linear,
    /// Squares of evenly spaced square roots (Stable Diffusion).
    ScaledLinear,
    /// The cosine schedule of improved DDPM; `beta_start` and `beta_end` are not used.
    SquaredcosCapV2,
}

/// What the U-Net's output means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// `sqrt(alpha) * noise - sqrt(1 - alpha) * x0` (SD 2.x at 768).
    VPrediction,
    /// The clean latents x0.
    Sample,
}

impl PredictionType {
    /// The type of this name in config files (`epsilon`, `v_prediction`, `sample`), or `None`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "epsilon" => Some(Self::Epsilon),
            "v_prediction" => Some(Self::VPrediction),
            "sample" => Some(Self::Sample),
            _ => None,
        }
    }
}

/// Which training timesteps a sampler of fewer steps visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Multiples of the step ratio, plus `steps_offset`.
    Leading,
    /// Counted back from the last timestep.
    Trailing,
    /// Evenly spaced with both ends.
    Linspace,
}

/// The training noise schedule, named and defaulted as in diffusers' `DDIMScheduler`, whatever sampler the folder
/// names; the options of that sampler are kept aside.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    /// The sampler the folder names, e.g. `PNDMScheduler`.
    pub class_name: String,
    /// Training timesteps.
    pub num_train_timesteps: i64,
    /// First beta.
    pub beta_start: f64,
    /// Last beta.
    pub beta_end: f64,
    /// The way between.
    pub beta_schedule: BetaSchedule,
    /// All betas, instead of the three above.
    pub trained_betas: Option<Vec<f64>>,
    /// What the U-Net predicts.
    pub prediction_type: PredictionType,
    /// Added to each timestep under [`TimestepSpacing::Leading`].
    pub steps_offset: i64,
    /// The step below timestep 0 has alpha 1 rather than that of timestep 0.
    pub set_alpha_to_one: bool,
    /// Which timesteps a sampler visits; `None` where the folder does not say: then each sampler has its own default,
    /// as in diffusers' `from_config`.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Whether the folder asks to clip x0; `StableDiffusionPipeline` turns it off, and so do we.
    pub clip_sample: bool,
    /// Whether betas are rescaled to zero terminal signal-to-noise ratio.
    pub rescale_betas_zero_snr: bool,
    /// What the folder says besides: options of its sampler, which shape no noise schedule. Not written again.
    pub sampler_options: BTreeMap<String, Value>,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            class_name: "DDIMScheduler".into(),
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            prediction_type: PredictionType::Epsilon,
            steps_offset: 0,
            set_alpha_to_one: true,
            timestep_spacing: None,
            clip_sample: false,
            rescale_betas_zero_snr: false,
            sampler_options: BTreeMap::new(),
        }
    }
}

/// Options that belong to samplers, not to the noise schedule.
const SAMPLER_OPTIONS: &[&str] = &[
    "algorithm_type",
    "clip_sample_range",
    "disable_corrector",
    "dynamic_thresholding_ratio",
    "euler_at_final",
    "final_sigmas_type",
    "flow_shift",
    "interpolation_type",
    "lambda_min_clipped",
    "lower_order_final",
    "noise_sampler_seed",
    "original_inference_steps",
    "predict_x0",
    "sample_max_value",
    "shift_terminal",
    "sigma_max",
    "sigma_min",
    "skip_prk_steps",
    "solver_order",
    "solver_p",
    "solver_type",
    "time_shift_type",
    "timestep_scaling",
    "timestep_type",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_flow_sigmas",
    "use_karras_sigmas",
    "use_lu_lambdas",
    "variance_type",
];

super::from_json_file!(SchedulerConfig);

impl SchedulerConfig {
    /// Stable Diffusion's own: scaled-linear betas 0.00085 to 0.012, offset 1, alpha of timestep 0 at the end.
    pub fn stable_diffusion() -> Self {
        Self {
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            steps_offset: 1,
            set_alpha_to_one: false,
            timestep_spacing: Some(TimestepSpacing::Leading),
            ..Self::default()
        }
    }

    fn read(mut r: Reader, path: &Path) -> Result<Self> {
        let d = Self::default();
        let (int, real, flag) = ("an integer", "a number", "true or false");
        let config = Self {
            class_name: r.take("_class_name", "a string", d.class_name)?,
            num_train_timesteps: r.take("num_train_timesteps", int, d.num_train_timesteps)?,
            beta_start: r.take("beta_start", real, d.beta_start)?,
            beta_end: r.take("beta_end", real, d.beta_end)?,
            beta_schedule: r.take("beta_schedule", "linear, scaled_linear or squaredcos_cap_v2", d.beta_schedule)?,
            trained_betas: r.take("trained_betas", "a list of numbers or null", d.trained_betas)?,
            prediction_type: r.take("prediction_type", "epsilon, v_prediction or sample", d.prediction_type)?,
            steps_offset: r.take("steps_offset", int, d.steps_offset)?,
            set_alpha_to_one: r.take("set_alpha_to_one", flag, d.set_alpha_to_one)?,
            timestep_spacing: r.take("timestep_spacing", "leading, trailing or linspace", d.timestep_spacing)?,
            clip_sample: r.take("clip_sample", flag, d.clip_sample)?,
            rescale_betas_zero_snr: r.take("rescale_betas_zero_snr", flag, d.rescale_betas_zero_snr)?,
            sampler_options: SAMPLER_OPTIONS.iter().filter_map(|key| Some(((*key).to_owned(), r.raw(key)?))).collect(),
        };
        r.only(&[("thresholding", json!(false))])?;
        r.finish()?;
        config.validate_at(path)?;
        Ok(config)
    }

    /// The contents of `scheduler_config.json`, written as a DDIM scheduler's.
    pub fn to_json(&self) -> Value {
        let mut config = json!({
            "_class_name": "DDIMScheduler",
            "_diffusers_version": "0.38.0",
            "beta_end": self.beta_end,
            "beta_schedule": self.beta_schedule,
            "beta_start": self.beta_start,
            "clip_sample": self.clip_sample,
            "num_train_timesteps": self.num_train_timesteps,
            "prediction_type": self.prediction_type,
            "rescale_betas_zero_snr": self.rescale_betas_zero_snr,
            "set_alpha_to_one": self.set_alpha_to_one,
            "steps_offset": self.steps_offset,
            "trained_betas": self.trained_betas,
        });
        if let Some(spacing) = self.timestep_spacing {
            config["timestep_spacing"] = json!(spacing);
        }
        config
    }

    fn validate_at(&self, path: &Path) -> Result<()> {
        let steps = self.num_train_timesteps;
        if !(1..=1_000_000).contains(&steps) {
            return Err(wrong(path, "num_train_timesteps", "1 to 1000000", steps));
        }
        if !(0..steps).contains(&self.steps_offset) {
            return Err(wrong(path, "steps_offset", "0 or more, below num_train_timesteps", self.steps_offset));
        }
        for (key, beta) in [("beta_start", self.beta_start), ("beta_end", self.beta_end)] {
            if !(beta > 0.0 && beta < 1.0) {
                return Err(wrong(path, key, "between 0 and 1", beta));
            }
        }
        match &self.trained_betas {
            Some(betas) if betas.len() as i64 != steps || betas.iter().any(|b| !(*b > 0.0 && *b < 1.0)) => {
                let expected = format!("{steps} numbers between 0 and 1");
                Err(wrong(path, "trained_betas", expected, format!("{} numbers", betas.len())))
            }
            _ => Ok(()),
        }
    }
}
