//! `seedpo score`: pictures in, a table of scores out.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use image::RgbImage;
use seedpo_judge::{Collected, ImageBatch, Judge, JudgeSpec, distinct_names, names};
use seedpo_tensor::{Device, Kind, write_atomic};
use serde_json::{Map, Value, json};

use crate::context::Context;
use crate::failure::Outcome;
use crate::judges::{self, JudgeFlags};
use crate::{images, interrupt, output, prompts};

const EXAMPLES: &str = "\
Examples:
  seedpo score apples
  seedpo score --judge pickscore,aesthetic before after --prompts prompts.txt --csv scores.csv
  seedpo score --judge hpsv2.1=weights/HPS_v2.1_compressed.pt apples
  seedpo score --judge 'weighted(2*pickscore, aesthetic)' apples
  seedpo score --judge colourfulness apples --at-least 30     exit code 1 if the mean is below 30

The prompt of each picture is read from its PNG (`seedpo sample`'s, AUTOMATIC1111's), or line by line from --prompts.";

/// Score pictures with one or more judges; higher is always better.
///
/// Prints one row a picture and the mean over all. A picture that cannot be read is named, and nothing is scored.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Judges, separated by commas.
    #[arg(long, default_value = "colourfulness,jpeg-compressibility", value_name = "NAMES", help = judges_help())]
    judge: String,

    #[command(flatten)]
    judges: JudgeFlags,

    /// Picture files (PNG, JPEG, WebP) and folders of them.
    #[arg(value_name = "PATH", required_unless_present = "images")]
    paths: Vec<PathBuf>,

    /// The same as a flag.
    #[arg(long, num_args = 1.., value_name = "PATH", conflicts_with = "paths")]
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

    /// A quality gate: exit with code 1 if the first judge's mean is below this. Not for majority(..), pareto(..) and rules
    /// over nothing else, which only compare pictures: their mean says nothing.
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true)]
    at_least: Option<f64>,
}

fn judges_help() -> String {
    let list: Vec<String> = names().iter().map(|j| format!("{} [{}]: {}", j.name, j.unit, j.description)).collect();
    format!(
        "Judges, separated by commas: NAME, NAME=FOLDER|FILE|ID for weights of your own, exec:COMMAND, or several as one: \
         weighted(2*A, B), majority(A, B), pareto(A, B), worst(A, B). `seedpo judge list` says what each needs.\n  {}\n",
        list.join("\n  ")
    )
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
    let specs = JudgeSpec::list(&args.judge).context("--judge")?;
    check_gate(args.at_least, &specs)?;
    let files = images::find(if args.paths.is_empty() { &args.images } else { &args.paths }).context("--images")?;
    let prompts = args.prompts.as_deref().map(|path| prompts_for(&files, path)).transpose()?;
    let reader = specs.iter().find(|spec| spec.reads_prompt()).filter(|_| prompts.is_none());
    // Before weights are fetched and read.
    reader.map(|judge| read(files[0].clone(), None, Some(judge))).transpose()?;
    let columns = columns(&specs, load(&specs, &args.judges, context)?);
    let mut progress = context.progress("scoring", files.len(), "pictures");
    let mut scored: Vec<Collected> = columns.iter().map(|column| Collected::new(column.judge.as_ref())).collect();
    let mut pictures = Vec::with_capacity(files.len());
    let prompt = |at: usize| prompts.as_ref().map(|prompts| &prompts[at]);
    let mut waiting = files.into_iter().enumerate().map(|(at, file)| read(file, prompt(at), reader));
    let mut next = waiting.next().transpose()?;
    while let Some(first) = next.take() {
        if interrupt::requested() {
            return Ok(Outcome::Interrupted);
        }
        let mut batch = vec![first];
        next = fill(&mut batch, &mut waiting)?;
        progress.advance(batch.len());
        score_batch(&mut scored, &batch)?;
        pictures.extend(batch.into_iter().map(|w| (w.file, w.prompt)));
    }
    let rows = rows(pictures, &scored)?;
    progress.finish();
    columns.iter().for_each(|column| judges::note_statistics(column.judge.as_ref(), context));
    if let Some(path) = &args.jsonl {
        write_atomic(path, jsonl(&columns, &rows).as_bytes()).context("--jsonl")?;
    }
    if let Some(path) = &args.csv {
        write_atomic(path, &csv(&columns, &rows)?).context("--csv")?;
    }
    output::print(&text_table(&columns, &rows))?;
    Ok(gate(args.at_least, &columns, &rows))
}

/// Refuses a bound on a mean that says nothing of the pictures.
fn check_gate(at_least: Option<f64>, specs: &[JudgeSpec]) -> Result<()> {
    match specs.first() {
        Some(first) if at_least.is_some() && first.compares() => bail!(
            "--at-least: expected a first judge whose mean says something, found {first}, which only compares the pictures \
             of a prompt: what one wins another loses, however good they are; put another judge first"
        ),
        _ => Ok(()),
    }
}

/// The prompts in a file, one for each picture.
fn prompts_for(files: &[PathBuf], path: &Path) -> Result<Vec<String>> {
    let list = seedpo_align::read_prompts(path)?;
    if list.len() != files.len() {
        bail!("{}: expected one prompt per picture ({}), found {}", path.display(), files.len(), list.len());
    }
    Ok(list)
}

/// The judges of a list, in the dtype and on the device of the global flags.
pub fn load(specs: &[JudgeSpec], flags: &JudgeFlags, context: &Context) -> Result<Vec<Box<dyn Judge>>> {
    let kind = match context.flag("dtype") {
        None | Some("f32" | "auto") => Kind::Float,
        Some("bf16") => Kind::BFloat16,
        Some(other) => bail!("--dtype: expected f32 or bf16 for judges, found {other}"),
    };
    let needs_device = specs.iter().any(|spec| spec.computes());
    let device = if needs_device { context.device()? } else { Device::Cpu };
    let build = |spec| judges::build(spec, device, kind, flags.timeout(), context).context("--judge");
    specs.iter().map(build).collect()
}

/// A judge and the name of its column.
pub struct Column {
    /// Different from those of the other columns.
    pub name: String,
    /// The judge.
    pub judge: Box<dyn Judge>,
}

/// Judges with the names that tables give them.
pub fn columns(specs: &[JudgeSpec], judges: Vec<Box<dyn Judge>>) -> Vec<Column> {
    let names = distinct_names(&specs.iter().collect::<Vec<_>>(), judges.iter().map(|judge| judge.name()));
    names.into_iter().zip(judges).map(|(name, judge)| Column { name, judge }).collect()
}

/// Pictures scored in one pass.
const BATCH: usize = 16;

/// A picture waiting to be scored.
struct Waiting {
    file: PathBuf,
    prompt: String,
    picture: RgbImage,
}

/// Reads a picture; its prompt is the one given, or else its own. Errors: it has none, and `reader` reads it.
fn read(file: PathBuf, prompt: Option<&String>, reader: Option<&JudgeSpec>) -> Result<Waiting> {
    let images::PictureFile { picture, prompt: own } = images::read(&file)?;
    let prompt = match (prompt.cloned().or(own), reader) {
        (Some(prompt), _) => prompt,
        (None, Some(judge)) => return Err(prompts::missing(&file, judge)),
        (None, None) => String::new(),
    };
    Ok(Waiting { prompt, picture, file })
}

/// Fills a batch up to [`BATCH`] with pictures of its first one's size. Returns the first picture of the next batch, if
/// it was read already.
fn fill(batch: &mut Vec<Waiting>, waiting: &mut impl Iterator<Item = Result<Waiting>>) -> Result<Option<Waiting>> {
    while let Some(next) = waiting.next().transpose()? {
        if batch.len() == BATCH || batch[0].picture.dimensions() != next.picture.dimensions() {
            return Ok(Some(next));
        }
        batch.push(next);
    }
    Ok(None)
}

fn score_batch(scored: &mut [Collected], batch: &[Waiting]) -> Result<()> {
    let pictures = ImageBatch::from_pictures(&batch.iter().map(|w| &w.picture).collect::<Vec<_>>())?;
    let prompts: Vec<&str> = batch.iter().map(|w| w.prompt.as_str()).collect();
    let place = || batch.first().map(|w| w.file.display().to_string()).unwrap_or_default();
    let mut each = scored.iter_mut();
    each.try_for_each(|of_judge| of_judge.add(&pictures, &prompts)).with_context(|| format!("from {}", place()))
}

/// The table, once all pictures are seen: some judges compare those of a prompt with each other.
fn rows(pictures: Vec<(PathBuf, String)>, scored: &[Collected]) -> Result<Vec<Row>> {
    let prompts: Vec<&str> = pictures.iter().map(|(_, prompt)| prompt.as_str()).collect();
    let scores = scored.iter().map(|of_judge| of_judge.scores(&prompts)).collect::<seedpo_judge::Result<Vec<_>>>()?;
    let row = |(at, (file, prompt)): (usize, (PathBuf, String))| {
        let scores = scores.iter().map(|of_judge| of_judge[at]).collect();
        Row { file, prompt, scores }
    };
    Ok(pictures.into_iter().enumerate().map(row).collect())
}

fn means(judges: usize, rows: &[Row]) -> Vec<f64> {
    let mean = |judge: usize| rows.iter().map(|row| row.scores[judge]).sum::<f64>() / rows.len() as f64;
    (0..judges).map(mean).collect()
}

fn gate(at_least: Option<f64>, columns: &[Column], rows: &[Row]) -> Outcome {
    let mean = means(1, rows)[0];
    match at_least {
        Some(bound) if mean < bound => {
            eprintln!("gate failed: {} expected a mean of at least {bound}, found {mean:.4}", columns[0].name);
            Outcome::GateFailed
        }
        _ => Outcome::Done,
    }
}

fn text_table(columns: &[Column], rows: &[Row]) -> String {
    let heading = columns.iter().map(|c| format!("{} [{}]", c.name, c.judge.unit()));
    let header: Vec<String> = std::iter::once("picture".to_owned()).chain(heading).collect();
    let line = |name: String, scores: &[f64]| -> Vec<String> {
        std::iter::once(name).chain(scores.iter().map(|s| format!("{s:.4}"))).collect()
    };
    let mut lines: Vec<Vec<String>> =
        rows.iter().map(|row| line(row.file.display().to_string(), &row.scores)).collect();
    lines.push(line(format!("mean of {}", rows.len()), &means(columns.len(), rows)));
    output::table(&header, &lines)
}

fn jsonl(columns: &[Column], rows: &[Row]) -> String {
    let object = |row: &Row| {
        let scores: Map<String, Value> =
            columns.iter().zip(&row.scores).map(|(c, s)| (c.name.clone(), json!(s))).collect();
        json!({ "image": row.file.display().to_string(), "prompt": row.prompt, "scores": scores }).to_string() + "\n"
    };
    rows.iter().map(object).collect()
}

fn csv(columns: &[Column], rows: &[Row]) -> Result<Vec<u8>> {
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(["image", "prompt"].into_iter().chain(columns.iter().map(|column| column.name.as_str())))?;
    for row in rows {
        let texts = [row.file.display().to_string(), row.prompt.clone()];
        table.write_record(texts.into_iter().chain(row.scores.iter().map(f64::to_string)))?;
    }
    Ok(table.into_inner()?)
}
