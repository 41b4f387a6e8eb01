//! The run folder (docs/architecture.md section 4): made once, never overwritten, continued by `resume`.

mod rewind;

use crate::checkpoint::{Checkpoint, Role};
use crate::config::{TrainConfig, given};
use crate::error::{Error, Result};
use crate::metrics::Record;
use crate::optimizer::LrSchedule;
use seedpo_model::FinetuningType;
use seedpo_tensor::files;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use toml::Table;

const CONFIG_FILE: &str = "config.toml";
const METRICS_FILE: &str = "metrics.jsonl";

/// SHA-256 of every input file, by a name that does not depend on where it lies (`unet/config.json`, `prompts_file`).
pub type InputHashes = BTreeMap<String, String>;

/// A run folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
}

/// The files of a diffusers folder that a run depends on, beside its weights.
const MODEL_FILES: &[&str] = &[
    "model_index.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
    "tokenizer_2/vocab.json",
    "tokenizer_2/merges.txt",
    "tokenizer_2/tokenizer.json",
    "tokenizer_2/tokenizer_config.json",
    "tokenizer_2/special_tokens_map.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "unet/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
];

/// Hashes a model's files that exist, of weights those of this variant; of `tokenizer` instead of the model's where one is
/// named. Errors: a file that cannot be read.
pub fn hash_model(model: &Path, variant: Option<&str>, tokenizer: Option<&Path>) -> Result<InputHashes> {
    let mut files = seedpo_model::weight_files(model, variant);
    files.extend(MODEL_FILES.iter().map(|name| ((*name).to_owned(), model.join(name))));
    if let Some(tokenizer) = tokenizer {
        let tokens = MODEL_FILES.iter().filter_map(|name| name.strip_prefix("tokenizer/"));
        files.extend(tokens.map(|name| (format!("--tokenizer {name}"), tokenizer.join(name))));
    }
    let there = files.into_iter().filter(|(_, path)| path.is_file());
    there.map(|(name, path)| Ok((name, files::sha256_file(&path)?))).collect()
}

/// Hashes the model's files that exist, the prompt file and the dataset ([`seedpo_data::fingerprint`]).
pub fn hash_inputs(config: &TrainConfig) -> Result<InputHashes> {
    let mut hashes = hash_model(Path::new(&config.model), config.variant(), config.tokenizer())?;
    if let Some(path) = given(&config.prompts_file) {
        hashes.insert("prompts_file".into(), files::sha256_file(Path::new(path))?);
    }
    if let Some(path) = given(&config.pairs_file) {
        hashes.insert("pairs_file".into(), seedpo_data::fingerprint(Path::new(path))?);
    }
    Ok(hashes)
}

impl RunDir {
    /// Makes `<output_dir>/<name>`, or `<name>-2`, `-3`, .. where taken, holding config.toml and an empty samples/.
    ///
    /// `versions` are recorded beside the settings. The folder appears in one step (made under a temporary name, then
    /// renamed), so a run folder always has its config.toml. Errors: what the operating system refuses.
    pub fn create(config: &TrainConfig, versions: &BTreeMap<String, String>, inputs: &InputHashes) -> Result<Self> {
        let parent = Path::new(&config.output_dir);
        let name = config.run_name();
        let temporary = files::TemporaryFolder::beside(&parent.join(&name))?;
        let samples = temporary.path().join("samples");
        fs::create_dir(&samples).map_err(|e| seedpo_tensor::Error::io(&samples, e))?;
        let text = config_text(config, versions, inputs)?;
        files::write_atomic(&temporary.path().join(CONFIG_FILE), text.as_bytes())?;
        for attempt in 1u32.. {
            let path = parent.join(if attempt == 1 { name.clone() } else { format!("{name}-{attempt}") });
            if path.exists() {
                continue;
            }
            match temporary.rename(&path) {
                Ok(()) => return Ok(Self { path }),
                // Another run took the name in between.
                Err(_) if path.exists() => continue,
                Err(e) => return Err(seedpo_tensor::Error::io(&path, e).into()),
            }
        }
        unreachable!("u32 names cannot all be taken")
    }

    /// The folder that [`RunDir::create`] would make first; nothing is made. For a dry run.
    pub fn planned(config: &TrainConfig) -> Self {
        Self { path: Path::new(&config.output_dir).join(config.run_name()).join("dry-run") }
    }

    /// Opens an existing run folder. Errors: [`Error::Run`] if it has no config.toml.
    pub fn open(path: &Path) -> Result<Self> {
        if path.join(CONFIG_FILE).is_file() {
            return Ok(Self { path: path.into() });
        }
        let reason = "expected a run folder (with config.toml), found none; check the path, or start without resume";
        Err(Error::Run { path: path.into(), reason: reason.into() })
    }

    /// What the setting `resume` means: a run folder, a checkpoint folder within one, or `latest`: the run in
    /// `output_dir` (of that `name`, if not empty) that was written last. With the checkpoint to continue from, if any.
    ///
    /// Errors: [`Error::Run`] where there is no such run, or a checkpoint is damaged.
    pub fn resolve(resume: &str, output_dir: &Path, name: &str) -> Result<(Self, Option<Checkpoint>)> {
        if resume == "latest" {
            let run = Self::open(&latest_run(output_dir, name)?)?;
            let checkpoint = Checkpoint::latest(&run.path)?;
            return Ok((run, checkpoint));
        }
        let given = Path::new(resume);
        let parent = given.parent().map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
        let parent = parent.filter(|p| p.join(CONFIG_FILE).is_file());
        if let (Some(parent), false) = (parent, given.join(CONFIG_FILE).is_file()) {
            return Ok((Self::open(parent)?, Some(Checkpoint::load(given)?)));
        }
        let run = Self::open(given)?;
        let checkpoint = Checkpoint::latest(&run.path)?;
        Ok((run, checkpoint))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where preview grids go.
    pub fn samples(&self) -> PathBuf {
        self.path.join("samples")
    }

    /// The metrics file.
    pub fn metrics(&self) -> PathBuf {
        self.path.join(METRICS_FILE)
    }

    /// The latest good weights: an adapter's file, or the folder of a whole U-Net.
    pub fn result(&self, finetuning: FinetuningType) -> PathBuf {
        self.path.join(Role::Trained.place(finetuning))
    }

    /// The recorded settings and input hashes. Errors: a config.toml that was edited into something invalid.
    pub fn recorded(&self) -> Result<(TrainConfig, InputHashes)> {
        let path = self.path.join(CONFIG_FILE);
        let origin = path.display().to_string();
        let text = files::read_text(&path)?;
        let table = text.parse::<Table>().unwrap_or_default();
        let config = TrainConfig::from_toml(&text, &origin).map_err(|error| self.of_another_version(error, &table))?;
        let inputs = table.get("inputs").cloned().map(toml::Value::try_into::<InputHashes>).transpose();
        let inputs = inputs.map_err(|e| Error::Config { origin, reason: format!("[inputs]: {e}") })?;
        Ok((config, inputs.unwrap_or_default()))
    }

    /// `error` about the settings, with the version that wrote them where it is another one.
    fn of_another_version(&self, error: Error, table: &Table) -> Error {
        let ours = env!("CARGO_PKG_VERSION");
        match table.get("run").and_then(|run| run.get("seedpo")?.as_str()) {
            Some(theirs) if theirs != ours => Error::Run {
                path: self.path.clone(),
                reason: format!(
                    "{error}; the run was made by seedpo {theirs}, this is {ours}: continue it with that version, or \
                     start a new run"
                ),
            },
            _ => error,
        }
    }

    /// Appends a line to metrics.jsonl.
    pub fn append(&self, record: &Record) -> Result<()> {
        let path = self.metrics();
        let line =
            serde_json::to_string(record).map_err(|e| Error::Run { path: path.clone(), reason: e.to_string() })?;
        let file = fs::OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut f| f.write_all(format!("{line}\n").as_bytes()))
            .map_err(|e| seedpo_tensor::Error::io(&path, e).into())
    }

    /// Forces metrics.jsonl to disk; called before a checkpoint, so that no checkpoint is ahead of its metrics.
    pub fn sync_metrics(&self) {
        if let Ok(file) = fs::File::open(self.metrics()) {
            let _ = file.sync_all();
        }
    }

    /// The lines of metrics.jsonl; a last line cut short by a kill is passed over.
    pub fn records(&self) -> Result<Vec<Record>> {
        if !self.metrics().exists() {
            return Ok(Vec::new());
        }
        let text = files::read_text(&self.metrics())?;
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// Refuses a second process that would train in this folder, for as long as the result lives; a killed process holds
    /// nothing. Errors: [`Error::Run`] where another one does.
    pub fn lock(&self) -> Result<fs::File> {
        let reason = "another process is training in this run folder; wait for it, or stop it first";
        let lock = files::lock(&self.path.join(files::LOCK_FILE))?;
        lock.ok_or_else(|| Error::Run { path: self.path.clone(), reason: reason.into() })
    }
}

fn config_text(config: &TrainConfig, versions: &BTreeMap<String, String>, inputs: &InputHashes) -> Result<String> {
    let mut record = Table::new();
    let strings = |map: &BTreeMap<String, String>| {
        toml::Value::Table(map.iter().map(|(k, v)| (k.clone(), toml::Value::String(v.clone()))).collect())
    };
    record.insert("run".into(), strings(versions));
    record.insert("inputs".into(), strings(inputs));
    let header = "# Resolved settings of this run, then the versions it ran with and the SHA-256 of its inputs.\n";
    Ok(format!("{header}{}\n{record}", config.to_documented_toml()?))
}

fn latest_run(output_dir: &Path, name: &str) -> Result<PathBuf> {
    let of_name = |path: &Path| {
        let found = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        // What a kill left of a folder under way.
        if found.starts_with('.') {
            return false;
        }
        let number = found.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
        name.is_empty() || found == name || number.is_some_and(|n| n.parse::<u32>().is_ok())
    };
    let written = |path: &Path| {
        let time = |file: &str| fs::metadata(path.join(file)).and_then(|m| m.modified()).ok();
        time(METRICS_FILE).max(time(CONFIG_FILE))
    };
    let entries = fs::read_dir(output_dir).map_err(|e| seedpo_tensor::Error::io(output_dir, e))?;
    let runs = entries.filter_map(|e| e.ok().map(|e| e.path())).filter(|p| p.join(CONFIG_FILE).is_file() && of_name(p));
    runs.max_by_key(|p| written(p)).ok_or_else(|| Error::Run {
        path: output_dir.into(),
        reason: format!(
            "expected a run{} to resume, found none",
            if name.is_empty() { String::new() } else { format!(" called {name}") }
        ),
    })
}

/// Keys whose change does not change what is computed.
const FREE_KEYS: &[&str] = &[
    "resume",
    "output_dir",
    "name",
    "checkpoints_total_limit",
    "checkpoint_metric",
    "dataloader_num_workers",
    "bad_rows_limit",
    "judge_background",
    "judge_timeout",
    // These change rounding at most, and an allocation that failed asks for them.
    "train_micro_batch_size",
    "rollout_batch_size",
    "gradient_checkpointing",
    "vae_slicing",
];
/// Keys whose `auto` a run resolves when it begins.
const CHOSEN_KEYS: &[&str] = &["dtype", "vae_dtype"];
/// Keys that name inputs whose content is compared by hash instead.
const HASHED_KEYS: &[&str] = &["model", "prompts_file", "pairs_file"];

/// The settings to resume with: the run's own, plus what `given` (flags and files of this start) may change.
///
/// `max_train_steps` and `num_train_epochs` may grow (unless they fix the schedule's shape, as a cosine's); folders
/// and the number of checkpoints kept are free; `model` and `prompts_file` may have moved (their content is compared by
/// [`check_inputs`]). Errors: [`Error::Run`] naming every other key that differs.
pub fn resume_settings(run: &RunDir, recorded: &TrainConfig, given: &Table) -> Result<TrainConfig> {
    TrainConfig::check_keys(given, "the settings given to resume with")?;
    let before = Table::try_from(recorded).map_err(|e| Error::Run { path: run.path.clone(), reason: e.to_string() })?;
    let mut after = before.clone();
    let mut given = given.clone();
    // The run has chosen, perhaps on another machine.
    given.retain(|key, value| !(CHOSEN_KEYS.contains(&key) && value.as_str() == Some("auto")));
    crate::config::layer(&mut after, given);
    let config = TrainConfig::from_table(after, "the settings given to resume with")?;
    let after = Table::try_from(&config).map_err(|e| Error::Run { path: run.path.clone(), reason: e.to_string() })?;
    let differing: Vec<String> = flatten(&after)
        .into_iter()
        .zip(flatten(&before))
        .filter(|((key, new), (_, old))| {
            let free = FREE_KEYS.contains(&key.as_str()) || HASHED_KEYS.contains(&key.as_str());
            new != old && !free && !may_grow(recorded, key, old, new)
        })
        .map(|((key, new), (_, old))| format!("{key}: the run has {old}, given {new}"))
        .collect();
    if differing.is_empty() {
        return Ok(config);
    }
    let reason = format!(
        "a run is resumed with its own settings; these differ:\n  {}\nleave them out, or start a new run",
        differing.join("\n  ")
    );
    Err(Error::Run { path: run.path.clone(), reason })
}

fn may_grow(recorded: &TrainConfig, key: &str, old: &toml::Value, new: &toml::Value) -> bool {
    let grows = match (old.as_integer(), new.as_integer()) {
        (Some(old), Some(new)) => new == 0 || (old > 0 && new > old),
        _ => false,
    };
    ["max_train_steps", "num_train_epochs"].contains(&key) && grows && !LrSchedule::needs_length(&recorded.lr_scheduler)
}

fn flatten(table: &Table) -> Vec<(String, toml::Value)> {
    let mut flat = Vec::new();
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => flat.extend(inner.iter().map(|(k, v)| (format!("{key}.{k}"), v.clone()))),
            value => flat.push((key.clone(), value.clone())),
        }
    }
    flat
}

/// Refuses to continue on other inputs than the run began with. Errors: [`Error::Run`] naming every file that differs.
pub fn check_inputs(run: &RunDir, recorded: &InputHashes, found: &InputHashes) -> Result<()> {
    let names = recorded.keys().chain(found.keys()).collect::<std::collections::BTreeSet<_>>();
    let differing: Vec<&str> =
        names.into_iter().filter(|n| recorded.get(*n) != found.get(*n)).map(String::as_str).collect();
    if differing.is_empty() {
        return Ok(());
    }
    let reason = format!(
        "these inputs have changed since the run began (SHA-256): {}; restore them, or start a new run",
        differing.join(", ")
    );
    Err(Error::Run { path: run.path.clone(), reason })
}

#[cfg(test)]
mod tests;
