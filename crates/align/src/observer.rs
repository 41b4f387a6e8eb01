//! What the trainer tells the outside: progress, metrics, pictures.

use crate::metrics::{GuardEvent, PreviewMetrics, UpdateMetrics, WatchEvent};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use tch::Tensor;

/// An error of an observer; the trainer stops with it.
pub type ObserverError = Box<dyn std::error::Error + Send + Sync>;

/// The settings as they take effect, printed at the start.
#[derive(Debug, Clone, Serialize)]
pub struct EffectiveSettings {
    /// Name and values in print order.
    pub lines: Vec<(String, String)>,
    /// Advice for the user.
    pub warnings: Vec<String>,
    /// What to do where memory runs out.
    pub memory_advice: String,
    /// Updates already applied (above 0 when resumed).
    pub start_step: u64,
    /// Updates of the whole run, where the settings fix it.
    pub total_steps: Option<u64>,
}

/// What the trainer is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Sampling trajectories or branches; the unit is denoising steps.
    Rollout,
    /// Decoding and judging; the unit is images.
    Judge,
    /// Updating the adapter; the unit is pair-steps.
    Train,
    /// Drawing previews; the unit is denoising steps.
    Preview,
}

/// Preview pictures: same prompts and noise every time.
#[derive(Debug)]
pub struct Preview<'a> {
    /// Updates applied.
    pub step: u64,
    /// The prompts.
    pub prompts: &'a [String],
    /// Images per prompt, N.
    pub images_per_prompt: usize,
    /// u8 RGB `[P·N, H, W, 3]`, prompt by prompt.
    pub images: &'a Tensor,
    /// The judge's score of each image.
    pub scores: &'a [f64],
    /// The clean latents, f32 `[P·N, C·h·w]`: what a diversity of embeddings can be measured on.
    pub latents: &'a Tensor,
    /// The run folder.
    pub folder: &'a Path,
}

/// Receives what happens in a run. Every method has a default that does nothing.
pub trait Observer {
    /// Once, before anything is sampled.
    fn on_start(&mut self, _settings: &EffectiveSettings) -> Result<(), ObserverError> {
        Ok(())
    }
    /// Progress within a phase: `done` of `total` units.
    fn on_phase(&mut self, _phase: Phase, _done: usize, _total: usize) {}
    /// After every update, once its line is in `metrics.jsonl`.
    fn on_update(&mut self, _metrics: &UpdateMetrics) -> Result<(), ObserverError> {
        Ok(())
    }
    /// After an event of the guard is in `metrics.jsonl`. A roll-back takes back every update after
    /// [`GuardEvent::rolled_back_to`].
    fn on_guard(&mut self, _event: &GuardEvent) -> Result<(), ObserverError> {
        Ok(())
    }
    /// Preview pictures; what it measures on them (diversity, by name) is added to `metrics.jsonl`.
    fn on_preview(&mut self, _preview: &Preview) -> Result<BTreeMap<String, f64>, ObserverError> {
        Ok(BTreeMap::new())
    }
    /// After a finding of the watch is in `metrics.jsonl`.
    fn on_watch(&mut self, _event: &WatchEvent) -> Result<(), ObserverError> {
        Ok(())
    }
    /// After the preview's line is in `metrics.jsonl`.
    fn on_preview_metrics(&mut self, _metrics: &PreviewMetrics) -> Result<(), ObserverError> {
        Ok(())
    }
    /// After a checkpoint is safely on disk.
    fn on_checkpoint(&mut self, _step: u64, _folder: &Path) -> Result<(), ObserverError> {
        Ok(())
    }
}

/// An observer that does nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl Observer for Silent {}
