//! Which curves a report shows, in which order, and what it says about them.

use super::chart::{Chart, Line};
use super::data::{ReportData, RunSeries};

/// Which direction of a curve is good news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    Higher,
    Lower,
    Neither,
}

/// A known metric.
struct Known {
    key: &'static str,
    title: &'static str,
    unit: &'static str,
    better: Better,
    note: &'static str,
    reference: Option<(f64, &'static str)>,
}

/// A shorthand so that the tables below read as tables.
const fn known(
    key: &'static str,
    title: &'static str,
    unit: &'static str,
    better: Better,
    note: &'static str,
    reference: Option<(f64, &'static str)>,
) -> Known {
    Known { key, title, unit, better, note, reference }
}

use Better::{Higher, Lower, Neither};

/// What came out: measured on the same prompts and seeds every time.
const OUTCOME: &[Known] = &[
    known(
        "preview.reward_mean",
        "Reward",
        "",
        Higher,
        "Mean score of the preview images, same prompts and seeds every time.",
        None,
    ),
    known(
        "preview.heldout_mean",
        "Held-out judge",
        "",
        Higher,
        "A judge nobody trained on. If it falls while the reward rises, the reward is being gamed.",
        None,
    ),
    known(
        "preview.measured.rmse",
        "Diversity: RMSE",
        "levels",
        Higher,
        "Pixel distance between images of one prompt.",
        None,
    ),
    known(
        "preview.measured.ssim",
        "Diversity: SSIM",
        "",
        Lower,
        "Structural similarity between images of one prompt.",
        None,
    ),
    known(
        "preview.measured.psnr",
        "Diversity: PSNR",
        "dB",
        Lower,
        "Likeness of pixels between images of one prompt.",
        None,
    ),
    known(
        "preview.measured.entropy",
        "Diversity: entropy",
        "bits",
        Higher,
        "Entropy of the grey levels within an image.",
        None,
    ),
    known(
        "preview.measured.e1",
        "Diversity: E1",
        "nats",
        Higher,
        "Kernel entropy of order 1 of the image embeddings.",
        None,
    ),
    known(
        "preview.measured.e2",
        "Diversity: E2",
        "nats",
        Higher,
        "Kernel entropy of order 2 of the image embeddings.",
        None,
    ),
];

/// How it got there: measured on what was trained on.
const TRAINING: &[Known] = &[
    known(
        "update.reward_mean",
        "Reward of the rollouts",
        "",
        Higher,
        "Mean score of the images drawn for training.",
        None,
    ),
    known(
        "update.kl_to_reference",
        "KL to the reference",
        "nats per element",
        Neither,
        "How far the policy has moved from the model it started as.",
        None,
    ),
    known(
        "update.margin",
        "Margin",
        "",
        Higher,
        "Winner's minus loser's likelihood gain, before β.",
        Some((0.0, "no preference")),
    ),
    known(
        "update.implicit_accuracy",
        "Implicit accuracy",
        "share",
        Higher,
        "Pairs whose winner the policy favours.",
        Some((0.5, "chance")),
    ),
    known(
        "update.loss",
        "Loss",
        "nats",
        Lower,
        "Pairwise loss. It is not a health signal: read reward and diversity first.",
        Some((std::f64::consts::LN_2, "ln 2")),
    ),
    known("update.grad_norm", "Gradient norm", "", Neither, "Before clipping.", None),
    known("update.clip_fraction", "Clip fraction", "share", Neither, "Likelihood ratios outside the clip range.", None),
    known(
        "update.ratio_mean",
        "Likelihood ratio",
        "",
        Neither,
        "Policy over reference, mean over both sides of the pairs.",
        Some((1.0, "equal")),
    ),
    known("update.learning_rate", "Learning rate", "", Neither, "", None),
];

/// Logged, but of no use as a curve of its own.
const HIDDEN: &[&str] = &["update.iteration", "update.epoch", "preview.seconds"];

/// A titled section of charts.
pub(crate) struct Section {
    pub title: &'static str,
    pub lead: &'static str,
    pub charts: Vec<Chart>,
    /// Folded away until asked for.
    pub folded: bool,
}

/// The sections of a report, without charts that no run has a point for.
pub(crate) fn sections(data: &ReportData) -> Vec<Section> {
    let mut outcome: Vec<Chart> = charts(data, OUTCOME);
    outcome.splice(0..0, trade_off(data));
    let known_keys = |key: &str| OUTCOME.iter().chain(TRAINING).any(|known| known.key == key) || HIDDEN.contains(&key);
    let mut others: Vec<&str> =
        data.runs.iter().flat_map(|run| run.series.keys()).map(String::as_str).filter(|key| !known_keys(key)).collect();
    others.sort_unstable();
    others.dedup();
    let other_charts = others.iter().map(|key| plain_chart(data, key)).filter(Chart::has_lines).collect();
    let mut all = vec![
        Section {
            title: "What changed",
            lead: "Measured on the preview prompts: the same prompts and seeds every time, so that a difference is the training's.",
            charts: outcome,
            folded: false,
        },
        Section {
            title: "How it learned",
            lead: "Measured on the pairs trained on. Bold lines are moving averages where there are many points.",
            charts: charts(data, TRAINING),
            folded: false,
        },
        Section { title: "Everything else that was logged", lead: "", charts: other_charts, folded: true },
    ];
    all.retain(|section| !section.charts.is_empty());
    all
}

fn charts(data: &ReportData, table: &[Known]) -> Vec<Chart> {
    let chart = |known: &Known| Chart {
        title: title_of(data, known),
        unit: unit_of(data, known),
        better: known.better,
        note: known.note.to_owned(),
        x_label: "updates".to_owned(),
        lines: lines(data, |run| run.points(known.key).to_vec()),
        reference: known.reference.map(|(value, label)| (value, label.to_owned())),
    };
    table.iter().map(chart).filter(Chart::has_lines).collect()
}

fn plain_chart(data: &ReportData, key: &str) -> Chart {
    Chart {
        title: key.replace(['.', '_'], " "),
        unit: String::new(),
        better: Neither,
        note: String::new(),
        x_label: "updates".to_owned(),
        lines: lines(data, |run| run.points(key).to_vec()),
        reference: None,
    }
}

fn lines(data: &ReportData, points: impl Fn(&RunSeries) -> Vec<(f64, f64)>) -> Vec<Line> {
    data.runs
        .iter()
        .enumerate()
        .map(|(run, series)| Line { run, name: series.name.clone(), points: points(series) })
        .filter(|line| !line.points.is_empty())
        .collect()
}

fn title_of(data: &ReportData, known: &Known) -> String {
    match (known.key, &data.heldout) {
        ("preview.reward_mean", _) if !data.reward.name.is_empty() => format!("Reward: {}", data.reward.name),
        ("preview.heldout_mean", Some(judge)) => format!("Held out: {}", judge.name),
        _ => known.title.to_owned(),
    }
}

fn unit_of(data: &ReportData, known: &Known) -> String {
    match (known.key, &data.heldout) {
        ("preview.reward_mean" | "update.reward_mean", _) => data.reward.unit.clone(),
        ("preview.heldout_mean", Some(judge)) => judge.unit.clone(),
        _ => known.unit.to_owned(),
    }
}

/// Reward against diversity over the run: up is better, left is what it cost. None unless both were measured.
fn trade_off(data: &ReportData) -> Option<Chart> {
    let pair = |run: &RunSeries| -> Vec<(f64, f64)> {
        let rewards = run.points("preview.reward_mean");
        let rmse = run.points("preview.measured.rmse");
        let at = |step: f64| rmse.iter().find(|point| point.0 == step).map(|point| point.1);
        rewards.iter().filter_map(|&(step, reward)| Some((at(step)?, reward))).collect()
    };
    let chart = Chart {
        title: "Reward against diversity".to_owned(),
        unit: data.reward.unit.clone(),
        better: Higher,
        note: "Each dot is a preview; the ring is the base model. Straight up is reward for free, to the left is variety lost."
            .to_owned(),
        x_label: "diversity (RMSE)".to_owned(),
        lines: lines(data, pair),
        reference: None,
    };
    chart.lines.iter().any(|line| line.points.len() > 1).then_some(chart)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::data::small_report as data;

    #[test]
    fn every_logged_metric_has_a_place_and_absent_ones_none() {
        let sections = sections(&data());
        let titles: Vec<Vec<&str>> =
            sections.iter().map(|section| section.charts.iter().map(|chart| chart.title.as_str()).collect()).collect();
        assert_eq!(
            titles,
            [
                vec!["Reward against diversity", "Reward: judge", "Diversity: RMSE"],
                vec!["KL to the reference"],
                vec!["update speed of light"]
            ]
        );
        assert_eq!(sections[0].charts[0].lines[0].points, [(60.0, -4.0), (57.0, -3.0)]);
        assert!(super::sections(&ReportData::default()).is_empty());
    }
}
