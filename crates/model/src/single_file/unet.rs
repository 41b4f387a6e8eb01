//! The U-Net in the original names: `input_blocks`, `middle_block`, `output_blocks`.

use seedpo_tensor::{Part, WeightFile};

use super::{UNET, arrange, count, shape_of, unfit};
use crate::config::{DownBlockType, MidBlockType, TextTimeConfig, UNetConfig, UpBlockType};
use crate::unet::UNet2DConditionModel;
use crate::{Result, heads};

/// Heads where transformers have convolutions around them (SD 1.x).
const HEADS: i64 = 8;
/// Widths of the levels of every Stable Diffusion.
const PUBLISHED: [i64; 3] = [320, 640, 1280];
/// What tells the heads, where it is there.
const CONFIG: &str = "unet/config.json beside the file";
/// Size and crop of the training image: SDXL's six numbers.
const TIME_IDS: i64 = 6;

/// One level on the way down, as the file shows it.
struct Level {
    channels: i64,
    layers: i64,
    /// Transformer blocks of each transformer; `None` for no transformers.
    depth: Option<i64>,
}

/// Infers the configuration. `pooled` is the width of the pooled text embedding that SDXL's U-Net reads.
///
/// Errors: a tensor missing that tells it; an inpainting checkpoint.
pub(super) fn config(file: &WeightFile, pooled: Option<i64>) -> Result<UNetConfig> {
    let name = |rest: &str| format!("{UNET}{rest}");
    let [_, in_channels, ..] = shape_of::<4>(file, &name("input_blocks.0.0.weight"))?;
    let [out_channels, ..] = shape_of::<4>(file, &name("out.2.weight"))?;
    if in_channels != out_channels {
        let found = format!("found {in_channels} input channels");
        let reason =
            format!("`{}`: expected {out_channels} ({found}: an inpainting model?)", name("input_blocks.0.0.weight"));
        return Err(unfit(file, reason));
    }
    let levels = levels(file)?;
    let attention =
        first_attention(file).ok_or_else(|| unfit(file, "expected transformers in the U-Net, found none".into()))?;
    let [_, cross_attention_dim] = shape_of::<2>(file, &format!("{attention}transformer_blocks.0.attn2.to_k.weight"))?;
    let linear = file.shape(&format!("{attention}proj_in.weight")).is_some_and(|shape| shape.len() == 2);
    let middle = count(file, &name("middle_block.1.transformer_blocks."), ".norm1.weight");
    let last = levels.len() - 1;
    // The mid block has the last level's depth, where that level has no transformers of its own.
    let depth = |(i, level): (usize, &Level)| level.depth.unwrap_or(if i == last { middle.max(1) } else { 1 });
    Ok(UNetConfig {
        in_channels,
        out_channels,
        down_block_types: levels.iter().map(down_type).collect(),
        mid_block_type: (middle > 0).then_some(MidBlockType::UNetMidBlock2DCrossAttn),
        up_block_types: levels.iter().rev().map(up_type).collect(),
        block_out_channels: levels.iter().map(|level| level.channels).collect(),
        layers_per_block: levels.iter().map(|level| level.layers).collect(),
        cross_attention_dim: vec![cross_attention_dim],
        transformer_layers_per_block: levels.iter().enumerate().map(depth).collect(),
        attention_head_dim: heads(file, &levels, middle > 0, linear)?,
        use_linear_projection: linear,
        text_time: text_time(file, pooled)?,
        ..UNetConfig::default()
    })
}

/// The heads of each level: as `unet/config.json` beside the checkpoint says, where it is of a U-Net of these widths; else 8
/// where there are convolutions around the transformers, and 64 channels each where there are linear layers.
///
/// Errors: a width that does not tell them.
fn heads(file: &WeightFile, levels: &[Level], middle: bool, linear: bool) -> Result<Vec<i64>> {
    let widths: Vec<i64> = levels.iter().map(|level| level.channels).collect();
    let beside = UNetConfig::from_file(&file.path().with_file_name("unet").join("config.json")).ok();
    if let Some(config) = beside.filter(|config| config.block_out_channels == widths) {
        return Ok((0..widths.len()).map(|level| config.transformer_at(level).heads).collect());
    }
    let last = levels.len() - 1;
    let attends = |(at, level): &(usize, &Level)| level.depth.is_some() || (middle && *at == last);
    let attending: Vec<i64> = levels.iter().enumerate().filter(attends).map(|(_, level)| level.channels).collect();
    let network = "the U-Net";
    if linear {
        heads::of_64_channels(file.path(), network, &attending, &PUBLISHED, CONFIG)?;
        // A level without transformers has no heads; the published configurations name them all the same.
        return Ok(widths.iter().map(|width| (width / 64).max(1)).collect());
    }
    let eight = vec![HEADS; attending.len()];
    heads::warn_of_unpublished(file.path(), network, (&attending, &eight), &PUBLISHED, CONFIG);
    Ok(vec![HEADS; levels.len()])
}

fn down_type(level: &Level) -> DownBlockType {
    match level.depth {
        Some(_) => DownBlockType::CrossAttnDownBlock2D,
        None => DownBlockType::DownBlock2D,
    }
}

fn up_type(level: &Level) -> UpBlockType {
    match level.depth {
        Some(_) => UpBlockType::CrossAttnUpBlock2D,
        None => UpBlockType::UpBlock2D,
    }
}

/// Levels end where `input_blocks` has a downsampling convolution.
fn levels(file: &WeightFile) -> Result<Vec<Level>> {
    let mut levels = Vec::new();
    let mut level = Level { channels: 0, layers: 0, depth: None };
    for n in 1.. {
        let block = format!("{UNET}input_blocks.{n}.");
        let convolution = format!("{block}0.out_layers.3.weight");
        if file.shape(&format!("{block}0.op.weight")).is_some() {
            levels.push(std::mem::replace(&mut level, Level { channels: 0, layers: 0, depth: None }));
        } else if file.shape(&convolution).is_some() {
            [level.channels, ..] = shape_of::<4>(file, &convolution)?;
            level.layers += 1;
            let depth = count(file, &format!("{block}1.transformer_blocks."), ".norm1.weight");
            level.depth = Some(depth).filter(|depth| *depth > 0).or(level.depth);
        } else {
            break;
        }
    }
    levels.push(level);
    match levels.iter().all(|level| level.layers > 0) {
        true => Ok(levels),
        false => Err(unfit(
            file,
            format!("expected residual blocks in each level of `{UNET}input_blocks`, found none in one"),
        )),
    }
}

/// The prefix of the first transformer.
fn first_attention(file: &WeightFile) -> Option<String> {
    let suffix = "transformer_blocks.0.attn2.to_k.weight";
    file.names().filter(|name| name.starts_with(UNET)).find_map(|name| name.strip_suffix(suffix).map(str::to_owned))
}

fn text_time(file: &WeightFile, pooled: Option<i64>) -> Result<Option<TextTimeConfig>> {
    let name = format!("{UNET}label_emb.0.0.weight");
    let Some(pooled) = pooled else { return Ok(None) };
    let [_, inputs] = shape_of::<2>(file, &name)?;
    let ids = inputs - pooled;
    if ids <= 0 || ids % TIME_IDS != 0 {
        let expected = format!("expected {pooled} (pooled text) and {TIME_IDS} equal parts of inputs, found {inputs}");
        return Err(unfit(file, format!("`{name}`: {expected}")));
    }
    Ok(Some(TextTimeConfig { addition_time_embed_dim: ids / TIME_IDS, projection_class_embeddings_input_dim: inputs }))
}

/// The U-Net's tensors under diffusers' names. Errors: as [`arrange::network`].
pub(super) fn weights(file: &WeightFile, config: &UNetConfig) -> Result<WeightFile> {
    let shapes = UNet2DConditionModel::parameter_shapes(config)?;
    let original = |name: &str| (original_name(config, name), Part::Whole);
    arrange::network(file, UNET, &shapes, original, |_| false)
}

/// The original name of a layer or tensor, from diffusers' name for it.
pub(crate) fn original_name(config: &UNetConfig, name: &str) -> String {
    const SINGLE: [(&str, &str); 7] = [
        ("time_embedding.linear_1.", "time_embed.0."),
        ("time_embedding.linear_2.", "time_embed.2."),
        ("add_embedding.linear_1.", "label_emb.0.0."),
        ("add_embedding.linear_2.", "label_emb.0.2."),
        ("conv_in.", "input_blocks.0.0."),
        ("conv_norm_out.", "out.0."),
        ("conv_out.", "out.2."),
    ];
    if let Some((from, to)) = SINGLE.iter().find(|(from, _)| name.starts_with(from)) {
        return name.replacen(from, to, 1);
    }
    let levels = config.block_out_channels.len();
    let parts: Vec<&str> = name.splitn(5, '.').collect();
    let number = |text: &str| text.parse::<usize>().unwrap_or(0);
    match parts[..] {
        ["mid_block", kind, index, ..] => {
            let rest = name.splitn(4, '.').nth(3).unwrap_or_default();
            let at = if kind == "attentions" { 2 * number(index) + 1 } else { 2 * number(index) };
            format!("middle_block.{at}.{}", inner(kind, rest))
        }
        ["down_blocks", level, kind, index, rest] => {
            let level = number(level);
            let before: i64 = (0..level).map(|l| config.layers_at(l) + 1).sum();
            match kind {
                "downsamplers" => {
                    let at = before + config.layers_at(level) + 1;
                    format!("input_blocks.{at}.0.{}", rest.replacen("conv", "op", 1))
                }
                _ => format!("input_blocks.{}.{}.{}", before + 1 + number(index) as i64, slot(kind), inner(kind, rest)),
            }
        }
        ["up_blocks", level, kind, index, rest] => {
            let level = number(level);
            let layers = |l: usize| config.layers_at(levels - 1 - l.min(levels - 1)) + 1;
            let before: i64 = (0..level).map(layers).sum();
            match kind {
                "upsamplers" => {
                    let attention = config.up_block_types.get(level).is_some_and(|kind| kind.has_attention());
                    format!("output_blocks.{}.{}.{rest}", before + layers(level) - 1, if attention { 2 } else { 1 })
                }
                _ => format!("output_blocks.{}.{}.{}", before + number(index) as i64, slot(kind), inner(kind, rest)),
            }
        }
        _ => name.to_owned(),
    }
}

/// Within an original block, the residual block comes first, its transformer second.
fn slot(kind: &str) -> usize {
    usize::from(kind == "attentions")
}

/// Names within a residual block; a transformer's are the same in both.
fn inner(kind: &str, rest: &str) -> String {
    const RESNET: [(&str, &str); 6] = [
        ("norm1.", "in_layers.0."),
        ("conv1.", "in_layers.2."),
        ("time_emb_proj.", "emb_layers.1."),
        ("norm2.", "out_layers.0."),
        ("conv2.", "out_layers.3."),
        ("conv_shortcut.", "skip_connection."),
    ];
    match RESNET.iter().find(|(from, _)| kind == "resnets" && rest.starts_with(from)) {
        Some((from, to)) => rest.replacen(from, to, 1),
        None => rest.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_stable_diffusion() {
        let config = UNetConfig { cross_attention_dim: vec![768], ..UNetConfig::default() };
        let cases = [
            ("down_blocks.0.resnets.1.conv1.weight", "input_blocks.2.0.in_layers.2.weight"),
            ("down_blocks.2.attentions.1.proj_in.bias", "input_blocks.8.1.proj_in.bias"),
            ("down_blocks.2.downsamplers.0.conv.bias", "input_blocks.9.0.op.bias"),
            ("down_blocks.3.resnets.1.time_emb_proj.bias", "input_blocks.11.0.emb_layers.1.bias"),
            ("mid_block.resnets.1.norm2.weight", "middle_block.2.out_layers.0.weight"),
            (
                "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight",
                "middle_block.1.transformer_blocks.0.ff.net.0.proj.weight",
            ),
            ("up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.1.conv.weight"),
            ("up_blocks.1.upsamplers.0.conv.weight", "output_blocks.5.2.conv.weight"),
            (
                "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_out.0.bias",
                "output_blocks.11.1.transformer_blocks.0.attn2.to_out.0.bias",
            ),
            ("up_blocks.3.resnets.2.conv_shortcut.weight", "output_blocks.11.0.skip_connection.weight"),
            ("conv_norm_out.bias", "out.0.bias"),
        ];
        for (name, original) in cases {
            assert_eq!(original_name(&config, name), original);
        }
        let shapes = UNet2DConditionModel::parameter_shapes(&config).unwrap();
        let names: std::collections::BTreeSet<_> = shapes.keys().map(|name| original_name(&config, name)).collect();
        // 686 tensors, as in v1-5-pruned.safetensors.
        assert_eq!((shapes.len(), names.len()), (686, 686));
    }
}
