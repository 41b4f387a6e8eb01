//! The time embedding, and what SDXL adds to it.

use seedpo_tensor::ParamPath;
use tch::{Device, Kind, Tensor};

use crate::config::{TextTimeConfig, UNetConfig};
use crate::layers::{Activation, Linear};
use crate::{Error, Result};

/// What SDXL's U-Net is conditioned on besides the prompt embeddings (`added_cond_kwargs` of diffusers).
#[derive(Debug)]
pub struct AddedConditioning {
    /// Pooled prompt embeddings, `[B, P]` (diffusers: `text_embeds`).
    pub pooled: Tensor,
    /// f32 `[B, 6]`, in pixels: original height and width, top and left of the crop, target height and width.
    pub time_ids: Tensor,
}

impl AddedConditioning {
    /// For pictures of `size` (height, width; pixels) that were neither scaled nor cropped; `pooled` `[B, P]`.
    pub fn uncropped(pooled: &Tensor, (height, width): (i64, i64)) -> Self {
        let ids = [height, width, 0, 0, height, width].map(|id| id as f32);
        let rows = pooled.size().first().copied().unwrap_or(0);
        let time_ids = Tensor::from_slice(&ids).to_device(pooled.device()).repeat([rows, 1]);
        Self { pooled: pooled.shallow_clone(), time_ids }
    }

    pub(crate) fn map(&self, change: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self { pooled: change(&self.pooled)?, time_ids: change(&self.time_ids)? })
    }
}

/// Sines and cosines of numbers at geometrically spaced frequencies, in f32 (`Timesteps`).
#[derive(Debug)]
struct Sinusoid {
    /// Angular frequencies, f32 `[width / 2]`.
    frequencies: Tensor,
    width: i64,
    flip_sin_to_cos: bool,
}

impl Sinusoid {
    /// Frequencies `exp(-ln(10000) * i / (half - shift))`, in f32 as diffusers computes them.
    fn new(width: i64, config: &UNetConfig, device: Device) -> Self {
        let half = width / 2;
        let exponent = Tensor::arange(half, (Kind::Float, Device::Cpu)) * -(10000f64.ln());
        let frequencies = (exponent / (half as f64 - config.freq_shift)).exp().to_device(device);
        Self { frequencies, width, flip_sin_to_cos: config.flip_sin_to_cos }
    }

    /// `values` f32 `[N]` → `[N, width]`.
    fn forward(&self, values: &Tensor) -> Tensor {
        let angles = values.unsqueeze(1) * self.frequencies.unsqueeze(0);
        let (sin, cos) = (angles.sin(), angles.cos());
        let embedding = Tensor::cat(&if self.flip_sin_to_cos { [cos, sin] } else { [sin, cos] }, 1);
        match self.width % 2 {
            0 => embedding,
            _ => embedding.constant_pad_nd([0, 1]),
        }
    }
}

/// Two linear layers with a nonlinearity between (`TimestepEmbedding`).
#[derive(Debug)]
struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
    activation: Activation,
}

impl TimestepEmbedding {
    fn new(p: &ParamPath<'_>, inputs: i64, outputs: i64, activation: Activation) -> Self {
        Self {
            linear_1: Linear::new(&p.sub("linear_1"), inputs, outputs, true),
            linear_2: Linear::new(&p.sub("linear_2"), outputs, outputs, true),
            activation,
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.linear_2.forward(&self.activation.apply(self.linear_1.forward(x)))
    }
}

/// From timesteps, pooled embeddings and time ids to the vector that every residual block reads.
#[derive(Debug)]
pub(super) struct TimeEmbedding {
    sinusoid: Sinusoid,
    embedding: TimestepEmbedding,
    added: Option<Added>,
    activation: Activation,
}

/// `addition_embed_type = "text_time"`.
#[derive(Debug)]
struct Added {
    config: TextTimeConfig,
    sinusoid: Sinusoid,
    embedding: TimestepEmbedding,
}

impl TimeEmbedding {
    pub fn new(config: &UNetConfig, root: &ParamPath<'_>, device: Device) -> Self {
        let (width, outputs) = (config.block_out_channels[0], config.time_embed_dim());
        let added = |c: TextTimeConfig| Added {
            config: c,
            sinusoid: Sinusoid::new(c.addition_time_embed_dim, config, device),
            // Always SiLU, whatever act_fn says: diffusers gives this one no activation.
            embedding: TimestepEmbedding::new(
                &root.sub("add_embedding"),
                c.projection_class_embeddings_input_dim,
                outputs,
                Activation::Silu,
            ),
        };
        Self {
            sinusoid: Sinusoid::new(width, config, device),
            embedding: TimestepEmbedding::new(&root.sub("time_embedding"), width, outputs, config.act_fn),
            added: config.text_time.map(added),
            activation: config.act_fn,
        }
    }

    /// `[batch, time_embed_dim]` in `kind`, after the activation: every residual block starts with it; once is enough.
    ///
    /// The inputs must have been [checked](Self::check_added).
    pub fn forward(&self, timesteps: &Tensor, added: Option<&AddedConditioning>, batch: i64, kind: Kind) -> Tensor {
        let device = self.sinusoid.frequencies.device();
        let timesteps = timesteps.to_device(device).to_kind(Kind::Float).expand([batch], false);
        let mut time = self.embedding.forward(&self.sinusoid.forward(&timesteps).to_kind(kind));
        if let Some((layer, added)) = self.added.as_ref().zip(added) {
            let ids = added.time_ids.to_device(device).to_kind(Kind::Float).flatten(0, -1);
            let ids = layer.sinusoid.forward(&ids).reshape([batch, -1]).to_kind(kind);
            let pooled = added.pooled.to_device(device).to_kind(kind);
            // A linear layer does not save its output, so the sum may overwrite it under autograd too.
            time += layer.embedding.forward(&Tensor::cat(&[pooled, ids], -1));
        }
        self.activation.apply(time)
    }

    /// Errors: [`Error::Argument`] naming what is missing, surplus or misshaped for `batch` latents.
    pub fn check_added(&self, added: Option<&AddedConditioning>, batch: i64) -> Result<()> {
        let wrong =
            |what: &str, expected: String, found: String| Err(Error::Argument { what: what.into(), expected, found });
        let (config, added) = match (&self.added, added) {
            (None, None) => return Ok(()),
            (Some(layer), Some(added)) => (layer.config, added),
            (Some(layer), None) => {
                let (pooled, ids) = (layer.config.pooled_width(), TextTimeConfig::TIME_IDS);
                let expected =
                    format!("pooled [{batch}, {pooled}] and time_ids [{batch}, {ids}] (this is an SDXL U-Net)");
                return wrong("added conditioning", expected, "none".into());
            }
            (None, Some(_)) => {
                let expected = "none (this U-Net has no addition_embed_type)".into();
                return wrong("added conditioning", expected, "pooled and time_ids".into());
            }
        };
        let inputs =
            [("pooled", &added.pooled, config.pooled_width()), ("time_ids", &added.time_ids, TextTimeConfig::TIME_IDS)];
        for (what, tensor, width) in inputs {
            if tensor.size() != [batch, width] {
                return wrong(what, format!("shape [{batch}, {width}]"), format!("shape {:?}", tensor.size()));
            }
        }
        Ok(())
    }
}
