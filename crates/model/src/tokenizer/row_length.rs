//! How many tokens a row has.

use std::path::Path;

use serde_json::{Map, Value};

use super::built_in::CONTEXT;
use super::{ClipTokenizer, read_object, wrong};
use crate::Result;

const KEY: &str = "model_max_length";
/// Above it a length stands for "without limit": transformers writes 1e30.
const LONGEST: f64 = 65536.0;

/// `model_max_length` of `tokenizer_config.json`; `None` where it is absent or without limit. Errors: no such number.
pub(super) fn of(path: &Path, config: &Map<String, Value>) -> Result<Option<usize>> {
    let Some(value) = config.get(KEY).filter(|value| !value.is_null()) else { return Ok(None) };
    match (value.as_u64(), value.as_f64()) {
        (_, Some(length)) if length > LONGEST => Ok(None),
        (Some(length @ 3..), _) => Ok(Some(length as usize)),
        _ => Err(wrong(path, KEY, "a whole number of 3 or more", value)),
    }
}

/// The length of rows that a tokenizer's own files leave open: `max_position_embeddings` of the text encoder that lies
/// beside its folder (`tokenizer_2/`: `text_encoder_2/`), else CLIP's.
pub(super) fn beside(folder: &Path) -> usize {
    tracing::warn!(
        "tokenizer {}: no `{KEY}` says how long its rows are; they have as many tokens as the text encoder reads \
         (`max_position_embeddings`; {CONTEXT} where none lies beside it)",
        folder.display()
    );
    let suffix = folder.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("tokenizer"));
    let config = suffix.map(|suffix| folder.with_file_name(format!("text_encoder{suffix}")).join("config.json"));
    let read = |config: &Path| read_object(config).ok()?.get("max_position_embeddings")?.as_u64();
    let length = config.as_deref().and_then(read).filter(|length| (3..=LONGEST as u64).contains(length));
    length.map_or(CONTEXT, |length| length as usize)
}

impl ClipTokenizer {
    /// With rows of `longest` tokens, where its own files leave the length open.
    pub(crate) fn for_rows_of(self, longest: i64) -> Self {
        match usize::try_from(longest) {
            Ok(max_length @ 3..) if !self.says_length => Self { max_length, ..self },
            _ => self,
        }
    }
}
