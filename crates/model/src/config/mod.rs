//! The JSON configurations of a diffusers folder, read strictly: a key we do not know, or an option whose value is
//! not supported, is an error that names file, key and value.

/// Gives a configuration with a `read(Reader, &Path)` its two ways in.
macro_rules! from_json_file {
    ($config:ty) => {
        impl $config {
            /// Reads its JSON file. Errors: [`crate::Error::Config`] naming file, key, expected and found.
            pub fn from_file(path: &std::path::Path) -> crate::Result<Self> {
                Self::read(crate::config::Reader::open(path)?, path)
            }

            /// As [`Self::from_file`], from the file's text; `path` is what errors name.
            pub fn from_json(text: &str, path: &std::path::Path) -> crate::Result<Self> {
                Self::read(crate::config::Reader::parse(path, text)?, path)
            }
        }
    };
}
use from_json_file;

mod block_types;
mod scheduler;
mod text;
mod text_time;
mod unet;
mod vae;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::layers::Activation;
use crate::{Error, Result};

pub use block_types::{DownBlockType, MidBlockType, UpBlockType};
pub use scheduler::{BetaSchedule, PredictionType, SchedulerConfig, TimestepSpacing};
pub use text::TextConfig;
pub use text_time::TextTimeConfig;
pub use unet::UNetConfig;
pub use vae::VaeConfig;

/// A configuration file being taken apart key by key; what is left at the end is unknown.
pub(crate) struct Reader {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Reader {
    /// Reads a file. Errors: not there, not UTF-8, not a JSON object.
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(path, &seedpo_tensor::read_text(path)?)
    }

    /// From the text of a file; `path` is what errors name.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let bad = |reason: String| Error::from(seedpo_tensor::Error::format(path, reason));
        match serde_json::from_str(text).or_else(|e| serde_json::from_str(&without_infinities(text)).map_err(|_| e)) {
            Ok(Value::Object(map)) => Ok(Self { path: path.to_path_buf(), map }),
            Ok(other) => Err(bad(format!("expected a JSON object, found {}", shorten(&other)))),
            Err(e) => Err(bad(format!("expected JSON: {e}"))),
        }
    }

    /// Another object of the same file.
    pub fn with_map(&self, map: Map<String, Value>) -> Self {
        Self { path: self.path.clone(), map }
    }

    /// Takes the keys of `over`, in place of those that are here too.
    pub fn overlay(&mut self, over: Self) {
        self.map.extend(over.map);
    }

    /// Whether a key is there.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// The error for a key.
    pub fn wrong(&self, key: &str, expected: impl Into<String>, found: &Value) -> Error {
        wrong(&self.path, key, expected, shorten(found))
    }

    /// The raw value, `None` where absent.
    pub fn raw(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key)
    }

    /// A value of type `T`; absent and `null` give the default. `expected` words the type for the error.
    pub fn take<T: DeserializeOwned>(&mut self, key: &str, expected: &str, default: T) -> Result<T> {
        match self.raw(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => T::deserialize(&value).map_err(|_| self.wrong(key, expected, &value)),
        }
    }

    /// A value that is one for all levels or a list with one per level.
    pub fn per_level<T: DeserializeOwned>(&mut self, key: &str, expected: &str, default: Vec<T>) -> Result<Vec<T>> {
        match self.raw(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => {
                let list = if value.is_array() { value.clone() } else { Value::Array(vec![value.clone()]) };
                Vec::deserialize(&list)
                    .map_err(|_| self.wrong(key, format!("{expected}, or a list of them with one per level"), &value))
            }
        }
    }

    /// An activation by name.
    pub fn activation(&mut self, key: &str, default: Activation) -> Result<Activation> {
        let name: String = self.take(key, "a string", default.name().to_owned())?;
        Activation::from_name(&name)
            .ok_or_else(|| self.wrong(key, "silu, swish, gelu, quick_gelu, mish or relu", &Value::String(name)))
    }

    /// Options of which only the given value is implemented (a number equals its float).
    pub fn only(&mut self, options: &[(&str, Value)]) -> Result<()> {
        for (key, implemented) in options {
            if let Some(value) = self.raw(key)
                && !value.is_null()
                && !same(&value, implemented)
            {
                return Err(self.wrong(key, format!("{implemented} (no other value is implemented)"), &value));
            }
        }
        Ok(())
    }

    /// Keys that do not change what the network computes.
    pub fn ignore(&mut self, keys: &[&str]) {
        for key in keys {
            self.map.remove(*key);
        }
    }

    /// Drops the keys whose value is such.
    pub fn drop_where(&mut self, is_such: impl Fn(&Value) -> bool) {
        self.map.retain(|_, value| !is_such(value));
    }

    /// The class the folder says this is, checked against `accepted`.
    pub fn class(&mut self, key: &str, accepted: &[&str]) -> Result<()> {
        match self.raw(key) {
            None | Some(Value::Null) => Ok(()),
            Some(Value::String(name)) if accepted.contains(&name.as_str()) => Ok(()),
            Some(other) => Err(self.wrong(key, accepted.join(" or "), &other)),
        }
    }

    /// Refuses what is left over; keys that start with an underscore and those that are `null` are let pass.
    pub fn finish(self) -> Result<()> {
        match self.map.iter().find(|(key, value)| !key.starts_with('_') && !value.is_null()) {
            Some((key, value)) => Err(self.wrong(key, "no such key (it is not known here)", value)),
            None => Ok(()),
        }
    }
}

/// Python writes infinite numbers as no JSON has them (diffusers' `lambda_min_clipped` is `-Infinity`): here the largest
/// number stands for them.
fn without_infinities(text: &str) -> String {
    let mut strings = text.split_inclusive('"');
    let (mut result, mut inside) = (String::with_capacity(text.len()), false);
    for part in &mut strings {
        match inside {
            true => result.push_str(part),
            false => result.push_str(&part.replace("Infinity", "1.7976931348623157e308")),
        }
        // A quotation mark within a string stands behind an odd number of backslashes.
        let before = part.strip_suffix('"').map(|rest| rest.len() - rest.trim_end_matches('\\').len());
        inside ^= before.is_some_and(|slashes| !inside || slashes % 2 == 0);
    }
    result
}

/// A configuration error at a path.
pub(crate) fn wrong(path: &Path, key: &str, expected: impl Into<String>, found: impl ToString) -> Error {
    Error::Config { path: path.to_path_buf(), key: key.to_owned(), expected: expected.into(), found: found.to_string() }
}

fn shorten(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(200) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

fn same(a: &Value, b: &Value) -> bool {
    a == b || matches!((a.as_f64(), b.as_f64()), (Some(a), Some(b)) if a == b)
}

/// One value where all are equal, else the list: how diffusers writes options that may differ by level.
fn scalar_or_list<T: Clone + PartialEq + Into<Value>>(values: &[T]) -> Value {
    match values {
        [first, rest @ ..] if rest.iter().all(|v| v == first) => first.clone().into(),
        _ => Value::Array(values.iter().cloned().map(Into::into).collect()),
    }
}

/// The entry for a level in a list of one for all or one per level.
fn at<T: Copy>(values: &[T], level: usize) -> T {
    values[if values.len() == 1 { 0 } else { level }]
}
