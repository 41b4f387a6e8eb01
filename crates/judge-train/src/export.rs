//! The trained judge as a folder in the public layout.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use seedpo_judge::CLIP_STATISTICS;
use seedpo_model::{ClipConfig, ClipTokenizer};
use seedpo_tensor::{Error as TensorError, write_atomic, write_weights};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::Result;

/// The files of a tokenizer, those that are there.
const TOKENIZER: [&str; 6] = [
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];

/// Writes `config.json`, `preprocessor_config.json`, the tokenizer's files (none for CLIP's own vocabulary, which is built
/// in) and `model.safetensors` of this number type: what transformers' `CLIPModel` and every judge here load. Existing
/// files are replaced, each atomically. Errors: a file that cannot be written.
pub fn export(
    folder: &Path,
    config: &ClipConfig,
    parameters: &BTreeMap<String, Tensor>,
    tokenizer: &ClipTokenizer,
    kind: Kind,
) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| TensorError::io(folder, e))?;
    for (name, file) in tokenizer_files(tokenizer) {
        let bytes = std::fs::read(&file).map_err(|e| TensorError::io(&file, e))?;
        write_atomic(&folder.join(name), &bytes)?;
    }
    write_json(&folder.join("config.json"), &config.to_json())?;
    write_json(&folder.join("preprocessor_config.json"), &processor(config.vision.image_size))?;
    let stored = parameters.iter().map(|(name, tensor)| (name.clone(), tensor.detach().to_kind(kind).contiguous()));
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(write_weights(&folder.join("model.safetensors"), &stored.collect(), &metadata)?)
}

/// The files that a tokenizer has, by name.
pub(crate) fn tokenizer_files(tokenizer: &ClipTokenizer) -> impl Iterator<Item = (&'static str, PathBuf)> {
    TOKENIZER.into_iter().map(|name| (name, tokenizer.folder().join(name))).filter(|(_, file)| file.is_file())
}

/// How transformers' image processor prepares pictures for it.
fn processor(side: i64) -> Value {
    json!({
        "crop_size": {"height": side, "width": side},
        "do_center_crop": true,
        "do_convert_rgb": true,
        "do_normalize": true,
        "do_rescale": true,
        "do_resize": true,
        "image_mean": CLIP_STATISTICS.mean,
        "image_processor_type": "CLIPImageProcessor",
        "image_std": CLIP_STATISTICS.std,
        "resample": 3,
        "rescale_factor": 1.0 / 255.0,
        "size": {"shortest_edge": side},
    })
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    Ok(write_atomic(path, format!("{value:#}\n").as_bytes())?)
}
