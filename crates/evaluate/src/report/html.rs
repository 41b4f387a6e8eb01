//! The page.

use super::catalogue::{Better, Section, sections};
use super::chart::{Chart, RUN_STYLES};
use super::data::{Headline, ReportData, RunSeries};
use super::format::{escape, number};
use super::gallery::gallery;
use super::headlines::{headlines, summary};
use std::fmt::Write;

const STYLE: &str = include_str!("style.css");

/// The report as one HTML document. Series may be empty or hold NaN: what cannot be drawn is left out and said so.
pub fn render(data: &ReportData) -> String {
    let title = if data.title.is_empty() { "Alignment report" } else { &data.title };
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<meta name=\"generator\" content=\"seedpo {}\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
        env!("CARGO_PKG_VERSION"),
        escape(title)
    );
    masthead(&mut out, data, title);
    out.push_str("<main>\n");
    figures(&mut out, data);
    for (index, grid) in data.grids.iter().enumerate() {
        gallery(&mut out, grid, index);
    }
    let mut number_of_charts = 0;
    for section in sections(data) {
        charts(&mut out, data, &section, &mut number_of_charts);
    }
    use_it(&mut out, data);
    settings(&mut out, data);
    out.push_str(
        "</main>\n<footer><p>Made by seedpo. This file needs nothing but itself.</p></footer>\n</body>\n</html>\n",
    );
    out
}

fn masthead(out: &mut String, data: &ReportData, title: &str) {
    let _ = writeln!(out, "<header>\n<p class=\"eyebrow\">seedpo · alignment report</p>\n<h1>{}</h1>", escape(title));
    let lead = if data.summary.is_empty() { summary(data) } else { data.summary.clone() };
    if !lead.is_empty() {
        let _ = writeln!(out, "<p class=\"lead\">{}</p>", escape(&lead));
    }
    if !data.facts.is_empty() {
        let items: String = data.facts.iter().map(|fact| format!("<li>{}</li>", escape(fact))).collect();
        let _ = writeln!(out, "<ul class=\"facts\">{items}</ul>");
    }
    out.push_str("</header>\n");
}

fn figures(out: &mut String, data: &ReportData) {
    let mut tiles = data.runs.first().map(|run| headlines(data, run)).unwrap_or_default();
    tiles.extend(data.headlines.iter().cloned());
    if tiles.is_empty() {
        return;
    }
    out.push_str("<section class=\"figures\" aria-labelledby=\"figures\">\n<h2 id=\"figures\" class=\"unseen\">In figures</h2>\n<dl class=\"tiles\">\n");
    for Headline { label, value, detail } in &tiles {
        let _ = writeln!(
            out,
            "<div><dt>{}</dt><dd class=\"value\">{}</dd><dd class=\"detail\">{}</dd></div>",
            escape(label),
            escape(value),
            escape(detail)
        );
    }
    out.push_str("</dl>\n");
    if data.runs.len() > 1 {
        comparison(out, data);
    }
    out.push_str("</section>\n");
}

/// All runs side by side, one per row.
fn comparison(out: &mut String, data: &ReportData) {
    let rows: Vec<(usize, &RunSeries, Vec<Headline>)> =
        data.runs.iter().enumerate().map(|(index, run)| (index, run, headlines(data, run))).collect();
    let mut labels: Vec<&str> = Vec::new();
    for tile in rows.iter().flat_map(|row| &row.2) {
        if !labels.contains(&tile.label.as_str()) {
            labels.push(&tile.label);
        }
    }
    let heads: String = labels.iter().map(|label| format!("<th scope=\"col\">{}</th>", escape(label))).collect();
    let _ = writeln!(
        out,
        "<div class=\"scroll\"><table class=\"comparison\"><caption class=\"unseen\">The runs compared</caption>\n<thead><tr><th scope=\"col\">Run</th>{heads}</tr></thead>\n<tbody>"
    );
    for (index, run, tiles) in &rows {
        let _ = write!(out, "<tr><th scope=\"row\">{}{}</th>", swatch(*index), escape(&run.name));
        for label in &labels {
            let cell = tiles.iter().find(|tile| tile.label == *label);
            match cell {
                Some(tile) => {
                    let _ = write!(out, "<td>{}<small>{}</small></td>", escape(&tile.value), escape(&tile.detail));
                }
                None => out.push_str("<td>—</td>"),
            }
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
}

/// A short piece of a run's line.
fn swatch(run: usize) -> String {
    format!(
        "<svg class=\"swatch\" viewBox=\"0 0 26 10\" aria-hidden=\"true\"><path class=\"line run-{}\" d=\"M1 5H25\"/></svg>",
        run % RUN_STYLES + 1
    )
}

fn charts(out: &mut String, data: &ReportData, section: &Section, count: &mut usize) {
    let _ = writeln!(out, "<section>\n{}", if section.folded { "<details class=\"fold\"><summary>" } else { "" });
    let _ = writeln!(out, "<h2>{}</h2>", escape(section.title));
    if section.folded {
        out.push_str("</summary>\n");
    }
    if !section.lead.is_empty() {
        let _ = writeln!(out, "<p class=\"section-lead\">{}</p>", escape(section.lead));
    }
    if data.runs.len() > 1 {
        let items: String = data
            .runs
            .iter()
            .enumerate()
            .map(|(index, run)| format!("<li>{}{}</li>", swatch(index), escape(&run.name)))
            .collect();
        let _ = writeln!(out, "<ul class=\"legend\" aria-label=\"Runs\">{items}</ul>");
    }
    out.push_str("<div class=\"charts\">\n");
    for chart in &section.charts {
        *count += 1;
        figure(out, chart, *count);
    }
    let _ = writeln!(out, "</div>\n{}</section>", if section.folded { "</details>\n" } else { "" });
}

fn figure(out: &mut String, chart: &Chart, index: usize) {
    let better = match chart.better {
        Better::Higher => "↑ higher is better",
        Better::Lower => "↓ lower is better",
        Better::Neither => "",
    };
    let meta: Vec<String> =
        [chart.unit.as_str(), better].iter().filter(|part| !part.is_empty()).map(|part| escape(part)).collect();
    let _ = writeln!(out, "<figure class=\"chart\"><figcaption><h3>{}</h3>", escape(&chart.title));
    if !meta.is_empty() {
        let _ = writeln!(out, "<p class=\"meta\">{}</p>", meta.join(" · "));
    }
    if !chart.note.is_empty() {
        let _ = writeln!(out, "<p>{}</p>", escape(&chart.note));
    }
    out.push_str("</figcaption>\n");
    out.push_str(&chart.svg(&format!("chart-{index}")));
    let gaps = chart.gaps();
    if gaps > 0 {
        let _ = writeln!(out, "<p class=\"warning\">{gaps} value(s) that are not finite are left out.</p>");
    }
    numbers(out, chart);
    out.push_str("</figure>\n");
}

/// The chart in figures, for those who want them or cannot see it.
fn numbers(out: &mut String, chart: &Chart) {
    out.push_str("<details class=\"numbers\"><summary>Numbers</summary><div class=\"scroll\"><table><thead><tr><th scope=\"col\">Run</th><th scope=\"col\">First</th><th scope=\"col\">Last</th><th scope=\"col\">Lowest</th><th scope=\"col\">Highest</th></tr></thead><tbody>");
    for line in &chart.lines {
        let finite: Vec<f64> =
            line.points.iter().filter(|p| p.0.is_finite()).map(|p| p.1).filter(|y| y.is_finite()).collect();
        let (Some(first), Some(last)) = (finite.first(), finite.last()) else { continue };
        let low = finite.iter().copied().fold(f64::INFINITY, f64::min);
        let high = finite.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let cells: String =
            [*first, *last, low, high].iter().map(|value| format!("<td>{}</td>", number(*value))).collect();
        let _ = write!(out, "<tr><th scope=\"row\">{}</th>{cells}</tr>", escape(&line.name));
    }
    out.push_str("</tbody></table></div></details>");
}

fn use_it(out: &mut String, data: &ReportData) {
    if let Some(snippet) = &data.snippet {
        let _ = writeln!(
            out,
            "<section>\n<h2>Use it</h2>\n<p class=\"section-lead\">The result is in files that diffusers takes unchanged.</p>\n<pre tabindex=\"0\"><code>{}</code></pre>\n</section>",
            escape(snippet.trim_end())
        );
    }
    if let Some(command) = &data.command {
        let _ = writeln!(
            out,
            "<section>\n<h2>Run it again</h2>\n<pre tabindex=\"0\"><code>{}</code></pre>\n</section>",
            escape(command.trim_end())
        );
    }
}

fn settings(out: &mut String, data: &ReportData) {
    let table = |out: &mut String, title: &str, rows: &[(String, String)]| {
        let _ = write!(out, "<table class=\"settings\"><caption>{}</caption><tbody>", escape(title));
        for (name, value) in rows {
            let _ = write!(out, "<tr><th scope=\"row\">{}</th><td>{}</td></tr>", escape(name), escape(value));
        }
        out.push_str("</tbody></table>\n");
    };
    if data.settings.iter().any(|group| !group.rows.is_empty()) {
        out.push_str("<section>\n<h2>Settings</h2>\n<div class=\"columns\">\n");
        for group in data.settings.iter().filter(|group| !group.rows.is_empty()) {
            table(out, &group.title, &group.rows);
        }
        out.push_str("</div>\n</section>\n");
    }
    if !data.environment.is_empty() {
        out.push_str("<section>\n<h2>Environment</h2>\n<div class=\"columns\">\n");
        table(out, "Where it ran", &data.environment);
        out.push_str("</div>\n</section>\n");
    }
}
