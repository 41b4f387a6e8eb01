//! The text encoders: CLIP in transformers' names, OpenCLIP in its own.

use std::collections::BTreeMap;

use seedpo_tensor::{Part, WeightFile};

use super::{arrange, count, shape_of};
use crate::clip::open_clip_name;
use crate::layers::Activation;
use crate::text::ClipTextModel;
use crate::{Result, TextConfig, heads};

/// Layers of OpenCLIP's ViT-H that Stable Diffusion 2.x runs: the 24th is stored and left out.
const LAYERS_USED: i64 = 23;

/// A text encoder found in a checkpoint.
pub(super) struct TextEncoder {
    pub config: TextConfig,
    /// Under transformers' names.
    pub file: WeightFile,
    /// What its tokenizer fills rows with; `None` is the end token.
    pub pad_with: Option<&'static str>,
}

/// CLIP ViT-L (SD 1.x; the first encoder of SDXL). Errors: a tensor missing, surplus or misshaped; a width that does not
/// tell the attention heads.
pub(super) fn clip(file: &WeightFile, prefix: &str) -> Result<TextEncoder> {
    // Files written with transformers 5 have no `text_model.`.
    let inside = format!("{prefix}text_model.");
    let bare = !file.names().any(|name| name.starts_with(&inside));
    let root = if bare { prefix } else { inside.as_str() };
    let name = |rest: &str| format!("{root}{rest}");
    let [vocab_size, hidden_size] = shape_of::<2>(file, &name("embeddings.token_embedding.weight"))?;
    let [positions, _] = shape_of::<2>(file, &name("embeddings.position_embedding.weight"))?;
    let [intermediate_size, _] = shape_of::<2>(file, &name("encoder.layers.0.mlp.fc1.weight"))?;
    let layers = count(file, &name("encoder.layers."), ".mlp.fc1.weight");
    let config = TextConfig {
        num_attention_heads: heads(file, "text_encoder", hidden_size, intermediate_size)?,
        ..config(vocab_size, hidden_size, positions, intermediate_size, layers)
    };
    let shapes = ClipTextModel::parameter_shapes(&config)?;
    let original = |name: &str| {
        let rest = if bare { name.strip_prefix("text_model.").unwrap_or(name) } else { name };
        (rest.to_owned(), Part::Whole)
    };
    let file = arrange::network(file, prefix, &shapes, original, |rest| rest.ends_with("embeddings.position_ids"))?;
    Ok(TextEncoder { config, file, pad_with: None })
}

/// OpenCLIP: ViT-H (SD 2.x, without its last layer) or, with the projection, ViT-bigG (the second encoder of SDXL).
/// Errors: as [`clip`].
pub(super) fn open_clip(file: &WeightFile, prefix: &str, with_projection: bool) -> Result<TextEncoder> {
    let name = |rest: &str| format!("{prefix}{rest}");
    let [vocab_size, hidden_size] = shape_of::<2>(file, &name("token_embedding.weight"))?;
    let [positions, _] = shape_of::<2>(file, &name("positional_embedding"))?;
    let [intermediate_size, _] = shape_of::<2>(file, &name("transformer.resblocks.0.mlp.c_fc.weight"))?;
    let stored = count(file, &name("transformer.resblocks."), ".mlp.c_fc.weight");
    let layers = if with_projection { stored } else { stored.min(LAYERS_USED) };
    let part = if with_projection { "text_encoder_2" } else { "text_encoder" };
    let mut config = TextConfig {
        num_attention_heads: heads(file, part, hidden_size, intermediate_size)?,
        hidden_act: Activation::Gelu,
        with_projection,
        ..config(vocab_size, hidden_size, positions, intermediate_size, layers)
    };
    if with_projection {
        [_, config.projection_dim] = shape_of::<2>(file, &name("text_projection"))?;
    }
    let shapes: BTreeMap<_, _> = ClipTextModel::parameter_shapes(&config)?;
    let unused = format!("transformer.resblocks.{layers}.");
    let ignored = |rest: &str| {
        let projection = !with_projection && rest == "text_projection";
        projection || ["logit_scale", "attn_mask"].contains(&rest) || layers < stored && rest.starts_with(&unused)
    };
    let file = arrange::network(file, prefix, &shapes, |name| open_clip_name(name, hidden_size), ignored)?;
    Ok(TextEncoder { config, file, pad_with: Some("!") })
}

/// As `<part>/config.json` beside the checkpoint says, where it is of an encoder of these widths; else 64 channels each.
pub(super) fn heads(file: &WeightFile, part: &str, hidden_size: i64, intermediate_size: i64) -> Result<i64> {
    let beside = TextConfig::from_file(&file.path().with_file_name(part).join("config.json")).ok();
    let fitting = beside.filter(|c| (c.hidden_size, c.intermediate_size) == (hidden_size, intermediate_size));
    if let Some(config) = fitting {
        return Ok(config.num_attention_heads);
    }
    let otherwise = format!("{part}/config.json beside the file");
    Ok(heads::of_64_channels(file.path(), part, &[hidden_size], &[768, 1024, 1280], &otherwise)?[0])
}

/// All but the heads.
fn config(vocab_size: i64, hidden_size: i64, positions: i64, intermediate_size: i64, layers: i64) -> TextConfig {
    TextConfig {
        vocab_size,
        hidden_size,
        intermediate_size,
        num_hidden_layers: layers,
        max_position_embeddings: positions,
        projection_dim: hidden_size,
        bos_token_id: 0,
        // The largest id, as in every folder of these families.
        eos_token_id: 2,
        ..TextConfig::default()
    }
}
