//! CLIP: a text and a vision tower that meet in one space (transformers' `CLIPModel`), and SPO's step-aware form of it.

mod config;
mod encoder;
mod layout;
mod vision;

use std::collections::BTreeMap;

use seedpo_tensor::{Init, ParamPath, Params, WeightFile};
use tch::{Device, Kind, Tensor};

use crate::layers::Linear;
use crate::{Activation, ClipTextModel, Error, Result};

pub use config::{ClipConfig, VisionConfig};
pub(crate) use encoder::{EncoderLayer, EncoderShape};
pub(crate) use layout::open_clip_name;
pub use layout::{ClipLayout, arranged, layout_of};
use vision::VisionTower;

/// ln(1 / 0.07): where CLIP's training starts its logit scale.
const LOGIT_SCALE: f64 = 2.659_260_036_932_778;

/// A CLIP whose parameters may be trained: `forward` methods record gradients where the parameters ask for them.
#[derive(Debug)]
pub struct ClipModel {
    config: ClipConfig,
    parameters: BTreeMap<String, Tensor>,
    text: ClipTextModel,
    vision: VisionTower,
    visual_projection: Linear,
    logit_scale: Tensor,
}

impl ClipModel {
    /// Builds the network from `params` under transformers' names, or fresh.
    ///
    /// Errors: [`Error::Config`] where the configuration contradicts itself; [`Error::Tensor`] naming every missing,
    /// surplus and misshaped tensor.
    pub fn new(config: ClipConfig, params: Params) -> Result<Self> {
        config.validate(std::path::Path::new("CLIP config"))?;
        let mut network = Self::build(config, &params.root());
        network.parameters = params.finish_ignoring(|name| name.ends_with("embeddings.position_ids"))?;
        Ok(network)
    }

    /// Reads a file in any layout that [`layout_of`] knows. `config`: from a file beside it; where `None` the shapes
    /// tell, with `act` as the nonlinearity. Errors: as [`arranged`] and [`Self::new`].
    pub fn load(
        file: &WeightFile,
        config: Option<ClipConfig>,
        act: Activation,
        device: Device,
        kind: Kind,
    ) -> Result<Self> {
        let (file, config) = arranged(file, config, act)?;
        Self::new(config, Params::from_file(file, device, kind))
    }

    /// The shapes of all tensors by name, without making any. Errors: as [`Self::new`] for the configuration.
    pub fn parameter_shapes(config: &ClipConfig) -> Result<BTreeMap<String, Vec<i64>>> {
        config.validate(std::path::Path::new("CLIP config"))?;
        let params = Params::shapes_only();
        Self::build(config.clone(), &params.root());
        Ok(params.asked_shapes())
    }

    fn build(config: ClipConfig, root: &ParamPath<'_>) -> Self {
        let (width, projected) = (config.vision.hidden_size, config.projection_dim);
        let init = Init::Normal((width as f64).powf(-0.5));
        Self {
            text: ClipTextModel::build(config.text.clone(), &root.sub("text_model"), root),
            vision: VisionTower::build(&config, root),
            visual_projection: Linear::with_init(
                &root.sub("visual_projection"),
                width,
                projected,
                false,
                init,
                Init::Zeros,
            ),
            logit_scale: root.get("logit_scale", &[], Init::Constant(LOGIT_SCALE)),
            parameters: BTreeMap::new(),
            config,
        }
    }

    /// What a timestep's conditioning of a trained CLIP starts from, by name: modulations that change nothing (weights 0,
    /// gates 1) and an embedding of the timestep drawn from N(0, 0.02²); f32 on the CPU.
    ///
    /// Together with [`Self::parameters`] they build a model with `time_conditioned` set. Source: SPO's trainer.
    pub fn fresh_time_conditioning(config: &ClipConfig, seed: u64) -> Result<BTreeMap<String, Tensor>> {
        let conditioned = ClipConfig { time_conditioned: true, ..config.clone() };
        let params = Params::init(seed, Device::Cpu);
        let _built = VisionTower::build(&conditioned, &params.root());
        let added = |name: &str| name.contains("adaLN_modulation") || name.starts_with("t_embedder");
        let mut tensors = params.finish()?;
        tensors.retain(|name, _| added(name));
        let width = config.vision.hidden_size;
        let _no_grad = tch::no_grad_guard();
        for (name, tensor) in &tensors {
            if name.contains("encoder.layers.") && name.ends_with("bias") {
                let _ = tensor.narrow(0, 2 * width, width).fill_(1.0);
                let _ = tensor.narrow(0, 5 * width, width).fill_(1.0);
            }
        }
        Ok(tensors)
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// All tensors by name; the layers hold shallow clones.
    pub fn parameters(&self) -> &BTreeMap<String, Tensor> {
        &self.parameters
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.logit_scale.device()
    }

    /// The weights' number type.
    pub fn kind(&self) -> Kind {
        self.logit_scale.kind()
    }

    /// The logarithm of what cosines are multiplied by, a scalar parameter.
    pub fn logit_scale(&self) -> &Tensor {
        &self.logit_scale
    }

    /// Projected text embeddings `[B, P]` of `input_ids` i64 `[B, L]`, not normalised.
    ///
    /// Errors: [`Error::Argument`] on a wrong shape, a sequence too long or an id outside the vocabulary.
    pub fn text_features(&self, input_ids: &Tensor) -> Result<Tensor> {
        let embeds = self.text.forward(input_ids)?.text_embeds;
        embeds.ok_or_else(|| Error::Config {
            path: "CLIP config".into(),
            key: "text_config".into(),
            expected: "a text tower with a projection".into(),
            found: "none".into(),
        })
    }

    /// Projected image embeddings `[B, P]` of normalised pictures `[B, 3, S, S]`, not normalised; `timesteps` `[B]`, 0 to
    /// 999, if and only if the model is [time-conditioned](ClipConfig::time_conditioned).
    ///
    /// Errors: [`Error::Argument`] on a wrong shape, or timesteps where there should be none, or none where some.
    pub fn image_features(&self, pixels: &Tensor, timesteps: Option<&Tensor>) -> Result<Tensor> {
        let wrong =
            |what: &str, expected: String, found: String| Error::Argument { what: what.into(), expected, found };
        let side = self.config.vision.image_size;
        let batch = match pixels.size()[..] {
            [batch, 3, height, width] if height == side && width == side => batch,
            _ => return Err(wrong("pixels", format!("shape [B, 3, {side}, {side}]"), format!("{:?}", pixels.size()))),
        };
        let expected = if self.config.time_conditioned { Some(vec![batch]) } else { None };
        let found = timesteps.map(Tensor::size);
        if expected != found {
            return Err(wrong("timesteps", format!("shape {expected:?}"), format!("{found:?}")));
        }
        let pixels = pixels.to_device(self.device()).to_kind(self.kind());
        let timesteps = timesteps.map(|t| t.to_device(self.device()));
        Ok(self.visual_projection.forward(&self.vision.forward(&pixels, timesteps.as_ref())))
    }
}
