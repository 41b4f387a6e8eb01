//! The settings of `seedpo train` from five layers: flag, over file, over preset, over the method's defaults, over the
//! general ones.
//!
//! Flags are generated from the table of keys in `seedpo_align::config`, so a key is written down once.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, error::Error as ClapError, value_parser};
use seedpo_align::config::{
    KeyInfo, KeyKind, PRESETS, Preset, TrainConfig, default_of, flatten_judges, keys, layer, parse_value,
};
use seedpo_tensor::read_text;
use toml::{Table, Value};

use crate::context::Context;
use crate::models;

/// Other spellings of keys: shorter ones, and those of the diffusers training scripts.
const ALIASES: [(&str, &[&str]); 12] = [
    ("model", &["pretrained-model-name-or-path"]),
    ("output_dir", &["out"]),
    ("prompts", &["prompt"]),
    ("steps", &["num-inference-steps"]),
    ("beta", &["beta-dpo"]),
    ("entropy.gamma", &["gamma"]),
    ("entropy.form", &["form"]),
    ("max_train_steps", &["updates"]),
    ("train_batch_size", &["batch"]),
    ("learning_rate", &["lr"]),
    ("validation_prompts", &["validation-prompt"]),
    ("resume", &["resume-from-checkpoint"]),
];

/// Keys whose flag is one of the flags that every command takes.
const GLOBAL: [&str; 8] =
    ["device", "dtype", "vae_dtype", "vae_slicing", "vae_tiling", "variant", "prediction_type", "tokenizer"];

/// Where a training run's settings come from.
#[derive(Args, Debug)]
pub struct Settings {
    /// A TOML file of settings; every key is also a flag below, and the flag wins.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Start from a named set of settings; the file and the flags win over it.
    #[arg(long, value_name = "NAME", help = presets_help())]
    preset: Option<String>,

    /// Print the resolved settings as documented TOML and stop.
    #[arg(long)]
    pub print_config: bool,

    /// Accepted for scripts that pass it: metrics always go to metrics.jsonl and to TensorBoard events in the run
    /// folder, and nowhere else.
    #[arg(long, value_name = "NAME", value_parser = ["tensorboard"], help_heading = "Run")]
    report_to: Option<String>,

    #[command(flatten)]
    flags: SettingFlags,
}

fn presets_help() -> String {
    let list: Vec<String> = PRESETS.iter().map(|p| format!("{:<28} {}", p.name, p.source)).collect();
    format!("Start from a named set of settings; the file and the flags win over it:\n  {}\n", list.join("\n  "))
}

impl Settings {
    /// What the user gave: preset, file and flags merged, without defaults; what `resume_settings` compares.
    ///
    /// Errors: a file that is not TOML, an unknown key (with the nearest known one, file and line), a value of the
    /// wrong type, an unknown preset.
    pub fn given(&self, context: &Context) -> Result<Table> {
        let mut table = Table::new();
        if let Some(name) = &self.preset {
            layer(&mut table, Preset::by_name(name)?.table()?);
        }
        if let Some(path) = &self.config {
            layer(&mut table, read_config(path)?);
        }
        layer(&mut table, context.given());
        layer(&mut table, self.flags.table()?);
        Ok(table)
    }

    /// The settings with every layer applied, not yet checked for ranges; the built-in model where none is named.
    ///
    /// Errors: as [`Settings::given`], and no built-in model where one is needed.
    pub fn resolve(&self, context: &Context) -> Result<TrainConfig> {
        let mut config = TrainConfig::from_layers(self.given(context)?, "the merged settings")?;
        if config.model.is_empty() {
            config.model = models::built_in()?.display().to_string();
        }
        Ok(config)
    }
}

/// A settings file as a table whose keys are all known.
fn read_config(path: &Path) -> Result<Table> {
    let text = read_text(path).context("--config")?;
    let origin = path.display().to_string();
    let mut table: Table = match text.parse() {
        Ok(table) => table,
        Err(error) => bail!("{origin}: not valid TOML\n{}", toml::de::Error::to_string(&error).trim_end()),
    };
    flatten_judges(&mut table, &origin)?;
    TrainConfig::check_keys(&table, &origin).map_err(|error| {
        let line = unknown_key(&error.to_string()).and_then(|key| line_of(&text, key));
        match line {
            Some(line) => anyhow::Error::new(error).context(format!("{origin}, line {line}")),
            None => error.into(),
        }
    })?;
    Ok(table)
}

/// The name in an error about an unknown key, without its table's name.
fn unknown_key(message: &str) -> Option<&str> {
    let name = message.split_once("unknown key `")?.1.split_once('`')?.0;
    name.rsplit('.').next()
}

/// The number of the first line that holds `key` as a word before an equals sign or within brackets, from 1.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let holds = |line: &str| {
        line.match_indices(key).any(|(at, _)| {
            let edge = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != '-');
            edge(line[..at].chars().next_back()) && edge(line[at + key.len()..].chars().next())
        })
    };
    text.lines().position(holds).map(|index| index + 1)
}

/// The keys given as flags, with their texts in the order given.
#[derive(Debug, Default, Clone)]
struct SettingFlags(Vec<(&'static KeyInfo, Vec<String>)>);

impl SettingFlags {
    fn table(&self) -> Result<Table> {
        let mut table = Table::new();
        for (key, texts) in &self.0 {
            let value = value_of(key, texts).with_context(|| format!("--{}", flag_name(key.name)))?;
            let entry = match key.name.split_once('.') {
                Some((outer, inner)) => (outer.to_owned(), Value::Table(Table::from_iter([(inner.to_owned(), value)]))),
                None => (key.name.to_owned(), value),
            };
            layer(&mut table, Table::from_iter([entry]));
        }
        Ok(table)
    }
}

/// Prompts hold commas, so a flag of prompts is one prompt, repeated for more; other lists are split at commas.
fn value_of(key: &KeyInfo, texts: &[String]) -> Result<Value> {
    if key.kind != KeyKind::List {
        return Ok(parse_value(key, texts.last().map_or("", String::as_str))?);
    }
    let mut all = Vec::new();
    for text in texts {
        match parse_value(key, text)? {
            _ if key.name.ends_with("prompts") && !text.trim_start().starts_with('[') => {
                all.push(Value::String(text.clone()))
            }
            Value::Array(values) => all.extend(values),
            other => all.push(other),
        }
    }
    Ok(Value::Array(all))
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, ClapError> {
        let given = |key: &'static KeyInfo| {
            let texts = matches.get_many::<String>(key.name)?;
            Some((key, texts.cloned().collect()))
        };
        Ok(Self(flags().filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), ClapError> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for SettingFlags {
    fn augment_args(command: clap::Command) -> clap::Command {
        let defaults = Table::try_from(TrainConfig::default()).unwrap_or_default();
        flags().fold(command, |command, key| command.arg(flag(key, &defaults)))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

fn flags() -> impl Iterator<Item = &'static KeyInfo> {
    keys().filter(|key| !GLOBAL.contains(&key.name))
}

fn flag_name(key: &str) -> String {
    key.replace(['_', '.'], "-")
}

fn flag(key: &'static KeyInfo, defaults: &Table) -> Arg {
    let aliases: &[&str] = ALIASES.iter().find(|(name, _)| *name == key.name).map_or(&[], |(_, aliases)| aliases);
    let value_name = match key.kind {
        KeyKind::Text => "TEXT",
        KeyKind::Integer => "N",
        KeyKind::Number => "X",
        KeyKind::List => "LIST",
        KeyKind::Switch => "true|false",
    };
    let mut help = format!("{} Range: {}.", key.help, key.range);
    let by_method = defaults_by_method(key.name);
    if !by_method.is_empty() {
        help += &format!(" [default: {by_method}]");
    } else if let Some(default) = shown(key.name, defaults) {
        help += &format!(" [default: {default}]");
    }
    let arg = Arg::new(key.name)
        .long(flag_name(key.name))
        .visible_aliases(aliases)
        .help(help)
        .help_heading(heading(key.name))
        .value_name(value_name)
        .value_parser(value_parser!(String))
        .allow_hyphen_values(matches!(key.kind, KeyKind::Integer | KeyKind::Number))
        .action(if key.kind == KeyKind::List { ArgAction::Append } else { ArgAction::Set });
    match key.kind {
        KeyKind::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        _ => arg,
    }
}

/// The defaults of a key that methods differ in, those with the same one together; empty for every other key.
fn defaults_by_method(name: &str) -> String {
    let mut groups: Vec<(String, Vec<&str>)> = Vec::new();
    for (method, value) in default_of(name) {
        let text = value_text(&value).unwrap_or_default();
        match groups.iter_mut().find(|(known, _)| *known == text) {
            Some((_, methods)) => methods.push(method),
            None => groups.push((text, vec![method])),
        }
    }
    let groups = groups.into_iter().map(|(value, methods)| format!("{value} for {}", methods.join(", ")));
    groups.collect::<Vec<_>>().join("; ")
}

/// A key's value in a table of settings, as text; `None` where it is empty or absent.
pub fn shown(name: &str, table: &Table) -> Option<String> {
    let value = match name.split_once('.') {
        Some((outer, inner)) => table.get(outer)?.get(inner)?,
        None => table.get(name)?,
    };
    value_text(value)
}

fn value_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => Some(text.clone()),
        Value::Array(list) if list.is_empty() => None,
        Value::Array(list) => Some(list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")),
        // 6e-5 reads better than 0.00006.
        Value::Float(number) if *number != 0.0 && number.abs() < 1e-3 => Some(format!("{number:e}")),
        Value::Float(number) => Some(number.to_string()),
        other => Some(other.to_string()),
    }
}

/// The heading a key stands under, in help and reports.
pub fn heading(key: &str) -> &'static str {
    match key {
        "model" | "variant" | "prediction_type" | "tokenizer" | "prompts" | "prompts_file" | "judge"
        | "judge_scale" | "judge_dtype" | "judge_device" | "judge_background" | "judge_timeout" | "heldout_judge" => {
            "Model, prompts, judges"
        }
        "pairs_file"
        | "pair_weighting"
        | "proportion_empty_prompts"
        | "pairs_generator"
        | "bad_rows_limit"
        | "dataloader_num_workers" => "Dataset of pairs",
        "pairs" | "likelihood" | "flipper" => "Objective",
        _ if key.starts_with("reference") => "Objective",
        "steps"
        | "eta"
        | "guidance_scale"
        | "sampling_guidance_scale"
        | "resolution"
        | "prompts_per_iteration"
        | "rollout_batch_size" => "Rollout",
        "candidates" | "divert_start_step" | "threshold" => "SPO's candidates",
        "safeguard" | "safeguard_mu" | "advantage_clip" | "reward_history" | "reward_history_min" | "kl_weight"
        | "method" | "beta" | "entropy.gamma" | "entropy.form" | "clip" => "Objective",
        "rank" | "lora_alpha" | "lora_targets" => "Adapter",
        "optimizer" | "ema_decay" => "Optimizer",
        _ if key.starts_with("adam") || key.starts_with("l") || key.starts_with("max_") => "Optimizer",
        _ if key.starts_with("train_") || key.starts_with("gradient") || key.starts_with("num_train") => "Optimizer",
        _ if key.starts_with("guard") || key.starts_with("watch") => "Guards and watch",
        _ if key.starts_with("validation") || key.starts_with("checkpoint") => "Checkpoints and previews",
        _ => "Run",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> &'static KeyInfo {
        keys().find(|k| k.name == name).unwrap()
    }

    #[test]
    fn prompts_keep_their_commas_and_targets_are_split() {
        let texts = ["a cat, red".to_owned(), "dog".to_owned()];
        assert_eq!(value_of(key("prompts"), &texts).unwrap().as_array().unwrap().len(), 2);
        assert_eq!(value_of(key("lora_targets"), &["to_q,to_k".to_owned()]).unwrap().as_array().unwrap().len(), 2);
    }

    #[test]
    fn the_line_of_an_unknown_key_is_found() {
        let text = "beta = 1\nbetas = 2\nentropy = { gama = 3 }\n";
        assert_eq!((line_of(text, "betas"), line_of(text, "gama"), line_of(text, "gam")), (Some(2), Some(3), None));
    }

    #[test]
    fn every_alias_belongs_to_a_key() {
        assert!(ALIASES.iter().all(|(name, _)| keys().any(|k| k.name == *name)));
        assert!(GLOBAL.iter().all(|name| keys().any(|k| k.name == *name)));
    }
}
