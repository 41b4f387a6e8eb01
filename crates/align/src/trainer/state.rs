//! What updates change: read from a checkpoint, or begun anew.

use std::path::{Path, PathBuf};

use seedpo_model::{Beginning, DiffusionModel, FinetuningType, LoadOptions, PolicyWeights};
use seedpo_tensor::{Kind, read_text};

use super::reference::References;
use super::{Trainer, lora_config};
use crate::checkpoint::{Checkpoint, Position, REWARDS_FILE, Role};
use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::guard::GuardState;
use crate::method::Method;
use crate::objective::RewardHistory;
use crate::optimizer::{Ema, Optimizer};

/// The trained weights averaged over updates (`ema_decay`), as weights of their own.
pub struct Average {
    pub weights: PolicyWeights,
    ema: Ema,
}

impl Average {
    fn new(weights: PolicyWeights, decay: f64) -> Self {
        let shadows = weights.tensors().into_iter().map(|(_, tensor)| tensor).collect();
        Self { ema: Ema::new(shadows, decay), weights }
    }

    /// Takes in the weights after update number `update`.
    pub fn step(&mut self, trained: &PolicyWeights, update: u64) -> Result<()> {
        let tensors = trained.tensors();
        self.ema.step(tensors.iter().map(|(_, tensor)| tensor), update)
    }
}

/// Policy, optimizer, position and the guard's memory at one update.
pub struct State {
    /// What is trained.
    pub weights: PolicyWeights,
    /// The weights (an adapter unmerged) that drew the samples of the iteration that the state lies within.
    pub rollout: Option<PolicyWeights>,
    pub references: References,
    pub optimizer: Optimizer,
    pub average: Option<Average>,
    pub position: Position,
    pub guard: GuardState,
    /// The rewards of samples so far, by prompt.
    pub rewards: RewardHistory,
    /// The checkpoint this was read from, and its step.
    pub saved: Option<(u64, PathBuf)>,
}

impl State {
    /// The state of `checkpoint`, or without one of a run that begins. Errors: a damaged checkpoint.
    pub fn load(
        config: &TrainConfig,
        method: &Method,
        model: &DiffusionModel,
        run: &Path,
        checkpoint: Option<Checkpoint>,
    ) -> Result<Self> {
        let finetuning = config.finetuning()?;
        let place = |c: &Checkpoint, role: Role| c.folder.join(role.place(finetuning));
        let weights = match &checkpoint {
            Some(c) => PolicyWeights::load_trained(&place(c, Role::Trained), model, finetuning)?,
            None => beginning(config, model)?.make(model)?,
        };
        let rollout = match &checkpoint {
            Some(c) if c.position.updates_done > 0 && samples_itself(config, method) => {
                Some(PolicyWeights::load_frozen(&place(c, Role::Rollout), model, finetuning)?)
            }
            _ => None,
        };
        let mut optimizer = Optimizer::from_settings(config, weights.trainable())?;
        if let Some(c) = &checkpoint {
            optimizer.load_state(&c.optimizer, c.optimizer.path())?;
        }
        let references = references(config, method, &weights, run, checkpoint.as_ref(), model)?;
        let average = average(config, &weights, checkpoint.as_ref(), model)?;
        let rewards = checkpoint.as_ref().map(|c| read_rewards(&c.folder)).transpose()?.unwrap_or_default();
        let (position, guard, saved) = match checkpoint {
            Some(c) => (c.position, c.guard, Some((c.position.step, c.folder))),
            None => (Position::default(), GuardState::default(), None),
        };
        Ok(Self { weights, rollout, references, optimizer, average, position, guard, rewards, saved })
    }
}

/// The reference policies at `checkpoint`, or at the beginning.
fn references(
    config: &TrainConfig,
    method: &Method,
    weights: &PolicyWeights,
    run: &Path,
    checkpoint: Option<&Checkpoint>,
    model: &DiffusionModel,
) -> Result<References> {
    match checkpoint {
        Some(c) => References::load(config, method, weights, run, (&c.folder, c.position.step), model),
        None => References::begin(config, method, weights, run),
    }
}

/// The average over updates at `checkpoint`, or at the beginning; `None` where the settings ask for none.
fn average(
    config: &TrainConfig,
    weights: &PolicyWeights,
    checkpoint: Option<&Checkpoint>,
    model: &DiffusionModel,
) -> Result<Option<Average>> {
    let finetuning = weights.finetuning_type();
    let average = match checkpoint {
        _ if config.ema_decay == 0.0 => return Ok(None),
        Some(c) => PolicyWeights::load_frozen(&c.folder.join(Role::Average.place(finetuning)), model, finetuning)?,
        None => weights.detached()?,
    };
    Ok(Some(Average::new(average, config.ema_decay)))
}

impl Trainer<'_> {
    /// Puts weights, moments, averages, references and rewards back to `checkpoint`, or without one to the beginning. What is
    /// trained is read into the memory that it has, what follows it is dropped before it is read: whole weights may not fit
    /// twice. An iteration that was under way begins anew.
    ///
    /// Errors: a damaged checkpoint; the state is of no update then.
    pub(super) fn restore(&mut self, checkpoint: Option<Checkpoint>) -> Result<()> {
        let (config, model) = (&self.parts.config, self.parts.model);
        self.rollout = None;
        self.average = None;
        self.references.drop_weights();
        match &checkpoint {
            Some(c) => {
                let place = c.folder.join(Role::Trained.place(self.weights.finetuning_type()));
                self.weights.reload(&place, model)?;
                self.optimizer.load_state(&c.optimizer, c.optimizer.path())?;
            }
            None => {
                beginning(config, model)?.restore_into(&self.weights, model)?;
                self.optimizer.reset();
            }
        }
        let (run, found) = (self.parts.run.path(), checkpoint.as_ref());
        self.references = references(config, &self.method, &self.weights, run, found, model)?;
        self.average = average(config, &self.weights, found, model)?;
        self.rewards = found.map(|c| read_rewards(&c.folder)).transpose()?.unwrap_or_default();
        self.rewards_before = self.rewards.clone();
        self.position = Position { updates_done: 0, ..found.map_or_else(Position::default, |c| c.position) };
        self.saved = checkpoint.map(|c| (c.position.step, c.folder));
        Ok(())
    }
}

/// The weights that a run begins with: the policy is the base.
fn beginning(config: &TrainConfig, model: &DiffusionModel) -> Result<Beginning> {
    Ok(match config.finetuning()? {
        FinetuningType::Lora => Beginning::Lora { config: lora_config(config), seed: config.seed },
        FinetuningType::Full => Beginning::Full(LoadOptions {
            variant: config.variant().map(str::to_owned),
            tokenizer: config.tokenizer().map(Path::to_owned),
            ..LoadOptions::new(model.device(), Kind::Float)
        }),
    })
}

/// Whether the run's policy draws samples of its own: not where pictures or stored rollouts are read.
pub fn samples_itself(config: &TrainConfig, method: &Method) -> bool {
    !method.pairs.from_files() && config.pairs_file.is_empty()
}

/// The rewards in a checkpoint's folder; none where the method keeps none. Errors: a damaged file.
fn read_rewards(folder: &Path) -> Result<RewardHistory> {
    let path = folder.join(REWARDS_FILE);
    if !path.exists() {
        return Ok(RewardHistory::default());
    }
    let reason = |e| format!("expected rewards by prompt: {e}; resume from another checkpoint folder");
    serde_json::from_str(&read_text(&path)?).map_err(|e| Error::Run { path, reason: reason(e) })
}
