//! Encoder and decoder of the autoencoder.

use seedpo_tensor::ParamPath;
use tch::Tensor;

use crate::attention::attention;
use crate::config::VaeConfig;
use crate::layers::{Activation, Conv2d, Downsample, GroupNorm, Linear, Upsample, add};
use crate::unet::resnet::{ResnetBlock, ResnetOptions};

fn resnet_options(config: &VaeConfig) -> ResnetOptions {
    ResnetOptions {
        time_embed_dim: None,
        groups: config.norm_num_groups,
        eps: 1e-6,
        activation: config.act_fn,
        scale_shift: false,
        output_scale_factor: 1.0,
    }
}

/// One level's residual blocks at `resnets.0..count`.
fn resnets(p: &ParamPath<'_>, count: i64, inputs: i64, outputs: i64, config: &VaeConfig) -> Vec<ResnetBlock> {
    let options = resnet_options(config);
    let block = |i: i64| {
        ResnetBlock::new(&p.sub(format!("resnets.{i}")), if i == 0 { inputs } else { outputs }, outputs, options)
    };
    (0..count).map(block).collect()
}

fn run(blocks: &[ResnetBlock], x: Tensor) -> Tensor {
    blocks.iter().fold(x, |x, block| block.forward(&x, None))
}

/// Self-attention over all pixels, one head.
#[derive(Debug)]
struct PixelAttention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl PixelAttention {
    fn new(p: &ParamPath<'_>, channels: i64, groups: i64) -> Self {
        let linear = |name: &str| Linear::new(&p.sub(name), channels, channels, true);
        Self {
            group_norm: GroupNorm::new(&p.sub("group_norm"), groups, channels, 1e-6),
            to_q: linear("to_q"),
            to_k: linear("to_k"),
            to_v: linear("to_v"),
            to_out: linear("to_out.0"),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let h = self.group_norm.forward(x).flatten(2, 3).transpose(1, 2);
        let (q, k, v) = (self.to_q.forward(&h), self.to_k.forward(&h), self.to_v.forward(&h));
        let h = self.to_out.forward(&attention(&q, &k, &v, 1, false));
        add(h.transpose(1, 2).reshape(x.size().as_slice()), x)
    }
}

#[derive(Debug)]
struct MidBlock {
    resnets: Vec<ResnetBlock>,
    attention: Option<PixelAttention>,
}

impl MidBlock {
    fn new(p: &ParamPath<'_>, channels: i64, config: &VaeConfig) -> Self {
        let attention = || PixelAttention::new(&p.sub("attentions.0"), channels, config.norm_num_groups);
        Self {
            resnets: resnets(p, 2, channels, channels, config),
            attention: config.mid_block_add_attention.then(attention),
        }
    }

    fn forward(&self, x: Tensor) -> Tensor {
        let x = run(&self.resnets[..1], x);
        let x = match &self.attention {
            Some(attention) => attention.forward(&x),
            None => x,
        };
        run(&self.resnets[1..], x)
    }
}

/// The last norm, SiLU and convolution of either half.
#[derive(Debug)]
struct Head {
    norm: GroupNorm,
    conv: Conv2d,
}

impl Head {
    fn new(p: &ParamPath<'_>, inputs: i64, outputs: i64, groups: i64) -> Self {
        Self {
            norm: GroupNorm::new(&p.sub("conv_norm_out"), groups, inputs, 1e-6),
            conv: Conv2d::same(&p.sub("conv_out"), inputs, outputs, 3),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.conv.forward(&Activation::Silu.apply(self.norm.forward(x)))
    }
}

/// Images `[B, 3, H, W]` to moments `[B, 2 * latent_channels, h, w]`.
#[derive(Debug)]
pub(super) struct Encoder {
    conv_in: Conv2d,
    levels: Vec<(Vec<ResnetBlock>, Option<Downsample>)>,
    mid_block: MidBlock,
    head: Head,
}

impl Encoder {
    pub fn new(p: &ParamPath<'_>, config: &VaeConfig) -> Self {
        let widths = &config.block_out_channels;
        let last = widths.len() - 1;
        let level = |i: usize| {
            let p = p.sub(format!("down_blocks.{i}"));
            let blocks = resnets(&p, config.layers_per_block, widths[i.saturating_sub(1)], widths[i], config);
            (blocks, (i < last).then(|| Downsample::new(&p.sub("downsamplers.0"), widths[i], 0)))
        };
        Self {
            conv_in: Conv2d::same(&p.sub("conv_in"), config.in_channels, widths[0], 3),
            levels: (0..=last).map(level).collect(),
            mid_block: MidBlock::new(&p.sub("mid_block"), widths[last], config),
            head: Head::new(p, widths[last], 2 * config.latent_channels, config.norm_num_groups),
        }
    }

    pub fn forward(&self, images: &Tensor) -> Tensor {
        let mut x = self.conv_in.forward(images);
        for (blocks, downsampler) in &self.levels {
            x = run(blocks, x);
            if let Some(downsampler) = downsampler {
                x = downsampler.forward(&x);
            }
        }
        self.head.forward(&self.mid_block.forward(x))
    }
}

/// Latents `[B, latent_channels, h, w]` to images `[B, 3, H, W]`.
#[derive(Debug)]
pub(super) struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    levels: Vec<(Vec<ResnetBlock>, Option<Upsample>)>,
    head: Head,
}

impl Decoder {
    pub fn new(p: &ParamPath<'_>, config: &VaeConfig) -> Self {
        let widths: Vec<i64> = config.block_out_channels.iter().rev().copied().collect();
        let last = widths.len() - 1;
        let level = |i: usize| {
            let p = p.sub(format!("up_blocks.{i}"));
            let blocks = resnets(&p, config.layers_per_block + 1, widths[i.saturating_sub(1)], widths[i], config);
            (blocks, (i < last).then(|| Upsample::new(&p.sub("upsamplers.0"), widths[i])))
        };
        Self {
            conv_in: Conv2d::same(&p.sub("conv_in"), config.latent_channels, widths[0], 3),
            mid_block: MidBlock::new(&p.sub("mid_block"), widths[0], config),
            levels: (0..=last).map(level).collect(),
            head: Head::new(p, widths[last], config.out_channels, config.norm_num_groups),
        }
    }

    pub fn forward(&self, latents: &Tensor) -> Tensor {
        let mut x = self.mid_block.forward(self.conv_in.forward(latents));
        for (blocks, upsampler) in &self.levels {
            x = run(blocks, x);
            if let Some(upsampler) = upsampler {
                x = upsampler.forward(&x, None);
            }
        }
        self.head.forward(&x)
    }
}
