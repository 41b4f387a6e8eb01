//! What updates change: read from a checkpoint, or begun anew.

use std::path::PathBuf;

use seedpo_model::{Adapter, DiffusionModel};

use super::{adamw_options, lora_config};
use crate::checkpoint::{ADAPTER_FILE, Checkpoint, Position, ROLLOUT_ADAPTER_FILE};
use crate::config::TrainConfig;
use crate::error::Result;
use crate::guard::GuardState;
use crate::optimizer::AdamW;

/// Policy, optimizer, position and the guard's memory at one update.
pub struct State {
    pub adapter: Adapter,
    /// The adapter (unmerged) that draws, or drew, the iteration's samples.
    pub rollout_adapter: Adapter,
    pub optimizer: AdamW,
    pub position: Position,
    pub guard: GuardState,
    /// The checkpoint this was read from, and its step.
    pub saved: Option<(u64, PathBuf)>,
}

impl State {
    /// The state of `checkpoint`, or without one of a run that begins. Errors: a damaged checkpoint.
    pub fn load(config: &TrainConfig, model: &DiffusionModel, checkpoint: Option<Checkpoint>) -> Result<Self> {
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
        let mut optimizer = AdamW::new(adapter.trainable(), adamw_options(config));
        let (mut position, mut saved, mut guard) = (Position::default(), None, GuardState::default());
        if let Some(checkpoint) = checkpoint {
            optimizer.load_state(checkpoint.optimizer, &checkpoint.folder)?;
            (position, guard) = (checkpoint.position, checkpoint.guard);
            saved = Some((position.step, checkpoint.folder));
        }
        Ok(Self { adapter, rollout_adapter, optimizer, position, guard, saved })
    }
}
