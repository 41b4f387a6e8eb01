//! Rank and alpha beside the tensors: `lora_adapter_metadata` in the file, or peft's `adapter_config.json`.

use std::collections::BTreeMap;
use std::path::Path;

use seedpo_tensor::{WeightFile, read_text};
use serde_json::{Map, Value, json};

use super::network::Network;
use super::plain_metadata;
use crate::{Error, Result};

/// The key of diffusers' JSON in a safetensors file's metadata (`diffusers/loaders/lora_base.py`).
pub(super) const KEY: &str = "lora_adapter_metadata";

/// What a file says of each network's adapter.
#[derive(Debug, Default)]
pub(super) struct Metadatas {
    /// In the order of [`Network::ALL`].
    of: [Metadata; Network::ALL.len()],
    /// It says something, of which nothing is known to us.
    foreign: bool,
}

impl Metadatas {
    /// From the file itself (diffusers' JSON, or plain entries), or from peft's `adapter_config.json` beside it.
    /// Errors: [`Error::Config`] for what is malformed or contradicts itself.
    pub fn read(file: &WeightFile) -> Result<Self> {
        let plain = plain_metadata::said(file.path(), &file.metadata())?;
        let plain = plain.map(|said| Self::in_file(file.path(), &said)).transpose()?;
        match (Self::described(file)?, plain) {
            (Some(described), Some(plain)) => described.agreeing(&plain, file.path()),
            (described, plain) => Ok(described.or(plain).unwrap_or_default()),
        }
    }

    /// Itself, unless `plain` says another rank or alpha.
    fn agreeing(self, plain: &Self, path: &Path) -> Result<Self> {
        for (network, (ours, theirs)) in Network::ALL.iter().zip(self.of.iter().zip(&plain.of)) {
            let pairs = [
                ("r", ours.rank.map(|r| r as f64), theirs.rank.map(|r| r as f64)),
                ("lora_alpha", ours.alpha, theirs.alpha),
            ];
            for (key, ours, theirs) in pairs {
                if let (Some(ours), Some(theirs)) = (ours, theirs)
                    && ours != theirs
                {
                    return Err(Error::Config {
                        path: path.to_path_buf(),
                        key: format!("metadata {key}"),
                        expected: format!("{ours}, as the adapter's configuration says of {}", network.prefix()),
                        found: theirs.to_string(),
                    });
                }
            }
        }
        Ok(self)
    }

    /// As diffusers or peft describe it, where they do.
    fn described(file: &WeightFile) -> Result<Option<Self>> {
        if let Some(text) = file.metadata().get(KEY) {
            return Self::in_file(file.path(), &object(file.path(), KEY, text)?).map(Some);
        }
        let beside = file.path().with_file_name("adapter_config.json");
        let is_peft = file.names().any(|name| name.starts_with("base_model.model."));
        match is_peft && beside.is_file() {
            true => {
                let said = object(&beside, "", &read_text(&beside)?)?;
                Ok(Some(Self::of_all(Metadata::of(&beside, &said, "")?)))
            }
            false => Ok(None),
        }
    }

    /// With a pipeline's networks as prefixes (`save_lora_weights`), or of a network alone without one
    /// (`save_lora_adapter`).
    fn in_file(path: &Path, said: &Map<String, Value>) -> Result<Self> {
        let prefixes = Network::ALL.map(|network| format!("{}.", network.prefix()));
        let prefixed = said.keys().any(|key| prefixes.iter().any(|prefix| key.starts_with(prefix)));
        let plain = ["r", "lora_alpha"].iter().any(|key| said.contains_key(*key));
        if plain && !prefixed {
            return Ok(Self::of_all(Metadata::of(path, said, "")?));
        }
        let [unet, first, second] = prefixes.map(|prefix| Metadata::of(path, said, &prefix));
        Ok(Self { of: [unet?, first?, second?], foreign: !prefixed && !said.is_empty() })
    }

    fn of_all(metadata: Metadata) -> Self {
        Self { of: [metadata.clone(), metadata.clone(), metadata], foreign: false }
    }

    /// What is said of a network.
    pub fn network(&self, network: Network) -> &Metadata {
        &self.of[network as usize]
    }

    /// Errors: [`Error::Config`] where `file`, which this was read from, says something that we understand nothing of and a
    /// scale may depend on.
    pub fn check_known(&self, file: &WeightFile) -> Result<()> {
        let expected =
            "rank and alpha as `unet.r`, `text_encoder.r` or `text_encoder_2.r`, or of the U-Net alone as `r`";
        let found = file.metadata().remove(KEY).unwrap_or_default();
        if self.foreign { Err(wrong(file.path(), KEY, expected, &found)) } else { Ok(()) }
    }
}

/// An error about what the metadata says.
pub(super) fn wrong(path: &Path, key: &str, expected: &str, found: &str) -> Error {
    Error::Config {
        path: path.to_path_buf(),
        key: key.to_owned(),
        expected: expected.to_owned(),
        found: found.chars().take(80).collect(),
    }
}

/// `text` as a JSON object; `key` is where it lies in the file `path`, for errors.
fn object(path: &Path, key: &str, text: &str) -> Result<Map<String, Value>> {
    serde_json::from_str(text).map_err(|e| wrong(path, key, &format!("a JSON object ({e})"), text))
}

/// The part of peft's `LoraConfig` that the result depends on.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Metadata {
    rank: Option<i64>,
    alpha: Option<f64>,
    rank_pattern: Vec<(String, f64)>,
    alpha_pattern: Vec<(String, f64)>,
    rank_stabilised: bool,
}

impl Metadata {
    /// From JSON whose keys carry `prefix` (`unet.` and the like in diffusers' files, none in peft's). Errors name `path` and key.
    fn of(path: &Path, said: &Map<String, Value>, prefix: &str) -> Result<Self> {
        let wrong = |key: &str, expected: &str, found: &Value| {
            wrong(path, &format!("{prefix}{key}"), expected, &found.to_string())
        };
        let get = |key: &str| said.get(&format!("{prefix}{key}")).filter(|value| !value.is_null());
        let number = |key: &str| match get(key) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| wrong(key, "a number", value)),
        };
        let pattern = |key: &str| -> Result<Vec<(String, f64)>> {
            let Some(value) = get(key) else { return Ok(Vec::new()) };
            let entries = value.as_object().ok_or_else(|| wrong(key, "an object", value))?;
            let entry = |(name, v): (&String, &Value)| {
                let name = name.strip_prefix('^').unwrap_or(name);
                let name = name.strip_prefix("text_model.").unwrap_or(name);
                // peft takes these as regular expressions; the ones it writes itself are plain paths.
                let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '_');
                let number = v.as_f64().filter(|_| plain);
                number.map(|n| (name.to_owned(), n)).ok_or_else(|| wrong(key, "module paths with numbers", value))
            };
            entries.iter().map(entry).collect()
        };
        for key in ["use_dora", "lora_bias"] {
            if let Some(value) = get(key).filter(|value| value.as_bool() != Some(false)) {
                return Err(wrong(key, "false (not supported)", value));
            }
        }
        let rank_stabilised = match get("use_rslora") {
            None => false,
            Some(value) => value.as_bool().ok_or_else(|| wrong("use_rslora", "true or false", value))?,
        };
        if let Some(value) = get("init_lora_weights").filter(|value| value.as_str().is_some_and(changes_the_base)) {
            let expected = "an adapter for the model as it is (this one was made with changed weights; peft's \
                `save_pretrained(.., path_initial_model_for_weight_conversion=..)` turns it into such)";
            return Err(wrong("init_lora_weights", expected, value));
        }
        if let Some(value) = get("peft_type").filter(|value| value.as_str() != Some("LORA")) {
            return Err(wrong("peft_type", "\"LORA\"", value));
        }
        Ok(Self {
            rank: number("r")?.map(|r| r as i64),
            alpha: number("lora_alpha")?,
            rank_pattern: pattern("rank_pattern")?,
            alpha_pattern: pattern("alpha_pattern")?,
            rank_stabilised,
        })
    }

    /// The rank that a projection must have, where the metadata says one.
    pub fn rank(&self, path: &str) -> Option<i64> {
        lookup(&self.rank_pattern, path).map(|rank| rank as i64).or(self.rank)
    }

    /// Whether it says an alpha for a projection.
    pub fn has_alpha(&self, path: &str) -> bool {
        lookup(&self.alpha_pattern, path).or(self.alpha).is_some()
    }

    /// `alpha / rank` (`alpha / √rank` with rsLoRA); 1 where no alpha is given.
    pub fn scale(&self, path: &str, rank: i64) -> f64 {
        let divisor = if self.rank_stabilised { (rank as f64).sqrt() } else { rank as f64 };
        lookup(&self.alpha_pattern, path).or(self.alpha).map_or(1.0, |alpha| alpha / divisor)
    }
}

/// The ways of peft to begin a LoRA that take from the model's weights what they put into A and B
/// (`peft/tuners/lora/layer.py`, peft 0.21).
fn changes_the_base(init: &str) -> bool {
    let init = init.to_lowercase();
    ["pissa", "corda"].iter().any(|name| init.starts_with(name))
        || ["olora", "loftq", "lora_ga"].contains(&init.as_str())
}

/// peft's `get_pattern_key`: the first entry that is the path or its end.
fn lookup(pattern: &[(String, f64)], path: &str) -> Option<f64> {
    let matches = |key: &str| path == key || path.ends_with(&format!(".{key}"));
    pattern.iter().find(|(key, _)| matches(key)).map(|(_, value)| *value)
}

/// What is written of one layer.
pub(super) struct Written {
    /// Its path in its network, as files have it.
    pub path: String,
    pub rank: i64,
    pub alpha: f64,
}

/// The JSON that makes diffusers rebuild the same LoRA: every field that its loader asks for, for each network changed.
pub(super) fn to_json(networks: &BTreeMap<&str, Vec<Written>>) -> String {
    let mut all = Map::new();
    for (prefix, layers) in networks {
        all.extend(fields(layers).into_iter().map(|(key, value)| (format!("{prefix}.{key}"), value)));
    }
    Value::Object(all).to_string()
}

/// What peft's `LoraConfig` has of one network.
fn fields(layers: &[Written]) -> [(&'static str, Value); 9] {
    let rank = most_common(layers.iter().map(|layer| layer.rank as f64)) as i64;
    let alpha = most_common(layers.iter().map(|layer| layer.alpha));
    let other_ranks = layers.iter().filter(|layer| layer.rank != rank);
    let rank_pattern: Map<String, Value> = other_ranks.map(|layer| (layer.path.clone(), json!(layer.rank))).collect();
    let other_alphas = layers.iter().filter(|layer| layer.alpha != alpha);
    let alpha_pattern: Map<String, Value> =
        other_alphas.map(|layer| (layer.path.clone(), number(layer.alpha))).collect();
    let paths: Vec<&String> = layers.iter().map(|layer| &layer.path).collect();
    [
        ("alpha_pattern", alpha_pattern.into()),
        ("bias", "none".into()),
        ("lora_alpha", number(alpha)),
        ("lora_bias", false.into()),
        ("r", rank.into()),
        ("rank_pattern", rank_pattern.into()),
        ("target_modules", json!(paths)),
        ("use_dora", false.into()),
        ("use_rslora", false.into()),
    ]
}

/// A whole alpha as an integer, as peft writes it.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

fn most_common(values: impl Iterator<Item = f64>) -> f64 {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for value in values {
        *counts.entry(value.to_bits()).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|&(_, count)| count);
    most.map_or(1.0, |(bits, _)| f64::from_bits(bits))
}
