//! One iteration: sample a prompt batch with the policy as it stands, then update on its pairs.

use super::guarding::Turn;
use super::opponents::Sampling;
use super::reference::Reference;
use super::renoise::renoised;
use super::rollout::RolloutContext;
use super::samples::{Pairs, Samples};
use super::state::samples_itself;
use super::stream::Slot;
use super::tally::{Means, Tally};
use super::{BARREN_LIMIT, Finished, Trainer, on_policy};
use crate::error::{Error, Result};
use crate::guard::{Trouble, Vitals};
use crate::method::{Likelihood, PairsFrom, ReferencePolicy};
use crate::metrics::{MemberScores, Record, UpdateMetrics, summary};
use crate::objective::{PairBatch, accumulate_step_pairs};
use crate::observer::{Observer, Phase};
use crate::optimizer::clip_grad_norm;
use seedpo_model::{Conditioning, Policy, PolicyWeights};
use seedpo_rollout::GuidedPolicy;
use seedpo_tensor::NoiseKey;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tch::Tensor;

/// What the updates of an iteration share.
pub(super) struct Iteration<'t> {
    pub(super) index: u64,
    /// What each row of the conditioning is for.
    pub(super) slots: Vec<Slot>,
    pub(super) texts: Vec<&'t str>,
    pub(super) conditioning: Conditioning,
    /// The weights that drew the samples, an adapter merged; none where nothing was sampled.
    pub(super) merged: Option<PolicyWeights>,
    /// What each judge of an ensemble gave the samples.
    pub(super) judges: BTreeMap<String, MemberScores>,
}

impl Trainer<'_> {
    /// Runs (the rest of) the current iteration.
    pub(super) fn iteration(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Finished> {
        let index = self.position.iteration;
        if self.position.updates_done == 0 {
            // The last one's memory first.
            self.rollout = None;
            let samples = samples_itself(&self.parts.config, &self.method);
            self.rollout = samples.then(|| self.weights.snapshot()).transpose()?;
        }
        if let Some(store) = self.parts.store.clone() {
            return self.replay(&store, index, observer, stop);
        }
        let slots = self.stream.iteration(index);
        let prompts = self.texts(&slots);
        let texts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        let conditioning = self.embeddings.conditioning(self.parts.model, &texts)?;
        if self.method.pairs.from_files() {
            self.ask_ahead(index)?;
            let samples = self.dataset_samples(&slots)?;
            // Decoded while this iteration is trained on.
            self.ask_ahead(index + 1)?;
            let this = Iteration { index, slots, texts, conditioning, merged: None, judges: BTreeMap::new() };
            return self.updates(&this, &samples, observer, stop);
        }
        // The log-probabilities of single samples are trained against: merged weights would round them otherwise.
        let alone = self.method.pairs == PairsFrom::Samples;
        let rollout = self.rollout.as_ref().unwrap_or(&self.weights);
        let merged =
            if alone { rollout.to_device(self.parts.model.device()) } else { rollout.merged(self.parts.model) }?;
        // Only of these samples.
        MemberScores::take(self.parts.judge);
        let samples = self.draw(&slots, &texts, &conditioning, &merged, observer, stop)?;
        let judges = MemberScores::take(self.parts.judge);
        let samples = self.with_advantages(samples, &slots);
        let transition = self.method.likelihood == Likelihood::Transition;
        let samples = if transition { samples } else { renoised(samples, &slots, self.parts.model, self.data_seed())? };
        let this = Iteration { index, slots, texts, conditioning, merged: Some(merged), judges };
        self.updates(&this, &samples, observer, stop)
    }

    /// Samples and judges the pairs of `slots` with weights as they sample fastest.
    pub(super) fn draw(
        &self,
        slots: &[Slot],
        texts: &[&str],
        conditioning: &Conditioning,
        merged: &PolicyWeights,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Samples> {
        let context = RolloutContext {
            config: &self.parts.config,
            model: self.parts.model,
            judge: self.parts.judge,
            ddim: &self.ddim,
            latent_shape: &self.latent_shape,
            seed: self.data_seed(),
            stop,
        };
        context.samples(self.method.pairs, slots, texts, conditioning, (merged, self.rollout_guidance()), observer)
    }

    /// Where steps are trained on, rollout and training share one guidance; else pictures are drawn under their own.
    pub(super) fn rollout_guidance(&self) -> f64 {
        let (config, transition) = (&self.parts.config, self.method.likelihood == Likelihood::Transition);
        if transition { config.guidance_scale } else { config.sampling_guidance() }
    }

    /// The advantages of single samples' rewards; other samples as they are.
    fn with_advantages(&mut self, mut samples: Samples, slots: &[Slot]) -> Samples {
        if let Pairs::Samples(singles) = &mut samples.pairs {
            let config = &self.parts.config;
            let [keep, least] = [config.reward_history, config.reward_history_min].map(|n| n as usize);
            let prompts: Vec<usize> = slots.iter().map(|slot| slot.prompt).collect();
            // A checkpoint within the iteration holds what came before it, since resuming samples it again.
            self.rewards_before = self.rewards.clone();
            singles.advantages =
                self.rewards.advantages(&prompts, &samples.rewards, keep, least, config.advantage_clip);
            singles.regularised = self.method.reference != ReferencePolicy::None;
        }
        samples
    }

    pub(super) fn updates(
        &mut self,
        this: &Iteration,
        samples: &Samples,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Finished> {
        let order = NoiseKey::new(self.data_seed(), "pair-order").epoch(this.index);
        let groups = samples.pairs.updates(self.parts.config.pairs_per_update(), order);
        self.count_barren(groups.is_empty())?;
        let first = self.position.updates_done as usize;
        for (turn, group) in groups.iter().enumerate().skip(first) {
            let turned = self.update(this, samples, group, turn == first, observer, stop)?;
            if let Turn::RolledBack = turned {
                return Ok(Finished::Completed);
            }
            self.position.updates_done += 1;
            if turn + 1 == groups.len() {
                self.next_iteration();
            }
            if let Turn::Applied(metrics) = turned {
                self.after_update(metrics, observer, stop)?;
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(Finished::Interrupted);
            }
            if self.reached_max_steps() {
                return Ok(Finished::Completed);
            }
        }
        // No pairs; or, drawn again on another machine, so many fewer that none is left.
        if groups.len() <= first {
            self.next_iteration();
        }
        Ok(Finished::Completed)
    }

    pub(super) fn next_iteration(&mut self) {
        self.position.iteration += 1;
        self.position.updates_done = 0;
    }

    fn count_barren(&mut self, barren: bool) -> Result<()> {
        self.barren = if barren { self.barren + 1 } else { 0 };
        if self.barren < BARREN_LIMIT {
            return Ok(());
        }
        let config = &self.parts.config;
        Err(Error::Input {
            what: format!("preference pairs of {BARREN_LIMIT} iterations"),
            expected: "at least one pair with a winner".into(),
            found: format!(
                "none: judge `{}` sees no difference (for spo: none above threshold {} at judge_scale {}); use another \
                 judge, or raise judge_scale",
                config.judge, config.threshold, config.judge_scale
            ),
        })
    }

    /// One optimizer step on a group of pairs, if the guard lets it pass.
    fn update(
        &mut self,
        this: &Iteration,
        samples: &Samples,
        group: &[usize],
        first: bool,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Turn<UpdateMetrics>> {
        let started = Instant::now();
        let config = &self.parts.config;
        let order = NoiseKey::new(self.data_seed(), "time-order").epoch(this.index);
        let reference = self.references.draw(self.position.step, self.parts.model)?;
        let batches = samples.pairs.batches(group, config.train_batch_size as usize, config.micro_batch(), order)?;
        if !self.checked_on_policy && self.position.updates_done == 0 {
            self.check_on_policy(this, &batches[0])?;
            self.checked_on_policy = true;
        }
        let (batches, sampling) = match self.method.pairs {
            PairsFrom::WinnersAndSamples => self.against_samples(this, batches, &reference, observer, stop)?,
            _ => (batches, Sampling::default()),
        };
        let (verdict, done) = match self.accumulate(this, &batches, &reference, observer) {
            Err(Error::NonFinite { what, value }) => (self.guard.broken(Trouble::non_finite(what, value)), None),
            Err(error) => return Err(error),
            Ok((tally, passes)) => {
                let mut gradients = self.gradients();
                let grad_norm = clip_grad_norm(&mut gradients, self.parts.config.max_grad_norm)?;
                let means = tally.means();
                // Single samples have no winners whose loss would show.
                let alone = self.method.pairs == PairsFrom::Samples;
                let winner_reward = if alone { 0.0 } else { self.parts.config.beta * means.log_ratio[0] };
                let verdict = self.guard.judge(&Vitals { loss: means.loss, winner_reward, grad_norm });
                (verdict, Some((means, passes, gradients, grad_norm)))
            }
        };
        // Not held while another one may be read.
        let reference_step = reference.step;
        drop(reference);
        let (means, passes, gradients, grad_norm) = match (self.carry_out(verdict, observer)?, done) {
            (Turn::Applied(()), Some(done)) => done,
            (Turn::RolledBack, _) => return Ok(Turn::RolledBack),
            _ => return Ok(Turn::Skipped),
        };
        let lr = self.parts.config.learning_rate
            * self.schedule.factor(self.position.step)
            * self.guard.learning_rate_factor();
        let mut metrics = self.metrics(this, samples, means, first);
        self.apply(&gradients, lr)?;
        metrics.grad_norm = grad_norm;
        metrics.learning_rate = lr;
        metrics.reference_step = reference_step;
        metrics.seconds_rollout += sampling.seconds;
        metrics.seconds_train = started.elapsed().as_secs_f64() - sampling.seconds;
        metrics.unet_evaluations += passes + sampling.cost.evaluations;
        Ok(Turn::Applied(metrics))
    }

    /// Moves the parameters, what follows them and the count, which belong together: between the first and the last of it
    /// there is no state worth saving.
    fn apply(&mut self, gradients: &[Tensor], lr: f64) -> Result<()> {
        let step = self.position.step + 1;
        self.half_changed = true;
        self.optimizer.step(gradients, lr)?;
        if let Some(average) = &mut self.average {
            average.step(&self.weights, step)?;
        }
        self.references.follow(step, &self.weights, self.parts.model)?;
        self.position.step = step;
        self.half_changed = false;
        Ok(())
    }

    /// Adds up the gradients of all batches in the parameters' `.grad`; returns the statistics and how many single-image
    /// U-Net evaluations it took.
    fn accumulate(
        &self,
        this: &Iteration,
        batches: &[PairBatch],
        reference: &Reference,
        observer: &mut dyn Observer,
    ) -> Result<(Tally, u64)> {
        let config = &self.parts.config;
        for (_, parameter) in self.optimizer.parameters() {
            parameter.shallow_clone().zero_grad();
        }
        let guided = |weights| {
            GuidedPolicy::new(Policy::of(self.parts.model, weights), &this.conditioning, config.guidance_scale)
        };
        let policy = guided(Some(&self.weights)).with_checkpointing(config.gradient_checkpointing);
        let reference = guided(reference.weights.as_ref());
        let branches = if config.guidance_scale == 1.0 { 1 } else { 2 };
        let total: usize = batches.iter().map(PairBatch::len).sum();
        let (mut tally, mut done, mut passes) = (Tally::default(), 0, 0);
        for batch in batches {
            let max_rows = config.micro_batch() * batch.rows_per_pair();
            let share = batch.len() as f64 / total as f64;
            let output =
                accumulate_step_pairs(&policy, &reference, &self.ddim, batch, &self.objective, max_rows, share)?;
            tally.add(batch, &output, &this.texts)?;
            // The policy, and what it is compared with, once each.
            let policies = 1 + usize::from(batch.needs_reference());
            passes += (policies * branches * batch.len() * batch.rows_per_pair()) as u64;
            done += batch.len();
            observer.on_phase(Phase::Train, done, total);
        }
        Ok((tally, passes))
    }

    /// The accumulated gradients themselves, not copies; zeros where every pair of the update was clipped on both sides.
    fn gradients(&self) -> Vec<Tensor> {
        let of = |parameter: &Tensor| {
            let grad = parameter.grad();
            if grad.defined() { grad } else { parameter.detach().zeros_like() }
        };
        self.optimizer.parameters().iter().map(|(_, parameter)| of(parameter)).collect()
    }

    fn check_on_policy(&self, this: &Iteration, batch: &PairBatch) -> Result<()> {
        let Some(merged) = &this.merged else { return Ok(()) };
        let (config, model) = (&self.parts.config, self.parts.model);
        let indices: Vec<usize> = (0..batch.len().min(config.micro_batch())).collect();
        let guided =
            |weights| GuidedPolicy::new(Policy::of(model, Some(weights)), &this.conditioning, config.guidance_scale);
        let (training, rollout) = (guided(&self.weights), guided(merged));
        let limit = on_policy::tolerance(model.unet.kind(), model.device());
        on_policy::check(&training, &rollout, &self.ddim, &batch.select(&indices)?, limit, self.position.step + 1)
    }

    fn metrics(&self, this: &Iteration, samples: &Samples, means: Means, first: bool) -> UpdateMetrics {
        let [reward_mean, reward_std, reward_min, reward_max] = summary(&samples.rewards);
        let once = |value: f64| if first { value } else { 0.0 };
        UpdateMetrics {
            step: self.position.step + 1,
            iteration: this.index,
            epoch: self.stream.epoch(this.index),
            loss: means.loss,
            implicit_accuracy: means.accuracy,
            margin: means.margin,
            ratio_mean: means.ratio,
            log_ratio_winner: means.log_ratio[0],
            log_ratio_loser: means.log_ratio[1],
            clip_fraction: means.clip_fraction,
            loser_scale: self.objective.safeguard.map(|_| means.loser_scale),
            grad_norm: 0.0,
            learning_rate: 0.0,
            kl_to_reference: means.kl,
            flip_mean: means.flip,
            reference_step: None,
            reward_mean,
            reward_std,
            reward_min,
            reward_max,
            judges: this.judges.clone(),
            pairs_kept: samples.pairs.kept() as u64,
            pairs_tied: samples.tied as u64,
            seconds_rollout: once(samples.seconds_rollout),
            seconds_judge: once(samples.seconds_judge),
            seconds_train: 0.0,
            unet_evaluations: if first { samples.cost.evaluations } else { 0 },
        }
    }

    /// Records an update; then previews and a checkpoint where they are due.
    fn after_update(&mut self, metrics: UpdateMetrics, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<()> {
        let record = Record::Update(metrics);
        self.parts.run.append(&record)?;
        if let Record::Update(metrics) = &record {
            observer.on_update(metrics).map_err(Error::Observer)?;
        }
        if self.preview_due() {
            self.watched_preview(observer, stop)?;
        }
        if self.position.step.is_multiple_of(self.parts.config.checkpointing_steps) {
            self.save(observer)?;
        }
        Ok(())
    }
}
