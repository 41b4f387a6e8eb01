//! What updates change: read from a checkpoint, or begun anew.

use std::path::{Path, PathBuf};

use seedpo_model::{DiffusionModel, FinetuningType, LoadOptions, PolicyWeights};
use seedpo_tensor::{Kind, read_text};

use super::lora_config;
use super::reference::References;
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
        let frozen = |c: &Checkpoint, role| PolicyWeights::load_frozen(&place(c, role), model, finetuning);
        let weights = match &checkpoint {
            Some(c) => PolicyWeights::load_trained(&place(c, Role::Trained), model, finetuning)?,
            None => initial(config, model)?,
        };
        let rollout = match &checkpoint {
            Some(c) if c.position.updates_done > 0 && samples_itself(config, method) => Some(frozen(c, Role::Rollout)?),
            _ => None,
        };
        let references = match &checkpoint {
            Some(c) => References::load(config, method, &weights, run, (&c.folder, c.position.step), model)?,
            None => References::begin(config, method, &weights, run)?,
        };
        let mut optimizer = Optimizer::from_settings(config, weights.trainable())?;
        let average = match &checkpoint {
            _ if config.ema_decay == 0.0 => None,
            Some(c) => Some(frozen(c, Role::Average)?),
            None => Some(weights.detached()?),
        };
        let average = average.map(|weights| Average::new(weights, config.ema_decay));
        let (mut position, mut saved, mut guard) = (Position::default(), None, GuardState::default());
        let mut rewards = RewardHistory::default();
        if let Some(checkpoint) = checkpoint {
            optimizer.load_state(checkpoint.optimizer, &checkpoint.folder)?;
            (position, guard) = (checkpoint.position, checkpoint.guard);
            rewards = read_rewards(&checkpoint.folder)?;
            saved = Some((position.step, checkpoint.folder));
        }
        Ok(Self { weights, rollout, references, optimizer, average, position, guard, rewards, saved })
    }
}

/// The weights that a run begins with: the policy is the base.
fn initial(config: &TrainConfig, model: &DiffusionModel) -> Result<PolicyWeights> {
    let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    Ok(match config.finetuning()? {
        FinetuningType::Lora => PolicyWeights::lora(model, &lora_config(config), config.seed)?,
        FinetuningType::Full => {
            let options = LoadOptions {
                variant: given(&config.variant),
                tokenizer: given(&config.tokenizer).map(PathBuf::from),
                ..LoadOptions::new(model.device(), Kind::Float)
            };
            PolicyWeights::full(model, &options)?
        }
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
