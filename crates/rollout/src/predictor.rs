//! What a rollout needs of a model: a noise prediction for latents, timesteps and prompts.

use std::cell::RefCell;

use seedpo_model::policy::{Conditioning, Policy};
use tch::{Kind, Tensor};

use crate::{Error, Result};

/// Predicts noise for a batch of latents. Gradients are kept where the caller's context and the adapter allow them.
pub trait NoisePredictor {
    /// ε for `latents` `[B, C, h, w]` at `timesteps` (one per row); `prompts` names the prompt of each row, an index
    /// into the prompts this predictor was made with. Returns `[B, C, h, w]` f32, guidance applied.
    fn predict(&self, latents: &Tensor, timesteps: &[i64], prompts: &[usize]) -> Result<Tensor>;

    /// As [`predict`](Self::predict), without graph; what it returns besides sends a gradient back through it.
    ///
    /// Exact whatever is done with ε in between, and no activations are kept meanwhile: as it is here the prediction
    /// runs again with its graph; a policy with [`GuidedPolicy::with_checkpointing`] keeps less than that.
    fn record<'a>(&'a self, latents: &Tensor, timesteps: &[i64], prompts: &[usize]) -> Result<(Tensor, Pullback<'a>)> {
        let noise = tch::no_grad(|| self.predict(latents, timesteps, prompts))?;
        let (latents, timesteps, prompts) = (latents.shallow_clone(), timesteps.to_vec(), prompts.to_vec());
        let again = move |gradient: &Tensor| {
            Ok((self.predict(&latents, &timesteps, &prompts)? * gradient).sum(Kind::Float).f_backward()?)
        };
        Ok((noise, Box::new(again)))
    }

    /// Whether [`record`](Self::record) is how gradients should be taken.
    fn checkpoints(&self) -> bool {
        false
    }

    /// U-Net evaluations per row: 2 under guidance, else 1.
    fn branches(&self) -> usize {
        1
    }
}

/// Adds the gradient of ⟨ε, g⟩, g `[B, C, h, w]`, to `.grad` of what ε depends on.
pub type Pullback<'a> = Box<dyn FnOnce(&Tensor) -> Result<()> + 'a>;

/// What [`crate::Sampler`] needs of a model: its guided output, unconverted.
pub trait OutputPredictor {
    /// The network's output (ε or v, by the schedule's prediction type) for `latents` `[B, C, h, w]`, all at one
    /// timestep, fractional for some samplers; `prompts` as in [`NoisePredictor::predict`]. `[B, C, h, w]` f32.
    fn output(&self, latents: &Tensor, timestep: f64, prompts: &[usize]) -> Result<Tensor>;
}

/// A policy together with its prompts and guidance scale.
#[derive(Clone, Copy)]
pub struct GuidedPolicy<'a> {
    policy: Policy<'a>,
    conditioning: &'a Conditioning,
    guidance_scale: f64,
    max_rows: usize,
    checkpointing: bool,
}

impl<'a> GuidedPolicy<'a> {
    /// `conditioning.prompt_embeds` `[P, L, D]` holds the prompts that rows refer to by index; a `guidance_scale` of 1
    /// runs the conditional branch alone (docs/methods.md section 1).
    pub fn new(policy: Policy<'a>, conditioning: &'a Conditioning, guidance_scale: f64) -> Self {
        Self { policy, conditioning, guidance_scale, max_rows: usize::MAX, checkpointing: false }
    }

    /// Splits larger batches into passes of at most `rows` latents (guidance doubles them), to bound memory.
    pub fn with_max_rows(self, rows: usize) -> Self {
        Self { max_rows: rows.max(1), ..self }
    }

    /// With gradient checkpointing (where `on`): [`NoisePredictor::record`] keeps the inputs of the U-Net's stages and
    /// runs them again one at a time, so that memory is that of one stage.
    pub fn with_checkpointing(self, on: bool) -> Self {
        Self { checkpointing: on, ..self }
    }

    /// Runs `pass` on at most `max_rows` latents at a time, with their timesteps and conditioning.
    fn in_parts(&self, latents: &Tensor, timesteps: &Tensor, prompts: &[usize], pass: &Pass<'a, '_>) -> Result<Tensor> {
        let rows = latents.size().first().copied().unwrap_or(0) as usize;
        if timesteps.size()[0] as usize != rows || prompts.len() != rows {
            let found = format!("{} timesteps and {} prompts", timesteps.size()[0], prompts.len());
            return Err(Error::shape("rows", format!("{rows} of each, as latents"), found));
        }
        let timesteps = timesteps.to_device(latents.device());
        let part = |start: usize, count: usize| {
            let indices: Vec<i64> = prompts[start..start + count].iter().map(|&prompt| prompt as i64).collect();
            let (start, count) = (start as i64, count as i64);
            let (latents, timesteps) = (latents.f_narrow(0, start, count)?, timesteps.f_narrow(0, start, count)?);
            Ok(pass(&self.policy, &latents, &timesteps, &self.conditioning.rows(&indices)?, self.guidance_scale)?)
        };
        if rows <= self.max_rows {
            return part(0, rows);
        }
        let starts = (0..rows).step_by(self.max_rows);
        let parts = starts.map(|start| part(start, self.max_rows.min(rows - start))).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_cat(&parts, 0)?)
    }
}

/// One forward pass of a policy: latents, timesteps, conditioning, guidance scale.
type Pass<'a, 'p> = dyn Fn(&Policy<'a>, &Tensor, &Tensor, &Conditioning, f64) -> seedpo_model::Result<Tensor> + 'p;

impl<'a> NoisePredictor for GuidedPolicy<'a> {
    fn predict(&self, latents: &Tensor, timesteps: &[i64], prompts: &[usize]) -> Result<Tensor> {
        self.in_parts(latents, &Tensor::from_slice(timesteps), prompts, &Policy::predict_noise)
    }

    fn record<'b>(&'b self, latents: &Tensor, timesteps: &[i64], prompts: &[usize]) -> Result<(Tensor, Pullback<'b>)> {
        let parts = RefCell::new(Vec::new());
        let pass = |policy: &Policy<'a>, latents: &Tensor, timesteps: &Tensor, conditioning: &Conditioning, scale| {
            let (noise, recording) = policy.predict_noise_recorded(latents, timesteps, conditioning, scale)?;
            parts.borrow_mut().push((noise.size()[0], recording));
            Ok(noise)
        };
        let noise = self.in_parts(latents, &Tensor::from_slice(timesteps), prompts, &pass)?;
        let back = move |gradient: &Tensor| {
            let mut start = 0;
            for (rows, recording) in parts.into_inner() {
                self.policy.backward(recording, &gradient.f_narrow(0, start, rows)?)?;
                start += rows;
            }
            Ok(())
        };
        Ok((noise, Box::new(back)))
    }

    fn checkpoints(&self) -> bool {
        self.checkpointing
    }

    fn branches(&self) -> usize {
        if self.guidance_scale == 1.0 { 1 } else { 2 }
    }
}

impl OutputPredictor for GuidedPolicy<'_> {
    fn output(&self, latents: &Tensor, timestep: f64, prompts: &[usize]) -> Result<Tensor> {
        let timesteps = vec![timestep as f32; prompts.len()];
        self.in_parts(latents, &Tensor::from_slice(&timesteps), prompts, &Policy::predict_output)
    }
}
