//! SDXL's part of `unet/config.json`: what is added to the time embedding.

use std::path::Path;

use serde_json::{Value, json};

use super::{Reader, wrong};
use crate::Result;

/// `addition_embed_type = "text_time"` (SDXL): a pooled prompt embedding and six numbers about the image, the time ids,
/// are projected and added to the time embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextTimeConfig {
    /// Width of the sinusoidal embedding of each time id.
    pub addition_time_embed_dim: i64,
    /// Width of the projection's input: the pooled embedding, then the six time ids' embeddings.
    pub projection_class_embeddings_input_dim: i64,
}

impl TextTimeConfig {
    /// How many time ids there are: original height and width, top and left of the crop, target height and width.
    pub const TIME_IDS: i64 = 6;

    /// Width P of the pooled prompt embedding.
    pub fn pooled_width(&self) -> i64 {
        self.projection_class_embeddings_input_dim - Self::TIME_IDS * self.addition_time_embed_dim
    }

    /// `None` where the U-Net has no such input.
    pub(super) fn read(r: &mut Reader) -> Result<Option<Self>> {
        match r.raw("addition_embed_type") {
            None | Some(Value::Null) => {
                let absent = ["addition_time_embed_dim", "projection_class_embeddings_input_dim"];
                r.only(&absent.map(|key| (key, Value::Null)))?;
                Ok(None)
            }
            Some(value) if value == "text_time" => Ok(Some(Self {
                addition_time_embed_dim: r.take("addition_time_embed_dim", "an integer", 0)?,
                projection_class_embeddings_input_dim: r.take(
                    "projection_class_embeddings_input_dim",
                    "an integer",
                    0,
                )?,
            })),
            Some(other) => Err(r.wrong("addition_embed_type", "null or \"text_time\"", &other)),
        }
    }

    /// Adds the three keys to the contents of a `config.json`.
    pub(super) fn write(&self, config: &mut Value) {
        config["addition_embed_type"] = json!("text_time");
        config["addition_time_embed_dim"] = json!(self.addition_time_embed_dim);
        config["projection_class_embeddings_input_dim"] = json!(self.projection_class_embeddings_input_dim);
    }

    /// Errors: [`crate::Error::Config`] naming the key that is out of range.
    pub(super) fn check(&self, path: &Path, freq_shift: f64) -> Result<()> {
        let (width, least) = (self.addition_time_embed_dim, (2.0 * freq_shift).max(1.0));
        if !(width as f64 > least && width <= 100_000) {
            let expected = format!("more than {least}, at most 100000 (addition_embed_type is text_time)");
            return Err(wrong(path, "addition_time_embed_dim", expected, width));
        }
        let (inputs, ids) = (self.projection_class_embeddings_input_dim, Self::TIME_IDS * width);
        if !(ids + 1..=1_000_000).contains(&inputs) {
            let expected = format!("{} to 1000000: a pooled embedding and {} time ids", ids + 1, Self::TIME_IDS);
            return Err(wrong(path, "projection_class_embeddings_input_dim", expected, inputs));
        }
        Ok(())
    }
}
