//! Sizes of BLIP's towers.

use std::path::Path;

use seedpo_tensor::WeightFile;

use crate::config::{Reader, wrong};
use crate::single_file::{count, shape_of};
use crate::{Activation, Result, heads};

/// What shapes cannot tell of [`super::BlipTextImage`], and what they do.
#[derive(Clone, Debug, PartialEq)]
pub struct BlipConfig {
    /// Side of the pictures, in pixels.
    pub image_size: i64,
    /// Side of a patch, in pixels.
    pub patch_size: i64,
    /// Width of the vision tower.
    pub vision_width: i64,
    /// Its layers.
    pub vision_layers: i64,
    /// Its heads; 0 in a configuration stands for 64 channels each.
    pub vision_heads: i64,
    /// Width of its feed-forward layers.
    pub vision_inner: i64,
    /// Width of the text tower.
    pub hidden_size: i64,
    /// Its layers.
    pub layers: i64,
    /// Its heads; 0 in a configuration stands for 64 channels each.
    pub heads: i64,
    /// Width of its feed-forward layers.
    pub intermediate_size: i64,
    /// Tokens known.
    pub vocab_size: i64,
    /// Longest text.
    pub max_position_embeddings: i64,
    /// The text tower's nonlinearity.
    pub hidden_act: Activation,
    /// Epsilon of its layer norms.
    pub layer_norm_eps: f64,
}

impl Default for BlipConfig {
    /// ImageReward v1.0: ViT-L/16 and BERT base.
    fn default() -> Self {
        Self {
            image_size: 224,
            patch_size: 16,
            vision_width: 1024,
            vision_layers: 24,
            vision_heads: 0,
            vision_inner: 4096,
            hidden_size: 768,
            layers: 12,
            heads: 0,
            intermediate_size: 3072,
            vocab_size: 30524,
            max_position_embeddings: 512,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-12,
        }
    }
}

impl BlipConfig {
    /// Reads `med_config.json`: BERT's options. Heads of the vision tower: `vision_heads`, where it is there.
    /// Errors: [`crate::Error::Config`].
    pub fn from_file(path: &Path) -> Result<Self> {
        let mut r = Reader::open(path)?;
        let (d, int) = (Self::default(), "an integer");
        Ok(Self {
            heads: r.take("num_attention_heads", int, d.heads)?,
            vision_heads: r.take("vision_heads", int, d.vision_heads)?,
            hidden_act: r.activation("hidden_act", d.hidden_act)?,
            layer_norm_eps: r.take("layer_norm_eps", "a number", d.layer_norm_eps)?,
            ..d
        })
    }

    /// The sizes that the tensors have. Errors: tensors that are not there; heads that do not divide a width.
    pub(super) fn with_shapes_of(mut self, file: &WeightFile) -> Result<Self> {
        let [vision_width, _, patch_size, _] = shape_of::<4>(file, "visual_encoder.patch_embed.proj.weight")?;
        let [_, tokens, _] = shape_of::<3>(file, "visual_encoder.pos_embed")?;
        [self.vision_inner, _] = shape_of::<2>(file, "visual_encoder.blocks.0.mlp.fc1.weight")?;
        [self.vocab_size, self.hidden_size] = shape_of::<2>(file, "text_encoder.embeddings.word_embeddings.weight")?;
        [self.max_position_embeddings, _] = shape_of::<2>(file, "text_encoder.embeddings.position_embeddings.weight")?;
        [self.intermediate_size, _] = shape_of::<2>(file, "text_encoder.encoder.layer.0.intermediate.dense.weight")?;
        self.vision_layers = count(file, "visual_encoder.blocks.", ".mlp.fc1.weight");
        self.layers = count(file, "text_encoder.encoder.layer.", ".intermediate.dense.weight");
        (self.vision_width, self.patch_size) = (vision_width, patch_size);
        self.image_size = ((tokens - 1).max(0) as f64).sqrt().round() as i64 * patch_size;
        let heads = |network: &str, width: i64, published: &[i64], key: &str| -> Result<i64> {
            let otherwise = format!("`{key}` in a med_config.json beside the weights");
            Ok(heads::of_64_channels(file.path(), network, &[width], published, &otherwise)?[0])
        };
        if self.vision_heads == 0 {
            self.vision_heads = heads("BLIP's vision tower", vision_width, &[768, 1024], "vision_heads")?;
        }
        if self.heads == 0 {
            self.heads = heads("BLIP's text tower", self.hidden_size, &[768], "num_attention_heads")?;
        }
        for (key, heads, width) in
            [("num_attention_heads", self.heads, self.hidden_size), ("vision_heads", self.vision_heads, vision_width)]
        {
            if heads < 1 || width % heads != 0 {
                return Err(wrong(file.path(), key, format!("a divisor of the tower's width ({width})"), heads));
            }
        }
        Ok(self)
    }
}
