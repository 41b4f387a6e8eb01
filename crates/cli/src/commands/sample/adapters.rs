//! Adapters named on the command line, each with its weight, merged into the model's weights.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use seedpo_align::UNET_FOLDER;
use seedpo_model::adapter::resolve;
use seedpo_model::{DiffusionModel, Lora};

use crate::context::Context;
use crate::hub;

/// `PATH` or `PATH:WEIGHT`.
#[derive(Clone, Debug, PartialEq)]
pub struct Weighted {
    /// A LoRA file, or a folder that holds one.
    pub path: PathBuf,
    /// What its change is multiplied by.
    pub weight: f64,
}

impl Weighted {
    /// Splits a weight off the end; a path that exists as it is written has weight 1.
    pub fn parse(text: &str) -> Self {
        let split = text.rsplit_once(':').and_then(|(path, weight)| Some((path, weight.trim().parse::<f64>().ok()?)));
        match split {
            Some((path, weight)) if !path.is_empty() && !Path::new(text).exists() => Self { path: path.into(), weight },
            _ => Self { path: text.into(), weight: 1.0 },
        }
    }

    /// The file's name without suffix; the folder's name for the files that every tool calls the same.
    pub fn name(&self) -> String {
        let stem = self.path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let folder = self.path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        match stem.as_str() {
            "pytorch_lora_weights" | "adapter_model" => folder.unwrap_or(stem),
            _ => stem,
        }
    }
}

/// Whether a folder (a run, a checkpoint) holds a whole U-Net and no adapter.
pub fn is_whole(path: &Path) -> bool {
    path.join(UNET_FOLDER).join("config.json").is_file() && !resolve(path).is_file()
}

/// The LoRA of a file, or of the one in a folder (a run, a checkpoint, a peft folder), that fits `model`.
pub fn load_lora(path: &Path, model: &DiffusionModel) -> Result<Lora> {
    let file = resolve(path);
    let place = path.display();
    ensure!(
        !is_whole(path),
        "adapter {place}: holds a whole U-Net (full fine-tuning) and no adapter; give --unet {place}"
    );
    ensure!(file.is_file(), "adapter {}: no such file", file.display());
    Ok(Lora::load(&file, model)?)
}

/// The model with all adapters in its weights, where they cost nothing at each step.
pub fn merged(adapters: &[Weighted], model: DiffusionModel, context: &Context) -> Result<DiffusionModel> {
    if adapters.is_empty() {
        return Ok(model);
    }
    let load = |adapter: &Weighted| {
        Ok((load_lora(&hub::adapter(&adapter.path, context).context("--adapter")?, &model)?, adapter.weight))
    };
    let parts = adapters.iter().map(load).collect::<Result<Vec<_>>>()?;
    let combined = Lora::combined(&parts).context("--adapter")?;
    Ok(model.merged(&combined)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_split_off_and_names_are_short() {
        let parse = |text: &str| (Weighted::parse(text).path.display().to_string(), Weighted::parse(text).weight);
        assert_eq!(parse("a.safetensors:0.7"), ("a.safetensors".to_owned(), 0.7));
        assert_eq!(parse("runs/b:-1"), ("runs/b".to_owned(), -1.0));
        assert_eq!(parse("c:d.safetensors"), ("c:d.safetensors".to_owned(), 1.0));
        assert_eq!(parse(":2"), (":2".to_owned(), 1.0));
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join("odd:2");
        std::fs::create_dir(&odd).unwrap();
        assert_eq!(parse(&odd.display().to_string()).1, 1.0);
        assert_eq!(Weighted::parse("runs/see-spo/pytorch_lora_weights.safetensors:2").name(), "see-spo");
        assert_eq!(Weighted::parse("styles/ink.safetensors").name(), "ink");
    }
}
