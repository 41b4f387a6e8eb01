//! The transformer layer that both CLIP towers are stacks of.

use seedpo_tensor::{Init, ParamPath};
use tch::Tensor;

use crate::Activation;
use crate::attention::attention;
use crate::layers::{LayerNorm, Linear, add};

/// The sizes of a stack of layers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EncoderShape {
    pub width: i64,
    pub inner: i64,
    pub layers: i64,
    pub heads: i64,
    pub act: Activation,
    pub eps: f64,
}

/// One pre-norm transformer layer (`CLIPEncoderLayer`).
#[derive(Debug)]
pub(crate) struct EncoderLayer {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: i64,
    act: Activation,
}

impl EncoderLayer {
    pub fn new(p: &ParamPath<'_>, shape: &EncoderShape) -> Self {
        let (width, inner) = (shape.width, shape.inner);
        // transformers' initial distributions: narrower by the number of residual sums.
        let residual = (2.0 * shape.layers as f64).powf(-0.5);
        let narrow = Init::Normal((width as f64).powf(-0.5) * residual);
        let linear = |name: &str, i, o, init| Linear::with_init(&p.sub(name), i, o, true, init, Init::Zeros);
        Self {
            layer_norm1: LayerNorm::new(&p.sub("layer_norm1"), width, shape.eps),
            q_proj: linear("self_attn.q_proj", width, width, narrow),
            k_proj: linear("self_attn.k_proj", width, width, narrow),
            v_proj: linear("self_attn.v_proj", width, width, narrow),
            out_proj: linear("self_attn.out_proj", width, width, Init::Normal((width as f64).powf(-0.5))),
            layer_norm2: LayerNorm::new(&p.sub("layer_norm2"), width, shape.eps),
            fc1: linear("mlp.fc1", width, inner, Init::Normal((2.0 * width as f64).powf(-0.5))),
            fc2: linear("mlp.fc2", inner, width, narrow),
            heads: shape.heads,
            act: shape.act,
        }
    }

    /// `x` `[B, L, D]`; `causal`: no token attends to later ones.
    pub fn forward(&self, x: &Tensor, causal: bool) -> Tensor {
        let x = add(self.attend(&self.layer_norm1.forward(x), causal), x);
        add(self.transform(&self.layer_norm2.forward(&x)), &x)
    }

    /// As [`Self::forward`] without a mask, each half shifted, scaled and gated: `[shift, scale, gate]` of `[B, 1, D]`.
    pub fn forward_modulated(&self, x: &Tensor, [attention, mlp]: &[[Tensor; 3]; 2]) -> Tensor {
        let modulate = |h: Tensor, [shift, scale, _]: &[Tensor; 3]| h * (scale + 1.0) + shift;
        let h = modulate(self.layer_norm1.forward(x), attention);
        let x = &attention[2] * self.attend(&h, false) + x;
        let h = modulate(self.layer_norm2.forward(&x), mlp);
        &mlp[2] * self.transform(&h) + x
    }

    fn attend(&self, h: &Tensor, causal: bool) -> Tensor {
        let (q, k, v) = (self.q_proj.forward(h), self.k_proj.forward(h), self.v_proj.forward(h));
        self.out_proj.forward(&attention(&q, &k, &v, self.heads, causal))
    }

    fn transform(&self, h: &Tensor) -> Tensor {
        self.fc2.forward(&self.act.apply(self.fc1.forward(h)))
    }
}
