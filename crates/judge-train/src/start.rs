//! What training starts from: weights on disk, or fresh ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use seedpo_judge::{JudgeOptions, load_clip};
use seedpo_model::{Activation, ClipConfig, ClipModel, ClipTokenizer, TextConfig, VisionConfig};
use seedpo_tensor::Params;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::bytes::in_blocks;
use crate::{Error, Result, export};

/// The sizes of a CLIP from nothing. A tower's width is a multiple of its heads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizes {
    /// Side of the pictures, in pixels.
    pub image_size: i64,
    /// Side of a patch, which divides that of the pictures.
    pub patch_size: i64,
    /// Width, layers and heads of the vision tower.
    pub vision: [i64; 3],
    /// Width, layers and heads of the text tower.
    pub text: [i64; 3],
    /// Width that both are projected to.
    pub projection: i64,
}

/// A CLIP about to be trained: f32 parameters, and what turns prompts into ids.
#[derive(Debug)]
pub struct Start {
    /// Its sizes.
    pub config: ClipConfig,
    /// The parameters by transformers' names.
    pub parameters: BTreeMap<String, Tensor>,
    /// Its tokenizer.
    pub tokenizer: Arc<ClipTokenizer>,
    /// The folder or file it was read from; `None` for a fresh one.
    pub origin: Option<PathBuf>,
}

impl Start {
    /// Fresh weights from `seed` for a tokenizer's vocabulary of `vocab_size` ids. Errors: sizes that do not fit.
    pub fn fresh(sizes: &Sizes, tokenizer: ClipTokenizer, seed: u64, device: Device) -> Result<Self> {
        let eos = tokenizer.eos_token_id();
        let [width, layers, heads] = sizes.text;
        let text = TextConfig {
            // Start and end token are the last two of every CLIP vocabulary.
            vocab_size: eos + 1,
            hidden_size: width,
            intermediate_size: 4 * width,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            max_position_embeddings: tokenizer.max_length() as i64,
            hidden_act: Activation::Gelu,
            projection_dim: sizes.projection,
            with_projection: true,
            bos_token_id: eos - 1,
            eos_token_id: eos,
            pad_token_id: tokenizer.pad_token_id(),
            ..TextConfig::default()
        };
        let [width, layers, heads] = sizes.vision;
        let vision = VisionConfig {
            hidden_size: width,
            intermediate_size: 4 * width,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            image_size: sizes.image_size,
            patch_size: sizes.patch_size,
            hidden_act: Activation::Gelu,
            ..VisionConfig::default()
        };
        let config = ClipConfig { text, vision, projection_dim: sizes.projection, time_conditioned: false };
        let model = ClipModel::new(config.clone(), Params::init(seed, device))?;
        let parameters = shared(model.parameters());
        Ok(Self { config, parameters, tokenizer: Arc::new(tokenizer), origin: None })
    }

    /// The CLIP, PickScore or step-aware model in a folder or file, as f32. Errors: as [`load_clip`].
    pub fn load(from: &Path, device: Device) -> Result<Self> {
        let (model, tokenizer) =
            load_clip(from, &JudgeOptions { device, kind: Kind::Float, ..JudgeOptions::default() })?;
        Ok(Self {
            config: model.config().clone(),
            parameters: shared(model.parameters()),
            tokenizer: Arc::new(tokenizer),
            origin: Some(from.to_path_buf()),
        })
    }

    /// The same for the kind `step-aware`: with a fresh conditioning on timesteps, unless it has one already.
    pub fn step_aware(mut self, seed: u64) -> Result<Self> {
        if !self.config.time_conditioned {
            let device = self.parameters.values().next().map_or(Device::Cpu, Tensor::device);
            let added = ClipModel::fresh_time_conditioning(&self.config, seed)?;
            self.parameters.extend(added.into_iter().map(|(name, tensor)| (name, tensor.to_device(device))));
            self.config.time_conditioned = true;
        }
        Ok(self)
    }

    /// SHA-256 of sizes, parameters and the tokenizer's files, in hexadecimal: whether a run resumes from the same start.
    pub(crate) fn fingerprint(&self) -> Result<String> {
        let mut digest = Sha256::new().chain_update(self.config.to_json().to_string());
        for (name, tensor) in &self.parameters {
            digest.update(name);
            in_blocks::<Error>(tensor, |block| {
                digest.update(block);
                Ok(())
            })?;
        }
        for (name, path) in export::tokenizer_files(&self.tokenizer) {
            digest.update(name);
            digest.update(std::fs::read(&path).map_err(|e| seedpo_tensor::Error::io(&path, e))?);
        }
        Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The same for the other kinds. Errors: [`Error::Data`] for a step-aware model.
    pub fn plain(self) -> Result<Self> {
        match &self.origin {
            Some(path) if self.config.time_conditioned => {
                Err(Error::data(path, "expected a CLIP, found a step-aware one; the kind step-aware trains it further"))
            }
            _ => Ok(self),
        }
    }
}

fn shared(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
}
