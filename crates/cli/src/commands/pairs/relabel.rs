//! `seedpo pairs relabel`.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use image::RgbImage;
use seedpo_align::objective::Preference;
use seedpo_data::{BadRow, JudgedPair, Pair, Pairs};
use seedpo_judge::{Collected, ImageBatch, Judge, JudgeSpec};
use serde_json::{Map, json};

use super::Source;
use super::convert::Sink;
use crate::commands::score::{self, Column};
use crate::context::Context;
use crate::failure::Outcome;
use crate::interrupt;
use crate::judges::JudgeFlags;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    source: Source,

    /// What to write: a name that ends in .jsonl (scores are noted there) or .parquet and is free.
    target: PathBuf,

    /// The judge, as `seedpo score` takes it; of several, separated by commas, all must agree: a picture wins only if it is
    /// at least as good in all and better in one, and other pairs are dropped as ties.
    #[arg(long, value_name = "NAMES")]
    judge: String,

    #[command(flatten)]
    judges: JudgeFlags,
}

/// Pairs judged in one call.
const BATCH: usize = 8;

/// Runs `seedpo pairs relabel`.
pub fn run(args: &Args, context: &Context) -> Result<Outcome> {
    let specs = JudgeSpec::list(&args.judge).context("--judge")?;
    let pairs = args.source.open(context)?;
    let judges = score::load(&specs, &args.judges, context)?;
    let judges = score::columns(&specs, judges);
    let mut sink = Sink::create(&args.target, &pairs, args.source.bad_rows_limit)?;
    let mut progress = context.progress("judging", pairs.len(), "pairs");
    let mut count = Count::default();
    let mut batch: Vec<Seen> = Vec::new();
    for index in 0..pairs.len() {
        if interrupt::requested() {
            return Ok(Outcome::Interrupted);
        }
        progress.advance(1);
        let pair = pairs.pair(index);
        match pictures(&pairs, &pair) {
            Err(bad) => sink.bad(index, bad)?,
            Ok(pictures) => {
                let next = Seen { index, pair, pictures };
                if !next.goes_with(&batch) {
                    count += label(&mut batch, &judges, &mut sink)?;
                }
                batch.push(next);
            }
        }
    }
    count += label(&mut batch, &judges, &mut sink)?;
    progress.finish();
    sink.finish(&args.target, context)?;
    context.note(&format!("{} labels turned round, {} ties dropped", count.turned, count.ties));
    Ok(Outcome::Done)
}

/// Labels that changed.
#[derive(Default)]
struct Count {
    turned: usize,
    ties: usize,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.turned += other.turned;
        self.ties += other.ties;
    }
}

/// A pair whose pictures were read.
struct Seen<'a> {
    index: usize,
    pair: Pair<'a>,
    /// The present winner and loser.
    pictures: [RgbImage; 2],
}

impl Seen<'_> {
    /// Whether it can be judged in one call with the pairs of a batch. Some judges compare the pictures of a prompt with
    /// each other, so no prompt comes twice.
    fn goes_with(&self, batch: &[Self]) -> bool {
        let size = self.pictures[0].dimensions();
        let fits = |other: &Self| other.pictures.iter().all(|picture| picture.dimensions() == size);
        batch.len() < BATCH
            && fits(self)
            && batch.iter().all(|other| other.pair.prompt != self.pair.prompt && fits(other))
    }
}

/// A pair's pictures; one that cannot be had makes it a bad row.
fn pictures(pairs: &Pairs, pair: &Pair) -> Result<[RgbImage; 2], BadRow> {
    Ok([pairs.picture(pair.winner)?, pairs.picture(pair.loser.unwrap_or(pair.winner))?])
}

/// Judges a batch, writes it with its new labels and empties it.
fn label(batch: &mut Vec<Seen>, judges: &[Column], sink: &mut Sink) -> Result<Count> {
    let mut count = Count::default();
    let scores = judges.iter().map(|column| scores(batch, column.judge.as_ref())).collect::<Result<Vec<_>>>()?;
    for (at, Seen { index, pair, .. }) in batch.drain(..).enumerate() {
        let side = |side: usize| scores.iter().map(|of_judge| of_judge[2 * at + side]).collect::<Vec<f64>>();
        let [first, second] = [side(0), side(1)];
        let preference = Preference::by_dominance(&first, &second);
        match preference {
            Preference::First => sink.add(index, &judged(&pair, false, judges, [&first, &second]))?,
            Preference::Second => sink.add(index, &judged(&pair, true, judges, [&second, &first]))?,
            Preference::Tie => {}
        }
        count.ties += usize::from(preference == Preference::Tie);
        count.turned += usize::from(preference == Preference::Second);
    }
    Ok(count)
}

/// A judge's scores of a batch: winner, loser, winner, ..
fn scores(batch: &[Seen], judge: &dyn Judge) -> Result<Vec<f64>> {
    let pictures: Vec<&RgbImage> = batch.iter().flat_map(|seen| &seen.pictures).collect();
    let prompts: Vec<&str> = batch.iter().flat_map(|seen| [seen.pair.prompt; 2]).collect();
    let mut scores = Collected::new(judge);
    // Pairs of one size, or one whose two sides differ.
    let alike = pictures.windows(2).all(|two| two[0].dimensions() == two[1].dimensions());
    let at_once = if alike { pictures.len().max(1) } else { 1 };
    for (pictures, prompts) in pictures.chunks(at_once).zip(prompts.chunks(at_once)) {
        scores.add(&ImageBatch::from_pictures(pictures)?, prompts)?;
    }
    Ok(scores.scores(&prompts)?)
}

/// The pair to write, turned round or not; `scores` are those of its new winner and loser.
fn judged<'a>(pair: &Pair<'a>, turned: bool, judges: &[Column], scores: [&Vec<f64>; 2]) -> JudgedPair<'a> {
    let loser = pair.loser.unwrap_or(pair.winner);
    let (winner, loser) = if turned { (loser, pair.winner) } else { (pair.winner, loser) };
    let of = |i: usize| json!([scores[0][i], scores[1][i]]);
    let by_judge: Map<_, _> = judges.iter().enumerate().map(|(i, column)| (column.name.clone(), of(i))).collect();
    let notes = Map::from_iter([("winner_and_loser_scores".to_owned(), by_judge.into())]);
    JudgedPair { winner, loser: Some(loser), notes, ..(*pair).into() }
}
