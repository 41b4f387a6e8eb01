//! The levels of the U-Net: down blocks, mid block, up blocks, each with or without transformers.

use seedpo_tensor::ParamPath;
use tch::Tensor;

use super::Projection;
use super::attention::{Transformer, TransformerOptions};
use super::resnet::{ResnetBlock, ResnetOptions};
use crate::adapter::Adapter;
use crate::layers::{Downsample, Upsample};

/// What the blocks read besides the image: the activated time embedding, the prompt embeddings, the adapter.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub time: &'a Tensor,
    pub prompt_embeds: &'a Tensor,
    pub adapter: Option<&'a Adapter>,
}

/// `CrossAttnDownBlock2D` or, without transformers, `DownBlock2D`.
#[derive(Debug)]
pub(super) struct DownBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<Transformer>,
    downsampler: Option<Downsample>,
}

/// What distinguishes one level from another.
#[derive(Clone, Copy)]
pub(super) struct Level {
    pub inputs: i64,
    pub outputs: i64,
    pub layers: i64,
    pub transformer: Option<TransformerOptions>,
    /// Whether this is the lowest (down) or topmost (up) level, which does not resample.
    pub last: bool,
}

fn transformers(
    p: &ParamPath<'_>,
    count: i64,
    channels: i64,
    options: Option<TransformerOptions>,
    list: &mut Vec<Projection>,
) -> Vec<Transformer> {
    let Some(options) = options else { return Vec::new() };
    (0..count).map(|i| Transformer::new(&p.sub(format!("attentions.{i}")), channels, options, list)).collect()
}

impl DownBlock {
    pub fn new(
        p: &ParamPath<'_>,
        level: Level,
        padding: i64,
        resnet: ResnetOptions,
        list: &mut Vec<Projection>,
    ) -> Self {
        let Level { inputs, outputs, layers, transformer, last } = level;
        let resnet_at = |i: i64| {
            let inputs = if i == 0 { inputs } else { outputs };
            ResnetBlock::new(&p.sub(format!("resnets.{i}")), inputs, outputs, resnet)
        };
        Self {
            resnets: (0..layers).map(resnet_at).collect(),
            attentions: transformers(p, layers, outputs, transformer, list),
            downsampler: (!last).then(|| Downsample::new(&p.sub("downsamplers.0"), outputs, padding)),
        }
    }

    /// Appends each intermediate result to `skips` and returns the last.
    pub fn forward(&self, mut x: Tensor, inputs: Inputs<'_>, skips: &mut Vec<Tensor>) -> Tensor {
        for (i, resnet) in self.resnets.iter().enumerate() {
            x = resnet.forward(&x, Some(inputs.time));
            if let Some(attention) = self.attentions.get(i) {
                x = attention.forward(&x, inputs.prompt_embeds, inputs.adapter);
            }
            skips.push(x.shallow_clone());
        }
        if let Some(downsampler) = &self.downsampler {
            x = downsampler.forward(&x);
            skips.push(x.shallow_clone());
        }
        x
    }
}

/// `UNetMidBlock2DCrossAttn`, or `UNetMidBlock2D` without its transformer.
#[derive(Debug)]
pub(super) struct MidBlock {
    resnets: Vec<ResnetBlock>,
    attention: Option<Transformer>,
}

impl MidBlock {
    pub fn new(
        p: &ParamPath<'_>,
        channels: i64,
        transformer: Option<TransformerOptions>,
        resnet: ResnetOptions,
        list: &mut Vec<Projection>,
    ) -> Self {
        // Without attention diffusers builds the block with zero further layers: one residual block.
        let count = if transformer.is_some() { 2 } else { 1 };
        let resnet_at = |i| ResnetBlock::new(&p.sub(format!("resnets.{i}")), channels, channels, resnet);
        let attention = transformer.map(|o| Transformer::new(&p.sub("attentions.0"), channels, o, list));
        Self { resnets: (0..count).map(resnet_at).collect(), attention }
    }

    pub fn forward(&self, x: Tensor, inputs: Inputs<'_>) -> Tensor {
        let mut x = self.resnets[0].forward(&x, Some(inputs.time));
        if let Some(attention) = &self.attention {
            x = attention.forward(&x, inputs.prompt_embeds, inputs.adapter);
        }
        self.resnets[1..].iter().fold(x, |x, resnet| resnet.forward(&x, Some(inputs.time)))
    }
}

/// `CrossAttnUpBlock2D` or, without transformers, `UpBlock2D`.
#[derive(Debug)]
pub(super) struct UpBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<Transformer>,
    upsampler: Option<Upsample>,
}

impl UpBlock {
    /// `level.inputs` is the width from below; `skip` that of the level above, joined in the last layer.
    pub fn new(p: &ParamPath<'_>, level: Level, skip: i64, resnet: ResnetOptions, list: &mut Vec<Projection>) -> Self {
        let Level { inputs, outputs, layers, transformer, last } = level;
        let resnet_at = |i: i64| {
            let below = if i == 0 { inputs } else { outputs };
            let joined = if i == layers - 1 { skip } else { outputs };
            ResnetBlock::new(&p.sub(format!("resnets.{i}")), below + joined, outputs, resnet)
        };
        Self {
            resnets: (0..layers).map(resnet_at).collect(),
            attentions: transformers(p, layers, outputs, transformer, list),
            upsampler: (!last).then(|| Upsample::new(&p.sub("upsamplers.0"), outputs)),
        }
    }

    /// Takes its skips from the end of `skips`; enlarges to the size of the next one there, so odd sizes work.
    pub fn forward(&self, mut x: Tensor, inputs: Inputs<'_>, skips: &mut Vec<Tensor>) -> Tensor {
        for (i, resnet) in self.resnets.iter().enumerate() {
            if let Some(skip) = skips.pop() {
                x = Tensor::cat(&[x, skip], 1);
            }
            x = resnet.forward(&x, Some(inputs.time));
            if let Some(attention) = self.attentions.get(i) {
                x = attention.forward(&x, inputs.prompt_embeds, inputs.adapter);
            }
        }
        let Some(upsampler) = &self.upsampler else { return x };
        let size = skips.last().map(|s| (s.size()[2], s.size()[3]));
        upsampler.forward(&x, size)
    }
}
