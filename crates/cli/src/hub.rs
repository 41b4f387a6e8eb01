//! Models and adapters by hub id, with progress on standard error.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use seedpo_align::config::given;
use seedpo_hub::{Hub, HubConfig, Observer, RepoId, Select};

use crate::context::Context;
use crate::interrupt;
use crate::progress::Progress;

const MEGABYTE: u64 = 1_000_000;
/// Files that are whole models by themselves.
const CHECKPOINTS: [&str; 4] = [".safetensors", ".ckpt", ".pt", ".pth"];
/// Files that are adapters.
const ADAPTERS: [&str; 5] = [".safetensors", ".bin", ".ckpt", ".pt", ".pth"];

/// The path of a model: `named` itself where it exists or is no hub id, else the files of `user/repo` (a diffusers
/// pipeline) or `user/repo/file` (a single-file checkpoint) in the cache, downloaded if need be.
///
/// `variant` is empty for the plain weights. Errors: those of the hub, with what to do; that nothing by that name is
/// here either.
pub fn model(named: &Path, variant: &str, context: &Context) -> Result<PathBuf> {
    let Some((id, file)) = hub_id(named, &CHECKPOINTS) else { return Ok(named.to_path_buf()) };
    let variant = given(variant).map(str::to_owned);
    let select = file.map_or(Select::Pipeline { variant }, Select::File);
    let revision = context.revision();
    let mut shown = Shown::new(context);
    let found = match select {
        Select::Pipeline { .. } => hub().snapshot(&id, revision, &select, &mut shown),
        _ => hub().file(&id, revision, &select, &mut shown),
    };
    found.map_err(|error| explained(error, named))
}

/// The path of an adapter: as [`model`], for a LoRA in `user/repo` or `user/repo/file.safetensors` (peft's configuration
/// beside it is fetched too), at `main`: a model's `--revision` says nothing about other repositories.
pub fn adapter(named: &Path, context: &Context) -> Result<PathBuf> {
    let Some((id, file)) = hub_id(named, &ADAPTERS) else { return Ok(named.to_path_buf()) };
    let select = file.map_or(Select::Adapter, Select::AdapterFile);
    let found = hub().file(&id, "main", &select, &mut Shown::new(context));
    found.map_err(|error| explained(error, named))
}

/// One file of a repository (`user/repo`) at `main`, from the cache or downloaded. Errors: no such id; those of the hub.
pub fn file(repo: &str, file: &str, context: &Context) -> Result<PathBuf> {
    fetched(repo, file, context)?.map_err(|error| anyhow::Error::new(error).context(format!("{repo}: {file}")))
}

/// As [`file()`], `None` where the repository has no such file, or offline where the cache has none.
pub fn file_if_there(repo: &str, file: &str, context: &Context) -> Result<Option<PathBuf>> {
    use seedpo_hub::Error::{NoFile, NotCached};
    match fetched(repo, file, context)? {
        Ok(path) => Ok(Some(path)),
        Err(NoFile { .. } | NotCached { .. }) => Ok(None),
        Err(error) => Err(anyhow::Error::new(error).context(format!("{repo}: {file}"))),
    }
}

fn fetched(repo: &str, file: &str, context: &Context) -> Result<seedpo_hub::Result<PathBuf>> {
    let Some(id) = RepoId::parse(repo) else {
        bail!("{repo}: nothing is at this path, and it is no hub id (user/repo)")
    };
    Ok(hub().file(&id, "main", &Select::File(file.to_owned()), &mut Shown::new(context)))
}

/// The id and file (of one of these suffixes) that a name stands for, unless there is something at that path.
fn hub_id(named: &Path, suffixes: &[&str]) -> Option<(RepoId, Option<String>)> {
    let text = named.to_str().filter(|_| !named.exists())?;
    let (id, file) = RepoId::parse_with_file(text)?;
    let fits = file.is_none_or(|file| suffixes.iter().any(|suffix| file.ends_with(suffix)));
    fits.then(|| (id, file.map(str::to_owned)))
}

fn hub() -> Hub {
    Hub::new(HubConfig::from_env())
}

/// Whoever meant a path should learn that it is not there.
fn explained(error: seedpo_hub::Error, named: &Path) -> anyhow::Error {
    anyhow::Error::new(error).context(format!("{}: nothing is at this path, and as a hub id", named.display()))
}

/// Progress in megabytes.
struct Shown<'a> {
    context: &'a Context,
    bar: Option<Progress>,
    total: u64,
    done: u64,
}

impl<'a> Shown<'a> {
    fn new(context: &'a Context) -> Self {
        Self { context, bar: None, total: 0, done: 0 }
    }
}

impl Observer for Shown<'_> {
    fn progress(&mut self, file: &str, done: u64, total: u64) {
        let (done, total) = (done / MEGABYTE, total.div_ceil(MEGABYTE));
        if total != self.total || self.bar.is_none() {
            (self.total, self.done) = (total, 0);
            self.bar = Some(self.context.progress("downloading", total as usize, "MB"));
        }
        if let Some(bar) = &mut self.bar {
            bar.message(file);
            // A download that starts over goes back.
            bar.advance(done.saturating_sub(self.done) as usize);
            self.done = self.done.max(done);
        }
    }

    fn note(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.note(text),
            None => self.context.note(text),
        }
    }

    fn cancelled(&self) -> bool {
        interrupt::requested()
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &mut self.bar {
            bar.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_win_and_other_names_are_not_ids() {
        let id = |text: &str| hub_id(Path::new(text), &CHECKPOINTS).map(|(id, file)| (id.to_string(), file));
        assert_eq!(id("runwayml/stable-diffusion-v1-5"), Some(("runwayml/stable-diffusion-v1-5".to_owned(), None)));
        assert_eq!(id("user/repo/a/b.safetensors").unwrap().1.as_deref(), Some("a/b.safetensors"));
        for path in ["src/main.rs", "src", "model", "./a/b", "/a/b", "path/to/model", "user/repo/readme.md"] {
            assert_eq!(id(path), None, "{path}");
        }
        let pickle = Path::new("user/repo/pytorch_lora_weights.bin");
        assert!(hub_id(pickle, &ADAPTERS).is_some() && hub_id(pickle, &CHECKPOINTS).is_none());
    }
}
