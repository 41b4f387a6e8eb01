//! Judges by the line that names them, their weights found on disk or fetched from the hub.

use std::error::Error as StdError;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use seedpo_judge::{EXEC_TIMEOUT, HubFile, Judge, JudgeInfo, JudgeOptions, JudgeSpec, lacking};
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
/// repositories, or the place beside the built-in model. What a judge needs of other models' repositories and has not there
/// comes from where it is published.
fn locate(info: &'static JudgeInfo, location: Option<&str>, context: &Context) -> Located {
    located(info, location, context).map_err(|error| format!("{error:#}").into())
}

fn located(info: &'static JudgeInfo, location: Option<&str>, context: &Context) -> Result<Vec<PathBuf>> {
    let published = |file: &HubFile| hub::file(file.repo, file.file, context);
    let Some(text) = location else {
        if !info.asset.is_empty() {
            return Ok(vec![models::asset(info.asset)?]);
        }
        return info.weights.iter().map(published).collect();
    };
    let mut paths = match text.match_indices('/').nth(1) {
        _ if Path::new(text).exists() => vec![PathBuf::from(text)],
        Some((at, _)) => vec![hub::file(&text[..at], &text[at + 1..], context)?],
        None => in_repository(info, text, context)?,
    };
    for file in lacking(info, &paths) {
        let found = published(file).with_context(|| format!("{text} has not all that `{}` needs", info.name));
        paths.push(found?);
    }
    Ok(paths)
}

/// A judge's files under their published names in another repository: its own, and of the others those that are there.
fn in_repository(info: &JudgeInfo, repo: &str, context: &Context) -> Result<Vec<PathBuf>> {
    let own = info.own_weights().map(|file| hub::file(repo, file.file, context));
    let mut paths = own.collect::<Result<Vec<_>>>()?;
    for file in info.other_weights() {
        paths.extend(hub::file_if_there(repo, file.file, context)?);
    }
    Ok(paths)
}

/// A note on each judge within an ensemble.
pub fn note_statistics(judge: &dyn Judge, context: &Context) {
    for statistics in judge.statistics() {
        context.note(&format!("  {statistics}"));
    }
}
