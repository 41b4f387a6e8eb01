//! Single-file checkpoints (`.safetensors`, `.ckpt`) with the tensor names of the original latent-diffusion code.
//!
//! What diffusers' `from_single_file` does: the family is known by the text encoder's names, configurations are inferred
//! from names and shapes ([`unet`], [`vae`], [`text`]), and every tensor is read under its diffusers name. EMA copies
//! (`model_ema.*`), schedules and whatever else lies outside of the three networks are passed over, as diffusers does;
//! within the networks loading is strict.

pub(crate) mod arrange;
mod text;
mod tokenizer;
pub(crate) mod unet;
mod vae;

#[cfg(test)]
mod tests;

use std::path::Path;

use seedpo_tensor::WeightFile;

use crate::config::{PredictionType, SchedulerConfig, TimestepSpacing, UNetConfig, VaeConfig};
use crate::index::Pipeline;
use crate::model::LoadOptions;
use crate::parts::{TextParts, check_parts};
use crate::sources::Sources;
use crate::tokenizer::ClipTokenizer;
use crate::{Error, Result};
use text::TextEncoder;

/// The U-Net's tensors in every such file.
const UNET: &str = "model.diffusion_model.";
const VAE: &str = "first_stage_model.";

/// A kind of checkpoint, told by the names of its text encoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// Stable Diffusion 1.x: CLIP ViT-L in transformers' names.
    One,
    /// Stable Diffusion 2.x: OpenCLIP ViT-H.
    Two,
    /// SDXL base: both a CLIP ViT-L and an OpenCLIP ViT-bigG.
    Xl,
}

impl Family {
    /// Errors: [`Error::Tensor`] saying what the file seems to be instead.
    fn of(file: &WeightFile) -> Result<Self> {
        let has = |prefix: &str| file.names().any(|name| name.starts_with(prefix));
        let refuse = |found: &str| {
            let expected = "expected a Stable Diffusion 1.x, 2.x or XL checkpoint in the original key layout";
            Err(seedpo_tensor::Error::format(file.path(), format!("{expected}, found {found}")).into())
        };
        if !has(UNET) {
            return refuse(match () {
                _ if has("lora_") || has("unet.") => "an adapter (give it with --adapter)",
                _ if has("down_blocks.") => {
                    "one network in diffusers' names (put it into a folder with its config.json; see docs/models.md)"
                }
                _ if has("double_blocks.") || has("transformer.") => "another kind of model",
                _ => "no tensor that begins with `model.diffusion_model.`",
            });
        }
        if !has(VAE) {
            return refuse("no autoencoder (`first_stage_model.*`)");
        }
        match () {
            _ if has("conditioner.embedders.1.model.") && has("conditioner.embedders.0.transformer.") => Ok(Self::Xl),
            _ if has("conditioner.embedders.0.model.") => refuse("SDXL's refiner, which has one text encoder of two"),
            _ if has("cond_stage_model.model.") => Ok(Self::Two),
            _ if has("cond_stage_model.transformer.") => Ok(Self::One),
            _ => refuse("no text encoder (`cond_stage_model.*` or `conditioner.embedders.*`)"),
        }
    }

    /// What the U-Net predicts, as diffusers decides it, unless the file has a tensor `v_pred` (which marks
    /// v-prediction in newer checkpoints): SD 2.x is v-prediction but for `global_step` 875000, SD 2.0's base.
    fn prediction_type(self, file: &WeightFile) -> PredictionType {
        let base = file.metadata().get("global_step").is_some_and(|step| step == "875000");
        match self {
            _ if file.shape("v_pred").is_some() => PredictionType::VPrediction,
            Self::Two if !base => PredictionType::VPrediction,
            _ => PredictionType::Epsilon,
        }
    }

    /// Height and width of training images.
    fn image_size(self, prediction_type: PredictionType) -> i64 {
        match self {
            Self::One => 512,
            Self::Two if prediction_type == PredictionType::Epsilon => 512,
            Self::Two => 768,
            Self::Xl => 1024,
        }
    }

    fn scaling_factor(self) -> f64 {
        if self == Self::Xl { 0.13025 } else { 0.18215 }
    }
}

/// Opens a checkpoint. Errors: a file that is none of the families (saying which it seems to be); tensors that are
/// missing, surplus or misshaped, under the file's own names; no tokenizer.
pub(crate) fn open(path: &Path, options: &LoadOptions) -> Result<Sources> {
    if let Some(variant) = &options.variant {
        let expected = "none: a single file has no variants".to_owned();
        return Err(Error::Argument { what: "weight variant".into(), expected, found: variant.clone() });
    }
    let file = WeightFile::open(path)?;
    let family = Family::of(&file)?;
    let prediction_type = options.prediction_type.unwrap_or_else(|| family.prediction_type(&file));
    let (first, second) = match family {
        Family::One => (text::clip(&file, "cond_stage_model.transformer.")?, None),
        Family::Two => (text::open_clip(&file, "cond_stage_model.model.", false)?, None),
        Family::Xl => (
            text::clip(&file, "conditioner.embedders.0.transformer.")?,
            Some(text::open_clip(&file, "conditioner.embedders.1.model.", true)?),
        ),
    };
    let pooled = second.as_ref().map(|second| second.config.projection_dim);
    let image_size = family.image_size(prediction_type);
    let vae = VaeConfig { sample_size: image_size, scaling_factor: family.scaling_factor(), ..vae::config(&file)? };
    let unet = unet::config(&file, pooled)?;
    let unet = UNetConfig { sample_size: Some([(image_size / vae.scale_factor()).max(1); 2]), ..unet };
    let tokens = tokenizer::folder(path, options.tokenizer.as_deref())?;
    let read_text = |text: TextEncoder, suffix| -> Result<_> {
        let tokenizer = ClipTokenizer::padded_with(&tokens, text.pad_with)?;
        let tokenizer = tokenizer.for_rows_of(text.config.max_position_embeddings);
        let parts = TextParts { suffix, tokenizer, config: text.config };
        parts.check(path)?;
        Ok((parts, text.file))
    };
    let text = read_text(first, "")?;
    let second = second.map(|second| read_text(second, "_2")).transpose()?;
    check_parts(path, &unet, &vae, &text.0, second.as_ref().map(|second| &second.0))?;
    Ok(Sources {
        path: path.to_path_buf(),
        pipeline: match family {
            Family::Xl => Pipeline::StableDiffusionXl { force_zeros_for_empty_prompt: true },
            _ => Pipeline::StableDiffusion,
        },
        scheduler: SchedulerConfig {
            prediction_type,
            timestep_spacing: Some(TimestepSpacing::Leading),
            rescale_betas_zero_snr: file.shape("ztsnr").is_some(),
            ..SchedulerConfig::stable_diffusion()
        },
        unet: (unet.clone(), unet::weights(&file, &unet)?),
        vae: (vae.clone(), vae::weights(&file, &vae)?),
        text,
        second,
    })
}

/// An error about a tensor that tells the configuration, under the file's own name.
fn unfit(file: &WeightFile, problem: String) -> Error {
    seedpo_tensor::Error::Tensors { path: file.path().to_path_buf(), problems: vec![problem] }.into()
}

/// The shape of a tensor that tells the configuration. Errors: it is not there, or has another number of axes.
pub(crate) fn shape_of<const N: usize>(file: &WeightFile, name: &str) -> Result<[i64; N]> {
    let Some(shape) = file.shape(name) else {
        return Err(unfit(file, format!("missing `{name}`")));
    };
    <[i64; N]>::try_from(shape)
        .map_err(|_| unfit(file, format!("`{name}`: expected a shape of {N} numbers, found {shape:?}")))
}

/// How many of `<prefix>0<suffix>`, `<prefix>1<suffix>`, .. a file has, up to the first that is not there.
pub(crate) fn count(file: &WeightFile, prefix: &str, suffix: &str) -> i64 {
    (0..).find(|n| file.shape(&format!("{prefix}{n}{suffix}")).is_none()).unwrap_or(0)
}
