//! The layers that all networks here are made of: thin, each holding shallow clones of its parameters.
//!
//! Where no gradient is recorded, fresh intermediate results are overwritten in place.

use std::borrow::Borrow;

use seedpo_tensor::convolution::conv2d;
use seedpo_tensor::gradient::{is_recorded, recomputed, with_backward};
use seedpo_tensor::product::{linear, reshaped};
use seedpo_tensor::{Init, ParamPath};
use tch::{Kind, Tensor};

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
    shape.pop();
    shape.push(weight.size()[0]);
    let recorded = [x, a, b].iter().any(|tensor| is_recorded(tensor));
    let trained = weight.requires_grad() || bias.is_some_and(Tensor::requires_grad);
    let y = match recorded && weight.kind() != b.kind() && !trained {
        true => low_rank_recorded([x, a, b], weight, bias, scale),
        false => low_rank_rows([x, a, b], weight, bias, scale).0,
    };
    y.view(shape.as_slice())
}

/// `x` `[.., C]` as a matrix.
fn rows(x: &Tensor) -> Tensor {
    x.reshape([-1, x.size().last().copied().unwrap_or(1)])
}

/// The product as a matrix, and `s · x Aᵀ`, which the backward pass reads.
fn low_rank_rows([x, a, b]: [&Tensor; 3], weight: &Tensor, bias: Option<&Tensor>, scale: f64) -> (Tensor, Tensor) {
    let rows = rows(x);
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
    (y, low)
}

/// The same for a 16-bit base: its backward pass keeps the input as it is, not its f32 copy, and shares it with the other
/// layers that read it.
fn low_rank_recorded([x, a, b]: [&Tensor; 3], weight: &Tensor, bias: Option<&Tensor>, scale: f64) -> Tensor {
    let kept = [x.detach(), a.detach(), b.detach(), weight.shallow_clone()];
    let (y, low) = tch::no_grad(|| low_rank_rows([&kept[0], &kept[1], &kept[2]], weight, bias, scale));
    let input_needed = x.requires_grad();
    let backward = move |gradient: &Tensor| {
        let [x, a, b, weight] = &kept;
        let wide = gradient.to_kind(b.kind());
        let of_low = wide.mm(b) * scale;
        let of_x = input_needed.then(|| (gradient.mm(weight) + of_low.mm(a).to_kind(x.kind())).view_as(x));
        vec![of_x, Some(of_low.tr().mm(&rows(x).to_kind(a.kind()))), Some(wide.tr().mm(&low))]
    };
    with_backward(&[x, a, b], || y, backward)
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
        conv2d(x, &in_kind_of(x, &self.weight), &in_kind_of(x, &self.bias), self.stride, self.padding)
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

    /// Followed by an activation; where the weights are frozen, the backward pass keeps the input alone.
    pub fn forward_activated(&self, x: &Tensor, activation: Activation) -> Tensor {
        if !is_recorded(x) || self.weight.requires_grad() || self.bias.requires_grad() {
            return activation.apply(self.forward(x));
        }
        let norm = Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone(), ..*self };
        recomputed(&[x], move |x| activation.apply(norm.forward(&x[0])))
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

    fn draw(name: &'static str, shape: &[i64]) -> Tensor {
        seedpo_tensor::NoiseKey::new(1, name).normal(shape)
    }

    /// The recorded low-rank product is the one that libtorch's graph computes, bit for bit forward, and its gradients
    /// those of that graph.
    #[test]
    fn the_low_rank_product_of_a_16_bit_base_has_its_graphs_gradients() {
        let (weight, bias) =
            (draw("w", &[24, 16]).to_kind(Kind::BFloat16), draw("bias", &[24]).to_kind(Kind::BFloat16));
        let leaves = || {
            let [x, a, b] = [draw("x", &[10, 16]).to_kind(Kind::BFloat16), draw("a", &[4, 16]), draw("b", &[24, 4])];
            [x, a, b].map(|leaf| leaf.set_requires_grad(true))
        };
        let run = |recorded: bool| {
            let [x, a, b] = leaves();
            let y = match recorded {
                true => low_rank(&x, &weight, Some(&bias), [&a, &b], 0.5),
                false => low_rank_rows([&x, &a, &b], &weight, Some(&bias), 0.5).0,
            };
            let loss = (&y * draw("probe", &[10, 24])).sum(Kind::Float);
            let mut all = Tensor::run_backward(&[loss], &[&x, &a, &b], false, false);
            all.push(y.detach());
            all
        };
        let (ours, theirs) = (run(true), run(false));
        assert_eq!(ours[3], theirs[3]);
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!(ours.kind(), theirs.kind());
            let apart = (ours - theirs).norm().double_value(&[]) / theirs.norm().double_value(&[]);
            // The same products; the input's gradient is rounded to bf16 before or after its two parts are added.
            assert!(apart < 0.004, "{apart}");
        }
    }

    #[test]
    fn a_recomputed_norm_has_its_graphs_gradient() {
        let norm = |trained| GroupNorm {
            weight: draw("weight", &[8]).set_requires_grad(trained),
            bias: draw("bias", &[8]).set_requires_grad(trained),
            groups: 2,
            eps: 1e-5,
        };
        let run = |trained| {
            let x = draw("x", &[2, 8, 3, 3]).set_requires_grad(true);
            let y = norm(trained).forward_activated(&x, Activation::Silu);
            let loss = (&y * draw("probe", &[2, 8, 3, 3])).sum(Kind::Float);
            [Tensor::run_backward(&[loss], &[&x], false, false).remove(0), y.detach()]
        };
        assert_eq!(run(false), run(true));
    }
}
