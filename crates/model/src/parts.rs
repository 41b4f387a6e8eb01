//! Whether the parts of a folder fit each other.

use std::path::Path;

use crate::Result;
use crate::config::{TextConfig, UNetConfig, VaeConfig, wrong};
use crate::tokenizer::ClipTokenizer;

/// A tokenizer and the configuration of the text encoder that reads its ids; SDXL's second ones have the suffix `_2`.
pub(crate) struct TextParts {
    pub suffix: &'static str,
    pub tokenizer: ClipTokenizer,
    pub config: TextConfig,
}

impl TextParts {
    /// Reads `tokenizer<suffix>` (or the `tokenizer` named) and `text_encoder<suffix>/config.json`.
    pub fn read(folder: &Path, suffix: &'static str, with_projection: bool, tokenizer: Option<&Path>) -> Result<Self> {
        let config = TextConfig::from_file(&folder.join(format!("text_encoder{suffix}/config.json")))?;
        let own = folder.join(format!("tokenizer{suffix}"));
        let tokenizer = ClipTokenizer::from_folder(tokenizer.unwrap_or(&own))?;
        let tokenizer = tokenizer.for_rows_of(config.max_position_embeddings);
        // The class in model_index.json decides, as in diffusers: the configuration need not name one.
        let parts = Self { suffix, tokenizer, config: TextConfig { with_projection, ..config } };
        parts.check(folder)?;
        Ok(parts)
    }

    /// Whether tokenizer and text encoder fit each other.
    pub fn check(&self, folder: &Path) -> Result<()> {
        let Self { suffix, tokenizer, config } = self;
        let longest = config.max_position_embeddings;
        if tokenizer.max_length() as i64 > longest {
            let path = folder.join(format!("tokenizer{suffix}/tokenizer_config.json"));
            let expected = format!("at most {longest} (max_position_embeddings of text_encoder{suffix}/config.json)");
            return Err(wrong(&path, "model_max_length", expected, tokenizer.max_length()));
        }
        let largest = tokenizer.eos_token_id().max(tokenizer.pad_token_id());
        if largest >= config.vocab_size {
            let path = folder.join(format!("text_encoder{suffix}/config.json"));
            let expected = format!("more than {largest} (the tokenizer's largest special token)");
            return Err(wrong(&path, "vocab_size", expected, config.vocab_size));
        }
        Ok(())
    }
}

/// Whether U-Net, VAE and text encoders fit each other.
pub(crate) fn check_parts(
    folder: &Path,
    unet: &UNetConfig,
    vae: &VaeConfig,
    text: &TextParts,
    second: Option<&TextParts>,
) -> Result<()> {
    let path = folder.join("unet/config.json");
    let (width, from) = match second {
        None => (text.config.hidden_size, "hidden_size of text_encoder/config.json"),
        Some(second) => {
            (text.config.hidden_size + second.config.hidden_size, "hidden_size of text_encoder plus text_encoder_2")
        }
    };
    if let Some(found) = unet.cross_attention_dim.iter().find(|d| **d != width) {
        return Err(wrong(&path, "cross_attention_dim", format!("{width} ({from})"), found));
    }
    for (key, channels) in [("in_channels", unet.in_channels), ("out_channels", unet.out_channels)] {
        if channels != vae.latent_channels {
            let expected = format!("{} (latent_channels of vae/config.json)", vae.latent_channels);
            return Err(wrong(&path, key, expected, channels));
        }
    }
    check_added(folder, &path, unet, text, second)
}

/// Whether the U-Net reads what a second text encoder gives.
fn check_added(
    folder: &Path,
    path: &Path,
    unet: &UNetConfig,
    text: &TextParts,
    second: Option<&TextParts>,
) -> Result<()> {
    let (second, text_time) = match (second, unet.text_time) {
        (None, None) => return Ok(()),
        (Some(second), Some(text_time)) => (second, text_time),
        (Some(_), None) => {
            return Err(wrong(path, "addition_embed_type", "\"text_time\" (this is an SDXL pipeline)", "null"));
        }
        (None, Some(_)) => {
            let expected = "null (the pipeline in model_index.json has one text encoder)";
            return Err(wrong(path, "addition_embed_type", expected, "\"text_time\""));
        }
    };
    if text_time.pooled_width() != second.config.projection_dim {
        let pooled = second.config.projection_dim;
        let ids = text_time.projection_class_embeddings_input_dim - text_time.pooled_width();
        let expected = format!("{} (projection_dim of text_encoder_2 {pooled}, time ids {ids})", pooled + ids);
        let found = text_time.projection_class_embeddings_input_dim;
        return Err(wrong(path, "projection_class_embeddings_input_dim", expected, found));
    }
    if second.tokenizer.max_length() != text.tokenizer.max_length() {
        let expected = format!("{}, as in tokenizer/", text.tokenizer.max_length());
        let path = folder.join("tokenizer_2/tokenizer_config.json");
        return Err(wrong(&path, "model_max_length", expected, second.tokenizer.max_length()));
    }
    Ok(())
}
