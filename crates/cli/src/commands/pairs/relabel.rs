//! `seedpo pairs relabel`.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use image::RgbImage;
use seedpo_align::objective::Preference;
use seedpo_data::{BadRow, JudgedPair, Pair, Pairs};
use seedpo_judge::Judge;
use seedpo_tensor::Tensor;
use serde_json::{Map, json};

use super::Source;
use super::convert::Sink;
use crate::context::Context;
use crate::failure::Outcome;
use crate::interrupt;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    source: Source,

    /// What to write: a name that ends in .jsonl (scores are noted there) or .parquet and is free.
    target: PathBuf,

    /// The judge; of several, separated by commas, all must agree: a picture wins only if it is at least as good in all
    /// and better in one, and other pairs are dropped as ties.
    #[arg(long, value_delimiter = ',', required = true, value_name = "NAMES")]
    judge: Vec<String>,
}

/// Runs `seedpo pairs relabel`.
pub fn run(args: &Args, context: &Context) -> Result<Outcome> {
    let named = |name: &String| seedpo_judge::by_name(name).context("--judge");
    let judges = args.judge.iter().map(named).collect::<Result<Vec<_>>>()?;
    let pairs = args.source.open(context)?;
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
    let of = |picture: RgbImage| -> Result<Vec<f64>> {
        let shape = [1, i64::from(picture.height()), i64::from(picture.width()), 3];
        let pixels = Tensor::from_slice(picture.as_raw()).reshape(shape);
        let score = |judge: &Box<dyn Judge>| Ok(judge.score(&pixels, &[pair.prompt])?[0]);
        judges.iter().map(score).collect()
    };
    let loser = pair.loser.unwrap_or(pair.winner);
    Ok(match (pairs.picture(pair.winner), pairs.picture(loser)) {
        (Err(bad), _) | (_, Err(bad)) => Err(bad),
        (Ok(winner), Ok(loser)) => Ok([of(winner)?, of(loser)?]),
    })
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
