//! BLIP's vision transformer (timm's, as BLIP carries it).

use seedpo_tensor::{Init, ParamPath};
use tch::Tensor;

use super::BlipConfig;
use crate::Activation;
use crate::attention::attention;
use crate::layers::{Conv2d, LayerNorm, Linear, add};

const EPS: f64 = 1e-6;

#[derive(Debug)]
pub(super) struct VisionTower {
    cls_token: Tensor,
    pos_embed: Tensor,
    patches: Conv2d,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl VisionTower {
    pub fn build(config: &BlipConfig, p: &ParamPath<'_>) -> Self {
        let (width, patch) = (config.vision_width, config.patch_size);
        let tokens = (config.image_size / patch).pow(2) + 1;
        let normal = Init::Normal(0.02);
        Self {
            cls_token: p.get("cls_token", &[1, 1, width], normal),
            pos_embed: p.get("pos_embed", &[1, tokens, width], normal),
            patches: Conv2d::new(&p.sub("patch_embed.proj"), 3, width, patch, patch, 0),
            blocks: (0..config.vision_layers).map(|i| Block::new(&p.sub(format!("blocks.{i}")), config)).collect(),
            norm: LayerNorm::new(&p.sub("norm"), width, EPS),
        }
    }

    pub fn forward(&self, pixels: &Tensor) -> Tensor {
        let patches = self.patches.forward(pixels).flatten(2, 3).transpose(1, 2);
        let class = self.cls_token.expand([pixels.size()[0], 1, -1], false);
        let x = Tensor::cat(&[class, patches], 1) + &self.pos_embed;
        self.norm.forward(&self.blocks.iter().fold(x, |x, block| block.forward(&x)))
    }
}

#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: i64,
}

impl Block {
    fn new(p: &ParamPath<'_>, config: &BlipConfig) -> Self {
        let (width, inner) = (config.vision_width, config.vision_inner);
        Self {
            norm1: LayerNorm::new(&p.sub("norm1"), width, EPS),
            qkv: Linear::new(&p.sub("attn.qkv"), width, 3 * width, true),
            proj: Linear::new(&p.sub("attn.proj"), width, width, true),
            norm2: LayerNorm::new(&p.sub("norm2"), width, EPS),
            fc1: Linear::new(&p.sub("mlp.fc1"), width, inner, true),
            fc2: Linear::new(&p.sub("mlp.fc2"), inner, width, true),
            heads: config.vision_heads,
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let qkv = self.qkv.forward(&self.norm1.forward(x));
        let part = |i: i64| qkv.narrow(2, i * x.size()[2], x.size()[2]).contiguous();
        let x = add(self.proj.forward(&attention(&part(0), &part(1), &part(2), self.heads, false)), x);
        let h = Activation::Gelu.apply(self.fc1.forward(&self.norm2.forward(&x)));
        add(self.fc2.forward(&h), &x)
    }
}
