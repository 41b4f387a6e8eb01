//! What a run records: one line per update, per preview and per event of the guard in `metrics.jsonl`.

use seedpo_judge::{Judge, Statistics};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One update, as written to `metrics.jsonl` with `"kind": "update"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpdateMetrics {
    /// Updates applied so far, this one included; from 1.
    pub step: u64,
    /// Prompt batch this update belongs to, from 0.
    pub iteration: u64,
    /// Passes over the prompts begun so far, as a fraction.
    pub epoch: f64,
    /// Mean pairwise loss in nats; ln 2 when policy equals reference. Ties are left out. SFT: the mean denoising error.
    pub loss: f64,
    /// Share of untied pairs whose margin is positive, in [0, 1]; 0 margins count one half.
    pub implicit_accuracy: f64,
    /// Mean margin m of docs/methods.md section 3, before β, of untied pairs.
    pub margin: f64,
    /// Mean of exp(ℓ_θ − ℓ_ref) before clipping, both sides.
    pub ratio_mean: f64,
    /// Mean of ℓ_θ − ℓ_ref of the winners.
    pub log_ratio_winner: f64,
    /// Mean of ℓ_θ − ℓ_ref of the losers.
    pub log_ratio_loser: f64,
    /// Share of ratios outside the clip range, both sides, in [0, 1].
    pub clip_fraction: f64,
    /// Mean λ of the winner-preserving safeguard, what the losers' gradients were multiplied by; absent where it is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loser_scale: Option<f64>,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate of this update.
    pub learning_rate: f64,
    /// Mean over steps of mean((μ_θ − μ_ref)²)/(2σ²) on the states trained on: the per-element KL of one step.
    pub kl_to_reference: f64,
    /// Mean of SePPO's s, in [-1, 1]: 1 pushes all samples of the reference away, -1 learns from all. Absent without a
    /// flipper.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flip_mean: Option<f64>,
    /// The update after which the reference was the policy; 0 is the base. Absent where it is a moving average, and
    /// where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_step: Option<u64>,
    /// Judge's mean score of this iteration's final images.
    pub reward_mean: f64,
    /// Their standard deviation (population).
    pub reward_std: f64,
    /// Their minimum.
    pub reward_min: f64,
    /// Their maximum.
    pub reward_max: f64,
    /// What each judge of an ensemble gave, by its name: all pictures scored in this iteration, a step's candidates too.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub judges: BTreeMap<String, MemberScores>,
    /// Pairs of this iteration that are trained on.
    pub pairs_kept: u64,
    /// Pairs of this iteration that were tied or below the threshold.
    pub pairs_tied: u64,
    /// Seconds of this iteration's rollout, judge excluded; on the iteration's first update only, else 0.
    pub seconds_rollout: f64,
    /// Seconds of this iteration's decoding and judging; likewise.
    pub seconds_judge: f64,
    /// Seconds of this update.
    pub seconds_train: f64,
    /// Single-image U-Net evaluations of the rollout (first update only) and of this update.
    pub unet_evaluations: u64,
}

/// One round of previews, as written to `metrics.jsonl` with `"kind": "preview"`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PreviewMetrics {
    /// Updates applied before the previews were drawn; 0 is the base model.
    pub step: u64,
    /// Judge's mean score of the preview images.
    pub reward_mean: f64,
    /// Their standard deviation (population).
    pub reward_std: f64,
    /// The judge's score of each image, prompt by prompt; empty in runs of a version that did not keep them.
    #[serde(default)]
    pub scores: Vec<f64>,
    /// What each judge of an ensemble gave them, by its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub judges: BTreeMap<String, MemberScores>,
    /// The first held-out judge's mean score, where one is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heldout_mean: Option<f64>,
    /// Every held-out judge's scores, by its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub heldout: BTreeMap<String, Heldout>,
    /// Per-element KL of one step to the base, whatever the reference of the loss, mean over steps of the previews' trajectories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl_to_reference: Option<f64>,
    /// What the observer measured on the images, e.g. diversity by name.
    #[serde(default)]
    pub measured: BTreeMap<String, f64>,
    /// Seconds to draw and judge them.
    pub seconds: f64,
}

/// The scores of one judge among several that are trained on as one, as it gives them: not normalised.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MemberScores {
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation (population).
    pub std: f64,
}

impl MemberScores {
    /// By name, of what an ensemble's judges gave since this was last asked for; none for a judge that is one.
    pub fn take(judge: &dyn Judge) -> BTreeMap<String, Self> {
        let named = |Statistics { judge, mean, std, .. }| (judge, Self { mean, std });
        judge.take_statistics().into_iter().map(named).collect()
    }
}

/// A held-out judge's scores of the previews.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heldout {
    /// Their mean.
    pub mean: f64,
    /// The score of each image, prompt by prompt.
    pub scores: Vec<f64>,
}

/// What the watch found and did (docs/reward-hacking.md), as written to `metrics.jsonl` with `"kind": "watch"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WatchEvent {
    /// Updates applied before the preview that showed it.
    pub step: u64,
    /// `warn`, `stop` or `raise-gamma`.
    pub action: String,
    /// What was found.
    pub what: String,
    /// γ from now on, where it was raised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gamma: Option<f64>,
}

impl WatchEvent {
    /// What happened, for people.
    pub fn sentence(&self) -> String {
        let done = match (self.action.as_str(), self.gamma) {
            (_, Some(gamma)) => format!("; γ is now {gamma}"),
            ("stop", None) => "; the run ends".to_owned(),
            _ => String::new(),
        };
        format!("this looks like reward hacking: {}{done}", self.what)
    }
}

/// Something the guard saw and did (docs/stability.md), as written to `metrics.jsonl` with `"kind": "guard"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuardEvent {
    /// The update that was about to be applied, from 1.
    pub step: u64,
    /// Its prompt batch, from 0.
    pub iteration: u64,
    /// `note`, `skip`, `back-off`, `roll-back` or `stop`.
    pub action: String,
    /// What was out of line, with its value.
    pub what: String,
    /// The value; absent where it is no finite number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// The most it may be; absent where any finite number would do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<f64>,
    /// What the learning rate is multiplied by from now on.
    pub learning_rate_factor: f64,
    /// The update whose checkpoint was gone back to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rolled_back_to: Option<u64>,
}

impl GuardEvent {
    /// What happened, for people.
    pub fn sentence(&self) -> String {
        let factor = self.learning_rate_factor;
        let done = match (self.action.as_str(), self.rolled_back_to) {
            ("note", _) => "noted".to_string(),
            ("skip", _) => "left out".to_string(),
            ("back-off", _) => format!("left out; the learning rate is now {factor} of the schedule's"),
            (_, Some(step)) => {
                format!("rolled back to update {step}; other data and noise, learning rate {factor} of the schedule's")
            }
            _ => "the run ends".to_string(),
        };
        format!("update {}: {}: {done}", self.step, self.what)
    }
}

/// A line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Record {
    /// An update.
    Update(UpdateMetrics),
    /// A preview.
    Preview(PreviewMetrics),
    /// An event of the guard.
    Guard(GuardEvent),
    /// A finding of the watch.
    Watch(WatchEvent),
}

impl Record {
    /// Updates applied when the line was written.
    pub fn step(&self) -> u64 {
        match self {
            Self::Update(m) => m.step,
            Self::Preview(m) => m.step,
            Self::Guard(event) => event.step,
            Self::Watch(event) => event.step,
        }
    }
}

/// Mean, population standard deviation, minimum and maximum; zeros for no values.
pub fn summary(values: &[f64]) -> [f64; 4] {
    if values.is_empty() {
        return [0.0; 4];
    }
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    [mean, variance.sqrt(), low, high]
}

#[cfg(test)]
mod tests {
    #[test]
    fn summary_of_four_numbers() {
        assert_eq!(super::summary(&[1.0, 2.0, 3.0, 4.0]), [2.5, 1.25f64.sqrt(), 1.0, 4.0]);
    }
}
