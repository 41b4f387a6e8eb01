//! The other side of dataset winners: samples of the update's reference policy (docs/methods.md section 4.4).

use super::Trainer;
use super::iteration::Iteration;
use super::reference::Reference;
use super::rollout::Interruptible;
use crate::error::Result;
use crate::objective::PairBatch;
use crate::observer::{Observer, Phase};
use seedpo_model::Policy;
use seedpo_rollout::{Cost, GuidedPolicy, initial_noise, sample, step_noise};
use seedpo_tensor::NoiseKey;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use tch::Tensor;

/// What sampling took.
#[derive(Default)]
pub struct Sampling {
    /// U-Net rows and calls.
    pub cost: Cost,
    /// Seconds.
    pub seconds: f64,
}

impl Trainer<'_> {
    /// The batches of one update with a sample of the reference against each winner, of the same prompt, noised with the
    /// winner's t and ε. The reference's adapter is merged for the time of sampling.
    ///
    /// Stochastic DDIM with the run's steps and η, keyed by pass and pair: what is drawn does not depend on how many are
    /// drawn at once. Errors: those of sampling; a request to stop.
    pub(super) fn against_samples(
        &self,
        this: &Iteration,
        batches: Vec<PairBatch>,
        reference: &Reference,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<(Vec<PairBatch>, Sampling)> {
        let started = Instant::now();
        let rows: Vec<usize> = batches.iter().flat_map(|batch| batch.prompts.iter().copied()).collect();
        let (samples, cost) = self.reference_samples(this, &rows, reference, observer, stop)?;
        let mut start = 0;
        let mut against = |batch: PairBatch| {
            let clean = samples.narrow(0, start, batch.len() as i64);
            start += batch.len() as i64;
            let latents = batch.latents.against(&self.parts.model.schedule, &clean, &batch.timesteps)?;
            Ok(PairBatch { latents, ..batch })
        };
        let pairs = batches.into_iter().map(&mut against).collect::<Result<Vec<_>>>()?;
        Ok((pairs, Sampling { cost, seconds: started.elapsed().as_secs_f64() }))
    }

    /// Clean latents `[N, C, h, w]`, one for each of `rows`, which count the iteration's slots.
    fn reference_samples(
        &self,
        this: &Iteration,
        rows: &[usize],
        reference: &Reference,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<(Tensor, Cost)> {
        let (config, model) = (&self.parts.config, self.parts.model);
        let merged = reference.weights.as_ref().map(|weights| weights.merged(model)).transpose()?;
        let policy = Policy::of(model, merged.as_ref());
        let inner = GuidedPolicy::new(policy, &this.conditioning, config.sampling_guidance());
        let predictor = Interruptible { inner, stop };
        let chunk = config.rollout_batch_size as usize;
        let total = rows.len().div_ceil(chunk) * self.ddim.steps();
        let (mut samples, mut cost) = (Vec::new(), Cost::default());
        for (i, part) in rows.chunks(chunk).enumerate() {
            let key = |&row: &usize| {
                let slot = this.slots[row];
                NoiseKey::new(self.data_seed(), "reference-sample").epoch(slot.pass).prompt(slot.prompt as u64)
            };
            let keys: Vec<NoiseKey> = part.iter().map(key).collect();
            let x_t = initial_noise(&keys, &self.latent_shape).to_device(model.device());
            let mut noise = |step: usize| Some(step_noise(&keys, step, &self.latent_shape));
            let offset = i * self.ddim.steps();
            let mut on_step = |done: usize, _: usize| observer.on_phase(Phase::Rollout, offset + done, total);
            let trajectory = sample(&predictor, &x_t, part, &self.ddim, &mut noise, &mut on_step)?;
            samples.push(trajectory.final_latents().shallow_clone());
            cost += trajectory.cost;
        }
        Ok((Tensor::f_cat(&samples, 0)?, cost))
    }
}
