//! The watch for reward hacking (docs/reward-hacking.md): from the previews of a run to a finding, by arithmetic alone.

use crate::choice::choice;
use crate::config::TrainConfig;
use crate::error::Result;
use crate::metrics::{Heldout, PreviewMetrics, Record, summary};
use std::collections::BTreeMap;

choice! {
    /// What is done about a finding; the setting `watch`.
    WatchAction, "watch" {
        /// Nothing is looked for.
        Off = "off",
        /// It is recorded and shown.
        Warn = "warn",
        /// The run ends, saved, as if it had reached its length.
        Stop = "stop",
        /// γ of the self-entropy term grows.
        RaiseGamma = "raise-gamma",
    }
}

/// What the watch looks for and does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WatchOptions {
    /// What is done.
    pub action: WatchAction,
    /// Previews in a row that must agree.
    pub patience: usize,
    /// Standard errors that a mean score must have moved by.
    pub errors: f64,
    /// Standard deviations of the earlier pictures' scores by which a held-out score must have fallen.
    pub heldout_drop: f64,
    /// Share by which diversity must have fallen.
    pub diversity_drop: f64,
    /// What γ grows by.
    pub gamma_step: f64,
    /// The largest γ.
    pub gamma_max: f64,
}

impl WatchOptions {
    /// The watch of a run's settings. Errors: an unknown `watch`.
    pub fn from_settings(config: &TrainConfig) -> Result<Self> {
        Ok(Self {
            action: WatchAction::by_name(&config.watch)?,
            patience: config.watch_patience as usize,
            errors: config.watch_standard_errors,
            heldout_drop: config.watch_heldout_drop,
            diversity_drop: config.watch_diversity_drop,
            gamma_step: config.watch_gamma_step,
            gamma_max: config.watch_gamma_max,
        })
    }

    /// γ after `raises` findings, from what it was at the beginning.
    pub fn gamma(&self, initial: f64, raises: usize) -> f64 {
        let grown = initial + self.gamma_step * raises as f64;
        if raises == 0 { initial } else { grown.min(self.gamma_max).max(initial) }
    }
}

/// Reward rises while something it should bring along falls.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// The update of the preview that the last ones are compared with.
    pub since: u64,
    /// By how much the mean reward rose since then.
    pub reward_rise: f64,
    /// Held-out judges whose mean score fell, and by how much.
    pub heldout_falls: BTreeMap<String, f64>,
    /// Median relative change of the diversity metrics, where it is a fall: -0.2 is a fifth less diverse.
    pub diversity_change: Option<f64>,
}

impl Finding {
    /// What was found, for people.
    pub fn sentence(&self) -> String {
        let mut falls: Vec<String> =
            self.heldout_falls.iter().map(|(judge, fall)| format!("{judge} (held out) fell by {fall:.4}")).collect();
        falls.extend(self.diversity_change.map(|change| format!("diversity fell by {:.0} %", -100.0 * change)));
        format!("since update {} the reward rose by {:.4} while {}", self.since, self.reward_rise, falls.join(" and "))
    }
}

/// The diversity metrics by name and whether more of it is more diverse (docs/methods.md section 5).
const DIVERSITY: &[(&str, bool)] =
    &[("rmse", true), ("psnr", false), ("ssim", false), ("entropy", true), ("e1", true), ("e2", true)];

/// Whether the newest preview completes a finding: some preview at least `patience` earlier from which each of the last
/// `patience` previews differs in the same way, reward higher and a held-out score or diversity lower.
///
/// `previews` in the order drawn; those before the last finding must be left out, so that it is not found again.
pub fn assess(previews: &[PreviewMetrics], options: &WatchOptions) -> Option<Finding> {
    let first_late = previews.len().checked_sub(options.patience.max(1))?;
    let (earlier, late) = previews.split_at(first_late);
    earlier.iter().find_map(|before| {
        let mut findings = late.iter().map(|now| compare(before, now, options));
        let mut agreed = findings.next()??;
        for finding in findings {
            let finding = finding?;
            agreed.heldout_falls = finding
                .heldout_falls
                .into_iter()
                .filter(|(judge, _)| agreed.heldout_falls.contains_key(judge))
                .collect();
            agreed.diversity_change = agreed.diversity_change.and(finding.diversity_change);
            agreed.reward_rise = finding.reward_rise;
        }
        (!agreed.heldout_falls.is_empty() || agreed.diversity_change.is_some()).then_some(agreed)
    })
}

fn compare(before: &PreviewMetrics, now: &PreviewMetrics, options: &WatchOptions) -> Option<Finding> {
    let reward_rise = rise(&before.scores, &now.scores, options.errors)?;
    let fell = |(judge, before): (&String, &Heldout)| {
        let fall = rise(&now.heldout.get(judge)?.scores, &before.scores, options.errors)?;
        let [_, spread, ..] = summary(&before.scores);
        (fall > options.heldout_drop * spread).then(|| (judge.clone(), fall))
    };
    let diversity_change = diversity_change(&before.measured, &now.measured);
    Some(Finding {
        since: before.step,
        reward_rise,
        heldout_falls: before.heldout.iter().filter_map(fell).collect(),
        diversity_change: diversity_change.filter(|change| *change < -options.diversity_drop),
    })
}

/// By how much the mean rose, if by more than `errors` standard errors. Prompts and noise of image i are the same on both
/// sides, so the error is that of the mean difference. `None` too for lists that do not match or hold NaN.
fn rise(from: &[f64], to: &[f64], errors: f64) -> Option<f64> {
    if from.len() != to.len() || from.len() < 2 {
        return None;
    }
    let differences: Vec<f64> = to.iter().zip(from).map(|(to, from)| to - from).collect();
    let [mean, std, ..] = summary(&differences);
    (mean > errors * std / (differences.len() as f64 - 1.0).sqrt()).then_some(mean)
}

/// The median over the diversity metrics of how much more diverse, relative to `before`; `None` where none is in both.
fn diversity_change(before: &BTreeMap<String, f64>, now: &BTreeMap<String, f64>) -> Option<f64> {
    let change = |(name, up): &(&str, bool)| {
        let (before, now) = (*before.get(*name)?, *now.get(*name)?);
        let change = (now - before) / before.abs().max(1e-6);
        change.is_finite().then_some(if *up { change } else { -change })
    };
    let mut changes: Vec<f64> = DIVERSITY.iter().filter_map(change).collect();
    changes.sort_unstable_by(f64::total_cmp);
    let middle = changes.len().checked_sub(1)?;
    Some((changes[middle / 2] + changes[middle.div_ceil(2)]) / 2.0)
}

/// The previews since the last finding, and how many findings raised γ. The preview of a finding opens the next stretch.
pub fn since_last_finding(records: &[Record]) -> (Vec<PreviewMetrics>, usize) {
    let (mut from, mut raises) = (0, 0);
    for event in records.iter().filter_map(|record| if let Record::Watch(event) = record { Some(event) } else { None })
    {
        from = event.step;
        raises += usize::from(event.gamma.is_some());
    }
    let preview = |record: &Record| match record {
        Record::Preview(m) if m.step >= from => Some(m.clone()),
        _ => None,
    };
    (records.iter().filter_map(preview).collect(), raises)
}

#[cfg(test)]
mod tests;
