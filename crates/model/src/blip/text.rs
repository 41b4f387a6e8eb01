//! BLIP's BERT with cross attention: post-norm layers without token types.

use seedpo_tensor::{Init, ParamPath};
use tch::{Kind, Tensor};

use super::BlipConfig;
use crate::Activation;
use crate::layers::{LayerNorm, Linear, add};

/// What masked positions get added to their scores.
const MASKED: f64 = -10_000.0;

#[derive(Debug)]
pub(super) struct TextTower {
    word_embeddings: Tensor,
    position_embeddings: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

impl TextTower {
    pub fn build(config: &BlipConfig, p: &ParamPath<'_>) -> Self {
        let (width, normal) = (config.hidden_size, Init::Normal(0.02));
        let embeddings = p.sub("embeddings");
        let layer = |i: i64| Layer::new(&p.sub(format!("encoder.layer.{i}")), config);
        Self {
            word_embeddings: embeddings.get("word_embeddings.weight", &[config.vocab_size, width], normal),
            position_embeddings: embeddings.get(
                "position_embeddings.weight",
                &[config.max_position_embeddings, width],
                normal,
            ),
            norm: LayerNorm::new(&embeddings.sub("LayerNorm"), width, config.layer_norm_eps),
            layers: (0..config.layers).map(layer).collect(),
        }
    }

    pub fn forward(&self, input_ids: &Tensor, mask: &Tensor, states: &Tensor) -> Tensor {
        let positions = self.position_embeddings.narrow(0, 0, input_ids.size()[1]).unsqueeze(0);
        let x = Tensor::embedding(&self.word_embeddings, input_ids, -1, false, false) + positions;
        let bias = (mask.to_kind(Kind::Float) * -1.0 + 1.0) * MASKED;
        let bias = bias.to_kind(x.kind()).unsqueeze(1).unsqueeze(1);
        self.layers.iter().fold(self.norm.forward(&x), |x, layer| layer.forward(&x, &bias, states))
    }
}

#[derive(Debug)]
struct Layer {
    attention: Attention,
    cross_attention: Attention,
    intermediate: Linear,
    output: Linear,
    norm: LayerNorm,
    act: Activation,
}

impl Layer {
    fn new(p: &ParamPath<'_>, config: &BlipConfig) -> Self {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        Self {
            attention: Attention::new(&p.sub("attention"), config, width),
            cross_attention: Attention::new(&p.sub("crossattention"), config, config.vision_width),
            intermediate: Linear::new(&p.sub("intermediate.dense"), width, inner, true),
            output: Linear::new(&p.sub("output.dense"), inner, width, true),
            norm: LayerNorm::new(&p.sub("output.LayerNorm"), width, config.layer_norm_eps),
            act: config.hidden_act,
        }
    }

    fn forward(&self, x: &Tensor, bias: &Tensor, states: &Tensor) -> Tensor {
        let x = self.attention.forward(x, x, Some(bias));
        let x = self.cross_attention.forward(&x, states, None);
        let h = self.act.apply(self.intermediate.forward(&x));
        self.norm.forward(&add(self.output.forward(&h), &x))
    }
}

/// Attention, projection, residual sum and norm (`BertAttention`).
#[derive(Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    dense: Linear,
    norm: LayerNorm,
    heads: i64,
}

impl Attention {
    /// Queries from the text, keys and values from states of width `from`.
    fn new(p: &ParamPath<'_>, config: &BlipConfig, from: i64) -> Self {
        let width = config.hidden_size;
        Self {
            query: Linear::new(&p.sub("self.query"), width, width, true),
            key: Linear::new(&p.sub("self.key"), from, width, true),
            value: Linear::new(&p.sub("self.value"), from, width, true),
            dense: Linear::new(&p.sub("output.dense"), width, width, true),
            norm: LayerNorm::new(&p.sub("output.LayerNorm"), width, config.layer_norm_eps),
            heads: config.heads,
        }
    }

    fn forward(&self, x: &Tensor, states: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let split = |x: Tensor| {
            let (batch, length, width) = (x.size()[0], x.size()[1], x.size()[2]);
            x.view([batch, length, self.heads, width / self.heads]).transpose(1, 2)
        };
        let (q, k, v) =
            (split(self.query.forward(x)), split(self.key.forward(states)), split(self.value.forward(states)));
        let out = Tensor::scaled_dot_product_attention(&q, &k, &v, bias, 0.0, false, None, false);
        let out = out.transpose(1, 2).reshape(x.size().as_slice());
        self.norm.forward(&add(self.dense.forward(&out), x))
    }
}
