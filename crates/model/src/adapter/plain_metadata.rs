//! Rank and alpha as plain entries of a safetensors file's metadata, for files of tools that do not write diffusers' JSON.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::metadata::wrong;
use super::network::Network;
use crate::Result;

/// peft's name for what a tool may call by either.
const SPELLINGS: [(&str, [&str; 2]); 2] = [("r", ["r", "rank"]), ("lora_alpha", ["lora_alpha", "alpha"])];

/// What `metadata` says under `r` or `rank` and `lora_alpha` or `alpha`, for one network (`unet.alpha`) or for all, under the
/// keys of diffusers' JSON; `None` where it says neither. `path` is the file, for errors.
///
/// Errors: [`Error::Config`] for what is no number, and two entries for the same thing that differ.
pub(super) fn said(path: &Path, metadata: &BTreeMap<String, String>) -> Result<Option<Map<String, Value>>> {
    let mut said = Map::new();
    for network in Network::ALL {
        let prefix = format!("{}.", network.prefix());
        for (name, spellings) in SPELLINGS {
            let keys =
                [prefix.as_str(), ""].into_iter().flat_map(|p| spellings.map(|spelling| format!("{p}{spelling}")));
            let mut first: Option<(String, f64)> = None;
            for key in keys {
                let Some(text) = metadata.get(&key) else { continue };
                let number = number(path, &key, text)?;
                match &first {
                    Some((other, value)) if *value != number => {
                        return Err(wrong(
                            path,
                            &in_metadata(&key),
                            &format!("{value}, as `{other}` of the same file says"),
                            text,
                        ));
                    }
                    Some(_) => {}
                    None => first = Some((key, number)),
                }
            }
            said.extend(first.map(|(_, number)| (format!("{prefix}{name}"), Value::from(number))));
        }
    }
    Ok((!said.is_empty()).then_some(said))
}

fn number(path: &Path, key: &str, text: &str) -> Result<f64> {
    let number = text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
    number.ok_or_else(|| wrong(path, &in_metadata(key), "a number", text))
}

fn in_metadata(key: &str) -> String {
    format!("metadata {key}")
}
