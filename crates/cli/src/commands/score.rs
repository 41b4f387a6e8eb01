//! `seedpo score`: pictures in, a table of scores out.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use seedpo_judge::{Judge, by_name, names};
use seedpo_tensor::write_atomic;
use serde_json::{Map, Value, json};

use crate::context::Context;
use crate::failure::Outcome;
use crate::{images, interrupt, output};

const EXAMPLES: &str = "\
Examples:
  seedpo score --images apples
  seedpo score --judge colourfulness,jpeg-compressibility --images before after --csv scores.csv
  seedpo score --judge colourfulness --images apples --at-least 30     exit code 1 if the mean is below 30

The prompt of each picture is read from the PNG that `seedpo sample` wrote, or line by line from --prompts.";

/// Score pictures with one or more judges; higher is always better.
///
/// Prints one row a picture and the mean over all. A picture that cannot be read is named, and nothing is scored.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Judges, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "colourfulness,jpeg-compressibility", value_name = "NAMES", help = judges_help())]
    judge: Vec<String>,

    /// Picture files (PNG, JPEG, WebP) and folders of them.
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    images: Vec<PathBuf>,

    /// A file with one prompt per picture, in the order of the table: .txt (a line each), .json or .jsonl.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,

    /// Also write the scores to this file, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    jsonl: Option<PathBuf>,

    /// Also write the scores to this file as comma-separated values.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,

    /// A quality gate: exit with code 1 if the first judge's mean is below this.
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true)]
    at_least: Option<f64>,
}

fn judges_help() -> String {
    let list: Vec<String> = names().iter().map(|j| format!("{} [{}]: {}", j.name, j.unit, j.description)).collect();
    format!("Judges, separated by commas:\n  {}\n", list.join("\n  "))
}

/// One picture's row: its file, its prompt and one score per judge.
struct Row {
    file: PathBuf,
    prompt: String,
    scores: Vec<f64>,
}

/// Runs `seedpo score`.
pub fn run(args: &Args, context: &Context) -> Result<Outcome> {
    ensure!(args.at_least.is_none_or(f64::is_finite), "--at-least: expected a finite number");
    let judges = args.judge.iter().map(|name| by_name(name).context("--judge")).collect::<Result<Vec<_>>>()?;
    let files = images::find(&args.images).context("--images")?;
    let prompts = prompts_for(&files, args.prompts.as_deref())?;
    let mut progress = context.progress("scoring", files.len(), "pictures");
    let mut rows = Vec::with_capacity(files.len());
    for (file, prompt) in files.into_iter().zip(prompts) {
        if interrupt::requested() {
            return Ok(Outcome::Interrupted);
        }
        rows.push(score_one(&judges, file, prompt)?);
        progress.advance(1);
    }
    progress.finish();
    if let Some(path) = &args.jsonl {
        write_atomic(path, jsonl(&judges, &rows).as_bytes()).context("--jsonl")?;
    }
    if let Some(path) = &args.csv {
        write_atomic(path, csv(&judges, &rows).as_bytes()).context("--csv")?;
    }
    output::print(&text_table(&judges, &rows))?;
    Ok(gate(args.at_least, &judges, &rows))
}

fn prompts_for(files: &[PathBuf], given: Option<&Path>) -> Result<Vec<String>> {
    let Some(path) = given else {
        return Ok(files.iter().map(|file| images::prompt_of(file).unwrap_or_default()).collect());
    };
    let list = seedpo_align::read_prompts(path)?;
    if list.len() != files.len() {
        bail!("{}: expected one prompt per picture ({}), found {}", path.display(), files.len(), list.len());
    }
    Ok(list)
}

fn score_one(judges: &[Box<dyn Judge>], file: PathBuf, prompt: String) -> Result<Row> {
    let picture = images::read(&file)?.unsqueeze(0);
    let score = |judge: &dyn Judge| {
        let scores = judge.score(&picture, &[&prompt]).with_context(|| file.display().to_string())?;
        scores.first().copied().context("a judge returned no score")
    };
    let scores = judges.iter().map(|judge| score(judge.as_ref())).collect::<Result<Vec<f64>>>()?;
    Ok(Row { file, prompt, scores })
}

fn means(judges: usize, rows: &[Row]) -> Vec<f64> {
    let mean = |judge: usize| rows.iter().map(|row| row.scores[judge]).sum::<f64>() / rows.len() as f64;
    (0..judges).map(mean).collect()
}

fn gate(at_least: Option<f64>, judges: &[Box<dyn Judge>], rows: &[Row]) -> Outcome {
    let mean = means(1, rows)[0];
    match at_least {
        Some(bound) if mean < bound => {
            eprintln!("gate failed: {} expected a mean of at least {bound}, found {mean:.4}", judges[0].name());
            Outcome::GateFailed
        }
        _ => Outcome::Done,
    }
}

fn text_table(judges: &[Box<dyn Judge>], rows: &[Row]) -> String {
    let heading = judges.iter().map(|j| format!("{} [{}]", j.name(), j.unit()));
    let header: Vec<String> = std::iter::once("picture".to_owned()).chain(heading).collect();
    let line = |name: String, scores: &[f64]| -> Vec<String> {
        std::iter::once(name).chain(scores.iter().map(|s| format!("{s:.4}"))).collect()
    };
    let mut lines: Vec<Vec<String>> =
        rows.iter().map(|row| line(row.file.display().to_string(), &row.scores)).collect();
    lines.push(line(format!("mean of {}", rows.len()), &means(judges.len(), rows)));
    output::table(&header, &lines)
}

fn jsonl(judges: &[Box<dyn Judge>], rows: &[Row]) -> String {
    let object = |row: &Row| {
        let scores: Map<String, Value> =
            judges.iter().zip(&row.scores).map(|(j, s)| (j.name().to_owned(), json!(s))).collect();
        json!({ "image": row.file.display().to_string(), "prompt": row.prompt, "scores": scores }).to_string() + "\n"
    };
    rows.iter().map(object).collect()
}

fn csv(judges: &[Box<dyn Judge>], rows: &[Row]) -> String {
    let names = judges.iter().map(|j| j.name().to_owned());
    let mut lines =
        vec![["image".to_owned(), "prompt".to_owned()].into_iter().chain(names).collect::<Vec<_>>().join(",")];
    for row in rows {
        let cells = [quoted(&row.file.display().to_string()), quoted(&row.prompt)];
        lines.push(cells.into_iter().chain(row.scores.iter().map(f64::to_string)).collect::<Vec<_>>().join(","));
    }
    lines.join("\n") + "\n"
}

/// A CSV cell after RFC 4180: quoted where it holds a comma, a quote or a line break.
fn quoted(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_cells_are_quoted_where_needed() {
        assert_eq!(quoted("a, \"b\""), "\"a, \"\"b\"\"\"");
        assert_eq!(quoted("plain"), "plain");
    }
}
