//! `unet/config.json`.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::block_types::{DownBlockType, MidBlockType, UpBlockType};
use super::text_time::TextTimeConfig;
use super::{Reader, at, scalar_or_list, wrong};
use crate::Result;
use crate::layers::Activation;
use crate::unet::attention::TransformerOptions;
use crate::unet::resnet::ResnetOptions;

/// The options of [`crate::UNet2DConditionModel`], named and defaulted as in diffusers' `UNet2DConditionModel`.
///
/// Lists marked "per level" have one entry for all levels or one for each, in the order of `block_out_channels`.
#[derive(Clone, Debug, PartialEq)]
pub struct UNetConfig {
    /// Height and width of the latents that pipelines sample by default; not a limit.
    pub sample_size: Option<[i64; 2]>,
    /// Channels of the latents.
    pub in_channels: i64,
    /// Channels of the prediction.
    pub out_channels: i64,
    /// Maps latents from [0, 1] to [-1, 1] first.
    pub center_input_sample: bool,
    /// Timestep embedding as (cos, sin) rather than (sin, cos).
    pub flip_sin_to_cos: bool,
    /// Subtracted from half the embedding's width in the frequencies' exponent.
    pub freq_shift: f64,
    /// Levels from the top down.
    pub down_block_types: Vec<DownBlockType>,
    /// The bottom; `None` for no block.
    pub mid_block_type: Option<MidBlockType>,
    /// Levels from the bottom up.
    pub up_block_types: Vec<UpBlockType>,
    /// Per level: the first attention of each transformer block reads the prompt too.
    pub only_cross_attention: Vec<bool>,
    /// Channels of each level, from the top down.
    pub block_out_channels: Vec<i64>,
    /// Per level: residual blocks on the way down (one more on the way up).
    pub layers_per_block: Vec<i64>,
    /// Padding of the stride-2 convolutions; 0 pads right and bottom by one.
    pub downsample_padding: i64,
    /// Divides the mid block's residual sums.
    pub mid_block_scale_factor: f64,
    /// The nonlinearity of residual blocks and time embedding.
    pub act_fn: Activation,
    /// Groups of all group norms.
    pub norm_num_groups: i64,
    /// Epsilon of the residual blocks' group norms.
    pub norm_eps: f64,
    /// Per level: width of the prompt embeddings.
    pub cross_attention_dim: Vec<i64>,
    /// Per level: transformer blocks per transformer.
    pub transformer_layers_per_block: Vec<i64>,
    /// Per level: the **number of heads**. The folders' name for it is a slip that diffusers keeps (its issue 2011):
    /// SD 1.x writes 8, SD 2.x writes [5, 10, 20, 20], and both are counts. `num_attention_heads`, where a file has
    /// it, wins.
    pub attention_head_dim: Vec<i64>,
    /// Linear layers rather than 1×1 convolutions around transformers (SD 2.x).
    pub use_linear_projection: bool,
    /// Kept for saving. The fused attention kernel accumulates in f32 whatever this says, as in diffusers.
    pub upcast_attention: bool,
    /// `scale_shift` rather than `default`: the time embedding scales and shifts.
    pub resnet_scale_shift: bool,
    /// What SDXL adds to the time embedding; `None` in SD 1.x and 2.x.
    pub text_time: Option<TextTimeConfig>,
    /// Kernel of the first convolution (odd).
    pub conv_in_kernel: i64,
    /// Kernel of the last convolution (odd).
    pub conv_out_kernel: i64,
}

impl Default for UNetConfig {
    fn default() -> Self {
        use DownBlockType::{CrossAttnDownBlock2D, DownBlock2D};
        use UpBlockType::{CrossAttnUpBlock2D, UpBlock2D};
        Self {
            sample_size: None,
            in_channels: 4,
            out_channels: 4,
            center_input_sample: false,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            down_block_types: vec![CrossAttnDownBlock2D, CrossAttnDownBlock2D, CrossAttnDownBlock2D, DownBlock2D],
            mid_block_type: Some(MidBlockType::UNetMidBlock2DCrossAttn),
            up_block_types: vec![UpBlock2D, CrossAttnUpBlock2D, CrossAttnUpBlock2D, CrossAttnUpBlock2D],
            only_cross_attention: vec![false],
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: vec![2],
            downsample_padding: 1,
            mid_block_scale_factor: 1.0,
            act_fn: Activation::Silu,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            cross_attention_dim: vec![1280],
            transformer_layers_per_block: vec![1],
            attention_head_dim: vec![8],
            use_linear_projection: false,
            upcast_attention: false,
            resnet_scale_shift: false,
            text_time: None,
            conv_in_kernel: 3,
            conv_out_kernel: 3,
        }
    }
}

super::from_json_file!(UNetConfig);

impl UNetConfig {
    fn read(mut r: Reader, path: &Path) -> Result<Self> {
        let d = Self::default();
        r.class("_class_name", &["UNet2DConditionModel"])?;
        let (int, real, flag) = ("an integer", "a number", "true or false");
        let heads: Vec<i64> = r.per_level("attention_head_dim", int, d.attention_head_dim)?;
        let config = Self {
            sample_size: read_sample_size(&mut r)?,
            in_channels: r.take("in_channels", int, d.in_channels)?,
            out_channels: r.take("out_channels", int, d.out_channels)?,
            center_input_sample: r.take("center_input_sample", flag, d.center_input_sample)?,
            flip_sin_to_cos: r.take("flip_sin_to_cos", flag, d.flip_sin_to_cos)?,
            freq_shift: r.take("freq_shift", real, d.freq_shift)?,
            down_block_types: r.take(
                "down_block_types",
                "a list of CrossAttnDownBlock2D and DownBlock2D",
                d.down_block_types,
            )?,
            mid_block_type: read_mid_block_type(&mut r, d.mid_block_type)?,
            up_block_types: r.take("up_block_types", "a list of CrossAttnUpBlock2D and UpBlock2D", d.up_block_types)?,
            only_cross_attention: r.per_level("only_cross_attention", flag, d.only_cross_attention)?,
            block_out_channels: r.take("block_out_channels", "a list of integers", d.block_out_channels)?,
            layers_per_block: r.per_level("layers_per_block", int, d.layers_per_block)?,
            downsample_padding: r.take("downsample_padding", int, d.downsample_padding)?,
            mid_block_scale_factor: r.take("mid_block_scale_factor", real, d.mid_block_scale_factor)?,
            act_fn: r.activation("act_fn", d.act_fn)?,
            norm_num_groups: r.take("norm_num_groups", int, d.norm_num_groups)?,
            norm_eps: r.take("norm_eps", real, d.norm_eps)?,
            cross_attention_dim: r.per_level("cross_attention_dim", int, d.cross_attention_dim)?,
            transformer_layers_per_block: r.per_level(
                "transformer_layers_per_block",
                int,
                d.transformer_layers_per_block,
            )?,
            attention_head_dim: r.per_level("num_attention_heads", int, heads)?,
            use_linear_projection: r.take("use_linear_projection", flag, d.use_linear_projection)?,
            upcast_attention: r.take("upcast_attention", flag, d.upcast_attention)?,
            resnet_scale_shift: read_scale_shift(&mut r)?,
            text_time: TextTimeConfig::read(&mut r)?,
            conv_in_kernel: r.take("conv_in_kernel", int, d.conv_in_kernel)?,
            conv_out_kernel: r.take("conv_out_kernel", int, d.conv_out_kernel)?,
        };
        refuse_unimplemented(&mut r)?;
        r.finish()?;
        config.validate_at(path)?;
        Ok(config)
    }

    /// The contents of `config.json`, as diffusers reads them.
    pub fn to_json(&self) -> Value {
        let mut config = json!({
            "_class_name": "UNet2DConditionModel",
            "_diffusers_version": "0.38.0",
            "act_fn": self.act_fn.name(),
            "attention_head_dim": scalar_or_list(&self.attention_head_dim),
            "block_out_channels": self.block_out_channels,
            "center_input_sample": self.center_input_sample,
            "conv_in_kernel": self.conv_in_kernel,
            "conv_out_kernel": self.conv_out_kernel,
            "cross_attention_dim": scalar_or_list(&self.cross_attention_dim),
            "down_block_types": self.down_block_types,
            "downsample_padding": self.downsample_padding,
            "flip_sin_to_cos": self.flip_sin_to_cos,
            "freq_shift": integer_if_whole(self.freq_shift),
            "in_channels": self.in_channels,
            "layers_per_block": scalar_or_list(&self.layers_per_block),
            "mid_block_scale_factor": integer_if_whole(self.mid_block_scale_factor),
            "mid_block_type": self.mid_block_type,
            "norm_eps": self.norm_eps,
            "norm_num_groups": self.norm_num_groups,
            "only_cross_attention": scalar_or_list(&self.only_cross_attention),
            "out_channels": self.out_channels,
            "resnet_time_scale_shift": if self.resnet_scale_shift { "scale_shift" } else { "default" },
            "sample_size": self.sample_size.map(|size| scalar_or_list(&size)),
            "transformer_layers_per_block": scalar_or_list(&self.transformer_layers_per_block),
            "up_block_types": self.up_block_types,
            "upcast_attention": self.upcast_attention,
            "use_linear_projection": self.use_linear_projection,
        });
        if let Some(text_time) = &self.text_time {
            text_time.write(&mut config);
        }
        config
    }

    /// Checks that the options fit each other. Errors: [`crate::Error::Config`] naming the key.
    pub fn validate(&self) -> Result<()> {
        self.validate_at(Path::new("U-Net config"))
    }

    fn validate_at(&self, path: &Path) -> Result<()> {
        let levels = self.block_out_channels.len();
        if levels == 0 {
            return Err(wrong(path, "block_out_channels", "at least one level", "[]"));
        }
        let lengths = [
            ("down_block_types", self.down_block_types.len(), false),
            ("up_block_types", self.up_block_types.len(), false),
            ("only_cross_attention", self.only_cross_attention.len(), true),
            ("layers_per_block", self.layers_per_block.len(), true),
            ("cross_attention_dim", self.cross_attention_dim.len(), true),
            ("transformer_layers_per_block", self.transformer_layers_per_block.len(), true),
            ("attention_head_dim", self.attention_head_dim.len(), true),
        ];
        for (key, found, one_is_enough) in lengths {
            if found != levels && !(one_is_enough && found == 1) {
                let expected = format!("{levels} entries, one for each of block_out_channels");
                return Err(wrong(path, key, expected, format!("{found} entries")));
            }
        }
        self.check_ranges(path)?;
        self.check_divisions(path)
    }

    fn check_ranges(&self, path: &Path) -> Result<()> {
        let positive = [
            ("in_channels", self.in_channels, 100_000),
            ("out_channels", self.out_channels, 100_000),
            ("norm_num_groups", self.norm_num_groups, 100_000),
            ("layers_per_block", largest_or_bad(&self.layers_per_block), 1000),
            ("cross_attention_dim", largest_or_bad(&self.cross_attention_dim), 100_000),
            ("transformer_layers_per_block", largest_or_bad(&self.transformer_layers_per_block), 1000),
            ("attention_head_dim", largest_or_bad(&self.attention_head_dim), 100_000),
            ("block_out_channels", largest_or_bad(&self.block_out_channels), 100_000),
        ];
        for (key, found, most) in positive {
            if !(1..=most).contains(&found) {
                return Err(wrong(path, key, format!("1 to {most}"), found));
            }
        }
        for (key, kernel) in [("conv_in_kernel", self.conv_in_kernel), ("conv_out_kernel", self.conv_out_kernel)] {
            if !(1..=31).contains(&kernel) || kernel % 2 == 0 {
                return Err(wrong(path, key, "an odd number, 1 to 31", kernel));
            }
        }
        if !(0..=1).contains(&self.downsample_padding) {
            return Err(wrong(path, "downsample_padding", "0 or 1", self.downsample_padding));
        }
        if self.freq_shift >= (self.block_out_channels[0] / 2) as f64 {
            return Err(wrong(path, "freq_shift", "less than half the first of block_out_channels", self.freq_shift));
        }
        self.text_time.map_or(Ok(()), |text_time| text_time.check(path, self.freq_shift))
    }

    fn check_divisions(&self, path: &Path) -> Result<()> {
        for (level, &channels) in self.block_out_channels.iter().enumerate() {
            if channels % self.norm_num_groups != 0 {
                let expected = format!("a divisor of every block_out_channels ({channels})");
                return Err(wrong(path, "norm_num_groups", expected, self.norm_num_groups));
            }
            let heads = at(&self.attention_head_dim, level);
            if channels % heads != 0 {
                let expected = format!("a divisor of block_out_channels ({channels}) at level {level}");
                return Err(wrong(path, "attention_head_dim", expected, heads));
            }
        }
        Ok(())
    }

    /// Width of the time embedding: four times the first level's channels.
    pub fn time_embed_dim(&self) -> i64 {
        4 * self.block_out_channels[0]
    }

    pub(crate) fn layers_at(&self, level: usize) -> i64 {
        at(&self.layers_per_block, level)
    }

    pub(crate) fn resnet_options(&self) -> ResnetOptions {
        ResnetOptions {
            time_embed_dim: Some(self.time_embed_dim()),
            groups: self.norm_num_groups,
            eps: self.norm_eps,
            activation: self.act_fn,
            scale_shift: self.resnet_scale_shift,
            output_scale_factor: 1.0,
        }
    }

    pub(crate) fn transformer_at(&self, level: usize) -> TransformerOptions {
        TransformerOptions {
            heads: at(&self.attention_head_dim, level),
            layers: at(&self.transformer_layers_per_block, level),
            cross_attention_dim: at(&self.cross_attention_dim, level),
            groups: self.norm_num_groups,
            linear_projection: self.use_linear_projection,
            only_cross_attention: at(&self.only_cross_attention, level),
        }
    }
}

/// One number for both sides, or height and width.
fn read_sample_size(r: &mut Reader) -> Result<Option<[i64; 2]>> {
    let Some(value) = r.raw("sample_size").filter(|value| !value.is_null()) else { return Ok(None) };
    let sides = match value.as_i64() {
        Some(side) => Some([side; 2]),
        None => <[i64; 2]>::deserialize(&value).ok(),
    };
    sides
        .filter(|sides| sides.iter().all(|side| (1..=100_000).contains(side)))
        .map(Some)
        .ok_or_else(|| r.wrong("sample_size", "a positive integer, or two: height and width", &value))
}

/// Absent means the default; `null` means no such block.
fn read_mid_block_type(r: &mut Reader, default: Option<MidBlockType>) -> Result<Option<MidBlockType>> {
    let Some(value) = r.raw("mid_block_type") else { return Ok(default) };
    Option::deserialize(&value)
        .map_err(|_| r.wrong("mid_block_type", "UNetMidBlock2DCrossAttn, UNetMidBlock2D or null", &value))
}

fn read_scale_shift(r: &mut Reader) -> Result<bool> {
    let name: String = r.take("resnet_time_scale_shift", "a string", "default".to_owned())?;
    match name.as_str() {
        "default" => Ok(false),
        "scale_shift" => Ok(true),
        _ => Err(r.wrong("resnet_time_scale_shift", "default or scale_shift", &Value::String(name))),
    }
}

/// Options that Stable Diffusion folders leave at their defaults.
fn refuse_unimplemented(r: &mut Reader) -> Result<()> {
    r.only(&[
        ("dropout", json!(0.0)),
        ("dual_cross_attention", json!(false)),
        ("attention_type", json!("default")),
        ("time_embedding_type", json!("positional")),
        ("resnet_skip_time_act", json!(false)),
        ("resnet_out_scale_factor", json!(1.0)),
        ("class_embeddings_concat", json!(false)),
        ("encoder_hid_dim", Value::Null),
        ("encoder_hid_dim_type", Value::Null),
        ("class_embed_type", Value::Null),
        ("num_class_embeds", Value::Null),
        ("time_embedding_dim", Value::Null),
        ("time_embedding_act_fn", Value::Null),
        ("timestep_post_act", Value::Null),
        ("time_cond_proj_dim", Value::Null),
        ("reverse_transformer_layers_per_block", Value::Null),
        ("cross_attention_norm", Value::Null),
    ])?;
    // Read only by block types that are refused above.
    r.ignore(&["mid_block_only_cross_attention", "addition_embed_type_num_heads"]);
    Ok(())
}

/// The first entry below 1, else the largest: what a range check has to look at.
fn largest_or_bad(list: &[i64]) -> i64 {
    list.iter().copied().find(|x| *x < 1).or(list.iter().copied().max()).unwrap_or(0)
}

fn integer_if_whole(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e9 { json!(x as i64) } else { json!(x) }
}
