//! Preview pictures: the same prompts and noise every time, so that grids of different updates can be compared.

use super::Trainer;
use super::rollout::{Interruptible, decode};
use crate::error::{Error, Result};
use crate::metrics::{PreviewMetrics, Record, summary};
use crate::observer::{Observer, Phase, Preview};
use seedpo_judge::to_u8;
use seedpo_model::Policy;
use seedpo_rollout::{Ddim, GuidedPolicy, initial_noise, sample};
use seedpo_tensor::NoiseKey;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use tch::Tensor;

/// Training prompts that stand in where no validation prompts are set.
const DEFAULT_PROMPTS: usize = 4;

impl Trainer<'_> {
    /// Draws, judges and records previews of the policy as it stands, unless previews are off or exist for this update.
    pub(super) fn preview(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<()> {
        let step = self.position.step;
        if self.parts.config.validation_steps == 0 || self.previewed == Some(step) {
            return Ok(());
        }
        let started = Instant::now();
        let prompts = self.validation_prompts();
        let copies = self.parts.config.validation_images_per_prompt as usize;
        let images = self.preview_images(&prompts, copies, observer, stop)?;
        let texts: Vec<&str> = prompts.iter().flat_map(|p| std::iter::repeat_n(p.as_str(), copies)).collect();
        let scores = self.parts.judge.score(&images, &texts)?;
        let heldout = self.parts.heldout.map(|judge| judge.score(&images, &texts)).transpose()?;
        let folder = self.parts.run.path();
        let preview =
            Preview { step, prompts: &prompts, images_per_prompt: copies, images: &images, scores: &scores, folder };
        let measured = observer.on_preview(&preview).map_err(Error::Observer)?;
        let [reward_mean, reward_std, ..] = summary(&scores);
        let heldout_mean = heldout.map(|scores| summary(&scores)[0]);
        let seconds = started.elapsed().as_secs_f64();
        let record = Record::Preview(PreviewMetrics { step, reward_mean, reward_std, heldout_mean, measured, seconds });
        self.parts.run.append(&record)?;
        self.previewed = Some(step);
        match &record {
            Record::Preview(metrics) => observer.on_preview_metrics(metrics).map_err(Error::Observer),
            Record::Update(_) | Record::Guard(_) => Ok(()),
        }
    }

    pub(super) fn validation_prompts(&self) -> Vec<String> {
        match self.parts.config.validation_prompts.as_slice() {
            // Pairs of one prompt may follow one another.
            [] => {
                let mut first: Vec<String> = Vec::new();
                for prompt in &self.parts.prompts {
                    if first.len() < DEFAULT_PROMPTS && !first.contains(prompt) {
                        first.push(prompt.clone());
                    }
                }
                first
            }
            given => given.to_vec(),
        }
    }

    /// u8 `[P·N, H, W, 3]`: deterministic DDIM (η = 0) from noise keyed by prompt and copy.
    fn preview_images(
        &mut self,
        prompts: &[String],
        copies: usize,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Tensor> {
        let (config, model) = (&self.parts.config, self.parts.model);
        let ddim = Ddim::new(&model.schedule, config.steps as usize, 0.0)?;
        let texts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        let conditioning = self.embeddings.conditioning(model, &texts)?;
        let merged = self.adapter.merge(&model.unet)?;
        let inner = GuidedPolicy::new(Policy::new(model, Some(&merged)), &conditioning, config.sampling_guidance());
        let predictor = Interruptible { inner, stop };
        let rows: Vec<(usize, usize)> =
            (0..prompts.len()).flat_map(|p| (0..copies).map(move |copy| (p, copy))).collect();
        let chunk = config.rollout_batch_size as usize;
        let total = rows.len().div_ceil(chunk) * ddim.steps();
        let mut images = Vec::new();
        for (i, part) in rows.chunks(chunk).enumerate() {
            let key =
                |&(p, copy): &(usize, usize)| NoiseKey::new(config.seed, "preview").prompt(p as u64).epoch(copy as u64);
            let keys: Vec<NoiseKey> = part.iter().map(key).collect();
            let x_t = initial_noise(&keys, &self.latent_shape).to_device(model.device());
            let of: Vec<usize> = part.iter().map(|&(p, _)| p).collect();
            let mut on_step = |done: usize, _: usize| observer.on_phase(Phase::Preview, i * ddim.steps() + done, total);
            let trajectory = sample(&predictor, &x_t, &of, &ddim, &mut |_| None, &mut on_step)?;
            images.push(to_u8(&decode(model, trajectory.final_latents(), chunk)?)?);
        }
        Ok(Tensor::f_cat(&images, 0)?)
    }
}
