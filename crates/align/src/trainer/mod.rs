//! The training loop, one for all methods: rollout, judge, pair, update, record, checkpoint.

mod bad_pairs;
mod dataset;
mod effective;
mod embeddings;
mod forecast;
mod guarding;
mod iteration;
mod on_policy;
mod opponents;
mod pieces;
mod preview;
mod reference;
mod renoise;
mod replay;
mod rollout;
mod samples;
mod saving;
mod sources;
mod state;
mod stream;
mod tally;
mod watching;

use crate::checkpoint::{Checkpoint, Position};
use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::guard::{Guard, GuardOptions};
use crate::method::{Method, ReferencePolicy};
use crate::metrics::Record;
use crate::objective::{Objective, RewardHistory};
use crate::observer::Observer;
use crate::optimizer::{LrSchedule, Optimizer};
use crate::run_dir::RunDir;
pub use bad_pairs::BadPairs;
use dataset::EncodedPairs;
use embeddings::Embeddings;
use reference::References;
pub use replay::DrawnPair;
use seedpo_judge::Judge;
use seedpo_model::adapter::{LoraConfig, LoraInit};
use seedpo_model::{Adapter, DiffusionModel, FinetuningType, PolicyWeights};
use seedpo_rollout::Ddim;
use state::{Average, State};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
pub use stream::{PromptStream, Slot};

/// How a run ended without error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// It reached its length.
    Completed,
    /// The user asked it to stop; everything up to the last update is saved.
    Interrupted,
}

/// What a training run is made of; borrowed, so that the base model exists once.
pub struct Parts<'a> {
    /// The settings, validated by [`Trainer::new`].
    pub config: TrainConfig,
    /// The training prompts, at least one.
    pub prompts: Vec<String>,
    /// The dataset of methods that train on one, else none; `prompts` are its different prompts.
    pub image_pairs: Option<Arc<seedpo_data::Pairs>>,
    /// Stored rollouts to train on in place of sampling; `prompts` are its prompts.
    pub store: Option<Arc<crate::store::Store>>,
    /// The frozen base model, which is also the reference policy. Its U-Net may be without weights
    /// ([`seedpo_model::LoadOptions::unet_weights`]) where a whole U-Net is trained and nothing is compared with the base.
    pub model: &'a DiffusionModel,
    /// The judge that is trained on.
    pub judge: &'a dyn Judge,
    /// Judges that are only measured, on previews.
    pub heldout: Vec<&'a dyn Judge>,
    /// The run folder.
    pub run: RunDir,
}

/// A training run: policy (the base with an adapter, or with another U-Net), optimizer, position.
pub struct Trainer<'a> {
    parts: Parts<'a>,
    method: Method,
    objective: Objective,
    warnings: Vec<String>,
    ddim: Ddim,
    schedule: LrSchedule,
    stream: PromptStream,
    latent_shape: Vec<i64>,
    embeddings: Embeddings,
    encoded_pairs: Option<EncodedPairs>,
    weights: PolicyWeights,
    optimizer: Optimizer,
    average: Option<Average>,
    position: Position,
    /// Weights, moments and position are not of one update: one failed while it was applied, or taken back. Nothing is saved
    /// of that.
    half_changed: bool,
    /// The weights (an adapter unmerged) that draw, or drew, the current iteration's samples.
    rollout: Option<PolicyWeights>,
    references: References,
    /// The newest checkpoint on disk and its step.
    saved: Option<(u64, PathBuf)>,
    /// The step whose previews exist.
    previewed: Option<u64>,
    checked_on_policy: bool,
    guard: Guard,
    /// The rewards of single samples so far, and as they were before the current iteration.
    rewards: RewardHistory,
    rewards_before: RewardHistory,
    /// The guard has ended the run.
    guard_stopped: bool,
    /// The watch ended the run.
    watch_stopped: bool,
    /// The step of the checkpoint that the last roll-back led to.
    rolled_back_to: Option<u64>,
    /// That of a checkpoint which a roll-back could not lead to.
    not_restored: Option<u64>,
    /// Iterations in a row that gave no pair.
    barren: u32,
}

/// Iterations without a single pair after which a run stops with advice.
const BARREN_LIMIT: u32 = 25;

/// Refuses, before anything is written, settings that [`Trainer::new`] would refuse for this model.
///
/// Errors: settings out of range, no prompts, steps without noise, a resolution or adapter that does not fit the model.
pub fn check(config: &TrainConfig, prompts: &[String], model: &DiffusionModel) -> Result<()> {
    let (method, _) = config.validate()?;
    if prompts.is_empty() {
        let expected = "at least one prompt".into();
        return Err(Error::Setting { key: "prompts".into(), expected, found: "none".into() });
    }
    check_density(&Ddim::for_training(&model.schedule, config.steps as usize, config.eta)?)?;
    latent_shape(config, &method, model)?;
    match config.finetuning()? {
        FinetuningType::Lora => drop(Adapter::lora(&model.unet, &lora_config(config), config.seed)?),
        FinetuningType::Full => check_base(&method, model)?,
    }
    Ok(())
}

impl<'a> Trainer<'a> {
    /// A new run, or with `checkpoint` the continuation of one.
    ///
    /// Errors: settings out of range or that do not fit the model, a damaged checkpoint.
    pub fn new(parts: Parts<'a>, checkpoint: Option<Checkpoint>) -> Result<Self> {
        check(&parts.config, &parts.prompts, parts.model)?;
        let (method, mut warnings) = parts.config.validate()?;
        let (config, model) = (&parts.config, parts.model);
        warnings.extend(Ddim::training_note(&model.schedule));
        let ddim = Ddim::for_training(&model.schedule, config.steps as usize, config.eta)?;
        let schedule = LrSchedule::from_settings(config)?;
        let stream = PromptStream::new(config.seed, 1, 1, 1);
        let latent_shape = latent_shape(config, &method, model)?;
        let State { weights, rollout, references, optimizer, average, position, guard, rewards, saved } =
            State::load(config, &method, model, parts.run.path(), checkpoint)?;
        let guard = Guard::new(GuardOptions::from_settings(config)?, guard);
        let scale = model.vae.config().scale_factor();
        let embeddings = Embeddings::new(model, (latent_shape[1] * scale, latent_shape[2] * scale))?;
        let mut trainer = Self {
            objective: config.objective(),
            previewed: previewed_step(&parts.run, position.step)?,
            checked_on_policy: false,
            barren: 0,
            parts,
            method,
            warnings,
            ddim,
            schedule,
            stream,
            latent_shape,
            embeddings,
            encoded_pairs: None,
            weights,
            optimizer,
            average,
            position,
            half_changed: false,
            rollout,
            references,
            saved,
            guard,
            guard_stopped: false,
            rewards_before: rewards.clone(),
            rewards,
            watch_stopped: false,
            rolled_back_to: None,
            not_restored: None,
        };
        trainer.stream = trainer.prompt_stream();
        trainer.check_store()?;
        if let Some((store, planned)) =
            trainer.parts.store.as_ref().and_then(|store| Some((store, store.unfinished()?)))
        {
            let (path, there) = (store.path().display(), store.len());
            trainer.warnings.push(format!(
                "{path} has {there} of {planned} files: its `seedpo rollout` did not come to its end; the same command \
                 goes on"
            ));
        }
        trainer.restore_gamma()?;
        Ok(trainer)
    }

    /// Where the run stands.
    pub fn position(&self) -> Position {
        self.position
    }

    /// What is being trained.
    pub fn weights(&self) -> &PolicyWeights {
        &self.weights
    }

    /// What it is trained by, with its moments.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// Trains to the end, or until `stop` is set.
    ///
    /// Errors: those of sampling, judging, saving; non-finite numbers; a failed on-policy check. Each says where it
    /// happened and which checkpoint is intact; nothing is written from the bad state. After an error while an update was
    /// applied the weights are those of no update: go on with a new trainer, from a checkpoint.
    pub fn run(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Finished> {
        let settings = self.effective_settings()?;
        observer.on_start(&settings).map_err(Error::Observer)?;
        let outcome = self.run_loop(observer, stop);
        match outcome {
            Err(error) if self.half_changed => Err(self.located(error)),
            // Whatever a stopped rollout returned, the state on hand is that of the last finished update.
            Err(_) if stop.load(Ordering::Relaxed) => self.interrupted(observer),
            Err(error) => {
                // A judge or a disk that failed is no reason to lose the updates before it. What cannot be saved now
                // leaves the last checkpoint as it is.
                if self.position.step > 0 && error.leaves_policy_sound() {
                    let _ = self.save(observer);
                }
                Err(self.located(error))
            }
            Ok(Finished::Interrupted) => self.interrupted(observer),
            Ok(Finished::Completed) => Ok(Finished::Completed),
        }
    }

    fn run_loop(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Finished> {
        // A kill between a checkpoint and the adapter at the top of the run folder leaves the latter an update behind.
        if self.saved.is_some() {
            self.save_result()?;
            self.keep_best()?;
        }
        // Before training; or what a stop during the previews of this update left out.
        if self.preview_due() {
            self.preview(observer, stop)?;
        }
        while !self.done() {
            if stop.load(Ordering::Relaxed) {
                return Ok(Finished::Interrupted);
            }
            match self.iteration(observer, stop) {
                Ok(Finished::Interrupted) => return Ok(Finished::Interrupted),
                Ok(Finished::Completed) => {}
                Err(error) if stop.load(Ordering::Relaxed) => return Err(error),
                Err(error) => self.after_failed_iteration(error, observer)?,
            }
        }
        self.watched_preview(observer, stop)?;
        self.save(observer)?;
        Ok(Finished::Completed)
    }

    fn interrupted(&mut self, observer: &mut dyn Observer) -> Result<Finished> {
        if self.position.step > 0 {
            self.save(observer)?;
        }
        Ok(Finished::Interrupted)
    }

    fn reached_max_steps(&self) -> bool {
        let max = self.parts.config.max_train_steps;
        max > 0 && self.position.step >= max
    }

    fn preview_due(&self) -> bool {
        let every = self.parts.config.validation_steps;
        every > 0 && self.position.step.is_multiple_of(every)
    }

    fn done(&self) -> bool {
        self.watch_stopped || self.reached_max_steps() || self.stream.is_over(self.position.iteration)
    }

    /// The error with its place and what is intact.
    fn located(&self, error: Error) -> Error {
        let Position { step, iteration, .. } = self.position;
        let place = format!("update {} (iteration {iteration}, seed {})", step + 1, self.parts.config.seed);
        Error::At { place, source: Box::new(error), hint: self.intact() }
    }
}

/// `step`, if its previews are in metrics.jsonl.
fn previewed_step(run: &RunDir, step: u64) -> Result<Option<u64>> {
    let found = run.records()?.iter().any(|record| matches!(record, Record::Preview(m) if m.step == step));
    Ok(found.then_some(step))
}

/// What is compared with the base needs its weights.
fn check_base(method: &Method, model: &DiffusionModel) -> Result<()> {
    if method.reference == ReferencePolicy::None || !model.unet.parameters().is_empty() {
        return Ok(());
    }
    let expected = format!("with weights: method {} compares the policy with it", method.name);
    Err(Error::Input { what: "the base's U-Net".into(), expected, found: "one without".into() })
}

/// Every step must be random: a step without noise has no likelihood.
fn check_density(ddim: &Ddim) -> Result<()> {
    for &timestep in ddim.timesteps() {
        if ddim.sigma(timestep)? <= 0.0 {
            return Err(seedpo_rollout::Error::NoDensity { timestep }.into());
        }
    }
    Ok(())
}

fn latent_shape(config: &TrainConfig, method: &Method, model: &DiffusionModel) -> Result<Vec<i64>> {
    let factor = model.vae.config().scale_factor();
    let [height, width] = match config.resolution as i64 {
        0 => model.latent_size(),
        pixels if pixels % factor == 0 => [pixels / factor; 2],
        pixels => {
            let expected = format!("a multiple of {factor}, this model's autoencoder's factor");
            return Err(Error::Setting { key: "resolution".into(), expected, found: pixels.to_string() });
        }
    };
    if height != width && method.pairs.from_files() {
        let expected = "a side in pixels: a dataset's pictures are cut square, and this model's own size is not".into();
        let found = format!("0, its own {} x {}", height * factor, width * factor);
        return Err(Error::Setting { key: "resolution".into(), expected, found });
    }
    Ok(vec![model.unet.config().in_channels, height, width])
}

fn lora_config(config: &TrainConfig) -> LoraConfig {
    LoraConfig {
        rank: config.rank as i64,
        alpha: config.alpha(),
        targets: config.lora_targets.clone(),
        init: LoraInit::Gaussian,
    }
}
