//! The reference policy as training goes on: the base, snapshots of the policy, or its moving average.
//!
//! With an adapter a policy is a few megabytes, so that all of its past stays in memory; the base exists once.

use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::method::{Method, ReferencePolicy};
use seedpo_model::{Adapter, DiffusionModel};
use seedpo_tensor::{Device, NoiseKey, files};
use std::fs;
use std::path::{Path, PathBuf};

/// Folder of the snapshots in a checkpoint, a file per snapshot, named by its update.
const HISTORY_FOLDER: &str = "reference_history";
/// The moving average in a checkpoint.
const EMA_FILE: &str = "reference_ema.safetensors";

/// The reference policies of a run.
pub struct References {
    kind: ReferencePolicy,
    seed: u64,
    every: u64,
    decay: f64,
    /// Snapshots by the update they were taken after, oldest first, in the CPU's memory. θ_0, the base, comes before them
    /// and needs no tensors.
    history: Vec<(u64, Adapter)>,
    ema: Option<Adapter>,
}

/// The reference of one update.
pub struct Reference {
    /// What is added to the base; `None` is the base itself.
    pub adapter: Option<Adapter>,
    /// The update after which it was the policy; `None` for a moving average, and where there is no reference.
    pub step: Option<u64>,
}

impl References {
    /// The references of a run that begins with `adapter`.
    pub fn begin(config: &TrainConfig, method: &Method, adapter: &Adapter) -> Self {
        let ema = (method.reference == ReferencePolicy::Ema).then(|| adapter.detached());
        let (every, decay) = (config.reference_save_steps, config.reference_ema_decay);
        Self { kind: method.reference, seed: config.seed, every, decay, history: Vec::new(), ema }
    }

    /// The references of the checkpoint in `folder`, written after update `step`.
    ///
    /// Errors: [`Error::Run`] naming a snapshot that is missing; damaged files.
    pub fn load(
        config: &TrainConfig,
        method: &Method,
        adapter: &Adapter,
        folder: &Path,
        step: u64,
        model: &DiffusionModel,
    ) -> Result<Self> {
        let mut this = Self::begin(config, method, adapter);
        let read = |path: PathBuf| {
            if path.is_file() {
                return Ok(Adapter::load(&path, &model.unet)?.detached());
            }
            let reason =
                "expected a snapshot of the reference policy, found none; resume from another checkpoint folder";
            Err(Error::Run { path, reason: reason.into() })
        };
        if this.ema.is_some() {
            this.ema = Some(read(folder.join(EMA_FILE))?);
        }
        for taken in this.snapshots(step) {
            this.history.push((taken, read(snapshot_file(folder, taken))?.to_device(Device::Cpu)));
        }
        Ok(this)
    }

    /// The updates whose snapshots are kept after update `step`.
    fn snapshots(&self, step: u64) -> Vec<u64> {
        let last = step / self.every;
        match self.kind {
            ReferencePolicy::RandomHistory => (1..=last).map(|n| n * self.every).collect(),
            ReferencePolicy::Latest if last > 0 => vec![last * self.every],
            _ => Vec::new(),
        }
    }

    /// The reference of the update after `step` updates. A random one is drawn uniformly from θ_0 and all snapshots,
    /// keyed by the seed and `step`, so that a resumed run draws the same.
    pub fn draw(&self, step: u64, device: Device) -> Reference {
        let kept = self.history.len();
        let index = match self.kind {
            ReferencePolicy::RandomHistory => NoiseKey::new(self.seed, "reference").step(step).below(kept + 1),
            ReferencePolicy::Latest => kept,
            ReferencePolicy::Initial => 0,
            ReferencePolicy::Ema => {
                return Reference { adapter: self.ema.as_ref().map(|ema| ema.to_device(device)), step: None };
            }
            ReferencePolicy::None => return Reference { adapter: None, step: None },
        };
        match index.checked_sub(1).and_then(|index| self.history.get(index)) {
            Some((taken, adapter)) => Reference { adapter: Some(adapter.to_device(device)), step: Some(*taken) },
            None => Reference { adapter: None, step: Some(0) },
        }
    }

    /// Takes note of the policy after update `step`.
    pub fn follow(&mut self, step: u64, adapter: &Adapter) -> Result<()> {
        if let Some(ema) = &self.ema {
            let _frozen = tch::no_grad_guard();
            for ((_, mut average), (_, tensor)) in ema.tensors().into_iter().zip(adapter.tensors()) {
                let _ = average.f_lerp_(&tensor.detach(), 1.0 - self.decay)?;
            }
        }
        if self.snapshots(step).last() == Some(&step) {
            if self.kind == ReferencePolicy::Latest {
                self.history.clear();
            }
            self.history.push((step, adapter.detached().to_device(Device::Cpu)));
        }
        Ok(())
    }

    /// Writes everything into the checkpoint `folder`. Snapshots never change: those that `previous`, an older
    /// checkpoint, has too are shared with it on disk where the file system can. Errors: those of writing.
    pub fn save(&self, folder: &Path, previous: Option<&Path>) -> Result<()> {
        if let Some(ema) = &self.ema {
            ema.save(&folder.join(EMA_FILE))?;
        }
        if self.history.is_empty() {
            return Ok(());
        }
        let snapshots = folder.join(HISTORY_FOLDER);
        fs::create_dir(&snapshots).map_err(|e| seedpo_tensor::Error::io(&snapshots, e))?;
        for (taken, adapter) in &self.history {
            let target = snapshot_file(folder, *taken);
            let shared = previous.is_some_and(|old| fs::hard_link(snapshot_file(old, *taken), &target).is_ok());
            if !shared {
                adapter.save(&target)?;
            }
        }
        files::sync_folder(&snapshots);
        Ok(())
    }
}

fn snapshot_file(folder: &Path, step: u64) -> PathBuf {
    folder.join(HISTORY_FOLDER).join(format!("{step:08}.safetensors"))
}
