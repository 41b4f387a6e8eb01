//! `vae/config.json`.

use std::path::Path;

use serde_json::{Value, json};

use super::{Reader, wrong};
use crate::Result;
use crate::layers::Activation;

/// The options of [`crate::AutoencoderKl`], named and defaulted as in diffusers' `AutoencoderKL`.
///
/// Levels are all `DownEncoderBlock2D` and `UpDecoderBlock2D`; there are as many as `block_out_channels` has entries,
/// and the images are `2^(levels - 1)` times as large as the latents.
#[derive(Clone, Debug, PartialEq)]
pub struct VaeConfig {
    /// Channels of the images going in.
    pub in_channels: i64,
    /// Channels of the images coming out.
    pub out_channels: i64,
    /// Channels of each level, from the image inwards.
    pub block_out_channels: Vec<i64>,
    /// Residual blocks of each level in the encoder (one more in the decoder).
    pub layers_per_block: i64,
    /// The nonlinearity of the residual blocks (the last one of encoder and decoder is always SiLU).
    pub act_fn: Activation,
    /// Channels of the latents.
    pub latent_channels: i64,
    /// Groups of all group norms.
    pub norm_num_groups: i64,
    /// Height and width of the training images; not a limit.
    pub sample_size: i64,
    /// The U-Net sees latents times this.
    pub scaling_factor: f64,
    /// Half precision (f16) overflows in this VAE; loading never puts it there.
    pub force_upcast: bool,
    /// A 1×1 convolution after the encoder.
    pub use_quant_conv: bool,
    /// A 1×1 convolution before the decoder.
    pub use_post_quant_conv: bool,
    /// Attention in the middle of encoder and decoder.
    pub mid_block_add_attention: bool,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            block_out_channels: vec![64],
            layers_per_block: 1,
            act_fn: Activation::Silu,
            latent_channels: 4,
            norm_num_groups: 32,
            sample_size: 32,
            scaling_factor: 0.18215,
            force_upcast: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

super::from_json_file!(VaeConfig);

impl VaeConfig {
    fn read(mut r: Reader, path: &Path) -> Result<Self> {
        let d = Self::default();
        r.class("_class_name", &["AutoencoderKL"])?;
        let (int, flag) = ("an integer", "true or false");
        let config = Self {
            in_channels: r.take("in_channels", int, d.in_channels)?,
            out_channels: r.take("out_channels", int, d.out_channels)?,
            block_out_channels: r.take("block_out_channels", "a list of integers", d.block_out_channels)?,
            layers_per_block: r.take("layers_per_block", int, d.layers_per_block)?,
            act_fn: r.activation("act_fn", d.act_fn)?,
            latent_channels: r.take("latent_channels", int, d.latent_channels)?,
            norm_num_groups: r.take("norm_num_groups", int, d.norm_num_groups)?,
            sample_size: r.take("sample_size", int, d.sample_size)?,
            scaling_factor: r.take("scaling_factor", "a number", d.scaling_factor)?,
            force_upcast: r.take("force_upcast", flag, d.force_upcast)?,
            use_quant_conv: r.take("use_quant_conv", flag, d.use_quant_conv)?,
            use_post_quant_conv: r.take("use_post_quant_conv", flag, d.use_post_quant_conv)?,
            mid_block_add_attention: r.take("mid_block_add_attention", flag, d.mid_block_add_attention)?,
        };
        config.validate_at(path)?;
        for (key, name) in [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")] {
            check_block_types(&mut r, key, name, config.block_out_channels.len())?;
        }
        r.only(&[("shift_factor", json!(0.0)), ("latents_mean", Value::Null), ("latents_std", Value::Null)])?;
        r.finish()?;
        Ok(config)
    }

    /// The contents of `config.json`, as diffusers reads them.
    pub fn to_json(&self) -> Value {
        let levels = self.block_out_channels.len();
        json!({
            "_class_name": "AutoencoderKL",
            "_diffusers_version": "0.38.0",
            "act_fn": self.act_fn.name(),
            "block_out_channels": self.block_out_channels,
            "down_block_types": vec!["DownEncoderBlock2D"; levels],
            "force_upcast": self.force_upcast,
            "in_channels": self.in_channels,
            "latent_channels": self.latent_channels,
            "layers_per_block": self.layers_per_block,
            "mid_block_add_attention": self.mid_block_add_attention,
            "norm_num_groups": self.norm_num_groups,
            "out_channels": self.out_channels,
            "sample_size": self.sample_size,
            "scaling_factor": self.scaling_factor,
            "up_block_types": vec!["UpDecoderBlock2D"; levels],
            "use_post_quant_conv": self.use_post_quant_conv,
            "use_quant_conv": self.use_quant_conv,
        })
    }

    /// How many times larger images are than latents, along each side.
    pub fn scale_factor(&self) -> i64 {
        1 << (self.block_out_channels.len().max(1) - 1)
    }

    /// Checks that the options fit each other. Errors: [`crate::Error::Config`] naming the key.
    pub fn validate(&self) -> Result<()> {
        self.validate_at(Path::new("VAE config"))
    }

    fn validate_at(&self, path: &Path) -> Result<()> {
        if !(1..=16).contains(&self.block_out_channels.len()) {
            return Err(wrong(path, "block_out_channels", "1 to 16 levels", self.block_out_channels.len()));
        }
        let positive = [
            ("in_channels", self.in_channels, 100_000),
            ("out_channels", self.out_channels, 100_000),
            ("latent_channels", self.latent_channels, 100_000),
            ("layers_per_block", self.layers_per_block, 1000),
            ("norm_num_groups", self.norm_num_groups, 100_000),
        ];
        let widths = self.block_out_channels.iter().map(|c| ("block_out_channels", *c, 100_000));
        for (key, found, most) in positive.into_iter().chain(widths) {
            if !(1..=most).contains(&found) {
                return Err(wrong(path, key, format!("1 to {most}"), found));
            }
        }
        if let Some(channels) = self.block_out_channels.iter().find(|c| *c % self.norm_num_groups != 0) {
            let expected = format!("a divisor of every block_out_channels ({channels})");
            return Err(wrong(path, "norm_num_groups", expected, self.norm_num_groups));
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor != 0.0) {
            return Err(wrong(path, "scaling_factor", "a finite number other than 0", self.scaling_factor));
        }
        Ok(())
    }
}

fn check_block_types(r: &mut Reader, key: &str, name: &str, levels: usize) -> Result<()> {
    let found = r.raw(key).unwrap_or_else(|| json!([name]));
    let fits = found.as_array().is_some_and(|list| list.len() == levels && list.iter().all(|t| t == name));
    if fits { Ok(()) } else { Err(r.wrong(key, format!("{levels} times {name}"), &found)) }
}
