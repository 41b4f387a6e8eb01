//! `seedpo pairs relabel`.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use image::RgbImage;
use seedpo_align::objective::Preference;
use seedpo_data::{BadRow, JudgedPair, Pair, Pairs};
use seedpo_judge::{Judge, JudgeSpec};
use seedpo_tensor::Tensor;
use serde_json::{Map, json};

use super::Source;
use super::convert::Sink;
use crate::commands::score;
use crate::context::Context;
use crate::failure::Outcome;
use crate::interrupt;

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
}

/// Runs `seedpo pairs relabel`.
pub fn run(args: &Args, context: &Context) -> Result<Outcome> {
    let specs = JudgeSpec::list(&args.judge).context("--judge")?;
    let pairs = args.source.open(context)?;
    let judges = score::load(&specs, context)?;
    let mut sink = Sink::create(&args.target, &pairs, args.source.bad_rows_limit)?;
    let mut progress = context.progress("judging", pairs.len(), "pairs");
    let (mut ties, mut turned) = (0, 0);
    for index in 0..pairs.len() {
        if interrupt::requested() {
            return Ok(Outcome::Interrupted);
        }
        let pair = pairs.pair(index);
        match scores(&pairs, &pair, &judges)? {
            Err(bad) => sink.bad(index, bad)?,
            Ok([first, second]) => {
                let preference = Preference::by_dominance(&first, &second);
                let scores = match preference {
                    Preference::First => [first, second],
                    Preference::Second => [second, first],
                    Preference::Tie => {
                        ties += 1;
                        continue;
                    }
                };
                turned += usize::from(preference == Preference::Second);
                sink.add(index, &judged(&pair, preference, &judges, &scores))?;
            }
        }
        progress.advance(1);
    }
    progress.finish();
    sink.finish(&args.target, context)?;
    context.note(&format!("{turned} labels turned round, {ties} ties dropped"));
    Ok(Outcome::Done)
}

/// The judges' scores of winner and loser; a pair with a picture that cannot be had is a bad row.
fn scores(pairs: &Pairs, pair: &Pair, judges: &[Box<dyn Judge>]) -> Result<Result<[Vec<f64>; 2], BadRow>> {
    let loser = pair.loser.unwrap_or(pair.winner);
    let [winner, loser] = match (pairs.picture(pair.winner), pairs.picture(loser)) {
        (Err(bad), _) | (_, Err(bad)) => return Ok(Err(bad)),
        (Ok(winner), Ok(loser)) => [pixels(&winner), pixels(&loser)],
    };
    let mut both = [Vec::new(), Vec::new()];
    for judge in judges {
        // In one call where that can be: some judges compare pictures of a prompt with each other.
        let scores = if winner.size() == loser.size() {
            judge.score(&Tensor::cat(&[&winner, &loser], 0), &[pair.prompt; 2])?
        } else {
            [judge.score(&winner, &[pair.prompt])?, judge.score(&loser, &[pair.prompt])?].concat()
        };
        both.iter_mut().zip(scores).for_each(|(side, score)| side.push(score));
    }
    Ok(Ok(both))
}

/// A picture as judges take it, u8 `[1, H, W, 3]`.
fn pixels(picture: &RgbImage) -> Tensor {
    let shape = [1, i64::from(picture.height()), i64::from(picture.width()), 3];
    Tensor::from_slice(picture.as_raw()).reshape(shape)
}

fn judged<'a>(
    pair: &Pair<'a>,
    preference: Preference,
    judges: &[Box<dyn Judge>],
    scores: &[Vec<f64>; 2],
) -> JudgedPair<'a> {
    let loser = pair.loser.unwrap_or(pair.winner);
    let (winner, loser) = if preference == Preference::Second { (loser, pair.winner) } else { (pair.winner, loser) };
    let of = |i: usize| json!([scores[0][i], scores[1][i]]);
    let by_judge: Map<_, _> = judges.iter().enumerate().map(|(i, judge)| (judge.name().to_owned(), of(i))).collect();
    let notes = Map::from_iter([("winner_and_loser_scores".to_owned(), by_judge.into())]);
    JudgedPair { prompt: pair.prompt, winner, loser: Some(loser), notes }
}
