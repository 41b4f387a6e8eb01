//! What a rollout needs of a model: a noise prediction for latents, timesteps and prompts.

use seedpo_model::policy::{Conditioning, Policy};
use tch::Tensor;

use crate::{Error, Result};

/// Predicts noise for a batch of latents. Gradients are kept where the caller's context and the adapter allow them.
pub trait NoisePredictor {
    /// ε for `latents` `[B, C, h, w]` at `timesteps` (one per row); `prompts` names the prompt of each row, an index
    /// into the prompts this predictor was made with. Returns `[B, C, h, w]` f32, guidance applied.
    fn predict(&self, latents: &Tensor, timesteps: &[i64], prompts: &[usize]) -> Result<Tensor>;

    /// U-Net evaluations per row: 2 under guidance, else 1.
    fn branches(&self) -> usize {
        1
    }
}

/// A policy together with its prompts and guidance scale.
#[derive(Clone, Copy)]
pub struct GuidedPolicy<'a> {
    policy: Policy<'a>,
    conditioning: &'a Conditioning,
    guidance_scale: f64,
    max_rows: usize,
}

impl<'a> GuidedPolicy<'a> {
    /// `conditioning.prompt_embeds` `[P, L, D]` holds the prompts that rows refer to by index; a `guidance_scale` of 1
    /// runs the conditional branch alone (docs/methods.md section 1).
    pub fn new(policy: Policy<'a>, conditioning: &'a Conditioning, guidance_scale: f64) -> Self {
        Self { policy, conditioning, guidance_scale, max_rows: usize::MAX }
    }

    /// Splits larger batches into passes of at most `rows` latents (guidance doubles them), to bound memory.
    pub fn with_max_rows(self, rows: usize) -> Self {
        Self { max_rows: rows.max(1), ..self }
    }

    fn predict_rows(&self, latents: &Tensor, timesteps: &[i64], prompts: &[usize]) -> Result<Tensor> {
        let rows: Vec<i64> = prompts.iter().map(|&prompt| prompt as i64).collect();
        let conditioning = self.conditioning.rows(&rows)?;
        let timesteps = Tensor::from_slice(timesteps).to_device(latents.device());
        Ok(self.policy.predict_noise(latents, &timesteps, &conditioning, self.guidance_scale)?)
    }
}

impl NoisePredictor for GuidedPolicy<'_> {
    fn predict(&self, latents: &Tensor, timesteps: &[i64], prompts: &[usize]) -> Result<Tensor> {
        let rows = latents.size().first().copied().unwrap_or(0) as usize;
        if timesteps.len() != rows || prompts.len() != rows {
            let found = format!("{} timesteps and {} prompts", timesteps.len(), prompts.len());
            return Err(Error::shape("rows", format!("{rows} of each, as latents"), found));
        }
        if rows <= self.max_rows {
            return self.predict_rows(latents, timesteps, prompts);
        }
        let parts = (0..rows)
            .step_by(self.max_rows)
            .map(|start| {
                let end = (start + self.max_rows).min(rows);
                let latents = latents.f_narrow(0, start as i64, (end - start) as i64)?;
                self.predict_rows(&latents, &timesteps[start..end], &prompts[start..end])
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_cat(&parts, 0)?)
    }

    fn branches(&self) -> usize {
        if self.guidance_scale == 1.0 { 1 } else { 2 }
    }
}
