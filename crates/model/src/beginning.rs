//! What a policy's weights are before the first update.

use tch::Kind;

use crate::adapter::{Adapter, LoraConfig};
use crate::model::{DiffusionModel, LoadOptions};
use crate::weights::PolicyWeights;
use crate::{Error, Result};

/// The weights that training begins with, over a base; the policy is the base then.
#[derive(Clone, Debug)]
pub enum Beginning {
    /// A fresh LoRA, its A drawn from the seed.
    Lora {
        /// Its form.
        config: LoraConfig,
        /// The key of A's numbers.
        seed: u64,
    },
    /// All weights of the base's U-Net: f32 leaves, read again from the base's file where the base is held in another number
    /// type (or not at all, [`LoadOptions::unet_weights`]), so that no digit of the file is lost. Of the options those count
    /// that say which files the base's are (variant, tokenizer, another U-Net).
    Full(LoadOptions),
}

impl Beginning {
    /// These weights, new. Errors: as [`Adapter::lora`], or those of reading.
    pub fn make(&self, base: &DiffusionModel) -> Result<PolicyWeights> {
        Ok(match self {
            Self::Lora { config, seed } => PolicyWeights::Lora(Adapter::lora(&base.unet, config, *seed)?),
            Self::Full(options) => {
                let kind = base.unet.kind();
                let unet = match has_every_digit(base) {
                    true => base.unet.trainable_copy(kind)?,
                    false => {
                        let unet = DiffusionModel::load_unet(&base.folder, &in_full(base, options))?;
                        unet.computing_in(kind).requiring_gradients()
                    }
                };
                PolicyWeights::Full(Box::new(unet))
            }
        })
    }

    /// Puts these weights into the memory that `weights` have, as [`PolicyWeights::reload`] does.
    ///
    /// Errors: as [`Self::make`]; [`Error::Argument`] for weights of another kind.
    pub fn restore_into(&self, weights: &PolicyWeights, base: &DiffusionModel) -> Result<()> {
        match (self, weights) {
            (Self::Lora { config, seed }, PolicyWeights::Lora(adapter)) => {
                adapter.copy_from(&Adapter::lora(&base.unet, config, *seed)?)
            }
            (Self::Full(_), PolicyWeights::Full(unet)) if has_every_digit(base) => unet.copy_from(&base.unet),
            (Self::Full(options), PolicyWeights::Full(unet)) => {
                DiffusionModel::reload_unet(&base.folder, &in_full(base, options), unet)
            }
            (Self::Lora { .. }, PolicyWeights::Full(_)) => Err(other_kind("an adapter", "a whole U-Net")),
            (Self::Full(_), PolicyWeights::Lora(_)) => Err(other_kind("a whole U-Net", "an adapter")),
        }
    }
}

fn other_kind(expected: &str, found: &str) -> Error {
    Error::Argument { what: "weights to begin again".into(), expected: expected.into(), found: found.into() }
}

/// Whether the base holds its file's numbers as they are, or there is no file.
fn has_every_digit(base: &DiffusionModel) -> bool {
    let in_memory = !base.unet.parameters().is_empty();
    in_memory && (base.unet.kind() == Kind::Float || base.folder.as_os_str().is_empty())
}

/// `options` for a U-Net to be trained over `base`.
fn in_full(base: &DiffusionModel, options: &LoadOptions) -> LoadOptions {
    LoadOptions { kind: Kind::Float, device: base.device(), ..options.clone() }
}
