//! `seedpo pairs`: datasets of preference pairs looked into, converted, judged anew.

mod convert;
mod inspect;
mod relabel;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Subcommand;
use seedpo_data::{Options, Pairs};

use crate::context::Context;
use crate::failure::Outcome;

const EXAMPLES: &str = "\
Examples:
  seedpo pairs inspect pickapic/data                                pairs, ties, bad rows, prompts, resolutions
  seedpo pairs inspect pairs.jsonl --decode                         every picture is decoded, too
  seedpo pairs convert pickapic/data dreamlike.parquet --pairs-generator dream
  seedpo pairs relabel pairs.jsonl judged.jsonl --judge pickscore,aesthetic

Read are JSON lines and lists, Pick-a-Pic parquet, HPDv2, D3PO's human labels, win/lose folders and imagefolders; which
one it is is told from the content (docs/data.md).";

/// Look into datasets of preference pairs, convert them, let judges label them.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Count pairs, ties, bad rows and prompts; show resolutions and the first pairs. Exit code 1 above the limit.
    Inspect(inspect::Args),
    /// Write a dataset as JSON lines (pictures of parquet files become files) or as one parquet file.
    Convert(convert::Args),
    /// Let one or more judges say which picture of each pair is the better one.
    Relabel(relabel::Args),
}

/// Runs `seedpo pairs`.
pub fn run(args: &Args, context: &Context) -> Result<Outcome> {
    match &args.command {
        Command::Inspect(args) => inspect::run(args, context),
        Command::Convert(args) => convert::run(args, context),
        Command::Relabel(args) => relabel::run(args, context),
    }
}

/// The dataset that a command reads, and which of its rows.
#[derive(clap::Args, Debug)]
struct Source {
    /// A file or folder of pairs.
    path: PathBuf,

    /// Only pairs whose both pictures come from a generator whose name contains this (Pick-a-Pic's model_0, model_1).
    #[arg(long, value_name = "NAME", default_value = "")]
    pairs_generator: String,

    /// Stop where more than this share of the rows is bad, 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = 0.01, value_parser = share)]
    bad_rows_limit: f64,
}

/// A number from 0 to 1.
fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| "expected a number from 0 to 1".into())
}

impl Source {
    fn options(&self) -> Options {
        let (generator, bad_rows_limit) = (self.pairs_generator.clone(), self.bad_rows_limit);
        Options { generator, bad_rows_limit, ..Options::default() }
    }

    /// Opens the dataset and says in a note what is passed over. Errors: as [`Pairs::open`].
    fn open(&self, context: &Context) -> Result<Pairs> {
        let pairs = Pairs::open(&self.path, &self.options())?;
        note_passed_over(&self.path, &pairs, context);
        Ok(pairs)
    }
}

/// Says what of a dataset is not used, where there is any.
pub fn note_passed_over(path: &Path, pairs: &Pairs, context: &Context) {
    let report = pairs.report();
    let counts = [
        (report.ties, "ties"),
        (report.other_generators, "pairs of other generators"),
        (report.bad_rows(), "bad rows"),
    ];
    let told: Vec<String> = counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    if !told.is_empty() {
        context.note(&format!("{}: {} pairs; passed over: {}", path.display(), pairs.len(), told.join(", ")));
    }
    if report.bad_rows() > 0 {
        context.note(&report.bad_list());
    }
}
