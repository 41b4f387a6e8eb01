//! The figures and the sentence that a reader sees first.

use super::data::{Headline, ReportData, RunSeries};
use super::format::{number, signed};
use std::fmt::Write;

/// A run's row in the comparison, and the tiles of the first run.
pub(crate) fn headlines(data: &ReportData, run: &RunSeries) -> Vec<Headline> {
    let mut tiles = Vec::new();
    let mut change = |label: String, key: &str, unit: &str| {
        if let Some((before, after)) = run.first_last(key) {
            let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
            let relative =
                if before == 0.0 { String::new() } else { format!(" ({})", percent(after / before, before < 0.0)) };
            tiles.push(Headline {
                label,
                value: format!("{} → {}", number(before), number(after)),
                detail: format!("{}{unit}{relative}", signed(after - before)),
            });
        }
    };
    change(named("Reward", &data.reward.name), "preview.reward_mean", &data.reward.unit);
    if let Some(judge) = &data.heldout {
        change(named("Held out", &judge.name), "preview.heldout_mean", &judge.unit);
    }
    if let Some((before, after)) = run.first_last("preview.measured.rmse").filter(|(before, _)| *before > 0.0) {
        tiles.push(Headline {
            label: "Diversity kept".to_owned(),
            value: format!("{:.0} %", after / before * 100.0),
            detail: format!("RMSE {} → {}", number(before), number(after)),
        });
    }
    if let Some((_, last)) = run.first_last("update.kl_to_reference") {
        tiles.push(Headline {
            label: "KL to the reference".to_owned(),
            value: number(last),
            detail: "nats per element".to_owned(),
        });
    }
    tiles
}

/// The change that a ratio stands for; of negative numbers too, where less negative is more: `+34 %`.
fn percent(ratio: f64, negative: bool) -> String {
    let change = (ratio - 1.0) * if negative { -100.0 } else { 100.0 };
    let digits = usize::from(change.abs() < 9.95);
    format!("{change:+.digits$} %").replace('-', "−")
}

/// The report in a sentence or two, for a page that was given none.
pub(crate) fn summary(data: &ReportData) -> String {
    let Some(run) = data.runs.first() else { return String::new() };
    let mut text = String::new();
    if let Some((before, after)) = run.first_last("preview.reward_mean") {
        let updates = run.points("preview.reward_mean").last().map_or(0.0, |point| point.0);
        let verb = if after > before {
            "rose"
        } else if after < before {
            "fell"
        } else {
            "stayed"
        };
        let unit = if data.reward.unit.is_empty() { String::new() } else { format!(" {}", data.reward.unit) };
        let _ = write!(
            text,
            "{} {verb} from {} to {}{unit} in {} updates.",
            named("The reward", &data.reward.name).replace(": ", " "),
            number(before),
            number(after),
            number(updates)
        );
    }
    let kept: Vec<String> = data
        .runs
        .iter()
        .filter_map(|run| {
            let (before, after) = run.first_last("preview.measured.rmse").filter(|(before, _)| *before > 0.0)?;
            let name = if data.runs.len() > 1 { &run.name } else { "the policy" };
            Some(format!("{name} kept {:.0} %", after / before * 100.0))
        })
        .collect();
    if !kept.is_empty() {
        let _ = write!(text, " Of the variety between images of one prompt, {}.", kept.join("; "));
    }
    text
}

fn named(what: &str, judge: &str) -> String {
    if judge.is_empty() { what.to_owned() } else { format!("{what}: {judge}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::data::small_report as data;

    #[test]
    fn headlines_are_read_off_the_curves() {
        let data = data();
        let found: Vec<(String, String, String)> =
            headlines(&data, &data.runs[0]).into_iter().map(|h| (h.label, h.value, h.detail)).collect();
        assert_eq!(found[0], ("Reward: judge".to_owned(), "−4 → −3".to_owned(), "+1 u (+25 %)".to_owned()));
        assert_eq!((found[1].0.as_str(), found[1].1.as_str()), ("Diversity kept", "95 %"));
        assert_eq!((found[2].0.as_str(), found[2].1.as_str()), ("KL to the reference", "0.25"));
        assert_eq!(found.len(), 3);
        assert!(headlines(&data, &RunSeries::default()).is_empty());
    }
}
