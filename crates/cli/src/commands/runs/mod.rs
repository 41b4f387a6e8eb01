//! `seedpo runs`: what runs there are, two of them side by side, and their numbers for other tools.

mod export;
mod summary;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use seedpo_align::TrainConfig;

use self::summary::Summary;
use super::report;
use crate::context::Context;
use crate::failure::Outcome;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  seedpo runs list
  seedpo runs compare runs/spo runs/see-spo             one page: curves, pictures and settings side by side
  seedpo runs export runs/see-spo --out history.csv     a row per step, for a spreadsheet, pandas or a tracker";

/// List runs, compare them, export their numbers.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// A line per run: method, updates, how reward, held-out score and diversity moved, what was noticed.
    List {
        /// The folder that holds the runs.
        #[arg(default_value_os_t = PathBuf::from(TrainConfig::default().output_dir))]
        folder: PathBuf,
    },
    /// Put runs side by side: a table here, and one HTML page with their curves, last pictures and settings.
    Compare {
        /// The run the others are compared with.
        first: PathBuf,
        /// One or more others.
        #[arg(required = true)]
        others: Vec<PathBuf>,
        /// The page to write.
        #[arg(long, value_name = "FILE", default_value = "compare.html")]
        out: PathBuf,
    },
    /// Write every number a run recorded as CSV or JSON lines, a row per step.
    Export {
        /// The run folder.
        run: PathBuf,
        /// The file to write, .csv or .jsonl [default: CSV on the screen].
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

/// Runs `seedpo runs`.
pub fn run(args: &Args, context: &Context) -> Result<Outcome> {
    match &args.command {
        Command::List { folder } => list(folder, context)?,
        Command::Compare { first, others, out } => compare(first, others, out)?,
        Command::Export { run, out } => export::run(run, out.as_deref())?,
    }
    Ok(Outcome::Done)
}

/// The runs right under `folder`, oldest first.
///
/// Errors: no such folder, no run in it. A damaged run is named and left out.
fn list(folder: &Path, context: &Context) -> Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("{}: cannot be read", folder.display()))?;
    let mut runs: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("config.toml").is_file())
        .collect();
    if runs.is_empty() {
        bail!("{}: expected run folders (each with a config.toml), found none", folder.display());
    }
    let begun = |path: &PathBuf| std::fs::metadata(path.join("config.toml")).and_then(|data| data.modified()).ok();
    runs.sort_by_key(|path| (begun(path), path.clone()));
    let mut rows = Vec::new();
    for path in &runs {
        match Summary::read(path) {
            Ok(summary) => rows.push(summary.row()),
            Err(error) => context.note(&format!("warning: {}: left out: {error:#}", path.display())),
        }
    }
    output::print(&output::table(&Summary::HEADER.map(str::to_owned), &rows))
}

fn compare(first: &Path, others: &[PathBuf], out: &Path) -> Result<()> {
    let all = || std::iter::once(first).chain(others.iter().map(PathBuf::as_path));
    let rows = all().map(|path| Ok(Summary::read(path)?.row())).collect::<Result<Vec<_>>>()?;
    report::write(first, others, out)?;
    output::print(&output::table(&Summary::HEADER.map(str::to_owned), &rows))?;
    output::print(&format!("\n{}\n", out.display()))
}
