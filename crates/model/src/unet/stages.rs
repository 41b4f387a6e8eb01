//! The U-Net as a list of stages: what runs one after the other, from the first convolution to the last.
//!
//! Down blocks, mid block and up blocks differ only in which stages they have and in whether a stage leaves its result
//! for the way up (`leaves_skip`) or takes one left on the way down (`takes_skip`).

use std::ops::Range;

use seedpo_tensor::ParamPath;
use tch::Tensor;

use super::Projection;
use super::attention::{Transformer, TransformerOptions};
use super::resnet::{ResnetBlock, ResnetOptions};
use crate::adapter::Adapter;
use crate::config::{MidBlockType, UNetConfig};
use crate::layers::{Activation, Conv2d, Downsample, GroupNorm, Upsample};

/// What the stages read besides the image: the activated time embedding, the prompt embeddings, the adapter.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub time: &'a Tensor,
    pub prompt_embeds: &'a Tensor,
    pub adapter: Option<&'a Adapter>,
}

#[derive(Debug)]
enum Body {
    Conv(Conv2d),
    Layer(Box<ResnetBlock>, Option<Transformer>),
    Down(Downsample),
    Up(Upsample),
    Head(GroupNorm, Activation, Conv2d),
}

/// One stage; its result is the next one's input.
#[derive(Debug)]
pub(super) struct Stage {
    body: Body,
    pub takes_skip: bool,
    pub leaves_skip: bool,
    /// Which of the network's projections lie in it.
    pub projections: Range<usize>,
}

impl Stage {
    /// `x` `[B, C, h, w]`, joined with `skip` where the stage takes one; `size` is that of the next skip, to which an
    /// upsampling stage enlarges, so that odd sizes work.
    pub fn forward(&self, x: &Tensor, skip: Option<&Tensor>, size: Option<(i64, i64)>, inputs: Inputs<'_>) -> Tensor {
        let joined = skip.map(|skip| Tensor::cat(&[x, skip], 1));
        let x = joined.as_ref().unwrap_or(x);
        match &self.body {
            Body::Conv(conv) => conv.forward(x),
            Body::Layer(resnet, attention) => {
                let h = resnet.forward(x, Some(inputs.time));
                match attention {
                    Some(attention) => attention.forward(&h, inputs.prompt_embeds, inputs.adapter),
                    None => h,
                }
            }
            Body::Down(downsample) => downsample.forward(x),
            Body::Up(upsample) => upsample.forward(x, size),
            Body::Head(norm, activation, conv) => conv.forward(&norm.forward_activated(x, *activation)),
        }
    }
}

/// Runs `step` on every stage in turn, with the stage's input, the skip that it takes and the size of the next one.
pub(super) fn walk(
    stages: &[Stage],
    x: Tensor,
    mut step: impl FnMut(&Stage, Tensor, Option<Tensor>, Option<(i64, i64)>) -> Tensor,
) -> Tensor {
    let mut skips: Vec<Tensor> = Vec::new();
    stages.iter().fold(x, |x, stage| {
        let skip = if stage.takes_skip { skips.pop() } else { None };
        let size = skips.last().map(|s| (s.size()[2], s.size()[3]));
        let x = step(stage, x, skip, size);
        if stage.leaves_skip {
            skips.push(x.shallow_clone());
        }
        x
    })
}

/// All stages of a configuration, and the projections in them, in the order of construction (down, mid, up).
pub(super) fn build(config: &UNetConfig, root: &ParamPath<'_>) -> (Vec<Stage>, Vec<Projection>) {
    let channels = config.block_out_channels[0];
    let mut builder = Builder { config, resnet: config.resnet_options(), stages: Vec::new(), projections: Vec::new() };
    let conv_in = Conv2d::same(&root.sub("conv_in"), config.in_channels, channels, config.conv_in_kernel);
    builder.push(Body::Conv(conv_in), false, true);
    for level in 0..config.block_out_channels.len() {
        builder.down(root, level);
    }
    builder.mid(root);
    for level in 0..config.block_out_channels.len() {
        builder.up(root, level);
    }
    let norm = GroupNorm::new(&root.sub("conv_norm_out"), builder.resnet.groups, channels, builder.resnet.eps);
    let conv = Conv2d::same(&root.sub("conv_out"), channels, config.out_channels, config.conv_out_kernel);
    builder.push(Body::Head(norm, config.act_fn, conv), false, false);
    (builder.stages, builder.projections)
}

struct Builder<'a> {
    config: &'a UNetConfig,
    resnet: ResnetOptions,
    stages: Vec<Stage>,
    projections: Vec<Projection>,
}

impl Builder<'_> {
    fn push(&mut self, body: Body, takes_skip: bool, leaves_skip: bool) {
        let begin = self.stages.last().map_or(0, |stage| stage.projections.end);
        self.stages.push(Stage { body, takes_skip, leaves_skip, projections: begin..self.projections.len() });
    }

    /// A residual block at `resnets.{i}`, and the transformer at `attentions.{i}` where there is one.
    fn layer(
        &mut self,
        p: &ParamPath<'_>,
        i: i64,
        [inputs, outputs]: [i64; 2],
        transformer: Option<TransformerOptions>,
    ) -> Body {
        let resnet = ResnetBlock::new(&p.sub(format!("resnets.{i}")), inputs, outputs, self.resnet);
        let path = p.sub(format!("attentions.{i}"));
        let attention = transformer.map(|o| Transformer::new(&path, outputs, o, &mut self.projections));
        Body::Layer(Box::new(resnet), attention)
    }

    /// `CrossAttnDownBlock2D` or, without transformers, `DownBlock2D`.
    fn down(&mut self, root: &ParamPath<'_>, level: usize) {
        let config = self.config;
        let widths = &config.block_out_channels;
        let p = root.sub(format!("down_blocks.{level}"));
        let transformer = config.down_block_types[level].has_attention().then(|| config.transformer_at(level));
        let (below, outputs) = (widths[level.saturating_sub(1)], widths[level]);
        for i in 0..config.layers_at(level) {
            let body = self.layer(&p, i, [if i == 0 { below } else { outputs }, outputs], transformer);
            self.push(body, false, true);
        }
        if level + 1 < widths.len() {
            let down = Downsample::new(&p.sub("downsamplers.0"), outputs, config.downsample_padding);
            self.push(Body::Down(down), false, true);
        }
    }

    /// `UNetMidBlock2DCrossAttn`, or `UNetMidBlock2D` without its transformer: one residual block, as diffusers builds it.
    fn mid(&mut self, root: &ParamPath<'_>) {
        let config = self.config;
        let last = config.block_out_channels.len() - 1;
        let width = config.block_out_channels[last];
        let Some(kind) = config.mid_block_type else { return };
        let p = root.sub("mid_block");
        let usual = self.resnet;
        self.resnet = ResnetOptions { output_scale_factor: config.mid_block_scale_factor, ..usual };
        let options = TransformerOptions { only_cross_attention: false, ..config.transformer_at(last) };
        let crossed = kind == MidBlockType::UNetMidBlock2DCrossAttn;
        for i in 0..if crossed { 2 } else { 1 } {
            let body = self.layer(&p, i, [width; 2], (crossed && i == 0).then_some(options));
            self.push(body, false, false);
        }
        self.resnet = usual;
    }

    /// `CrossAttnUpBlock2D` or, without transformers, `UpBlock2D`; `level` counts from the lowest.
    fn up(&mut self, root: &ParamPath<'_>, level: usize) {
        let config = self.config;
        let widths = &config.block_out_channels;
        let down = widths.len() - 1 - level;
        let p = root.sub(format!("up_blocks.{level}"));
        let transformer = config.up_block_types[level].has_attention().then(|| config.transformer_at(down));
        let (below, outputs, above) =
            (widths[(down + 1).min(widths.len() - 1)], widths[down], widths[down.saturating_sub(1)]);
        let layers = config.layers_at(down) + 1;
        for i in 0..layers {
            // The last layer's skip comes from the level above.
            let skip = if i == layers - 1 { above } else { outputs };
            let body = self.layer(&p, i, [skip + if i == 0 { below } else { outputs }, outputs], transformer);
            self.push(body, true, false);
        }
        if level + 1 < widths.len() {
            self.push(Body::Up(Upsample::new(&p.sub("upsamplers.0"), outputs)), false, false);
        }
    }
}
