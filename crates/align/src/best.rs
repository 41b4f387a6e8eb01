//! Which checkpoint of a run is the best, by a chosen metric.

use std::path::Path;

use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::choice::choice;
use crate::error::{Error, Result};
use crate::metrics::{PreviewMetrics, Record};
use crate::run_dir::RunDir;
use seedpo_tensor::files::write_atomic;

/// Names the best checkpoint, at the top of a run folder.
pub const BEST_FILE: &str = "best.json";

choice! {
    /// What checkpoints are compared by; the setting `checkpoint_metric`, which may also be empty.
    CheckpointMetric, "checkpoint_metric" {
        /// The judge's mean score of the checkpoint's previews.
        Reward = "reward",
        /// The held-out judge's.
        Heldout = "heldout",
        /// The mean implicit accuracy of the updates since the checkpoint before.
        Accuracy = "accuracy",
    }
}

/// The best checkpoint, as best.json holds it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Best {
    /// Its folder's name.
    pub checkpoint: String,
    /// Its step.
    pub step: u64,
    /// The metric's name.
    pub metric: String,
    /// The metric's value.
    pub value: f64,
}

impl CheckpointMetric {
    /// The metric that a setting names; `None` where it is empty. Errors: an unknown name.
    pub fn from_setting(name: &str) -> Result<Option<Self>> {
        if name.is_empty() { Ok(None) } else { Self::by_name(name).map(Some) }
    }

    /// Whether it is measured on previews.
    pub fn needs_previews(self) -> bool {
        self != Self::Accuracy
    }

    /// The metric of the checkpoint after update `step`, whose predecessor was `every` updates before; higher is better.
    /// `None` where nothing was measured then.
    pub fn of(self, records: &[Record], step: u64, every: u64) -> Option<f64> {
        let preview = |of: fn(&PreviewMetrics) -> Option<f64>| {
            let found = records.iter().rev().find_map(|record| match record {
                Record::Preview(metrics) if metrics.step == step => of(metrics),
                _ => None,
            });
            found.filter(|value| value.is_finite())
        };
        match self {
            Self::Reward => preview(|metrics| Some(metrics.reward_mean)),
            Self::Heldout => preview(|metrics| metrics.heldout_mean),
            Self::Accuracy => {
                let values: Vec<f64> = records
                    .iter()
                    .filter_map(|record| match record {
                        Record::Update(m) if m.step <= step && m.step + every > step => Some(m.implicit_accuracy),
                        _ => None,
                    })
                    .collect();
                (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
            }
        }
    }
}

/// The best of the checkpoints that a run has; of equals the earliest. `None` where none was measured.
///
/// It is found from what is on disk alone, so that a killed run finds the same one when it goes on.
pub fn best_checkpoint(run: &RunDir, metric: CheckpointMetric, every: u64) -> Result<Option<Best>> {
    let records = run.records()?;
    let mut best: Option<Best> = None;
    for step in Checkpoint::list(run.path())? {
        let Some(value) = metric.of(&records, step, every) else { continue };
        if best.as_ref().is_none_or(|best| value > best.value) {
            let metric = metric.name().to_string();
            best = Some(Best { checkpoint: Checkpoint::folder_name(step), step, metric, value });
        }
    }
    Ok(best)
}

/// Writes best.json; without a best checkpoint there is none. Errors: no space and the like.
pub fn write_best(run: &Path, best: Option<&Best>) -> Result<()> {
    let path = run.join(BEST_FILE);
    let Some(best) = best else {
        let _ = std::fs::remove_file(&path);
        return Ok(());
    };
    let text =
        serde_json::to_string_pretty(best).map_err(|e| Error::Run { path: path.clone(), reason: e.to_string() })?;
    Ok(write_atomic(&path, format!("{text}\n").as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preview(step: u64, reward_mean: f64, heldout_mean: Option<f64>) -> Record {
        Record::Preview(PreviewMetrics { step, reward_mean, heldout_mean, ..PreviewMetrics::default() })
    }

    #[test]
    fn previews_of_that_very_update_count() {
        let records = [preview(10, 1.0, Some(5.0)), preview(20, 3.0, None), preview(20, 4.0, Some(f64::NAN))];
        assert_eq!(CheckpointMetric::Reward.of(&records, 20, 10), Some(4.0));
        assert_eq!(CheckpointMetric::Reward.of(&records, 15, 10), None);
        assert_eq!(CheckpointMetric::Heldout.of(&records, 10, 10), Some(5.0));
        assert_eq!(CheckpointMetric::Heldout.of(&records, 20, 10), None);
        assert_eq!(CheckpointMetric::from_setting("heldout").unwrap(), Some(CheckpointMetric::Heldout));
        assert_eq!(CheckpointMetric::from_setting("").unwrap(), None);
        assert!(CheckpointMetric::from_setting("x").unwrap_err().to_string().contains("reward, heldout, accuracy"));
    }
}
