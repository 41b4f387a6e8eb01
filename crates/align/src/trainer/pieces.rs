//! The pieces a run is made of, each run on its own and measured: what [`Trainer::forecast`] is computed from.

use super::Trainer;
use super::rollout::decode;
use crate::error::Result;
use crate::forecast::{Cost, Piece, Span};
use crate::method::{Likelihood, PairsFrom, ReferencePolicy};
use crate::objective::{Clip, Objective, PairBatch, PairLatents, accumulate_step_pairs};
use seedpo_judge::to_u8;
use seedpo_model::{Conditioning, Policy, PolicyWeights};
use seedpo_rollout::{GuidedPolicy, NoisePredictor, initial_noise};
use seedpo_tensor::NoiseKey;
use seedpo_tensor::memory::{PeakMeter, cpu_seconds};
use std::time::Instant;
use tch::Tensor;

/// What the measured pieces share: one prompt, the weights of a rollout, and one preference pair.
pub(super) struct Bench {
    conditioning: Conditioning,
    merged: PolicyWeights,
    /// x_t `[1, C, h, w]`.
    latents: Tensor,
    pair: PairBatch,
}

impl Trainer<'_> {
    pub(super) fn bench(&mut self) -> Result<Bench> {
        let model = self.parts.model;
        let conditioning = self.embeddings.conditioning(model, &[self.parts.prompts[0].as_str()])?;
        let merged = self.weights.merged(model)?;
        let key = NoiseKey::new(0, "forecast");
        let latents = initial_noise(&[key], &self.latent_shape).to_device(model.device());
        let pair = match self.method.pairs {
            PairsFrom::Images => {
                let slot = super::Slot { pass: 0, prompt: 0 };
                let samples = self.dataset_samples(&[slot])?;
                match samples.pairs {
                    super::samples::Pairs::Images(batch) => batch,
                    _ => self.drawn_pair(&conditioning, &merged, &latents)?,
                }
            }
            _ => self.drawn_pair(&conditioning, &merged, &latents)?,
        };
        Ok(Bench { conditioning, merged, latents, pair })
    }

    /// A pair of steps as a rollout draws them, or of noised latents where the likelihood is the denoising error.
    fn drawn_pair(&self, conditioning: &Conditioning, merged: &PolicyWeights, latents: &Tensor) -> Result<PairBatch> {
        let timestep = self.ddim.timesteps()[0];
        if self.method.likelihood == Likelihood::DenoisingError {
            let schedule = &self.parts.model.schedule;
            let winners = PairLatents::winners(schedule, latents, latents.ones_like(), &[timestep])?;
            let latents = match self.method.pairs {
                PairsFrom::Winners => winners,
                _ => winners.against(schedule, &(latents * 0.5), &[timestep])?,
            };
            return Ok(PairBatch {
                latents,
                timesteps: vec![timestep],
                prompts: vec![0],
                decided: vec![true],
                weights: None,
            });
        }
        let policy = Policy::of(self.parts.model, Some(merged));
        let policy = GuidedPolicy::new(policy, conditioning, self.parts.config.guidance_scale);
        let noise_pred = tch::no_grad(|| policy.predict(latents, &[timestep], &[0]))?;
        let transition = self.ddim.transition(&[timestep], latents, &noise_pred)?;
        let next = |candidate| {
            let key = NoiseKey::new(0, "forecast").candidate(candidate);
            transition.sample(Some(&initial_noise(&[key], &self.latent_shape)))
        };
        let (next_latents_w, next_latents_l) = (next(1)?, next(2)?);
        let x = || latents.shallow_clone();
        let latents = match self.method.pairs {
            PairsFrom::Trajectories => {
                PairLatents::Separate { latents_w: x(), next_latents_w, latents_l: x(), next_latents_l }
            }
            PairsFrom::Samples => PairLatents::Single {
                latents: x(),
                next_latents: next_latents_w,
                scalars: Tensor::ones([1, 2], (tch::Kind::Float, latents.device())),
                regularised: self.method.reference != ReferencePolicy::None,
            },
            _ => PairLatents::Shared { latents: x(), next_latents_w, next_latents_l },
        };
        Ok(PairBatch { latents, timesteps: vec![timestep], prompts: vec![0], decided: vec![true], weights: None })
    }

    /// Runs a piece once on `rows` of its unit, with freed memory given back before it; gradients are thrown away.
    pub(super) fn measure(&self, bench: &Bench, piece: Piece, rows: usize, checkpointing: bool) -> Result<Cost> {
        let meter = PeakMeter::start(self.parts.model.device());
        let Span { seconds, cpu_seconds } = self.time(bench, piece, rows, checkpointing)?;
        Ok(Cost { rows, seconds, cpu_seconds, peak: meter.stop() })
    }

    /// As [`Self::measure`], in the memory of the pass before it, as updates run: it need not be cleared again.
    pub(super) fn time(&self, bench: &Bench, piece: Piece, rows: usize, checkpointing: bool) -> Result<Span> {
        let (started, cpu) = (Instant::now(), cpu_seconds());
        match piece {
            Piece::Sampling => self.run_sampling(bench, rows)?,
            Piece::Judging => self.run_judging(bench, rows)?,
            Piece::Training => self.run_training(bench, rows, checkpointing)?,
        }
        Ok(Span { seconds: started.elapsed().as_secs_f64(), cpu_seconds: cpu_seconds() - cpu })
    }

    fn run_sampling(&self, bench: &Bench, rows: usize) -> Result<()> {
        let policy = Policy::of(self.parts.model, Some(&bench.merged));
        let policy = GuidedPolicy::new(policy, &bench.conditioning, self.parts.config.sampling_guidance());
        let x = bench.latents.repeat([rows as i64, 1, 1, 1]);
        let timesteps = vec![self.ddim.timesteps()[0]; rows];
        let noise_pred = tch::no_grad(|| policy.predict(&x, &timesteps, &vec![0; rows]))?;
        // Reading a value waits for a GPU to finish.
        noise_pred.sum(tch::Kind::Float).double_value(&[]);
        Ok(())
    }

    fn run_judging(&self, bench: &Bench, rows: usize) -> Result<()> {
        let chunk = self.parts.config.rollout_batch_size as usize;
        let images = decode(self.parts.model, &bench.latents.repeat([rows as i64, 1, 1, 1]), chunk)?;
        self.parts.judge.score(&to_u8(&images)?, &vec![self.parts.prompts[0].as_str(); rows])?;
        self.parts.judge.forget_statistics();
        Ok(())
    }

    /// Through the very function that updates use; nothing is clipped, so that no backward pass is skipped.
    fn run_training(&self, bench: &Bench, pairs: usize, checkpointing: bool) -> Result<()> {
        let config = &self.parts.config;
        let guided = |weights| {
            GuidedPolicy::new(Policy::of(self.parts.model, weights), &bench.conditioning, config.guidance_scale)
        };
        let policy = guided(Some(&self.weights)).with_checkpointing(checkpointing);
        let batch = bench.pair.select(&vec![0; pairs])?;
        let max_rows = pairs * batch.rows_per_pair();
        let objective = Objective { clip: Clip(None), ..self.objective };
        accumulate_step_pairs(&policy, &guided(None), &self.ddim, &batch, &objective, max_rows, 1.0)?;
        for (_, parameter) in self.optimizer.parameters() {
            let gradient = parameter.grad();
            if gradient.defined() {
                gradient.sum(tch::Kind::Float).double_value(&[]);
            }
            parameter.shallow_clone().zero_grad();
        }
        Ok(())
    }
}
