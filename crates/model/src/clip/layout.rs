//! Whole CLIPs in weight files: transformers' names, OpenCLIP's (also OpenAI's), any prefix before either.

use std::path::Path;

use seedpo_tensor::{Part, WeightFile};

use super::{ClipConfig, VisionConfig};
use crate::single_file::{arrange, count, shape_of};
use crate::{Activation, ClipModel, Result, TextConfig, heads};

/// How a file names the tensors of a CLIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClipLayout {
    /// transformers' `CLIPModel`.
    Transformers,
    /// OpenCLIP's and OpenAI's state dicts.
    OpenClip,
}

const PATCHES: [(ClipLayout, &str); 2] = [
    (ClipLayout::Transformers, "vision_model.embeddings.patch_embedding.weight"),
    (ClipLayout::OpenClip, "visual.conv1.weight"),
];

/// What surrounds a CLIP's tensors in some files and is no part of it.
const IGNORED: [&str; 5] = ["logit_bias", "attn_mask", "input_resolution", "context_length", "vocab_size"];

/// Which layout a file has, and what stands before every name; `None` where there is no CLIP in it.
pub fn layout_of(file: &WeightFile) -> Option<(ClipLayout, String)> {
    PATCHES.iter().find_map(|(layout, key)| {
        let prefix = file.names().find_map(|name| name.strip_suffix(key))?;
        (prefix.is_empty() || prefix.ends_with('.')).then(|| (*layout, prefix.to_owned()))
    })
}

/// A CLIP's tensors under transformers' names, and its sizes: `config`'s where given, else as the shapes tell, with `act`.
///
/// A timestep's conditioning is found by its tensors. Errors: no CLIP in the file; every missing, surplus and misshaped
/// tensor under the file's own name; heads that the shapes cannot tell.
pub fn arranged(file: &WeightFile, config: Option<ClipConfig>, act: Activation) -> Result<(WeightFile, ClipConfig)> {
    let Some((layout, prefix)) = layout_of(file) else {
        let keys = PATCHES.map(|(_, key)| format!("`{key}`"));
        let problem = format!("expected a CLIP with {}; found neither", keys.join(" (transformers) or "));
        return Err(seedpo_tensor::Error::Tensors { path: file.path().to_path_buf(), problems: vec![problem] }.into());
    };
    let mut config = match config {
        Some(config) => config,
        None => inferred(file, layout, &prefix, act)?,
    };
    config.time_conditioned = file.shape(&format!("{prefix}t_embedder.mlp.0.weight")).is_some();
    let shapes = ClipModel::parameter_shapes(&config)?;
    let original = |name: &str| match layout {
        ClipLayout::Transformers => (name.to_owned(), Part::Whole),
        ClipLayout::OpenClip => {
            let vision = name.starts_with("vision_model.");
            open_clip_name(name, if vision { config.vision.hidden_size } else { config.text.hidden_size })
        }
    };
    let ignored = |rest: &str| rest.ends_with("embeddings.position_ids") || IGNORED.contains(&rest);
    Ok((arrange::network(file, &prefix, &shapes, original, ignored)?, config))
}

fn inferred(file: &WeightFile, layout: ClipLayout, prefix: &str, act: Activation) -> Result<ClipConfig> {
    let name = |key: &str| match layout {
        ClipLayout::Transformers => format!("{prefix}{key}"),
        ClipLayout::OpenClip => format!("{prefix}{}", open_clip_name(key, 0).0),
    };
    let stack = |tower: &str| {
        let (start, end) = (format!("{tower}.encoder.layers."), ".mlp.fc1.weight");
        let first = name(&format!("{start}0{end}"));
        let (before, after) = first.split_once('0').unwrap_or((&first, ""));
        (count(file, before, after), first.clone())
    };
    let ((vision_layers, vision_first), (text_layers, text_first)) = (stack("vision_model"), stack("text_model"));
    let [width, _, patch_size, _] = shape_of::<4>(file, &name("vision_model.embeddings.patch_embedding.weight"))?;
    let [tokens, _] = shape_of::<2>(file, &name("vision_model.embeddings.position_embedding.weight"))?;
    let [vision_inner, _] = shape_of::<2>(file, &vision_first)?;
    let [vocab_size, text_width] = shape_of::<2>(file, &name("text_model.embeddings.token_embedding.weight"))?;
    let [positions, _] = shape_of::<2>(file, &name("text_model.embeddings.position_embedding.weight"))?;
    let [text_inner, _] = shape_of::<2>(file, &text_first)?;
    let projection = shape_of::<2>(file, &name("visual_projection.weight"))?;
    let projection_dim = if layout == ClipLayout::OpenClip { projection[1] } else { projection[0] };
    let side = ((tokens - 1).max(0) as f64).sqrt().round() as i64;
    let text = TextConfig {
        vocab_size,
        hidden_size: text_width,
        intermediate_size: text_inner,
        num_hidden_layers: text_layers,
        num_attention_heads: text_heads(file.path(), text_width)?,
        max_position_embeddings: positions,
        hidden_act: act,
        projection_dim,
        with_projection: true,
        // The largest id, in every CLIP.
        eos_token_id: 2,
        ..TextConfig::default()
    };
    let vision = VisionConfig {
        hidden_size: width,
        intermediate_size: vision_inner,
        num_hidden_layers: vision_layers,
        num_attention_heads: vision_heads(file.path(), width)?,
        image_size: side * patch_size,
        patch_size,
        hidden_act: act,
        ..VisionConfig::default()
    };
    let config = ClipConfig { text, vision, projection_dim, time_conditioned: false };
    config.validate(file.path())?;
    Ok(config)
}

/// What tells the heads, where it is there.
const CONFIGS: &str = "a config.json or open_clip_config.json beside the weights";

fn text_heads(path: &Path, width: i64) -> Result<i64> {
    Ok(heads::of_64_channels(path, "CLIP's text tower", &[width], &[512, 768, 1024, 1280], CONFIGS)?[0])
}

/// 64 channels each, but in the widest towers sixteen.
fn vision_heads(path: &Path, width: i64) -> Result<i64> {
    match width {
        1280 | 1408 | 1664 => Ok(16),
        _ => Ok(heads::of_64_channels(path, "CLIP's vision tower", &[width], &[768, 1024], CONFIGS)?[0]),
    }
}

/// OpenCLIP's name, and which part of that tensor, for transformers' name; `width` is that of the tower.
pub(crate) fn open_clip_name(name: &str, width: i64) -> (String, Part) {
    const PARTS: [(&str, &str); 15] = [
        ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
        ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
        ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
        ("vision_model.pre_layrnorm.", "visual.ln_pre."),
        ("vision_model.post_layernorm.", "visual.ln_post."),
        ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
        ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
        ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        ("text_model.final_layer_norm.", "ln_final."),
        ("text_model.encoder.layers.", "transformer.resblocks."),
        (".layer_norm1.", ".ln_1."),
        (".layer_norm2.", ".ln_2."),
        (".mlp.fc1.", ".mlp.c_fc."),
        (".mlp.fc2.", ".mlp.c_proj."),
        (".self_attn.out_proj.", ".attn.out_proj."),
    ];
    match name {
        "text_projection.weight" => return ("text_projection".to_owned(), Part::Transposed),
        "visual_projection.weight" => return ("visual.proj".to_owned(), Part::Transposed),
        _ => {}
    }
    let name = PARTS.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to));
    for (at, projection) in [".self_attn.q_proj.", ".self_attn.k_proj.", ".self_attn.v_proj."].into_iter().enumerate() {
        if name.contains(projection) {
            let rows = Part::Rows { start: at as i64 * width, count: width };
            return (name.replace(projection, ".attn.in_proj_"), rows);
        }
    }
    (name, Part::Whole)
}
