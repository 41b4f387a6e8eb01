//! What a run leaves on disk: checkpoints, the best of them, and the result at the top of its folder.

use super::Trainer;
use crate::best::{CheckpointMetric, best_checkpoint, write_best};
use crate::checkpoint::{Checkpoint, GUARD_FILE, REWARDS_FILE, Role};
use crate::error::{Error, Result};
use crate::method::PairsFrom;
use crate::observer::Observer;
use seedpo_model::PolicyWeights;
use seedpo_model::adapter::KOHYA_FILE_NAME;
use seedpo_tensor::files::{link_or_copy, write_atomic};
use std::fs;
use std::path::Path;

impl Trainer<'_> {
    /// The result at the top of the run folder: an adapter in diffusers' layout and in kohya's, a whole U-Net as links to
    /// the newest checkpoint's; and its average.
    pub(super) fn save_result(&self) -> Result<()> {
        let run = self.parts.run.path();
        let average = self.average.as_ref().map(|average| (Role::Average, &average.weights));
        for (role, weights) in average.into_iter().chain([(Role::Trained, &self.weights)]) {
            let place = role.place(weights.finetuning_type());
            match (weights, &self.saved) {
                (PolicyWeights::Full(_), Some((_, folder))) => link_or_copy(&folder.join(place), &run.join(place))?,
                _ => weights.save(&run.join(place))?,
            }
        }
        match self.weights.adapter() {
            Some(adapter) => Ok(adapter.save_kohya(&run.join(KOHYA_FILE_NAME))?),
            None => Ok(()),
        }
    }

    /// Removes the result of an update that was taken back.
    pub(super) fn drop_result(&self) {
        let run = self.parts.run.path();
        let kind = self.weights.finetuning_type();
        for name in [Role::Trained.place(kind), Role::Average.place(kind), KOHYA_FILE_NAME] {
            let path = run.join(name);
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }

    /// Writes a checkpoint of the current position and updates the result at the top of the run folder.
    pub(super) fn save(&mut self, observer: &mut dyn Observer) -> Result<()> {
        if self.saved.as_ref().is_some_and(|(step, _)| *step == self.position.step) {
            return Ok(());
        }
        let run = &self.parts.run;
        run.sync_metrics();
        let within_iteration = self.position.updates_done > 0;
        let previous = self.saved.as_ref().map(|(_, folder)| folder.as_path());
        let weights = |folder: &Path| -> Result<()> {
            let save =
                |role: Role, weights: &PolicyWeights| weights.save(&folder.join(role.place(weights.finetuning_type())));
            save(Role::Trained, &self.weights)?;
            if let (true, Some(rollout)) = (within_iteration, &self.rollout) {
                save(Role::Rollout, rollout)?;
            }
            if let Some(average) = &self.average {
                save(Role::Average, &average.weights)?;
            }
            if self.method.pairs == PairsFrom::Samples {
                let rewards = if within_iteration { &self.rewards_before } else { &self.rewards };
                let text = serde_json::to_string(rewards).unwrap_or_default();
                write_atomic(&folder.join(REWARDS_FILE), text.as_bytes())?;
            }
            let guard = serde_json::to_string_pretty(&self.guard.state).unwrap_or_default();
            write_atomic(&folder.join(GUARD_FILE), guard.as_bytes())?;
            self.references.save(folder, previous)
        };
        let folder = Checkpoint::save(run.path(), self.position, &self.optimizer.state(), weights)?;
        self.saved = Some((self.position.step, folder.clone()));
        self.save_result()?;
        self.keep_best()?;
        observer.on_checkpoint(self.position.step, &folder).map_err(Error::Observer)
    }

    /// Notes the best checkpoint, and deletes what is neither that nor among the newest.
    pub(super) fn keep_best(&self) -> Result<()> {
        let (config, run) = (&self.parts.config, &self.parts.run);
        let metric = CheckpointMetric::from_setting(&config.checkpoint_metric)?;
        let best = metric.map(|metric| best_checkpoint(run, metric, config.checkpointing_steps)).transpose()?.flatten();
        write_best(run.path(), best.as_ref())?;
        Checkpoint::prune(run.path(), config.checkpoints_total_limit, best.map(|best| best.step));
        Ok(())
    }
}
