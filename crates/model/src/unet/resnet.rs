//! The residual block shared by U-Net and VAE (`ResnetBlock2D`).

use seedpo_tensor::ParamPath;
use tch::Tensor;

use crate::layers::{Activation, Conv2d, GroupNorm, Linear, add};

/// What all residual blocks of one network have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResnetOptions {
    pub time_embed_dim: Option<i64>,
    pub groups: i64,
    pub eps: f64,
    pub activation: Activation,
    /// `resnet_time_scale_shift = "scale_shift"`: the time embedding scales and shifts the second norm's output.
    pub scale_shift: bool,
    pub output_scale_factor: f64,
}

/// norm, activation, conv, time embedding, norm, activation, conv, shortcut.
#[derive(Debug)]
pub(crate) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    options: ResnetOptions,
}

impl ResnetBlock {
    pub fn new(p: &ParamPath<'_>, inputs: i64, outputs: i64, options: ResnetOptions) -> Self {
        let width = if options.scale_shift { 2 * outputs } else { outputs };
        Self {
            norm1: GroupNorm::new(&p.sub("norm1"), options.groups, inputs, options.eps),
            conv1: Conv2d::same(&p.sub("conv1"), inputs, outputs, 3),
            time_emb_proj: options.time_embed_dim.map(|d| Linear::new(&p.sub("time_emb_proj"), d, width, true)),
            norm2: GroupNorm::new(&p.sub("norm2"), options.groups, outputs, options.eps),
            conv2: Conv2d::same(&p.sub("conv2"), outputs, outputs, 3),
            conv_shortcut: (inputs != outputs).then(|| Conv2d::same(&p.sub("conv_shortcut"), inputs, outputs, 1)),
            options,
        }
    }

    /// `x` `[B, C, h, w]`; `time` `[B, time_embed_dim]`, the time embedding after its activation.
    pub fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Tensor {
        let act = self.options.activation;
        let mut h = self.conv1.forward(&self.norm1.forward_activated(x, act));
        let time = self.time_emb_proj.as_ref().zip(time).map(|(proj, t)| proj.forward(t).unsqueeze(-1).unsqueeze(-1));
        let h = match time {
            None => self.norm2.forward_activated(&h, act),
            Some(time) if self.options.scale_shift => {
                let parts = time.chunk(2, 1);
                act.apply(self.norm2.forward(&h) * (&parts[0] + 1) + &parts[1])
            }
            // A convolution does not save its output, so the sum may overwrite it under autograd too.
            Some(time) => self.norm2.forward_activated(&h.g_add_(&time), act),
        };
        let h = self.conv2.forward(&h);
        let sum = match &self.conv_shortcut {
            Some(conv) => add(h, &conv.forward(x)),
            None => add(h, x),
        };
        if self.options.output_scale_factor == 1.0 { sum } else { sum / self.options.output_scale_factor }
    }
}
