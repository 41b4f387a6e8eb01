//! Attention, the transformer block and the image transformer (`Attention`, `BasicTransformerBlock`,
//! `Transformer2DModel`).

use seedpo_tensor::ParamPath;
use seedpo_tensor::gradient::{is_recorded, recomputed};
use tch::Tensor;

use super::Projection;
use crate::adapter::Adapter;
use crate::attention::attention;
use crate::layers::{Conv2d, GroupNorm, LayerNorm, Linear, add};

/// A linear layer, or a 1×1 convolution, which on tokens is the same thing.
#[derive(Debug)]
enum Layer {
    Linear(Linear),
    Conv(Conv2d),
}

/// A layer that an adapter may change.
#[derive(Debug)]
struct Adaptable {
    layer: Layer,
    path: String,
}

impl Adaptable {
    fn new(p: &ParamPath<'_>, inputs: i64, outputs: i64, bias: bool, list: &mut Vec<Projection>) -> Self {
        Self::listed(p, Layer::Linear(Linear::new(p, inputs, outputs, bias)), [inputs, outputs], list)
    }

    /// The projection into or out of a transformer: by config a 1×1 convolution, or a linear layer (SD 2.x, SDXL).
    fn projection(p: &ParamPath<'_>, width: i64, linear: bool, list: &mut Vec<Projection>) -> Self {
        let layer = match linear {
            true => Layer::Linear(Linear::new(p, width, width, true)),
            false => Layer::Conv(Conv2d::same(p, width, width, 1)),
        };
        Self::listed(p, layer, [width; 2], list)
    }

    fn listed(
        p: &ParamPath<'_>,
        layer: Layer,
        [in_features, out_features]: [i64; 2],
        list: &mut Vec<Projection>,
    ) -> Self {
        let (path, conv) = (p.name().to_owned(), matches!(layer, Layer::Conv(_)));
        list.push(Projection { path: path.clone(), in_features, out_features, conv });
        Self { layer, path }
    }

    /// `x` `[B, N, C]`.
    fn forward(&self, x: &Tensor, adapter: Option<&Adapter>) -> Tensor {
        match &self.layer {
            Layer::Linear(linear) => linear.forward_adapted(x, &self.path, adapter),
            Layer::Conv(conv) => conv.forward_channels(x, &self.path, adapter),
        }
    }
}

/// Multi-head attention without masks; self-attention where no context is given.
#[derive(Debug)]
pub(super) struct Attention {
    to_q: Adaptable,
    to_k: Adaptable,
    to_v: Adaptable,
    to_out: Adaptable,
    heads: i64,
}

impl Attention {
    fn new(p: &ParamPath<'_>, width: i64, context: i64, heads: i64, list: &mut Vec<Projection>) -> Self {
        Self {
            to_q: Adaptable::new(&p.sub("to_q"), width, width, false, list),
            to_k: Adaptable::new(&p.sub("to_k"), context, width, false, list),
            to_v: Adaptable::new(&p.sub("to_v"), context, width, false, list),
            to_out: Adaptable::new(&p.sub("to_out.0"), width, width, true, list),
            heads,
        }
    }

    fn forward(&self, x: &Tensor, context: &Tensor, adapter: Option<&Adapter>) -> Tensor {
        let q = self.to_q.forward(x, adapter);
        let k = self.to_k.forward(context, adapter);
        let v = self.to_v.forward(context, adapter);
        self.to_out.forward(&attention(&q, &k, &v, self.heads, false), adapter)
    }
}

/// Gated GELU feed-forward, width × 4.
#[derive(Debug)]
struct FeedForward {
    proj: Adaptable,
    out: Adaptable,
}

impl FeedForward {
    fn new(p: &ParamPath<'_>, width: i64, list: &mut Vec<Projection>) -> Self {
        Self {
            proj: Adaptable::new(&p.sub("net.0.proj"), width, 8 * width, true, list),
            out: Adaptable::new(&p.sub("net.2"), 4 * width, width, true, list),
        }
    }

    fn forward(&self, x: &Tensor, adapter: Option<&Adapter>) -> Tensor {
        let projected = self.proj.forward(x, adapter);
        let gated = match is_recorded(&projected) {
            // Kept for the backward pass: the projection alone, not its halves and the activation besides.
            true => recomputed(&[&projected], |x| gated(&x[0])),
            false => gated(&projected),
        };
        self.out.forward(&gated, adapter)
    }
}

/// The first half of the channels times GELU of the second.
fn gated(x: &Tensor) -> Tensor {
    let parts = x.chunk(2, -1);
    &parts[0] * parts[1].gelu("none")
}

/// Widths and options of a transformer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TransformerOptions {
    pub heads: i64,
    pub layers: i64,
    pub cross_attention_dim: i64,
    pub groups: i64,
    pub linear_projection: bool,
    pub only_cross_attention: bool,
}

#[derive(Debug)]
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
    only_cross_attention: bool,
}

impl TransformerBlock {
    fn new(p: &ParamPath<'_>, width: i64, o: TransformerOptions, list: &mut Vec<Projection>) -> Self {
        let first_context = if o.only_cross_attention { o.cross_attention_dim } else { width };
        Self {
            norm1: LayerNorm::new(&p.sub("norm1"), width, 1e-5),
            attn1: Attention::new(&p.sub("attn1"), width, first_context, o.heads, list),
            norm2: LayerNorm::new(&p.sub("norm2"), width, 1e-5),
            attn2: Attention::new(&p.sub("attn2"), width, o.cross_attention_dim, o.heads, list),
            norm3: LayerNorm::new(&p.sub("norm3"), width, 1e-5),
            ff: FeedForward::new(&p.sub("ff"), width, list),
            only_cross_attention: o.only_cross_attention,
        }
    }

    fn forward(&self, x: &Tensor, context: &Tensor, adapter: Option<&Adapter>) -> Tensor {
        let h = self.norm1.forward(x);
        let first_context = if self.only_cross_attention { context } else { &h };
        let x = add(self.attn1.forward(&h, first_context, adapter), x);
        let x = add(self.attn2.forward(&self.norm2.forward(&x), context, adapter), &x);
        add(self.ff.forward(&self.norm3.forward(&x), adapter), &x)
    }
}

/// `[B, C, h, w]` → tokens → transformer blocks → `[B, C, h, w]`, plus the input.
#[derive(Debug)]
pub(super) struct Transformer {
    norm: GroupNorm,
    proj_in: Adaptable,
    blocks: Vec<TransformerBlock>,
    proj_out: Adaptable,
}

impl Transformer {
    pub fn new(p: &ParamPath<'_>, channels: i64, o: TransformerOptions, list: &mut Vec<Projection>) -> Self {
        let block = |i: i64| p.sub(format!("transformer_blocks.{i}"));
        Self {
            norm: GroupNorm::new(&p.sub("norm"), o.groups, channels, 1e-6),
            proj_in: Adaptable::projection(&p.sub("proj_in"), channels, o.linear_projection, list),
            blocks: (0..o.layers).map(|i| TransformerBlock::new(&block(i), channels, o, list)).collect(),
            proj_out: Adaptable::projection(&p.sub("proj_out"), channels, o.linear_projection, list),
        }
    }

    /// `x` `[B, C, h, w]`, `context` `[B, L, cross_attention_dim]`.
    pub fn forward(&self, x: &Tensor, context: &Tensor, adapter: Option<&Adapter>) -> Tensor {
        let (batch, channels, height, width) = x.size4().unwrap_or_default();
        let tokens = self.norm.forward(x).permute([0, 2, 3, 1]).reshape([batch, height * width, channels]);
        let mut h = self.proj_in.forward(&tokens, adapter);
        for block in &self.blocks {
            h = block.forward(&h, context, adapter);
        }
        let h = self.proj_out.forward(&h, adapter).view([batch, height, width, channels]).permute([0, 3, 1, 2]);
        add(h.contiguous(), x)
    }
}
