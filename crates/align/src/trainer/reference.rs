//! The reference policy as training goes on: the base, snapshots of the policy, or its moving average.
//!
//! With an adapter a policy is a few megabytes, so that all of its past stays in memory; the base exists once. A whole U-Net
//! is gigabytes: its snapshots lie on disk, and the one that is asked is in memory.

use crate::checkpoint::{HISTORY_FOLDER, Role};
use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::method::{Method, ReferencePolicy};
use seedpo_model::{DiffusionModel, FinetuningType, PolicyWeights};
use seedpo_tensor::{Device, NoiseKey, files};
use std::fs;
use std::path::{Path, PathBuf};

/// The reference policies of a run.
pub struct References {
    kind: ReferencePolicy,
    finetuning: FinetuningType,
    seed: u64,
    every: u64,
    decay: f64,
    /// Where snapshots of whole U-Nets are written.
    run: PathBuf,
    /// Snapshots by the update they were taken after, oldest first. θ_0, the base, comes before them and needs no tensors.
    history: Vec<(u64, Snapshot)>,
    /// The snapshot read last from disk.
    read: Option<(u64, PolicyWeights)>,
    ema: Option<PolicyWeights>,
}

/// The policy as it was after an update.
enum Snapshot {
    /// In the CPU's memory: an adapter.
    Memory(PolicyWeights),
    /// In the run folder: a whole U-Net, in the type it computes in.
    Disk(PathBuf),
}

/// The reference of one update.
pub struct Reference {
    /// Its weights; `None` is the base itself.
    pub weights: Option<PolicyWeights>,
    /// The update after which it was the policy; `None` for a moving average, and where there is no reference.
    pub step: Option<u64>,
}

impl References {
    /// The references of a run in the folder `run` that begins with `weights`.
    pub fn begin(config: &TrainConfig, method: &Method, weights: &PolicyWeights, run: &Path) -> Result<Self> {
        let ema = (method.reference == ReferencePolicy::Ema).then(|| weights.detached()).transpose()?;
        Ok(Self { ema, ..Self::none(config, method, weights.finetuning_type(), run) })
    }

    /// No policy but the base yet.
    fn none(config: &TrainConfig, method: &Method, finetuning: FinetuningType, run: &Path) -> Self {
        Self {
            kind: method.reference,
            finetuning,
            seed: config.seed,
            every: config.reference_save_steps,
            decay: config.reference_ema_decay,
            run: run.to_path_buf(),
            history: Vec::new(),
            read: None,
            ema: None,
        }
    }

    /// Gives back the memory of all policies: the next thing is to load others in the place of these.
    pub fn drop_weights(&mut self) {
        (self.history, self.read, self.ema) = (Vec::new(), None, None);
    }

    /// The references of the checkpoint in `folder`, written after update `step`.
    ///
    /// Errors: [`Error::Run`] naming a snapshot that is missing; damaged files.
    pub fn load(
        config: &TrainConfig,
        method: &Method,
        weights: &PolicyWeights,
        run: &Path,
        (folder, step): (&Path, u64),
        model: &DiffusionModel,
    ) -> Result<Self> {
        let mut this = Self::none(config, method, weights.finetuning_type(), run);
        let there = |path: PathBuf| {
            if path.exists() {
                return Ok(path);
            }
            let reason =
                "expected a snapshot of the reference policy, found none; resume from another checkpoint folder";
            Err(Error::Run { path, reason: reason.into() })
        };
        let read = |path: PathBuf| Ok::<_, Error>(PolicyWeights::load_frozen(&path, model, this.finetuning)?);
        if this.kind == ReferencePolicy::Ema {
            this.ema = Some(read(there(folder.join(Role::Reference.place(this.finetuning)))?)?);
        }
        for taken in this.snapshots(step) {
            let source = there(this.place(folder, taken))?;
            let snapshot = match this.finetuning {
                FinetuningType::Lora => Snapshot::Memory(read(source)?.to_device(Device::Cpu)?),
                FinetuningType::Full => {
                    let target = this.place(run, taken);
                    files::link_or_copy(&source, &target)?;
                    Snapshot::Disk(target)
                }
            };
            this.history.push((taken, snapshot));
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

    /// Whether snapshots are taken of policies that are read back from disk when they are asked.
    pub fn reads_snapshots(&self) -> bool {
        let kept = matches!(self.kind, ReferencePolicy::RandomHistory | ReferencePolicy::Latest);
        kept && self.finetuning == FinetuningType::Full
    }

    /// The reference of the update after `step` updates. A random one is drawn uniformly from θ_0 and all snapshots,
    /// keyed by the seed and `step`, so that a resumed run draws the same. Errors: a snapshot that cannot be read.
    pub fn draw(&mut self, step: u64, model: &DiffusionModel) -> Result<Reference> {
        let kept = self.history.len();
        let index = match self.kind {
            ReferencePolicy::RandomHistory => NoiseKey::new(self.seed, "reference").step(step).below(kept + 1),
            ReferencePolicy::Latest => kept,
            ReferencePolicy::Initial => 0,
            ReferencePolicy::Ema => {
                let weights = self.ema.as_ref().map(|ema| ema.to_device(model.device())).transpose()?;
                return Ok(Reference { weights, step: None });
            }
            ReferencePolicy::None => return Ok(Reference { weights: None, step: None }),
        };
        let Some((taken, snapshot)) = index.checked_sub(1).and_then(|index| self.history.get(index)) else {
            return Ok(Reference { weights: None, step: Some(0) });
        };
        let taken = *taken;
        let weights = match snapshot {
            Snapshot::Memory(weights) => weights.to_device(model.device())?,
            Snapshot::Disk(path) => {
                if self.read.as_ref().is_none_or(|(step, _)| *step != taken) {
                    // Before the next one is read: never two in memory.
                    self.read = None;
                    self.read = Some((taken, PolicyWeights::load_frozen(path, model, self.finetuning)?));
                }
                match &self.read {
                    Some((_, weights)) => weights.to_device(model.device())?,
                    None => return Ok(Reference { weights: None, step: Some(0) }),
                }
            }
        };
        Ok(Reference { weights: Some(weights), step: Some(taken) })
    }

    /// Takes note of the policy after update `step`. Errors: a snapshot that cannot be written.
    pub fn follow(&mut self, step: u64, weights: &PolicyWeights, model: &DiffusionModel) -> Result<()> {
        if let Some(ema) = &self.ema {
            let _frozen = tch::no_grad_guard();
            for ((_, mut average), (_, tensor)) in ema.tensors().into_iter().zip(weights.tensors()) {
                let _ = average.f_lerp_(&tensor.detach(), 1.0 - self.decay)?;
            }
        }
        if self.snapshots(step).last() != Some(&step) {
            return Ok(());
        }
        let snapshot = match self.finetuning {
            FinetuningType::Lora => Snapshot::Memory(weights.snapshot()?.to_device(Device::Cpu)?),
            FinetuningType::Full => {
                let path = self.place(&self.run, step);
                weights.merged(model)?.save(&path)?;
                Snapshot::Disk(path)
            }
        };
        if self.kind == ReferencePolicy::Latest {
            self.forget();
        }
        self.history.push((step, snapshot));
        Ok(())
    }

    /// Drops all snapshots, those on disk too; checkpoints have links of their own to them.
    fn forget(&mut self) {
        for (_, snapshot) in self.history.drain(..) {
            if let Snapshot::Disk(path) = snapshot {
                let _ = fs::remove_dir_all(path);
            }
        }
    }

    /// Writes everything into the checkpoint `folder`. Snapshots never change: those that `previous`, an older
    /// checkpoint, has too are shared with it on disk where the file system can. Errors: those of writing.
    pub fn save(&self, folder: &Path, previous: Option<&Path>) -> Result<()> {
        if let Some(ema) = &self.ema {
            ema.save(&folder.join(Role::Reference.place(self.finetuning)))?;
        }
        if self.history.is_empty() {
            return Ok(());
        }
        let snapshots = folder.join(HISTORY_FOLDER);
        fs::create_dir(&snapshots).map_err(|e| seedpo_tensor::Error::io(&snapshots, e))?;
        for (taken, snapshot) in &self.history {
            let target = self.place(folder, *taken);
            let shared = || previous.is_some_and(|old| fs::hard_link(self.place(old, *taken), &target).is_ok());
            match snapshot {
                Snapshot::Disk(path) => files::link_or_copy(path, &target)?,
                Snapshot::Memory(weights) if !shared() => weights.save(&target)?,
                Snapshot::Memory(_) => {}
            }
        }
        files::sync_folder(&snapshots);
        Ok(())
    }

    /// The snapshot after update `step` in a checkpoint or run folder.
    fn place(&self, folder: &Path, step: u64) -> PathBuf {
        let ending = if self.finetuning == FinetuningType::Lora { ".safetensors" } else { "" };
        folder.join(HISTORY_FOLDER).join(format!("{step:08}{ending}"))
    }
}
