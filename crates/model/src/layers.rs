//! The layers that all networks here are made of: thin, each holding shallow clones of its parameters.
//!
//! Where no gradient is recorded, fresh intermediate results are overwritten in place.

use std::borrow::Borrow;
use std::cell::Cell;

use seedpo_tensor::product::{linear, reshaped};
use seedpo_tensor::{Init, ParamPath};
use tch::{Device, Kind, Tensor};

use crate::adapter::{Adapter, Delta};

/// PyTorch's default bound for weights and biases: `1 / sqrt(fan_in)`.
pub(crate) fn default_init(fan_in: i64) -> Init {
    Init::Uniform(1.0 / (fan_in as f64).sqrt())
}

/// A nonlinearity, by the name that config files use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`; also written `swish`.
    Silu,
    /// `x * Phi(x)`, exact (not the tanh approximation).
    Gelu,
    /// `x * sigmoid(1.702 x)`, OpenAI CLIP's approximation of GELU.
    QuickGelu,
    /// `x * tanh(softplus(x))`.
    Mish,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// The activation of this name (`silu`, `swish`, `gelu`, `quick_gelu`, `mish`, `relu`), or `None`.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "silu" | "swish" => Self::Silu,
            "gelu" => Self::Gelu,
            "quick_gelu" => Self::QuickGelu,
            "mish" => Self::Mish,
            "relu" => Self::Relu,
            _ => return None,
        })
    }

    /// The name that config files use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::Gelu => "gelu",
            Self::QuickGelu => "quick_gelu",
            Self::Mish => "mish",
            Self::Relu => "relu",
        }
    }

    /// Applied element by element; `x` is consumed and, where no gradient is recorded, overwritten.
    pub(crate) fn apply(self, mut x: Tensor) -> Tensor {
        let in_place = !x.requires_grad();
        match self {
            Self::Silu if in_place => x.silu_(),
            Self::Silu => x.silu(),
            Self::Gelu if in_place => x.gelu_("none"),
            Self::Gelu => x.gelu("none"),
            Self::QuickGelu => (&x * 1.702).sigmoid() * x,
            Self::Mish => x.mish(),
            Self::Relu => x.relu(),
        }
    }
}

/// `y + residual`, in place where no gradient is recorded.
pub(crate) fn add(mut y: Tensor, residual: &Tensor) -> Tensor {
    if y.requires_grad() || residual.requires_grad() || y.kind() != residual.kind() {
        y + residual
    } else {
        y.g_add_(residual)
    }
}

/// A weight as a layer uses it.
pub(crate) enum InKind<'t> {
    /// As it is stored.
    Stored(&'t Tensor),
    /// In the input's number type.
    Cast(Tensor),
}

impl std::ops::Deref for InKind<'_> {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        match self {
            Self::Stored(tensor) => tensor,
            Self::Cast(tensor) => tensor,
        }
    }
}

impl Borrow<Tensor> for InKind<'_> {
    fn borrow(&self) -> &Tensor {
        self
    }
}

/// `weight` in the number type of `x`: f32 weights of a network that computes in bf16 are cast where they are used, within
/// the graph, so that their gradients are f32 (mixed precision). Weights of the input's type are used as they are.
pub(crate) fn in_kind_of<'t>(x: &Tensor, weight: &'t Tensor) -> InKind<'t> {
    let kind = x.kind();
    if weight.kind() == kind { InKind::Stored(weight) } else { InKind::Cast(weight.to_kind(kind)) }
}

/// `y = W x + b` over the last axis.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    pub fn new(p: &ParamPath<'_>, inputs: i64, outputs: i64, bias: bool) -> Self {
        Self::with_init(p, inputs, outputs, bias, default_init(inputs), default_init(inputs))
    }

    pub fn with_init(p: &ParamPath<'_>, inputs: i64, outputs: i64, bias: bool, w: Init, b: Init) -> Self {
        let weight = p.get("weight", &[outputs, inputs], w);
        Self { weight, bias: bias.then(|| p.get("bias", &[outputs], b)) }
    }

    /// The weights' number type.
    pub fn kind(&self) -> Kind {
        self.weight.kind()
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        adapted(x, &self.weight, self.bias.as_ref(), None)
    }

    /// As [`Linear::forward`] with the adapter's change to the layer at `path`.
    pub fn forward_adapted(&self, x: &Tensor, path: &str, adapter: Option<&Adapter>) -> Tensor {
        adapted(x, &self.weight, self.bias.as_ref(), adapter.and_then(|a| a.delta(path)))
    }
}

/// `x Wᵀ + b` over the last axis with a change to W, `[out, in]`.
///
/// The low-rank part runs in f32 and the sum is cast back to the base's kind, as peft does.
fn adapted(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, delta: Option<&Delta>) -> Tensor {
    match delta {
        None => linear(x, &in_kind_of(x, weight), bias.map(|bias| in_kind_of(x, bias)).as_deref()),
        Some(Delta::Weight(weight)) => linear(x, &matrix(weight), bias),
        Some(Delta::LowRank { a, b, scale }) => low_rank(x, weight, bias, [&matrix(a), &matrix(b)], *scale),
    }
}

/// The matrix that a 1×1 convolution's weight is; a matrix as it is.
fn matrix(weight: &Tensor) -> Tensor {
    if weight.dim() == 2 { weight.shallow_clone() } else { weight.flatten(1, -1) }
}

fn low_rank(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, [a, b]: [&Tensor; 2], scale: f64) -> Tensor {
    let mut shape = x.size();
    let rows = x.reshape([-1, shape.pop().unwrap_or(1)]);
    // A strided input takes another kernel: the one that runs without adapter, so that a fresh adapter changes no bit.
    let mut y = match x.is_contiguous() {
        true => linear(&rows, weight, bias),
        false => reshaped(x.linear(weight, bias), &[-1, weight.size()[0]]),
    };
    let low = rows.to_kind(a.kind()).mm(&a.tr()) * scale;
    let y = if y.kind() == b.kind() {
        // `y` is fresh and no view, so that autograd copies nothing to change it in place.
        y.addmm_(&low, &b.tr())
    } else {
        (low.mm(&b.tr()) + &y).to_kind(y.kind())
    };
    shape.push(y.size()[1]);
    y.view(shape.as_slice())
}

/// A 2-D convolution with a square kernel and a bias.
#[derive(Debug)]
pub(crate) struct Conv2d {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: i64,
}

impl Conv2d {
    pub fn new(p: &ParamPath<'_>, inputs: i64, outputs: i64, kernel: i64, stride: i64, padding: i64) -> Self {
        let init = default_init(inputs * kernel * kernel);
        let weight = p.get("weight", &[outputs, inputs, kernel, kernel], init);
        Self { weight, bias: p.get("bias", &[outputs], init), stride, padding }
    }

    /// Kernel `kernel`, stride 1, size kept.
    pub fn same(p: &ParamPath<'_>, inputs: i64, outputs: i64, kernel: i64) -> Self {
        Self::new(p, inputs, outputs, kernel, 1, (kernel - 1) / 2)
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (weight, bias) = (in_kind_of(x, &self.weight), in_kind_of(x, &self.bias));
        x.conv2d(&weight, Some(bias), [self.stride; 2], [self.padding; 2], [1, 1], 1)
    }

    /// A 1×1 convolution over the last axis of `x` `[.., C]`, a matrix product, with the adapter's change to the layer
    /// at `path`.
    pub fn forward_channels(&self, x: &Tensor, path: &str, adapter: Option<&Adapter>) -> Tensor {
        adapted(x, &matrix(&self.weight), Some(&self.bias), adapter.and_then(|a| a.delta(path)))
    }
}

/// Group normalisation over `[B, C, h, w]` with scale and shift.
#[derive(Debug)]
pub(crate) struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: i64,
    eps: f64,
}

impl GroupNorm {
    pub fn new(p: &ParamPath<'_>, groups: i64, channels: i64, eps: f64) -> Self {
        let weight = p.get("weight", &[channels], Init::Ones);
        Self { weight, bias: p.get("bias", &[channels], Init::Zeros), groups, eps }
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.group_norm(self.groups, Some(in_kind_of(x, &self.weight)), Some(in_kind_of(x, &self.bias)), self.eps, true)
    }
}

/// Layer normalisation over the last axis with scale and shift.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    size: i64,
    eps: f64,
}

impl LayerNorm {
    pub fn new(p: &ParamPath<'_>, size: i64, eps: f64) -> Self {
        let weight = p.get("weight", &[size], Init::Ones);
        Self { weight, bias: p.get("bias", &[size], Init::Zeros), size, eps }
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm([self.size], Some(in_kind_of(x, &self.weight)), Some(in_kind_of(x, &self.bias)), self.eps, true)
    }
}

thread_local! {
    static PLAIN_ATTENTION: Cell<bool> = const { Cell::new(false) };
}

/// Runs `body` with attention in its plain form (two matrix products) instead of the fused kernel, on this thread.
///
/// For training whole networks in bf16 on CPU: there the fused kernel's backward pass is 5 to 7 times slower (libtorch
/// 2.11, short sequences). Results differ by rounding.
pub fn with_plain_attention<T>(body: impl FnOnce() -> T) -> T {
    let before = PLAIN_ATTENTION.replace(true);
    let result = body();
    PLAIN_ATTENTION.set(before);
    result
}

/// Softmax attention of `q` `[B, N, C]` over `k`, `v` `[B, M, C]` with `heads` heads.
///
/// Through libtorch's fused kernel, but on CPU in bf16 as matrix products, two to three times faster there (forward and
/// backward): scores and probabilities are then rounded to bf16, as q and k are anyway.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: i64, causal: bool) -> Tensor {
    let width = q.size()[2];
    let split = |x: &Tensor| {
        let (batch, length, width) = (x.size()[0], x.size()[1], x.size()[2]);
        x.view([batch, length, heads, width / heads]).transpose(1, 2)
    };
    let parts = [split(q), split(k), split(v)];
    let products = q.kind() == Kind::BFloat16 && q.device() == Device::Cpu && !causal;
    let out = if PLAIN_ATTENTION.get() || (products && q.size()[1] * k.size()[1] <= ONE_PRODUCT) {
        plain_attention(&parts, causal)
    } else if products {
        attention_by_heads(&parts)
    } else {
        let [q, k, v] = &parts;
        Tensor::scaled_dot_product_attention::<&Tensor>(q, k, v, None, 0.0, causal, None, false)
    };
    debug_assert_eq!(out.size()[3] * heads, width);
    out.transpose(1, 2).reshape(q.size().as_slice())
}

/// Up to this many scores a head, one batched product for all heads is as fast as one for each.
const ONE_PRODUCT: i64 = 256 * 256;
/// Scores computed at once, about what fits in the cache (4 MiB in bf16).
const SCORES_AT_ONCE: i64 = 1 << 21;

fn scale(q: &Tensor) -> f64 {
    1.0 / (q.size().last().copied().unwrap_or(1) as f64).sqrt()
}

fn plain_attention([q, k, v]: &[Tensor; 3], causal: bool) -> Tensor {
    let scores = (q * scale(q)).matmul(&k.transpose(-2, -1));
    let scores = if causal { &scores + later_keys(&scores) } else { scores };
    scores.softmax(-1, q.kind()).matmul(v)
}

/// Head by head and, in each, some rows of the scores at a time, so that they stay in the cache.
fn attention_by_heads([q, k, v]: &[Tensor; 3]) -> Tensor {
    let rows = (SCORES_AT_ONCE / k.size()[2]).max(1);
    let q = q * scale(q);
    let per_head = |x: &Tensor| x.unbind(0).iter().flat_map(|x| x.unbind(0)).collect::<Vec<_>>();
    let one = |((q, k), v): ((&Tensor, &Tensor), &Tensor)| {
        let keys = k.transpose(0, 1);
        let part = |q: &Tensor| q.mm(&keys).softmax(-1, q.kind()).mm(v);
        let parts: Vec<Tensor> = q.split(rows, 0).iter().map(part).collect();
        Tensor::cat(&parts, 0)
    };
    let (queries, keys, values) = (per_head(&q), per_head(k), per_head(v));
    let heads: Vec<Tensor> = queries.iter().zip(&keys).zip(&values).map(one).collect();
    Tensor::stack(&heads, 0).view(q.size().as_slice())
}

/// What a causal mask adds to `scores` `[.., N, M]`: minus infinity where a key comes after its query, else 0.
fn later_keys(scores: &Tensor) -> Tensor {
    let shape = scores.size();
    Tensor::full(&shape[shape.len() - 2..], f64::NEG_INFINITY, (scores.kind(), scores.device())).triu(1)
}

/// Stride-2 3×3 convolution; padding 0 pads right and bottom by one, as diffusers does.
#[derive(Debug)]
pub(crate) struct Downsample {
    conv: Conv2d,
}

impl Downsample {
    pub fn new(p: &ParamPath<'_>, channels: i64, padding: i64) -> Self {
        Self { conv: Conv2d::new(&p.sub("conv"), channels, channels, 3, 2, padding) }
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        match self.conv.padding {
            0 => self.conv.forward(&x.constant_pad_nd([0, 1, 0, 1])),
            _ => self.conv.forward(x),
        }
    }
}

/// Nearest-neighbour enlargement followed by a 3×3 convolution.
#[derive(Debug)]
pub(crate) struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    pub fn new(p: &ParamPath<'_>, channels: i64) -> Self {
        Self { conv: Conv2d::same(&p.sub("conv"), channels, channels, 3) }
    }

    /// To `size` (height, width), or to twice the size where `None`.
    pub fn forward(&self, x: &Tensor, size: Option<(i64, i64)>) -> Tensor {
        let (_, _, height, width) = x.size4().unwrap_or_default();
        let (height, width) = size.unwrap_or((2 * height, 2 * width));
        self.conv.forward(&x.upsample_nearest2d([height, width], None, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_attention_equals_the_fused_kernel() {
        let draw = |purpose, length| seedpo_tensor::NoiseKey::new(1, purpose).normal(&[2, length, 24]);
        let (q, k, v) = (draw("q", 7), draw("k", 7), draw("v", 7));
        for causal in [false, true] {
            let fused = attention(&q, &k, &v, 3, causal);
            let plain = with_plain_attention(|| attention(&q, &k, &v, 3, causal));
            // f32 sums of at most 24 terms of size 1.
            assert!((fused - plain).abs().max().double_value(&[]) < 1e-5, "causal {causal}");
        }
    }
}
