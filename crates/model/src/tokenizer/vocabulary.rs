//! The vocabulary in `tokenizer.json`.

use std::path::Path;

use serde_json::Value;
use tokenizers::models::bpe::{Merges, Vocab};

use super::{read_object, wrong};
use crate::Result;

/// The vocabulary and the merges of a byte-level BPE in `tokenizer.json`. Errors: either is missing or something else.
pub(super) fn of(path: &Path) -> Result<(Vocab, Merges)> {
    let json = read_object(path)?;
    let model = json.get("model").unwrap_or(&Value::Null);
    let vocab = model.get("vocab").and_then(Value::as_object);
    let vocab = vocab.ok_or_else(|| wrong(path, "model.vocab", "an object", model))?;
    let vocab = vocab
        .iter()
        .map(|(token, id)| match id.as_u64().and_then(|id| u32::try_from(id).ok()) {
            Some(id) => Ok((token.clone(), id)),
            None => Err(wrong(path, "model.vocab", "token ids", id)),
        })
        .collect::<Result<_>>()?;
    // Without merges every word falls apart into bytes: an empty list says so, a missing one is a damaged file.
    let merges = model.get("merges").unwrap_or(&Value::Null);
    let merges = merges.as_array().ok_or_else(|| wrong(path, "model.merges", "a list of pairs of tokens", merges))?;
    let pair = |merge: &Value| match merge {
        Value::String(text) => text.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
        value => Some((value.get(0)?.as_str()?.to_owned(), value.get(1)?.as_str()?.to_owned())),
    };
    let merges = merges
        .iter()
        .map(|merge| pair(merge).ok_or_else(|| wrong(path, "model.merges", "pairs of tokens", merge)))
        .collect::<Result<_>>()?;
    Ok((vocab, merges))
}
