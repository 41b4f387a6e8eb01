//! `seedpo judge synthetic`: preferences whose rule is known.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use seedpo_judge_train::{EmojiCaptions, write_pairs};

use crate::context::Context;
use crate::failure::Outcome;
use crate::output;

const AFTER: &str = "\
The rule: a picture of the prompt is preferred to one of another emoji; of two pictures of the prompt that with more chroma
(`seedpo score --judge chroma`), the larger and more saturated subject. Chromas within a tenth of each other are ties.";

/// Make preference pairs of the emoji by a known rule: pairs.jsonl and images/.
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER)]
pub struct Args {
    /// The folder to write; it must not be there yet.
    #[arg(value_name = "FOLDER")]
    out: PathBuf,

    /// The folder of the emoji, as `make emoji` makes it.
    #[arg(long, default_value = ".emoji", value_name = "FOLDER")]
    emoji: PathBuf,

    /// Seed of sizes, saturations, places and mismatches.
    #[arg(long, default_value_t = 0, value_name = "SEED")]
    seed: u64,
}

/// Writes the pairs.
pub fn run(args: &Args, context: &Context) -> Result<Outcome> {
    let emoji = EmojiCaptions::read(&args.emoji).context("--emoji")?;
    let written = write_pairs(&args.out, &emoji, args.seed)?;
    context.note(&format!("{} pairs, {} of them ties", written.pairs, written.ties));
    output::print(&format!("{}\n", args.out.join("pairs.jsonl").display()))?;
    Ok(Outcome::Done)
}
