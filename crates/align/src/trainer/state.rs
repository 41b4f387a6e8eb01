//! What updates change: read from a checkpoint, or begun anew.

use std::path::{Path, PathBuf};

use seedpo_model::{Adapter, DiffusionModel};
use seedpo_tensor::read_text;

use super::lora_config;
use super::reference::References;
use crate::checkpoint::{ADAPTER_FILE, Checkpoint, EMA_ADAPTER_FILE, Position, REWARDS_FILE, ROLLOUT_ADAPTER_FILE};
use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::guard::GuardState;
use crate::method::Method;
use crate::objective::RewardHistory;
use crate::optimizer::{Ema, Optimizer};

/// The trained weights averaged over updates (`ema_decay`), as an adapter of its own.
pub struct Average {
    pub adapter: Adapter,
    ema: Ema,
}

impl Average {
    fn new(adapter: Adapter, decay: f64) -> Self {
        let shadows = adapter.tensors().into_iter().map(|(_, tensor)| tensor).collect();
        Self { ema: Ema::new(shadows, decay), adapter }
    }

    /// Takes in the adapter after update number `update`.
    pub fn step(&mut self, trained: &Adapter, update: u64) -> Result<()> {
        let tensors = trained.tensors();
        self.ema.step(tensors.iter().map(|(_, tensor)| tensor), update)
    }
}

/// Policy, optimizer, position and the guard's memory at one update.
pub struct State {
    pub adapter: Adapter,
    /// The adapter (unmerged) that draws, or drew, the iteration's samples.
    pub rollout_adapter: Adapter,
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
        checkpoint: Option<Checkpoint>,
    ) -> Result<Self> {
        let adapter = match &checkpoint {
            Some(checkpoint) => Adapter::load(&checkpoint.folder.join(ADAPTER_FILE), &model.unet)?,
            None => Adapter::lora(&model.unet, &lora_config(config), config.seed)?,
        };
        let rollout_adapter = match &checkpoint {
            Some(c) if c.position.updates_done > 0 => {
                Adapter::load(&c.folder.join(ROLLOUT_ADAPTER_FILE), &model.unet)?.detached()
            }
            _ => adapter.detached(),
        };
        let references = match &checkpoint {
            Some(c) => References::load(config, method, &adapter, &c.folder, c.position.step, model)?,
            None => References::begin(config, method, &adapter),
        };
        let mut optimizer = Optimizer::from_settings(config, adapter.trainable())?;
        let average = match &checkpoint {
            _ if config.ema_decay == 0.0 => None,
            Some(c) => Some(Adapter::load(&c.folder.join(EMA_ADAPTER_FILE), &model.unet)?.detached()),
            None => Some(adapter.detached()),
        };
        let average = average.map(|average| Average::new(average, config.ema_decay));
        let (mut position, mut saved, mut guard) = (Position::default(), None, GuardState::default());
        let mut rewards = RewardHistory::default();
        if let Some(checkpoint) = checkpoint {
            optimizer.load_state(checkpoint.optimizer, &checkpoint.folder)?;
            (position, guard) = (checkpoint.position, checkpoint.guard);
            rewards = read_rewards(&checkpoint.folder)?;
            saved = Some((position.step, checkpoint.folder));
        }
        Ok(Self { adapter, rollout_adapter, references, optimizer, average, position, guard, rewards, saved })
    }
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
