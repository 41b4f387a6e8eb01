//! Judges by the line that names them, their weights found on disk or fetched from the hub.

use std::error::Error as StdError;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use seedpo_judge::{EXEC_TIMEOUT, Judge, JudgeInfo, JudgeOptions, JudgeSpec};
use seedpo_tensor::{Device, Kind};

use crate::context::Context;
use crate::{hub, models};

/// What the commands that score take beside the judges' names.
#[derive(clap::Args, Debug)]
pub struct JudgeFlags {
    /// Seconds that an exec: judge may take for one batch of pictures; five times as many for its first.
    #[arg(long, value_name = "SECONDS", default_value_t = EXEC_TIMEOUT.as_secs(), value_parser = clap::value_parser!(u64).range(1..=86400))]
    judge_timeout: u64,
}

impl JudgeFlags {
    /// How long an external scorer may take for one batch.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.judge_timeout)
    }
}

/// Builds a judge; an external one may take `exec_timeout` for a batch.
///
/// Errors: its weights are not there and cannot be fetched, or do not fit.
pub fn build(
    spec: &JudgeSpec,
    device: Device,
    kind: Kind,
    exec_timeout: Duration,
    context: &Context,
) -> Result<Box<dyn Judge>> {
    let batch_size = if device == Device::Cpu { 8 } else { 32 };
    let options = JudgeOptions { device, kind, batch_size, exec_timeout };
    Ok(spec.build(&options, &mut |info, location| locate(info, location, context))?)
}

type Located = std::result::Result<Vec<PathBuf>, Box<dyn StdError + Send + Sync>>;

/// A path that exists; else a hub id (with a file in it, or with the published names); without either, the published
/// repositories, or the place beside the built-in model.
fn locate(info: &'static JudgeInfo, location: Option<&str>, context: &Context) -> Located {
    let published = |repo: Option<&str>| -> Result<Vec<PathBuf>> {
        let fetch = |w: &seedpo_judge::HubFile| hub::file(repo.unwrap_or(w.repo), w.file, context);
        info.weights.iter().map(fetch).collect()
    };
    let paths = match location {
        None if !info.asset.is_empty() => models::asset(info.asset).map(|path| vec![path]),
        None => published(None),
        Some(text) if Path::new(text).exists() => Ok(vec![PathBuf::from(text)]),
        Some(text) => match text.match_indices('/').nth(1) {
            Some((at, _)) => hub::file(&text[..at], &text[at + 1..], context).map(|path| vec![path]),
            None => published(Some(text)),
        },
    };
    paths.map_err(|error| format!("{error:#}").into())
}

/// A note on each judge within an ensemble.
pub fn note_statistics(judge: &dyn Judge, context: &Context) {
    for statistics in judge.statistics() {
        context.note(&format!("  {statistics}"));
    }
}
