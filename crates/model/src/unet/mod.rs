//! The conditional U-Net of Stable Diffusion 1.x, 2.x and XL (`UNet2DConditionModel` of diffusers 0.38).

pub(crate) mod attention;
mod recorded;
pub(crate) mod resnet;
mod stages;
mod time;
mod whole;

use std::collections::BTreeMap;

use seedpo_tensor::{ParamPath, Params};
use tch::{Device, Kind, Tensor};

use crate::adapter::Adapter;
use crate::config::UNetConfig;
use crate::{Error, Result};
pub use recorded::Recording;
use stages::{Inputs, Stage, walk};
pub use time::AddedConditioning;
use time::TimeEmbedding;

/// A layer of a transformer that an adapter may change: an attention projection, a feed-forward layer, `proj_in` or
/// `proj_out`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projection {
    /// The diffusers module path, e.g. `mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0`.
    pub path: String,
    /// Width of the input.
    pub in_features: i64,
    /// Width of the output.
    pub out_features: i64,
    /// Whether it is a 1×1 convolution: its weight, A and B have two more axes of size 1.
    pub conv: bool,
}

impl Projection {
    /// The shape of a weight of it from `inputs` to `outputs`.
    pub fn shape(&self, outputs: i64, inputs: i64) -> Vec<i64> {
        let ones: &[i64] = if self.conv { &[1, 1] } else { &[] };
        [&[outputs, inputs], ones].concat()
    }
}

/// The noise-predicting network. Equal to diffusers' `UNet2DConditionModel` for every configuration that
/// [`UNetConfig`] accepts.
#[derive(Debug)]
pub struct UNet2DConditionModel {
    config: UNetConfig,
    parameters: BTreeMap<String, Tensor>,
    projections: Vec<Projection>,
    device: Device,
    /// What it computes in, where that is not the weights' number type.
    compute: Option<Kind>,
    time_embedding: TimeEmbedding,
    stages: Vec<Stage>,
}

impl UNet2DConditionModel {
    /// Builds the network from `params`: a file, a map of tensors, or fresh values ([`Params::init`]).
    ///
    /// Errors: [`Error::Config`] where the configuration contradicts itself; [`Error::Tensor`] naming every
    /// missing, surplus and misshaped tensor.
    pub fn new(config: UNetConfig, params: Params) -> Result<Self> {
        config.validate()?;
        let mut network = Self::build(config, &params.root(), params.device());
        network.parameters = params.finish()?;
        Ok(network)
    }

    /// The shapes of all tensors by name, without making any. Errors: as [`Self::new`] for the configuration.
    pub fn parameter_shapes(config: &UNetConfig) -> Result<BTreeMap<String, Vec<i64>>> {
        config.validate()?;
        let params = Params::shapes_only();
        Self::build(config.clone(), &params.root(), Device::Cpu);
        Ok(params.asked_shapes())
    }

    fn build(config: UNetConfig, root: &ParamPath<'_>, device: Device) -> Self {
        let time_embedding = TimeEmbedding::new(&config, root, device);
        let (stages, projections) = stages::build(&config, root);
        Self { time_embedding, stages, projections, parameters: BTreeMap::new(), device, compute: None, config }
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// All tensors by diffusers name. The layers hold shallow clones: what is set on these (`requires_grad`,
    /// values in place) holds for the network.
    pub fn parameters(&self) -> &BTreeMap<String, Tensor> {
        &self.parameters
    }

    /// Every layer that an adapter may change while the network runs, in the order of construction (down, mid, up).
    pub fn projections(&self) -> &[Projection] {
        &self.projections
    }

    /// The weight of the layer at `path`, e.g. one of [`Self::projections`]. Errors: [`Error::Argument`] if none.
    pub fn weight(&self, path: &str) -> Result<&Tensor> {
        self.parameters.get(&format!("{path}.weight")).ok_or_else(|| Error::Argument {
            what: format!("U-Net layer `{path}`"),
            expected: "a layer of this U-Net".into(),
            found: "no such layer".into(),
        })
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The number type it computes in: the weights', or that of [`Self::computing_in`].
    pub fn kind(&self) -> Kind {
        self.compute.unwrap_or_else(|| self.parameters.get("conv_in.weight").map_or(Kind::Float, Tensor::kind))
    }

    /// The network's raw output (epsilon or v, by the schedule's `prediction_type`), `[B, out_channels, h, w]` in
    /// the weights' kind.
    ///
    /// `latents` `[B, in_channels, h, w]`, any h and w; `timesteps` i64, or fractional f32,
    /// `[B]` (or `[1]`, for all); `prompt_embeds` `[B, L, cross_attention_dim]`; `added` where the configuration has
    /// `text_time` (SDXL), else `None`. All are moved to the weights' device and kind; the sinusoidal embeddings are
    /// computed in f32 first.
    ///
    /// Errors: [`Error::Argument`] naming the input whose shape does not fit.
    pub fn forward(
        &self,
        latents: &Tensor,
        timesteps: &Tensor,
        prompt_embeds: &Tensor,
        added: Option<&AddedConditioning>,
        adapter: Option<&Adapter>,
    ) -> Result<Tensor> {
        let (x, time, prompt_embeds) = self.enter(latents, timesteps, prompt_embeds, added)?;
        let inputs = Inputs { time: &time, prompt_embeds: &prompt_embeds, adapter };
        Ok(walk(&self.stages, x, |stage, x, skip, size| stage.forward(&x, skip.as_ref(), size, inputs)))
    }

    /// Checks the inputs; returns latents, activated time embedding and prompt embeddings as the stages read them.
    fn enter(
        &self,
        latents: &Tensor,
        timesteps: &Tensor,
        prompt_embeds: &Tensor,
        added: Option<&AddedConditioning>,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        self.check_inputs(latents, timesteps, prompt_embeds)?;
        let (kind, batch) = (self.kind(), latents.size()[0]);
        self.time_embedding.check_added(added, batch)?;
        let time = self.time_embedding.forward(timesteps, added, batch, kind);
        let latents = latents.to_device(self.device).to_kind(kind);
        let latents = if self.config.center_input_sample { latents * 2.0 - 1.0 } else { latents };
        Ok((latents, time, prompt_embeds.to_device(self.device).to_kind(kind)))
    }

    fn check_inputs(&self, latents: &Tensor, timesteps: &Tensor, prompt_embeds: &Tensor) -> Result<()> {
        let wrong = |what: &str, expected: String, found: &Tensor| {
            Err(Error::Argument { what: what.into(), expected, found: format!("shape {:?}", found.size()) })
        };
        let (c, d) = (self.config.in_channels, &self.config.cross_attention_dim);
        let batch = match latents.size()[..] {
            [batch, channels, h, w] if channels == c && h > 0 && w > 0 => batch,
            _ => return wrong("latents", format!("shape [B, {c}, h, w]"), latents),
        };
        if !matches!(timesteps.size()[..], [n] if n == batch || n == 1) {
            return wrong("timesteps", format!("shape [{batch}]"), timesteps);
        }
        match prompt_embeds.size()[..] {
            [n, length, width] if n == batch && length > 0 && d.iter().all(|d| *d == width) => Ok(()),
            _ => wrong("prompt_embeds", format!("shape [{batch}, L, {}]", d[0]), prompt_embeds),
        }
    }
}
