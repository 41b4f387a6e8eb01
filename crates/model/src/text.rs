//! CLIP's text encoders (`CLIPTextModel` and `CLIPTextModelWithProjection` of transformers 5).

use std::collections::BTreeMap;

use seedpo_tensor::{Init, ParamPath, Params};
use tch::{Device, Kind, Tensor};

use crate::clip::{EncoderLayer, EncoderShape};
use crate::config::TextConfig;
use crate::layers::{LayerNorm, Linear};
use crate::{Error, Result};

/// What the text encoder makes of a batch of token ids.
#[derive(Debug)]
pub struct TextOutput {
    /// The last layer's hidden states after the final layer norm, `[B, L, D]`: what the U-Net attends to.
    pub prompt_embeds: Tensor,
    /// What goes into the last layer, `[B, L, D]` (`hidden_states[-2]`, without a layer norm): SDXL's U-Net attends to
    /// this.
    pub penultimate: Tensor,
    /// The state of `prompt_embeds` at the end-of-text token, `[B, D]`.
    pub pooled: Tensor,
    /// The projection of `pooled`, `[B, P]`, where the configuration has one.
    pub text_embeds: Option<Tensor>,
}

/// CLIP's causal text transformer. Equal to transformers' `CLIPTextModel`, or `CLIPTextModelWithProjection` by
/// configuration.
#[derive(Debug)]
pub struct ClipTextModel {
    config: TextConfig,
    parameters: BTreeMap<String, Tensor>,
    device: Device,
    token_embedding: Tensor,
    position_embedding: Tensor,
    layers: Vec<EncoderLayer>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
}

impl ClipTextModel {
    /// Builds the network from `params`, whose names may all begin with `text_model.` (as on disk) or not (as in
    /// transformers 5's modules); fresh ones do.
    ///
    /// Errors: [`Error::Config`] where the configuration contradicts itself; [`Error::Tensor`] naming every
    /// missing, surplus and misshaped tensor (`position_ids` buffers of older versions are let pass).
    pub fn new(config: TextConfig, params: Params) -> Result<Self> {
        config.validate()?;
        let bare = params.root().has("embeddings.token_embedding.weight");
        let root = if bare { params.root() } else { params.root().sub("text_model") };
        let mut network = Self::build(config, &root, &params.root());
        network.parameters = params.finish_ignoring(|name| name.ends_with("embeddings.position_ids"))?;
        Ok(network)
    }

    /// The shapes of all tensors by name, without making any. Errors: as [`Self::new`] for the configuration.
    pub fn parameter_shapes(config: &TextConfig) -> Result<BTreeMap<String, Vec<i64>>> {
        config.validate()?;
        let params = Params::shapes_only();
        Self::build(config.clone(), &params.root().sub("text_model"), &params.root());
        Ok(params.asked_shapes())
    }

    /// `root` is the transformer's place, `top` that of the projection.
    pub(crate) fn build(config: TextConfig, root: &ParamPath<'_>, top: &ParamPath<'_>) -> Self {
        let (width, normal) = (config.hidden_size, Init::Normal(0.02));
        let embedding = |name: &str, rows| root.sub("embeddings").sub(name).get("weight", &[rows, width], normal);
        let shape = EncoderShape {
            width,
            inner: config.intermediate_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            act: config.hidden_act,
            eps: config.layer_norm_eps,
        };
        let layer = |i: i64| EncoderLayer::new(&root.sub(format!("encoder.layers.{i}")), &shape);
        let token_embedding = embedding("token_embedding", config.vocab_size);
        let projection = || {
            let init = Init::Normal((width as f64).powf(-0.5));
            Linear::with_init(&top.sub("text_projection"), width, config.projection_dim, false, init, Init::Zeros)
        };
        Self {
            position_embedding: embedding("position_embedding", config.max_position_embeddings),
            layers: (0..config.num_hidden_layers).map(layer).collect(),
            final_layer_norm: LayerNorm::new(&root.sub("final_layer_norm"), width, config.layer_norm_eps),
            text_projection: config.with_projection.then(projection),
            parameters: BTreeMap::new(),
            device: token_embedding.device(),
            token_embedding,
            config,
        }
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// All tensors by name; the layers hold shallow clones.
    pub fn parameters(&self) -> &BTreeMap<String, Tensor> {
        &self.parameters
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The weights' number type.
    pub fn kind(&self) -> Kind {
        self.token_embedding.kind()
    }

    /// Frees the weights, where nothing is encoded any more: [`forward`](Self::forward) refuses from then on.
    pub fn release(&mut self) {
        let none = Tensor::empty([0, 0], (self.kind(), self.device));
        self.parameters.clear();
        self.layers.clear();
        self.text_projection = None;
        self.position_embedding = none.shallow_clone();
        self.token_embedding = none;
    }

    /// Encodes `input_ids`, i64 `[B, L]`, L at most `max_position_embeddings`.
    ///
    /// Errors: [`Error::Argument`] on a wrong shape, a sequence too long, an id outside the vocabulary, or released weights.
    pub fn forward(&self, input_ids: &Tensor) -> Result<TextOutput> {
        let length = self.check(input_ids)?;
        let input_ids = input_ids.to_device(self.device).to_kind(Kind::Int64);
        let positions = self.position_embedding.narrow(0, 0, length).unsqueeze(0);
        let mut x = Tensor::embedding(&self.token_embedding, &input_ids, -1, false, false) + positions;
        let mut penultimate = x.shallow_clone();
        for layer in &self.layers {
            penultimate = x;
            x = layer.forward(&penultimate, true);
        }
        let prompt_embeds = self.final_layer_norm.forward(&x);
        let pooled = self.pool(&prompt_embeds, &input_ids);
        let text_embeds = self.text_projection.as_ref().map(|projection| projection.forward(&pooled));
        Ok(TextOutput { prompt_embeds, penultimate, pooled, text_embeds })
    }

    /// The state at the first end-of-text token, or, where the config has the old slip `eos_token_id = 2`, at the
    /// largest id (which in CLIP's vocabulary is the same).
    fn pool(&self, hidden: &Tensor, input_ids: &Tensor) -> Tensor {
        let at = match self.config.eos_token_id {
            2 => input_ids.argmax(-1, true),
            eos => input_ids.eq(eos).to_kind(Kind::Int).argmax(-1, true),
        };
        let index = at.unsqueeze(-1).expand([-1, 1, self.config.hidden_size], false);
        hidden.gather(1, &index, false).squeeze_dim(1)
    }

    fn check(&self, input_ids: &Tensor) -> Result<i64> {
        let wrong = |expected: String, found: String| Error::Argument { what: "input_ids".into(), expected, found };
        let (longest, vocab) = (self.config.max_position_embeddings, self.config.vocab_size);
        if self.token_embedding.numel() == 0 {
            return Err(wrong("a text encoder with weights".into(), "one whose weights were released".into()));
        }
        let length = match input_ids.size()[..] {
            [batch, length] if batch > 0 && (1..=longest).contains(&length) => length,
            _ => return Err(wrong(format!("shape [B, 1 to {longest}]"), format!("shape {:?}", input_ids.size()))),
        };
        let (low, high) = (input_ids.min().int64_value(&[]), input_ids.max().int64_value(&[]));
        if low < 0 || high >= vocab {
            return Err(wrong(format!("token ids 0 to {}", vocab - 1), format!("ids {low} to {high}")));
        }
        Ok(length)
    }
}
