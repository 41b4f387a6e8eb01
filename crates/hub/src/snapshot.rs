//! A repository's files at a revision, in one folder: from the cache, from the hub, or both.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cache::{RepoCache, is_commit, safe};
use crate::client::{Client, Listing};
use crate::download::Job;
use crate::select::{INDEX, Select, adapter, missing_part, pipeline, with_config};
use crate::{Error, HubConfig, Observer, RepoId, Result};

/// A hub and its cache.
#[derive(Debug)]
pub struct Hub {
    client: Client,
}

impl Hub {
    /// Asks nobody yet.
    pub fn new(config: HubConfig) -> Self {
        Self { client: Client::new(config) }
    }

    /// The folder that holds the selected files of a repository at `revision` (a branch, a tag or a commit; `main` is
    /// the usual branch); what is not in the cache is downloaded first.
    ///
    /// Where the hub cannot be reached, or [`HubConfig::offline`] is set, the cache alone serves. Errors: every kind of
    /// [`Error`], each with what to do; a download that failed leaves no file that looks whole.
    pub fn snapshot(
        &self,
        id: &RepoId,
        revision: &str,
        select: &Select,
        observer: &mut dyn Observer,
    ) -> Result<PathBuf> {
        let config = self.client.config();
        let cache = RepoCache::new(&config.cache, id);
        if config.offline {
            let why = "offline mode is on (HF_HUB_OFFLINE)".to_owned();
            return self.cached(&cache, id, revision, select).map_err(|m| self.not_cached(id, m, why, ONLINE));
        }
        let cached = self.cached(&cache, id, revision, select);
        if let (true, Ok(folder)) = (is_commit(revision), &cached) {
            return Ok(folder.clone());
        }
        // With a whole copy at hand there is no need to insist; a first answer is worth two more tries.
        let tries = if cached.is_ok() { 1 } else { config.tries.min(3) };
        let listing = match (self.repeated(tries, observer, || self.client.listing(id, revision)), cached) {
            (Ok(listing), _) => listing,
            (Err(error), Ok(folder)) if error.passing() => {
                observer.note(&format!("{error}\n{id}: using the copy in the cache"));
                return Ok(folder);
            }
            (Err(error), _) => return Err(error),
        };
        self.fetch_all(&cache, id, &listing, select, observer)?;
        // All that is needed is there, though the cache may be one that only others write to.
        if let Err(error) = cache.remember(revision, &listing.commit) {
            observer.note(&format!("{error}: `{revision}` will not be found offline"));
        }
        Ok(cache.snapshot(&listing.commit))
    }

    /// The path of the one file of a snapshot that an adapter or a single file is.
    ///
    /// Errors: as [`Hub::snapshot`].
    pub fn file(&self, id: &RepoId, revision: &str, select: &Select, observer: &mut dyn Observer) -> Result<PathBuf> {
        let folder = self.snapshot(id, revision, select, observer)?;
        if let Select::File(file) | Select::AdapterFile(file) = select {
            return Ok(folder.join(file));
        }
        let inside: Vec<String> = self.listed(&folder);
        let chosen = adapter(&inside).map_err(|reason| Error::Unsuitable { id: id.to_string(), reason })?;
        Ok(folder.join(&chosen[0]))
    }

    fn listed(&self, folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    fn fetch_all(
        &self,
        cache: &RepoCache,
        id: &RepoId,
        listing: &Listing,
        select: &Select,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        if matches!(select, Select::Pipeline { .. }) {
            if !listing.files.iter().any(|file| file == INDEX) {
                let reason = format!("expected a diffusers pipeline, found no {INDEX} in it");
                return Err(Error::Unsuitable { id: id.to_string(), reason });
            }
            self.fetch(cache, id, &listing.commit, &[INDEX.to_owned()], observer)?;
        }
        let wanted = self.choose(&cache.snapshot(&listing.commit), id, &listing.files, select)?;
        self.fetch(cache, id, &listing.commit, &wanted, observer)
    }

    /// The selected ones of `files`; a pipeline's index is read from the snapshot.
    fn choose(&self, snapshot: &Path, id: &RepoId, files: &[String], select: &Select) -> Result<Vec<String>> {
        let unsuitable = |reason: String| Error::Unsuitable { id: id.to_string(), reason };
        let chosen = match select {
            Select::Pipeline { variant } => {
                pipeline(files, &read_index(snapshot)?, variant.as_deref()).map_err(unsuitable)?
            }
            Select::Adapter => adapter(files).map_err(unsuitable)?,
            Select::File(file) if files.contains(file) => vec![file.clone()],
            Select::AdapterFile(file) if files.contains(file) => with_config(files, file),
            Select::File(file) | Select::AdapterFile(file) => {
                let near: Vec<&str> =
                    files.iter().map(String::as_str).filter(|f| f.ends_with(".safetensors")).collect();
                let hint = if near.is_empty() { String::new() } else { format!("; it has {}", near.join(", ")) };
                return Err(Error::NoFile { id: id.to_string(), file: file.clone(), hint });
            }
        };
        match chosen.iter().find(|file| safe(file).is_none()) {
            Some(odd) => Err(unsuitable(format!("expected plain paths, found a file called {odd:?}"))),
            None => Ok(chosen),
        }
    }

    /// Downloads those of `files` that the snapshot lacks.
    fn fetch(
        &self,
        cache: &RepoCache,
        id: &RepoId,
        commit: &str,
        files: &[String],
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let folder = cache.snapshot(commit);
        let tries = self.client.config().tries;
        let mut missing = Vec::new();
        for file in files.iter().filter(|file| !folder.join(file).exists()) {
            missing.push((file, self.repeated(tries, observer, || self.client.metadata(id, commit, file))?));
        }
        let total = missing.iter().filter_map(|(_, metadata)| metadata.size).sum();
        self.check_space(total)?;
        let mut before = 0;
        for (file, metadata) in &missing {
            let job = Job { client: &self.client, cache, id, commit, file, metadata, before, total };
            job.run(observer)?;
            before += metadata.size.unwrap_or(0);
            observer.progress(file, before, total);
        }
        Ok(())
    }

    fn check_space(&self, needed: u64) -> Result<()> {
        let cache = &self.client.config().cache;
        std::fs::create_dir_all(cache).map_err(Error::io(cache))?;
        match fs4::available_space(cache) {
            Ok(free) if free < needed => Err(Error::NoSpace { folder: cache.clone(), needed, free }),
            _ => Ok(()),
        }
    }

    /// The snapshot's folder if all that is selected is there, else what is missing.
    fn cached(
        &self,
        cache: &RepoCache,
        id: &RepoId,
        revision: &str,
        select: &Select,
    ) -> std::result::Result<PathBuf, String> {
        let commit = cache.commit(revision).ok_or_else(|| format!("the revision `{revision}`"))?;
        let (folder, files) = (cache.snapshot(&commit), cache.files(&commit));
        let chosen = self.choose(&folder, id, &files, select);
        match select {
            Select::Pipeline { .. } => {
                let index = read_index(&folder).map_err(|_| INDEX.to_owned())?;
                let chosen = chosen.map_err(|error| format!("all of it ({error})"))?;
                if let Some(part) = missing_part(&chosen, &index) {
                    return Err(format!("the part `{part}`"));
                }
                if let Some(shard) = missing_shard(&folder, &chosen) {
                    return Err(format!("`{shard}`"));
                }
            }
            Select::Adapter => drop(chosen.map_err(|_| "a LoRA adapter".to_owned())?),
            Select::File(file) | Select::AdapterFile(file) => drop(chosen.map_err(|_| format!("`{file}`"))?),
        }
        Ok(folder)
    }

    fn not_cached(&self, id: &RepoId, missing: String, why: String, hint: &str) -> Error {
        let cache = self.client.config().cache.clone();
        Error::NotCached { id: id.to_string(), missing, cache, why, hint: hint.to_owned() }
    }

    /// Asks again, after a growing pause, where the reason for a failure may pass.
    fn repeated<T>(&self, tries: u32, observer: &mut dyn Observer, ask: impl Fn() -> Result<T>) -> Result<T> {
        let mut attempt = 1;
        loop {
            match ask() {
                Err(error) if error.passing() && attempt < tries => {
                    observer.note(&format!("{error}; trying again"));
                    std::thread::sleep(self.client.config().pause * 2u32.saturating_pow(attempt - 1));
                    attempt += 1;
                }
                other => return other,
            }
        }
    }
}

const ONLINE: &str = "unset it, or download the model where there is a network";

fn read_index(snapshot: &Path) -> Result<Value> {
    let path = snapshot.join(INDEX);
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    serde_json::from_str(&text).map_err(|error| Error::Io { path, source: error.into() })
}

/// The first shard that an index among `chosen` names and the snapshot lacks.
fn missing_shard(snapshot: &Path, chosen: &[String]) -> Option<String> {
    let indices = chosen.iter().filter(|file| file.contains(".index.") && file.ends_with(".json"));
    indices.into_iter().find_map(|index| {
        let value: Value = serde_json::from_str(&std::fs::read_to_string(snapshot.join(index)).ok()?).ok()?;
        let folder = index.rsplit_once('/').map_or("", |(folder, _)| folder);
        let shards = value["weight_map"].as_object()?.values().filter_map(Value::as_str);
        let mut paths = shards.map(|shard| format!("{folder}/{shard}"));
        paths.find(|path| !snapshot.join(path).is_file())
    })
}
