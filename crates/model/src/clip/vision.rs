//! CLIP's vision tower (`CLIPVisionTransformer`), and SPO's conditioning of it on a diffusion timestep.

use seedpo_tensor::{Init, ParamPath};
use tch::{Kind, Tensor};

use super::{ClipConfig, EncoderLayer, EncoderShape};
use crate::layers::{LayerNorm, Linear};

/// From normalised pictures to one vector each.
#[derive(Debug)]
pub(super) struct VisionTower {
    class_embedding: Tensor,
    patch_embedding: Tensor,
    position_embedding: Tensor,
    pre_layer_norm: LayerNorm,
    layers: Vec<EncoderLayer>,
    post_layer_norm: LayerNorm,
    time: Option<TimeConditioning>,
    patch: i64,
}

impl VisionTower {
    /// `top` is the whole model's place: the timestep's embedding lies beside the tower.
    pub fn build(config: &ClipConfig, top: &ParamPath<'_>) -> Self {
        let (root, vision) = (top.sub("vision_model"), &config.vision);
        let (width, patch) = (vision.hidden_size, vision.patch_size);
        let embeddings = root.sub("embeddings");
        let shape = EncoderShape {
            width,
            inner: vision.intermediate_size,
            layers: vision.num_hidden_layers,
            heads: vision.num_attention_heads,
            act: vision.hidden_act,
            eps: vision.layer_norm_eps,
        };
        let normal = Init::Normal(0.02);
        let layer = |i: i64| EncoderLayer::new(&root.sub(format!("encoder.layers.{i}")), &shape);
        Self {
            class_embedding: embeddings.get("class_embedding", &[width], Init::Normal((width as f64).powf(-0.5))),
            patch_embedding: embeddings.get("patch_embedding.weight", &[width, 3, patch, patch], normal),
            position_embedding: embeddings.get("position_embedding.weight", &[vision.tokens(), width], normal),
            // transformers' spelling.
            pre_layer_norm: LayerNorm::new(&root.sub("pre_layrnorm"), width, vision.layer_norm_eps),
            layers: (0..vision.num_hidden_layers).map(layer).collect(),
            post_layer_norm: LayerNorm::new(&root.sub("post_layernorm"), width, vision.layer_norm_eps),
            time: config.time_conditioned.then(|| TimeConditioning::new(config, top)),
            patch,
        }
    }

    /// `pixels` `[B, 3, S, S]`; `timesteps` `[B]` where the tower is conditioned on them. The class token's state after
    /// the last norm, `[B, D]`.
    pub fn forward(&self, pixels: &Tensor, timesteps: Option<&Tensor>) -> Tensor {
        let patches = pixels.conv2d(&self.patch_embedding, None::<&Tensor>, [self.patch; 2], [0, 0], [1, 1], 1);
        let patches = patches.flatten(2, 3).transpose(1, 2);
        let batch = pixels.size()[0];
        let class = self.class_embedding.view([1, 1, -1]).expand([batch, 1, -1], false);
        let x = Tensor::cat(&[class, patches], 1) + self.position_embedding.unsqueeze(0);
        let mut x = self.pre_layer_norm.forward(&x);
        let time = self.time.as_ref().zip(timesteps).map(|(time, at)| (time, time.embed(at)));
        for (i, layer) in self.layers.iter().enumerate() {
            x = match &time {
                None => layer.forward(&x, false),
                Some((time, c)) => layer.forward_modulated(&x, &time.layer(i, c)),
            };
        }
        let pooled = self.post_layer_norm.forward(&x.select(1, 0));
        match &time {
            None => pooled,
            Some((time, c)) => time.last(&pooled, c),
        }
    }
}

/// Frequencies of the timestep's sinusoids, times two.
const SINUSOIDS: i64 = 256;

/// SPO's adaLN: from the timestep, a shift, a scale and a gate for each half of every layer, and a last shift and scale.
#[derive(Debug)]
struct TimeConditioning {
    linear_1: Linear,
    linear_2: Linear,
    layers: Vec<Linear>,
    last: Linear,
}

impl TimeConditioning {
    fn new(config: &ClipConfig, top: &ParamPath<'_>) -> Self {
        let width = config.vision.hidden_size;
        let vision = top.sub("vision_model");
        let modulation = |p: ParamPath<'_>, outputs: i64| {
            Linear::with_init(&p.sub("adaLN_modulation.1"), width, outputs * width, true, Init::Zeros, Init::Zeros)
        };
        let embedder = |name: &str, inputs: i64| {
            Linear::with_init(
                &top.sub("t_embedder.mlp").sub(name),
                inputs,
                width,
                true,
                Init::Normal(0.02),
                Init::Zeros,
            )
        };
        let layer = |i: i64| modulation(vision.sub(format!("encoder.layers.{i}")), 6);
        Self {
            linear_1: embedder("0", SINUSOIDS),
            linear_2: embedder("2", width),
            layers: (0..config.vision.num_hidden_layers).map(layer).collect(),
            last: modulation(vision.clone(), 2),
        }
    }

    /// SiLU of the timesteps' embedding, `[B, 1, D]`: all that the modulations read.
    fn embed(&self, timesteps: &Tensor) -> Tensor {
        let half = SINUSOIDS / 2;
        let exponent = Tensor::arange(half, (Kind::Float, timesteps.device())) * -(10000f64.ln());
        let angles = timesteps.to_kind(Kind::Float).unsqueeze(1) * (exponent / half as f64).exp().unsqueeze(0);
        let sinusoids = Tensor::cat(&[angles.cos(), angles.sin()], 1).to_kind(self.linear_1.kind());
        self.linear_2.forward(&self.linear_1.forward(&sinusoids).silu()).silu().unsqueeze(1)
    }

    fn layer(&self, index: usize, c: &Tensor) -> [[Tensor; 3]; 2] {
        let six = self.layers[index].forward(c);
        let width = six.size()[2] / 6;
        let part = |i: i64| six.narrow(2, i * width, width);
        [[part(0), part(1), part(2)], [part(3), part(4), part(5)]]
    }

    fn last(&self, pooled: &Tensor, c: &Tensor) -> Tensor {
        let two = self.last.forward(&c.squeeze_dim(1));
        let width = two.size()[1] / 2;
        pooled * (two.narrow(1, width, width) + 1.0) + two.narrow(1, 0, width)
    }
}
