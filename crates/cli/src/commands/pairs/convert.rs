//! `seedpo pairs convert`.

use std::path::PathBuf;

use anyhow::Result;
use seedpo_data::{JudgedPair, PairWriter, Pairs, Report};

use super::Source;
use crate::context::Context;
use crate::failure::Outcome;
use crate::interrupt;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    source: Source,

    /// What to write: a name that ends in .jsonl or .parquet and is free.
    target: PathBuf,
}

/// Runs `seedpo pairs convert`.
pub fn run(args: &Args, context: &Context) -> Result<Outcome> {
    let pairs = args.source.open(context)?;
    let mut sink = Sink::create(&args.target, &pairs, args.source.bad_rows_limit)?;
    let mut progress = context.progress("writing", pairs.len(), "pairs");
    for index in 0..pairs.len() {
        if interrupt::requested() {
            return Ok(Outcome::Interrupted);
        }
        sink.add(index, &pairs.pair(index).into())?;
        progress.advance(1);
    }
    progress.finish();
    sink.finish(&args.target, context)?;
    Ok(Outcome::Done)
}

/// A writer that passes over pairs whose pictures cannot be had, within the limit.
pub struct Sink<'a> {
    writer: PairWriter,
    pairs: &'a Pairs,
    report: Report,
    limit: f64,
}

impl<'a> Sink<'a> {
    pub fn create(target: &std::path::Path, pairs: &'a Pairs, limit: f64) -> Result<Self> {
        Ok(Self { writer: PairWriter::create(target)?, pairs, report: pairs.report().clone(), limit })
    }

    pub fn add(&mut self, index: usize, pair: &JudgedPair) -> Result<()> {
        match self.writer.add(self.pairs, pair)? {
            Some(bad) => self.bad(index, bad),
            None => Ok(()),
        }
    }

    /// Counts a bad pair. Errors: there are more than the limit allows.
    pub fn bad(&mut self, index: usize, bad: seedpo_data::BadRow) -> Result<()> {
        Ok(self.pairs.pass_over(index, bad, &mut self.report, self.limit)?)
    }

    pub fn finish(self, target: &std::path::Path, context: &Context) -> Result<()> {
        let written = self.writer.finish()?;
        let bad = self.report.bad_rows() - self.pairs.report().bad_rows();
        context.note(&format!("{}: {written} pairs", target.display()));
        if bad > 0 {
            context.note(&format!("passed over {bad} pairs whose pictures cannot be had\n{}", self.report.bad_list()));
        }
        Ok(())
    }
}
