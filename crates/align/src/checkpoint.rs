//! Checkpoints: written under a temporary name, synced, renamed; older ones are deleted only after that.

use crate::error::{Error, Result};
use crate::guard::GuardState;
use seedpo_model::FinetuningType;
use seedpo_tensor::{WeightFile, files, write_weights};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// The adapter's file name, in a checkpoint and at the top of a run folder.
pub const ADAPTER_FILE: &str = "pytorch_lora_weights.safetensors";
/// The folder of a U-Net that is trained whole, in a checkpoint and at the top of a run folder.
pub const UNET_FOLDER: &str = "unet";
/// What weights in a checkpoint are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Those that are trained: the result of the run.
    Trained,
    /// Those that drew the current iteration's samples, present when a checkpoint lies within an iteration.
    Rollout,
    /// The average over updates, present where `ema_decay` is set.
    Average,
    /// The reference, where that is a moving average.
    Reference,
}

impl Role {
    /// The name in a checkpoint: of a file for an adapter, of a folder in diffusers' layout for a whole U-Net. Trained and
    /// average weights are at the top of the run folder too.
    pub fn place(self, finetuning: FinetuningType) -> &'static str {
        match (self, finetuning) {
            (Self::Trained, FinetuningType::Lora) => ADAPTER_FILE,
            (Self::Trained, FinetuningType::Full) => UNET_FOLDER,
            (Self::Rollout, FinetuningType::Lora) => "rollout_lora_weights.safetensors",
            (Self::Rollout, FinetuningType::Full) => "rollout_unet",
            (Self::Average, FinetuningType::Lora) => "pytorch_lora_weights_ema.safetensors",
            (Self::Average, FinetuningType::Full) => "unet_ema",
            (Self::Reference, FinetuningType::Lora) => "reference_ema.safetensors",
            (Self::Reference, FinetuningType::Full) => "reference_unet_ema",
        }
    }
}

/// Folder of the reference policy's snapshots: a file or folder per snapshot, named by its update. In a checkpoint, and for
/// whole U-Nets at the top of the run folder.
pub const HISTORY_FOLDER: &str = "reference_history";
/// The newest rewards of every prompt (DDPO and DPOK), as they were before the iteration a checkpoint lies within.
pub const REWARDS_FILE: &str = "rewards.json";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const POSITION_FILE: &str = "position.json";
/// The guard's memory; absent in checkpoints of format 1.
pub const GUARD_FILE: &str = "guard.json";
const PREFIX: &str = "checkpoint-";
/// The format that checkpoints are written in. 1 (0.1.0 before the guard) has no `format` in its position.json and no
/// guard.json; it is read as having seen nothing.
const FORMAT: u32 = 2;

/// Where a run stands: with the weights and the optimizer, all there is to continue bit for bit.
///
/// Randomness is keyed, so no generator state is kept. Within an iteration, resuming draws the iteration's samples
/// again with the weights that drew them first (they are equal bit for bit on a CPU) and skips `updates_done` updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Updates applied.
    pub step: u64,
    /// The iteration (prompt batch) to continue with, from 0.
    pub iteration: u64,
    /// Updates of that iteration already applied or left out.
    pub updates_done: u64,
}

/// position.json.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PositionFile {
    #[serde(default = "first_format")]
    format: u32,
    step: u64,
    iteration: u64,
    updates_done: u64,
}

fn first_format() -> u32 {
    1
}

/// A checkpoint opened; weights are loaded by the caller from [`Checkpoint::folder`].
#[derive(Debug)]
pub struct Checkpoint {
    /// Its folder.
    pub folder: PathBuf,
    /// Where the run stood.
    pub position: Position,
    /// The optimizer's state, not read yet: of a whole U-Net it is gigabytes.
    pub optimizer: WeightFile,
    /// The guard's memory.
    pub guard: GuardState,
}

impl Checkpoint {
    /// Writes `checkpoint-<step>` in `run`; `weights` writes those into the folder it is given.
    ///
    /// A checkpoint of this step that already exists is left as it is; older ones are left to [`Checkpoint::prune`].
    /// Errors: no space and the like; the temporary folder is removed and every older checkpoint stays intact.
    pub fn save(
        run: &Path,
        position: Position,
        optimizer: &BTreeMap<String, Tensor>,
        weights: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let target = run.join(Self::folder_name(position.step));
        if target.exists() {
            return Ok(target);
        }
        let temporary = run.join(format!(".{PREFIX}{}.tmp", position.step));
        let _ = fs::remove_dir_all(&temporary);
        let write = || -> Result<()> {
            fs::create_dir(&temporary).map_err(|e| seedpo_tensor::Error::io(&temporary, e))?;
            weights(&temporary)?;
            write_weights(&temporary.join(OPTIMIZER_FILE), optimizer, &BTreeMap::new())?;
            let Position { step, iteration, updates_done } = position;
            let record = PositionFile { format: FORMAT, step, iteration, updates_done };
            let text = serde_json::to_string_pretty(&record).unwrap_or_default();
            files::write_atomic(&temporary.join(POSITION_FILE), text.as_bytes())?;
            files::sync_folder(&temporary);
            fs::rename(&temporary, &target).map_err(|e| seedpo_tensor::Error::io(&target, e))?;
            files::sync_folder(run);
            Ok(())
        };
        write().inspect_err(|_| drop(fs::remove_dir_all(&temporary)))?;
        Ok(target)
    }

    /// The folder of a checkpoint, within its run's.
    pub fn folder_name(step: u64) -> String {
        format!("{PREFIX}{step}")
    }

    /// Deletes all but the newest `limit` (0 = all) and that of update `best`. Failing to delete is not an error: the run
    /// goes on.
    pub fn prune(run: &Path, limit: u64, best: Option<u64>) {
        let steps = Self::list(run).unwrap_or_default();
        let surplus = if limit == 0 { 0 } else { steps.len().saturating_sub(limit as usize) };
        let doomed = steps[..surplus].iter().filter(|step| best != Some(**step));
        doomed.for_each(|step| Self::discard(run, *step));
    }

    fn discard(run: &Path, step: u64) {
        // Renamed first, so that a kill in between never leaves half a checkpoint under a valid name.
        let doomed = run.join(format!(".{PREFIX}{step}.old.tmp"));
        if fs::rename(run.join(Self::folder_name(step)), &doomed).is_ok() {
            let _ = fs::remove_dir_all(&doomed);
        }
    }

    /// Deletes the checkpoints of updates after `step`: a roll-back took them back. The newest goes first, so that a kill
    /// in between leaves a run that was at one of them.
    pub fn discard_after(run: &Path, step: u64) {
        let steps = Self::list(run).unwrap_or_default();
        steps.into_iter().rev().filter(|later| *later > step).for_each(|later| Self::discard(run, later));
    }

    /// Steps of the checkpoints in a run folder, ascending.
    pub fn list(run: &Path) -> Result<Vec<u64>> {
        let entries = fs::read_dir(run).map_err(|e| seedpo_tensor::Error::io(run, e))?;
        let step = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix(PREFIX)?.parse().ok();
        let mut steps: Vec<u64> = entries.filter_map(|e| e.ok().and_then(step)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// The newest checkpoint of a run folder, if there is one.
    pub fn latest(run: &Path) -> Result<Option<Self>> {
        Self::list(run)?.last().map(|step| Self::of_step(run, *step)).transpose()
    }

    /// The checkpoint of an update. Errors: as [`Checkpoint::load`].
    pub fn of_step(run: &Path, step: u64) -> Result<Self> {
        Self::load(&run.join(Self::folder_name(step)))
    }

    /// Opens a checkpoint folder.
    ///
    /// Errors: a missing or damaged file, named, with what to do; a format that a newer version of seedpo wrote.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(POSITION_FILE);
        let text = files::read_text(&path)?;
        let refuse = |reason: String| Error::Run { path: path.clone(), reason };
        // Before anything else is expected of it: what a newer format holds is not known.
        let newer = serde_json::from_str::<serde_json::Value>(&text).ok().and_then(|v| v.get("format")?.as_u64());
        if let Some(format) = newer.filter(|format| *format > u64::from(FORMAT)) {
            return Err(refuse(format!(
                "the checkpoint has format {format}, this version of seedpo reads 1 to {FORMAT}; resume with the version \
                 that wrote it (config.toml, [run])"
            )));
        }
        let found: PositionFile = serde_json::from_str(&text).map_err(|e| {
            refuse(format!("expected step, iteration and updates_done: {e}; resume from an older checkpoint folder"))
        })?;
        let PositionFile { step, iteration, updates_done, .. } = found;
        let optimizer = WeightFile::open(&folder.join(OPTIMIZER_FILE))?;
        let guard = read_guard(&folder.join(GUARD_FILE))?;
        Ok(Self { folder: folder.into(), position: Position { step, iteration, updates_done }, optimizer, guard })
    }

    /// Removes what a killed process left half-written, in the folders of whole U-Nets too.
    pub fn clean(run: &Path) {
        let whole = [Role::Trained, Role::Average].map(|role| role.place(FinetuningType::Full));
        files::remove_temporary(run, &|name| whole.contains(&name) || name == HISTORY_FOLDER);
    }
}

/// The guard's memory; empty where there is no file. Errors: a damaged file.
fn read_guard(path: &Path) -> Result<GuardState> {
    if !path.exists() {
        return Ok(GuardState::default());
    }
    serde_json::from_str(&files::read_text(path)?).map_err(|e| Error::Run {
        path: path.into(),
        reason: format!("expected the guard's memory: {e}; resume from an older checkpoint folder"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn save(run: &Path, step: u64, limit: u64) -> Result<PathBuf> {
        let optimizer = BTreeMap::from([("steps".to_string(), Tensor::from_slice(&[step as i64]))]);
        let position = Position { step, iteration: step / 2, updates_done: step % 2 };
        let saved = Checkpoint::save(run, position, &optimizer, |f| {
            Ok(files::write_atomic(&f.join(ADAPTER_FILE), b"adapter")?)
        });
        Checkpoint::prune(run, limit, Some(2));
        saved
    }

    #[test]
    fn the_newest_are_kept_and_read_back() {
        let run = tempfile::tempdir().unwrap();
        for step in [2, 9, 10, 11] {
            save(run.path(), step, 2).unwrap();
        }
        assert_eq!(Checkpoint::list(run.path()).unwrap(), [2, 10, 11], "the best one and the newest two");
        let latest = Checkpoint::latest(run.path()).unwrap().unwrap();
        assert_eq!(latest.position, Position { step: 11, iteration: 5, updates_done: 1 });
        assert_eq!(latest.optimizer.tensor("steps").unwrap().int64_value(&[0]), 11);
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_failed_write_leaves_the_old_checkpoint_and_nothing_else() {
        let run = tempfile::tempdir().unwrap();
        save(run.path(), 1, 1).unwrap();
        let full = |folder: &Path| -> Result<()> {
            fs::write(folder.join(ADAPTER_FILE), b"half").unwrap();
            Err(seedpo_tensor::Error::NoSpace { path: folder.join(ADAPTER_FILE) }.into())
        };
        let error = Checkpoint::save(run.path(), Position { step: 2, ..Default::default() }, &BTreeMap::new(), full);
        assert!(error.unwrap_err().to_string().contains("no space left"));
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), 1);
        assert_eq!(Checkpoint::latest(run.path()).unwrap().unwrap().position.step, 1);
    }

    #[test]
    fn leftovers_of_a_kill_are_ignored_and_cleaned() {
        let run = tempfile::tempdir().unwrap();
        save(run.path(), 3, 0).unwrap();
        fs::create_dir(run.path().join(".checkpoint-4.tmp")).unwrap();
        fs::write(run.path().join(".checkpoint-4.tmp/optimizer.safetensors"), b"ha").unwrap();
        assert_eq!(Checkpoint::list(run.path()).unwrap(), [3]);
        Checkpoint::clean(run.path());
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), 1);
        for folder in ["unet", "unet_ema", "reference_history/00000004"] {
            let left = run.path().join(folder).join(".diffusion_pytorch_model.safetensors.77-3.tmp");
            fs::create_dir_all(run.path().join(folder)).unwrap();
            fs::write(&left, b"half").unwrap();
            Checkpoint::clean(run.path());
            assert!(!left.exists(), "{folder}");
        }
    }

    #[test]
    fn older_formats_are_read_and_newer_ones_refused() {
        let run = tempfile::tempdir().unwrap();
        let folder = save(run.path(), 3, 0).unwrap();
        let position = folder.join(POSITION_FILE);
        assert!(fs::read_to_string(&position).unwrap().contains("\"format\": 2"));
        fs::write(&position, br#"{"step": 3, "iteration": 1, "updates_done": 1}"#).unwrap();
        let first = Checkpoint::load(&folder).unwrap();
        assert_eq!((first.position.iteration, first.guard), (1, GuardState::default()));
        fs::write(&position, br#"{"format": 9, "step": 3, "place": 1}"#).unwrap();
        let message = Checkpoint::load(&folder).unwrap_err().to_string();
        assert!(message.contains("format 9") && message.contains("position.json"), "{message}");
        fs::write(&position, br#"{"format": 2, "step": 3, "iteration": 1, "updates_done": 1}"#).unwrap();
        fs::write(folder.join(GUARD_FILE), b"{").unwrap();
        assert!(Checkpoint::load(&folder).unwrap_err().to_string().contains("guard.json"));
    }

    #[test]
    fn a_damaged_checkpoint_names_its_file() {
        let run = tempfile::tempdir().unwrap();
        let folder = save(run.path(), 3, 0).unwrap();
        fs::write(folder.join(POSITION_FILE), b"{\"step\": 3").unwrap();
        assert!(Checkpoint::load(&folder).unwrap_err().to_string().contains("position.json"));
        fs::write(folder.join(POSITION_FILE), br#"{"step": 3, "iteration": 1, "updates_done": 1}"#).unwrap();
        fs::write(folder.join(OPTIMIZER_FILE), b"garbage").unwrap();
        assert!(Checkpoint::load(&folder).unwrap_err().to_string().contains("optimizer.safetensors"));
    }
}
