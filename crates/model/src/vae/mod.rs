//! The KL autoencoder of Stable Diffusion (`AutoencoderKL` of diffusers 0.38).

mod blocks;
mod tiling;

use std::collections::BTreeMap;

use seedpo_tensor::{ParamPath, Params, Part, WeightFile};
use tch::{Device, Kind, Tensor};

use crate::config::VaeConfig;
use crate::layers::Conv2d;
use crate::{Error, Result};
use blocks::{Decoder, Encoder};

pub use tiling::Tiling;

/// Images to latents and back. Equal to diffusers' `AutoencoderKL`.
#[derive(Debug)]
pub struct AutoencoderKl {
    config: VaeConfig,
    parameters: BTreeMap<String, Tensor>,
    device: Device,
    kind: Kind,
    encoder: Encoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    decoder: Decoder,
    slicing: bool,
    tiling: Option<Tiling>,
}

impl AutoencoderKl {
    /// Builds the network from `params`. Files that spell the attention's layers the old way must be renamed first,
    /// see [`modern_names`].
    ///
    /// Errors: [`Error::Config`] where the configuration contradicts itself; [`Error::Tensor`] naming every
    /// missing, surplus and misshaped tensor.
    pub fn new(config: VaeConfig, params: Params) -> Result<Self> {
        config.validate()?;
        let mut network = Self::build(config, &params.root());
        network.parameters = params.finish()?;
        if let Some(tensor) = network.parameters.values().next() {
            (network.device, network.kind) = (tensor.device(), tensor.kind());
        }
        Ok(network)
    }

    /// The shapes of all tensors by name, without making any. Errors: as [`Self::new`] for the configuration.
    pub fn parameter_shapes(config: &VaeConfig) -> Result<BTreeMap<String, Vec<i64>>> {
        config.validate()?;
        let params = Params::shapes_only();
        Self::build(config.clone(), &params.root());
        Ok(params.asked_shapes())
    }

    fn build(config: VaeConfig, root: &ParamPath<'_>) -> Self {
        let latent = config.latent_channels;
        let one_by_one = |name: &str, channels: i64| Conv2d::same(&root.sub(name), channels, channels, 1);
        Self {
            encoder: Encoder::new(&root.sub("encoder"), &config),
            quant_conv: config.use_quant_conv.then(|| one_by_one("quant_conv", 2 * latent)),
            post_quant_conv: config.use_post_quant_conv.then(|| one_by_one("post_quant_conv", latent)),
            decoder: Decoder::new(&root.sub("decoder"), &config),
            parameters: BTreeMap::new(),
            device: Device::Cpu,
            kind: Kind::Float,
            slicing: false,
            tiling: None,
            config,
        }
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// All tensors by diffusers name; the layers hold shallow clones.
    pub fn parameters(&self) -> &BTreeMap<String, Tensor> {
        &self.parameters
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The weights' number type.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What the U-Net's latents are multiplied by, against this autoencoder's own.
    pub fn scaling_factor(&self) -> f64 {
        self.config.scaling_factor
    }

    /// With slicing (where `on`): batches are encoded and decoded one picture at a time, in the memory of one.
    pub fn with_slicing(self, on: bool) -> Self {
        Self { slicing: on, ..self }
    }

    /// With tiling: pictures larger than a tile are encoded and decoded tile by tile, in the memory of one tile.
    pub fn with_tiling(self, tiling: Option<Tiling>) -> Self {
        Self { tiling, ..self }
    }

    /// Mean and log-variance (clamped to [-30, 20]) of the latents' Gaussian, each `[B, latent_channels, h, w]`,
    /// before the scaling factor. `images` `[B, 3, H, W]` in [-1, 1].
    ///
    /// Errors: [`Error::Argument`] if the shape does not fit.
    pub fn encode(&self, images: &Tensor) -> Result<(Tensor, Tensor)> {
        check("images", images, self.config.in_channels, self.config.scale_factor())?;
        let moments = self.in_slices(images, |images| match &self.tiling {
            Some(tiling) if tiling.cuts_images(images) => tiling.encode(images, |tile| self.moments(tile)),
            _ => self.moments(images),
        });
        let parts = moments.chunk(2, 1);
        Ok((parts[0].contiguous(), parts[1].clamp(-30.0, 20.0)))
    }

    /// Images `[B, 3, H, W]`, about [-1, 1] but not clamped, from unscaled latents `[B, latent_channels, h, w]`.
    ///
    /// Errors: [`Error::Argument`] if the shape does not fit.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        check("latents", latents, self.config.latent_channels, 1)?;
        Ok(self.in_slices(latents, |latents| match &self.tiling {
            Some(tiling) if tiling.cuts_latents(latents) => tiling.decode(latents, |tile| self.images(tile)),
            _ => self.images(latents),
        }))
    }

    fn in_slices(&self, x: &Tensor, pass: impl Fn(&Tensor) -> Tensor) -> Tensor {
        if !self.slicing || x.size()[0] == 1 {
            return pass(x);
        }
        Tensor::cat(&x.split(1, 0).iter().map(pass).collect::<Vec<_>>(), 0)
    }

    fn moments(&self, images: &Tensor) -> Tensor {
        let moments = self.encoder.forward(&images.to_device(self.device).to_kind(self.kind));
        match &self.quant_conv {
            Some(conv) => conv.forward(&moments),
            None => moments,
        }
    }

    fn images(&self, latents: &Tensor) -> Tensor {
        let latents = latents.to_device(self.device).to_kind(self.kind);
        self.decoder.forward(&match &self.post_quant_conv {
            Some(conv) => conv.forward(&latents),
            None => latents,
        })
    }

    /// As [`Self::decode`], from latents as the U-Net sees them (divided by the scaling factor here).
    pub fn decode_latents(&self, scaled: &Tensor) -> Result<Tensor> {
        check("latents", scaled, self.config.latent_channels, 1)?;
        self.decode(&(scaled / self.config.scaling_factor))
    }
}

fn check(what: &str, x: &Tensor, channels: i64, least: i64) -> Result<()> {
    match x.size()[..] {
        [batch, c, h, w] if batch > 0 && c == channels && h >= least && w >= least => Ok(()),
        _ => Err(Error::Argument {
            what: what.into(),
            expected: format!("shape [B, {channels}, H, W] with H and W at least {least}"),
            found: format!("shape {:?}", x.size()),
        }),
    }
}

/// Renames the attention tensors of files written before diffusers 0.17 (`query`, `key`, `value`, `proj_attn`, or
/// 1×1 convolutions in place of linear layers) to today's names and shapes; others are as they were.
///
/// Errors: a file that has a tensor in both spellings.
pub fn modern_names(file: WeightFile) -> Result<WeightFile> {
    const OLD: [(&str, &str); 4] =
        [(".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")];
    if !file.names().any(|name| name.ends_with(".query.weight")) {
        return Ok(file);
    }
    let rename = |name: &str, shape: &[i64]| {
        if !name.contains(".mid_block.attentions.") {
            return vec![(name.to_owned(), Part::Whole)];
        }
        let name = OLD.iter().fold(name.to_owned(), |name, (old, new)| name.replace(old, new));
        let linear = name.contains(".to_") && name.ends_with(".weight");
        let part = match *shape {
            [outputs, inputs, 1, 1] if linear => Part::Shaped(vec![outputs, inputs]),
            _ => Part::Whole,
        };
        vec![(name, part)]
    };
    Ok(file.rearranged(rename)?)
}
