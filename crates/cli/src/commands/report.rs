//! `seedpo report`: `report.html` from run folders.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use seedpo_align::config::keys;
use seedpo_align::{RunDir, TrainConfig};
use seedpo_evaluate::report::{
    Aligned, GridImage, GridRow, Headline, ImageGrid, JudgeLabel, ReportData, RunSeries, SettingsGroup,
    diffusers_snippet, write_report,
};
use seedpo_evaluate::stats::win_rate;
use seedpo_model::FinetuningType;
use seedpo_tensor::read_text;
use toml::{Table, Value};

use crate::context::Context;
use crate::failure::Outcome;
use crate::progress::clock;
use crate::sheet::{self, Sheet};
use crate::{output, settings};

const EXAMPLES: &str = "\
Examples:
  seedpo report runs/see-spo
  seedpo report runs/see-spo --compare runs/spo --out demo.html";

/// Write report.html from run folders: curves, pictures before and after, settings.
///
/// A run writes its own report when it ends; this writes it again, or overlays several runs on one page.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The run folder.
    run: PathBuf,

    /// Run folders to compare with: their curves and last pictures stand beside the run's.
    #[arg(long, num_args = 1.., value_name = "RUN")]
    compare: Vec<PathBuf>,

    /// The file to write [default: report.html in the run folder].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs `seedpo report`.
pub fn run(args: &Args, _context: &Context) -> Result<Outcome> {
    let path = args.out.clone().unwrap_or_else(|| args.run.join("report.html"));
    write(&args.run, &args.compare, &path)?;
    output::print(&format!("{}\n", path.display()))?;
    Ok(Outcome::Done)
}

/// Writes the report of a run, with others to compare, to a file.
///
/// Errors: a folder that is no run, or without metrics; a damaged preview sheet; the file cannot be written.
pub fn write(subject: &Path, others: &[PathBuf], path: &Path) -> Result<()> {
    let subject = Run::read(subject)?;
    let mut others = others.iter().map(|folder| Run::read(folder)).collect::<Result<Vec<_>>>()?;
    for (index, name) in told_apart(&subject, &others) {
        others[index].rename(name);
    }
    let config = &subject.config;
    let snippet_prompt =
        subject.last.as_ref().and_then(|sheet| sheet.layout.prompts.first().cloned()).unwrap_or_default();
    let shown = subject.folder.display().to_string();
    let (steps, w) = (config.steps as usize, config.guidance_scale);
    let aligned = match config.finetuning()? {
        FinetuningType::Lora => Aligned::Adapter(&shown),
        FinetuningType::Full => Aligned::UNet(&shown),
    };
    let data = ReportData {
        title: format!("{} on {}", subject.name, model_name(config)),
        summary: String::new(),
        facts: subject.facts(),
        reward: label(&config.judge),
        heldout: first_judge(&config.heldout_judge).map(|name| label(&name)),
        headlines: subject.headlines()?,
        grids: pictures(&subject, &others)?.into_iter().collect(),
        command: Some(format!("seedpo train --config {shown}/config.toml --output-dir runs")),
        settings: differences(&subject, &others)?.into_iter().chain(setting_groups(config)?).collect(),
        snippet: Some(diffusers_snippet(&config.model, aligned, &snippet_prompt, w, steps)),
        environment: subject.environment.clone(),
        runs: std::iter::once(&subject).chain(&others).map(|run| run.series.clone()).collect(),
    };
    Ok(write_report(path, &data)?)
}

/// What a report needs of a run folder.
struct Run {
    folder: PathBuf,
    name: String,
    config: TrainConfig,
    environment: Vec<(String, String)>,
    series: RunSeries,
    first: Option<Sheet>,
    last: Option<Sheet>,
}

impl Run {
    fn read(folder: &Path) -> Result<Self> {
        let run = RunDir::open(folder)?;
        let (config, inputs) = run.recorded()?;
        let name = run_name(&config);
        let series = RunSeries::from_jsonl(&name, &run.metrics()).context("reading the run's metrics")?;
        let record: Table = read_text(&folder.join("config.toml"))?.parse().unwrap_or_default();
        let versions = record.get("run").and_then(Value::as_table).into_iter().flatten();
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let mut environment: Vec<(String, String)> = versions.map(|(key, value)| (key.clone(), text(value))).collect();
        environment.extend(inputs.into_iter().map(|(file, hash)| (file, format!("SHA-256 {hash:.16}…"))));
        let sheets = sheet::first_and_last(folder)?;
        let (first, last) = match &sheets {
            Some((first, last)) => (Some(sheet::read(first)?), Some(sheet::read(last)?)),
            None => (None, None),
        };
        Ok(Self { folder: folder.to_path_buf(), name, config, environment, series, first, last })
    }

    fn rename(&mut self, name: String) {
        self.series.name.clone_from(&name);
        self.name = name;
    }

    fn facts(&self) -> Vec<String> {
        let updates = self.series.points("update.loss").last().map_or(0.0, |point| point.0);
        let parts = ["seconds_rollout", "seconds_judge", "seconds_train"].map(|part| format!("update.{part}"));
        let points = parts.iter().flat_map(|key| self.series.points(key));
        let seconds: f64 = points.map(|point| point.1).filter(|s| s.is_finite()).sum();
        vec![
            self.folder.display().to_string(),
            format!("{updates} updates in {}", clock(seconds)),
            format!("seed {}", self.config.seed),
            format!("seedpo {}", env!("CARGO_PKG_VERSION")),
        ]
    }

    /// The win rate of the last previews over the first, same prompt and noise.
    fn headlines(&self) -> Result<Vec<Headline>> {
        let (Some(first), Some(last)) = (&self.first, &self.last) else { return Ok(Vec::new()) };
        let scores = (&first.layout.scores, &last.layout.scores);
        if first.layout.step == last.layout.step || scores.0.len() != scores.1.len() {
            return Ok(Vec::new());
        }
        let found = win_rate(scores.1, scores.0)?;
        let (low, high) = (100.0 * found.interval.low, 100.0 * found.interval.high);
        Ok(vec![Headline {
            label: "Win rate over the base model".to_owned(),
            value: format!("{:.0} %", 100.0 * found.rate),
            detail: format!("95 % interval {low:.0} to {high:.0} %, {} pictures", scores.0.len()),
        }])
    }
}

/// New names, by index, for those of `others` that are called like a run before them.
fn told_apart(subject: &Run, others: &[Run]) -> Vec<(usize, String)> {
    let taken =
        |index: usize| std::iter::once(subject).chain(&others[..index]).any(|run| run.name == others[index].name);
    let named = |index: usize| format!("{} ({})", others[index].name, others[index].folder.display());
    (0..others.len()).filter(|&index| taken(index)).map(|index| (index, named(index))).collect()
}

/// `SEE-SPO, γ = 1`, or `SPO, γ = 0`.
fn run_name(config: &TrainConfig) -> String {
    let see = if config.entropy.gamma == 0.0 { "" } else { "SEE-" };
    format!("{see}{}, γ = {}", config.method.to_uppercase(), config.entropy.gamma)
}

fn model_name(config: &TrainConfig) -> String {
    let name = Path::new(&config.model).file_name().map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| config.model.clone())
}

/// The first of a list of judges: the one whose curve is the held-out one.
fn first_judge(list: &str) -> Option<String> {
    let specs = seedpo_judge::JudgeSpec::list(list).ok()?;
    Some(specs.first()?.to_string()).filter(|_| !list.trim().is_empty())
}

fn label(judge: &str) -> JudgeLabel {
    let unit = judge.parse().map(|judge: seedpo_judge::JudgeSpec| judge.unit().to_owned()).unwrap_or_default();
    JudgeLabel { name: judge.to_owned(), unit }
}

/// Rows of prompts; columns: before, after, and after the runs compared with.
fn pictures(subject: &Run, others: &[Run]) -> Result<Option<ImageGrid>> {
    let (Some(first), Some(last)) = (&subject.first, &subject.last) else { return Ok(None) };
    let same = |sheet: &&Sheet| {
        sheet.layout.prompts == first.layout.prompts && sheet.layout.images_per_prompt == first.layout.images_per_prompt
    };
    let mut columns = vec![("Before".to_owned(), first), (format!("After {}", subject.name), last)];
    let compared =
        others.iter().filter_map(|run| Some((format!("After {}", run.name), run.last.as_ref().filter(same)?)));
    columns.extend(compared);
    let per_row = first.layout.images_per_prompt;
    let cell = |sheet: &Sheet, row: usize| {
        let picture =
            |index: usize| GridImage::from_tensor(&sheet.pictures[index], format!("{:.2}", sheet.layout.scores[index]));
        (row * per_row..(row + 1) * per_row).map(picture).collect::<seedpo_evaluate::Result<Vec<_>>>()
    };
    let row = |(index, prompt): (usize, &String)| -> Result<GridRow> {
        let cells = columns.iter().map(|(_, sheet)| Ok(cell(sheet, index)?)).collect::<Result<Vec<_>>>()?;
        Ok(GridRow { prompt: prompt.clone(), cells })
    };
    Ok(Some(ImageGrid {
        title: "Before and after".to_owned(),
        note: "Same prompt and same starting noise in every column; under each picture the judge's score.".to_owned(),
        rows: first.layout.prompts.iter().enumerate().map(row).collect::<Result<Vec<_>>>()?,
        columns: columns.into_iter().map(|(heading, _)| heading).collect(),
    }))
}

/// The settings in which the runs differ; none where there is one run, or all are alike.
fn differences(subject: &Run, others: &[Run]) -> Result<Option<SettingsGroup>> {
    let tables = std::iter::once(subject).chain(others).map(|run| Table::try_from(&run.config));
    let tables = tables.collect::<std::result::Result<Vec<_>, _>>()?;
    let values = |key: &str| -> Vec<String> {
        tables.iter().map(|table| settings::shown(key, table).unwrap_or_else(|| "—".to_owned())).collect()
    };
    let differs = |values: &Vec<String>| values.iter().any(|value| *value != values[0]);
    let rows: Vec<_> = keys()
        .map(|key| (key.name, values(key.name)))
        .filter(|(_, values)| differs(values))
        .map(|(key, values)| (key.to_owned(), values.join("  |  ")))
        .collect();
    let names: Vec<&str> = std::iter::once(subject).chain(others).map(|run| run.name.as_str()).collect();
    Ok((!rows.is_empty()).then(|| SettingsGroup { title: format!("What differs: {}", names.join("  |  ")), rows }))
}

/// Every setting under the heading that `seedpo train --help` has it under.
fn setting_groups(config: &TrainConfig) -> Result<Vec<SettingsGroup>> {
    let table = Table::try_from(config)?;
    let mut groups: Vec<SettingsGroup> = Vec::new();
    for key in keys() {
        let title = settings::heading(key.name);
        let row = (key.name.to_owned(), settings::shown(key.name, &table).unwrap_or_else(|| "—".to_owned()));
        match groups.iter_mut().find(|group| group.title == title) {
            Some(group) => group.rows.push(row),
            None => groups.push(SettingsGroup { title: title.to_owned(), rows: vec![row] }),
        }
    }
    Ok(groups)
}
