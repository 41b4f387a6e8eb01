//! The trained model as a diffusers folder, with a model card.

use std::collections::BTreeMap;
use std::path::Path;

use seedpo_model::Pipeline;
use seedpo_tensor::{write_atomic, write_weights};
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::Result;
use crate::bpe::Bpe;
use crate::card::{CardFacts, model_card};
use crate::recipe::Recipe;

/// Everything that goes into the folder.
pub struct Trained<'a> {
    /// Sizes and settings.
    pub recipe: &'a Recipe,
    /// The vocabulary.
    pub bpe: &'a Bpe,
    /// The VAE's tensors by name.
    pub vae: &'a BTreeMap<String, Tensor>,
    /// 1 / standard deviation of the latents.
    pub scaling_factor: f64,
    /// The text encoder's tensors by name.
    pub text: &'a BTreeMap<String, Tensor>,
    /// The U-Net's tensors by name.
    pub unet: &'a BTreeMap<String, Tensor>,
    /// Images it was trained on.
    pub images: usize,
    /// Steps of text encoder and U-Net so far.
    pub steps: u64,
    /// Time that all steps took, in seconds, where known.
    pub seconds: Option<f64>,
}

impl Trained<'_> {
    /// Writes the folder (weights as f16), which `StableDiffusionPipeline.from_pretrained` loads. Existing files are
    /// replaced one by one, each atomically.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let recipe = self.recipe;
        self.bpe.save(&folder.join("tokenizer"), recipe.sizes.tokens)?;
        write_json(&folder.join("scheduler/scheduler_config.json"), &recipe.scheduler_config().to_json())?;
        write_json(&folder.join("vae/config.json"), &recipe.vae_config(self.scaling_factor).to_json())?;
        write_json(&folder.join("unet/config.json"), &recipe.unet_config().to_json())?;
        let text_config = recipe.text_config(self.bpe.vocab_size());
        write_json(&folder.join("text_encoder/config.json"), &text_config.to_json())?;
        write_half(&folder.join("vae/diffusion_pytorch_model.safetensors"), self.vae)?;
        write_half(&folder.join("unet/diffusion_pytorch_model.safetensors"), self.unet)?;
        write_half(&folder.join("text_encoder/model.safetensors"), self.text)?;
        write_atomic(&folder.join("README.md"), model_card(recipe, self.facts()).as_bytes())?;
        write_json(&folder.join("model_index.json"), &Pipeline::StableDiffusion.to_json())
    }

    fn facts(&self) -> CardFacts {
        let count = |map: &BTreeMap<String, Tensor>| map.values().map(|t| t.numel() as i64).sum::<i64>();
        CardFacts {
            parameters: count(self.vae) + count(self.text) + count(self.unet),
            images: self.images,
            vae_steps: self.recipe.vae.steps,
            steps: self.steps,
            seconds: self.seconds,
        }
    }
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    make_parent(path)?;
    Ok(write_atomic(path, format!("{value:#}\n").as_bytes())?)
}

fn write_half(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    make_parent(path)?;
    let half = tensors.iter().map(|(n, t)| (n.clone(), t.to_kind(Kind::Half).contiguous())).collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(write_weights(path, &half, &metadata)?)
}

fn make_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) => Ok(std::fs::create_dir_all(parent).map_err(|e| seedpo_tensor::Error::io(parent, e))?),
        None => Ok(()),
    }
}
