//! One chart as inline SVG whose colours come from the page's style sheet.

use super::axes::{BOTTOM, HEIGHT, LEFT, RIGHT, Scale, TOP, WIDTH, extent, tick_text, ticks, widened};
use super::catalogue::Better;
use super::format::{escape, number};
use super::points::{MANY, averaged, drawable, is_noisy, thinned};
use std::fmt::Write;

/// A chart: one line per run.
#[derive(Debug, Clone)]
pub(crate) struct Chart {
    pub title: String,
    pub unit: String,
    pub better: Better,
    pub note: String,
    pub x_label: String,
    pub lines: Vec<Line>,
    /// A value worth a dashed line, and its name.
    pub reference: Option<(f64, String)>,
}

/// A run's points, in drawing order. Points with a non-finite coordinate leave a gap.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// Position of the run, which decides colour and dashes.
    pub run: usize,
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// Height of a line of small text.
const TEXT: f64 = 13.0;
/// Up to this many points each gets a dot.
const FEW: usize = 24;
/// Colours and dash patterns of the style sheet; later runs start over.
pub(crate) const RUN_STYLES: usize = 6;

impl Chart {
    /// Whether any run has a finite point.
    pub fn has_lines(&self) -> bool {
        self.finite().next().is_some()
    }

    fn finite(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.lines.iter().flat_map(|line| line.points.iter().copied()).filter(|p| drawable(*p))
    }

    /// Points that cannot be drawn.
    pub fn gaps(&self) -> usize {
        self.lines.iter().flat_map(|line| &line.points).filter(|p| !drawable(**p)).count()
    }

    /// What a reader who cannot see the chart is told.
    pub fn description(&self) -> String {
        let mut text = String::new();
        for line in &self.lines {
            let mut finite = line.points.iter().filter(|p| drawable(**p));
            if let Some(first) = finite.next() {
                let last = finite.next_back().unwrap_or(first);
                let _ = write!(text, "{}: from {} to {}. ", line.name, number(first.1), number(last.1));
            }
        }
        text
    }

    /// The `<svg>` element; empty text if there is nothing to draw.
    pub fn svg(&self, id: &str) -> String {
        if !self.has_lines() {
            return String::new();
        }
        let (scale, x_ticks, y_ticks) = self.axes();
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\"><title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>",
            escape(&self.title),
            escape(&self.description())
        );
        self.frame(&mut out, &scale, &x_ticks, &y_ticks);
        for line in &self.lines {
            draw_line(&mut out, &scale, line);
        }
        self.reference_line(&mut out, &scale);
        self.end_labels(&mut out, &scale);
        out.push_str("</svg>");
        out
    }

    fn axes(&self) -> (Scale, Vec<f64>, Vec<f64>) {
        let x_ticks = ticks(extent(self.finite().map(|p| p.0)), 5);
        let mut y_range = extent(self.finite().map(|p| p.1));
        if let Some((value, _)) = self.reference {
            // A reference is drawn only where it does not squash the curve.
            let span = y_range.1 - y_range.0;
            if value > y_range.0 - span && value < y_range.1 + span {
                y_range = (y_range.0.min(value), y_range.1.max(value));
            }
        }
        let y_ticks = ticks(y_range, 4);
        let x = extent(self.finite().map(|p| p.0));
        let ends = |ticks: &[f64], range: (f64, f64)| (ticks[0].min(range.0), ticks[ticks.len() - 1].max(range.1));
        let scale = Scale { x: widened(x), y: widened(ends(&y_ticks, y_range)) };
        let x_ticks = x_ticks.into_iter().filter(|tick| (scale.x.0..=scale.x.1).contains(tick)).collect();
        (scale, x_ticks, y_ticks)
    }

    fn frame(&self, out: &mut String, scale: &Scale, x_ticks: &[f64], y_ticks: &[f64]) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for &tick in y_ticks {
            let y = scale.y(tick);
            let _ = write!(
                out,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/><text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 7.0,
                y + 4.0,
                tick_text(tick, y_ticks)
            );
        }
        for &tick in x_ticks {
            let _ = write!(
                out,
                "<text class=\"tick\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                scale.x(tick),
                bottom + 16.0,
                tick_text(tick, x_ticks)
            );
        }
        let _ = write!(
            out,
            "<path class=\"axis\" d=\"M{LEFT} {bottom}H{right}\"/><text class=\"tick\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            f64::midpoint(LEFT, right),
            HEIGHT - 4.0,
            escape(&self.x_label)
        );
    }

    fn reference_line(&self, out: &mut String, scale: &Scale) {
        let Some((value, label)) = self.reference.as_ref().filter(|r| (scale.y.0..=scale.y.1).contains(&r.0)) else {
            return;
        };
        let (y, right) = (scale.y(*value), WIDTH - RIGHT);
        let _ = write!(
            out,
            "<path class=\"reference\" d=\"M{LEFT} {y:.1}H{right}\"/><text class=\"tick name\" x=\"{}\" y=\"{:.1}\">{}</text>",
            LEFT + 4.0,
            if y - TEXT < TOP { y + TEXT } else { y - 4.0 },
            escape(label)
        );
    }

    /// The last drawn value of each line beside its end, moved apart where they would overlap.
    fn end_labels(&self, out: &mut String, scale: &Scale) {
        let mut labels: Vec<EndLabel> = self
            .lines
            .iter()
            .filter_map(|line| {
                let drawn = drawn(&line.points);
                let last = drawn.iter().rev().find(|p| drawable(**p))?;
                Some(EndLabel { x: scale.x(last.0) + 7.0, y: scale.y(last.1) + 4.0, run: line.run, value: last.1 })
            })
            .collect();
        labels.sort_by(|a, b| a.y.total_cmp(&b.y));
        push_apart(&mut labels);
        for EndLabel { x, y, run, value } in labels {
            let _ = write!(
                out,
                "<text class=\"end run-{}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>",
                run % RUN_STYLES + 1,
                number(value)
            );
        }
    }
}

struct EndLabel {
    x: f64,
    y: f64,
    run: usize,
    value: f64,
}

/// Moves labels, sorted by height, down until none covers another, then up again if that left the paper.
fn push_apart(labels: &mut [EndLabel]) {
    for index in 1..labels.len() {
        for above in 0..index {
            if (labels[above].x - labels[index].x).abs() < RIGHT && labels[index].y < labels[above].y + TEXT {
                labels[index].y = labels[above].y + TEXT;
            }
        }
    }
    let mut ceiling = HEIGHT - BOTTOM + 4.0;
    for label in labels.iter_mut().rev() {
        if label.y <= ceiling {
            break;
        }
        label.y = ceiling;
        ceiling -= TEXT;
    }
}

/// The bold line: the points themselves, or their moving average where they are many and noisy.
fn drawn(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let points = thinned(points);
    if points.len() <= MANY {
        return points;
    }
    let smooth = averaged(&points);
    if is_noisy(&points, &smooth) { smooth } else { points }
}

fn draw_line(out: &mut String, scale: &Scale, line: &Line) {
    let class = format!("run-{}", line.run % RUN_STYLES + 1);
    let (points, bold) = (thinned(&line.points), drawn(&line.points));
    if path(scale, &points) != path(scale, &bold) {
        let _ = write!(out, "<path class=\"line faint {class}\" d=\"{}\"/>", path(scale, &points));
    }
    let _ = write!(out, "<path class=\"line {class}\" d=\"{}\"/>", path(scale, &bold));
    if points.len() > FEW {
        return;
    }
    for (index, point) in points.iter().enumerate().filter(|(_, p)| drawable(**p)) {
        let kind = if index == 0 && points.len() > 1 { "dot ring" } else { "dot" };
        let _ = write!(
            out,
            "<circle class=\"{kind} {class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.2\"><title>{}: {} at {}</title></circle>",
            scale.x(point.0),
            scale.y(point.1),
            escape(&line.name),
            number(point.1),
            number(point.0)
        );
    }
}

/// A path through the finite points, lifted at gaps.
fn path(scale: &Scale, points: &[(f64, f64)]) -> String {
    let mut out = String::new();
    let mut down = false;
    for &(x, y) in points {
        if !drawable((x, y)) {
            down = false;
            continue;
        }
        let _ = write!(out, "{}{:.1} {:.1}", if down { 'L' } else { 'M' }, scale.x(x), scale.y(y));
        down = true;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::points::MOST;
    use super::*;
    use proptest::prelude::*;

    fn chart(lines: &[&[(f64, f64)]]) -> Chart {
        let lines = lines
            .iter()
            .enumerate()
            .map(|(run, points)| Line { run, name: format!("run {run}"), points: points.to_vec() })
            .collect();
        Chart {
            title: "t".to_owned(),
            unit: String::new(),
            better: Better::Neither,
            note: String::new(),
            x_label: "updates".to_owned(),
            lines,
            reference: None,
        }
    }

    #[test]
    fn gaps_lift_the_pen_and_are_counted() {
        let gappy = chart(&[&[(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0), (3.0, 2.0), (4.0, f64::INFINITY)]]);
        let svg = gappy.svg("c");
        let line = svg.split("class=\"line run-1\" d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!((line.matches('M').count(), line.matches('L').count()), (2, 1), "{line}");
        assert_eq!((gappy.gaps(), svg.contains("NaN") || svg.contains("inf")), (2, false));
        assert!(gappy.description().contains("from 1 to 2"), "{}", gappy.description());
    }

    #[test]
    fn nothing_to_draw_draws_nothing() {
        for empty in [chart(&[]), chart(&[&[]]), chart(&[&[(0.0, f64::NAN)]])] {
            assert!(!empty.has_lines() && empty.svg("c").is_empty());
        }
        // One point, and a flat line, still get axes.
        assert!(chart(&[&[(5.0, 0.0)]]).svg("c").contains("circle"));
        assert!(!chart(&[&[(0.0, 7.0), (1.0, 7.0)]]).svg("c").contains("NaN"));
    }

    #[test]
    fn long_runs_are_thinned_but_keep_their_spikes() {
        let mut points: Vec<(f64, f64)> = (0..20_000).map(|i| (f64::from(i), f64::from(i % 7))).collect();
        points[12_345].1 = 99.0;
        let thin = thinned(&points);
        assert!(thin.len() <= MOST && thin.contains(&(12_345.0, 99.0)), "{}", thin.len());
        assert!(thin.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(chart(&[&points]).svg("c").len() < 40_000);
    }

    #[test]
    fn end_labels_do_not_overlap() {
        let lines: Vec<Vec<(f64, f64)>> = (0..5).map(|i| vec![(0.0, 0.0), (1.0, f64::from(i) * 1e-3)]).collect();
        let lines: Vec<&[(f64, f64)]> =
            lines.iter().map(Vec::as_slice).chain([&[(0.0, 0.0), (1.0, 1.0)][..]]).collect();
        let svg = chart(&lines).svg("c");
        let mut heights: Vec<f64> = svg
            .split("<text class=\"end")
            .skip(1)
            .map(|text| text.split("y=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap())
            .collect();
        heights.sort_by(f64::total_cmp);
        assert_eq!(heights.len(), 6);
        assert!(heights.windows(2).all(|pair| pair[1] - pair[0] >= TEXT - 0.11), "{heights:?}");
        assert!(heights[5] <= HEIGHT - BOTTOM + 4.1);
    }

    proptest! {
        #[test]
        fn any_points_stay_on_the_paper(points in prop::collection::vec((any::<f64>(), any::<f64>()), 0..60)) {
            let svg = chart(&[&points]).svg("c");
            prop_assert!(!svg.contains("NaN\"") && !svg.contains("inf"), "{}", svg);
        }
    }
}
