//! How a store's samples were drawn, and what a run that trains on them must have in common with that.

use seedpo_model::NoiseSchedule;
use seedpo_rollout::Ddim;
use serde::{Deserialize, Serialize};

/// Everything on which the samples of a store depend, and what a run that trains on it must have in common with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoreSettings {
    /// `trajectories` or `steps`.
    pub pairs: String,
    /// Shape of one latent, `[C, h, w]`.
    pub latent_shape: Vec<i64>,
    /// The sampler's timesteps, descending.
    pub timesteps: Vec<i64>,
    /// ᾱ at those timesteps.
    pub alphas_cumprod: Vec<f64>,
    /// η of the sampler.
    pub eta: f64,
    /// Guidance that pictures were drawn under.
    pub guidance_scale: f64,
}

/// What else is recorded: settings of the rollout that a run need not share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoreOrigin {
    /// The base model as it was named.
    pub model: String,
    /// The judge or judges.
    pub judge: String,
    /// The seed.
    pub seed: u64,
    /// Prompts per iteration, which is per file.
    pub prompts_per_iteration: u64,
    /// For steps: candidates, the first step with some, the threshold and the judge's scale, in words.
    pub branching: Option<String>,
}

impl StoreSettings {
    /// What samples drawn with these have in common with any run that may train on them.
    pub fn new(pairs: &str, latent_shape: &[i64], ddim: &Ddim, schedule: &NoiseSchedule, guidance_scale: f64) -> Self {
        let timesteps = ddim.timesteps().to_vec();
        Self {
            pairs: pairs.into(),
            latent_shape: latent_shape.to_vec(),
            alphas_cumprod: timesteps.iter().map(|&t| schedule.alpha_cumprod(t)).collect(),
            timesteps,
            eta: ddim.eta(),
            guidance_scale,
        }
    }

    /// What differs, as `name: the store has .., the run ..`.
    pub(super) fn differences(&self, run: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |name: &str, store: String, run: String| {
            if store != run {
                found.push(format!("{name}: the store has {store}, the run {run}"));
            }
        };
        compare("pairs", self.pairs.clone(), run.pairs.clone());
        compare("latents", format!("{:?}", self.latent_shape), format!("{:?}", run.latent_shape));
        compare("steps", self.timesteps.len().to_string(), run.timesteps.len().to_string());
        compare("eta", self.eta.to_string(), run.eta.to_string());
        compare("guidance_scale", self.guidance_scale.to_string(), run.guidance_scale.to_string());
        // Numbers in JSON are read back to the last but one digit.
        let mut alphas = self.alphas_cumprod.iter().zip(&run.alphas_cumprod);
        let same_noise = alphas.all(|(a, b)| (a - b).abs() < 1e-12);
        if found.is_empty() && !(self.timesteps == run.timesteps && same_noise) {
            found.push("the noise schedule: other timesteps or other noise at them".into());
        }
        found
    }
}
