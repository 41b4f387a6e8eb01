//! BLIP's pair of towers as ImageReward uses it: a vision transformer, and a BERT whose layers also attend to the picture.

mod config;
mod text;
mod tokenizer;
mod vision;

use seedpo_tensor::{Params, Part, WeightFile};
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

pub use config::BlipConfig;
use text::TextTower;
pub use tokenizer::BertTokenizer;
use vision::VisionTower;

/// Tensors of a checkpoint that this pair does not use.
const UNUSED: [&str; 3] = ["vision_proj.", "text_proj.", "text_encoder.embeddings.position_ids"];

/// Text states that have seen the picture.
#[derive(Debug)]
pub struct BlipTextImage {
    config: BlipConfig,
    vision: VisionTower,
    text: TextTower,
    device: Device,
    kind: Kind,
}

impl BlipTextImage {
    /// Reads the tensors that begin with `prefix` (`visual_encoder.*`, `text_encoder.*` after it).
    ///
    /// Widths, depths and the vocabulary are the file's own; `config` says the rest.
    /// Errors: every missing, surplus and misshaped tensor; a configuration that contradicts the shapes.
    pub fn load(file: &WeightFile, prefix: &str, config: BlipConfig, device: Device, kind: Kind) -> Result<Self> {
        let inside = file.rearranged(|name, _| match name.strip_prefix(prefix) {
            Some(rest) => vec![(rest.to_owned(), Part::Whole)],
            None => Vec::new(),
        })?;
        let config = config.with_shapes_of(&inside)?;
        let params = Params::from_file(inside, device, kind);
        let root = params.root();
        let vision = VisionTower::build(&config, &root.sub("visual_encoder"));
        let text = TextTower::build(&config, &root.sub("text_encoder"));
        params.finish_ignoring(|name| UNUSED.iter().any(|unused| name.starts_with(unused)))?;
        Ok(Self { config, vision, text, device, kind })
    }

    /// The sizes.
    pub fn config(&self) -> &BlipConfig {
        &self.config
    }

    /// All tokens' states `[B, N, V]` of normalised pictures `[B, 3, S, S]`. Errors: another shape.
    pub fn encode_image(&self, pixels: &Tensor) -> Result<Tensor> {
        let side = self.config.image_size;
        match pixels.size()[..] {
            [_, 3, height, width] if height == side && width == side => {}
            _ => {
                return Err(argument(
                    "pixels",
                    format!("shape [B, 3, {side}, {side}]"),
                    format!("{:?}", pixels.size()),
                ));
            }
        }
        Ok(self.vision.forward(&pixels.to_device(self.device).to_kind(self.kind)))
    }

    /// The text's states `[B, L, D]`: `input_ids` and `mask` (1 a token, 0 padding) i64 `[B, L]`, `states` from
    /// [`Self::encode_image`]. Errors: shapes that differ, an id outside the vocabulary, a row too long.
    pub fn encode_text(&self, input_ids: &Tensor, mask: &Tensor, states: &Tensor) -> Result<Tensor> {
        let (longest, vocab) = (self.config.max_position_embeddings, self.config.vocab_size);
        let fits = matches!(input_ids.size()[..], [b, l] if l <= longest && b == states.size()[0]);
        if !fits || mask.size() != input_ids.size() {
            let expected = format!("input_ids and mask [{}, 1 to {longest}]", states.size()[0]);
            return Err(argument("input_ids", expected, format!("{:?}, {:?}", input_ids.size(), mask.size())));
        }
        let highest = input_ids.max().int64_value(&[]);
        if highest >= vocab {
            return Err(argument("input_ids", format!("ids below {vocab}"), highest.to_string()));
        }
        Ok(self.text.forward(&input_ids.to_device(self.device), &mask.to_device(self.device), states))
    }
}

fn argument(what: &str, expected: String, found: String) -> Error {
    Error::Argument { what: what.to_owned(), expected, found }
}
