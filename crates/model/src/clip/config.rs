//! The sizes of a whole CLIP: from transformers' `config.json`, OpenCLIP's, or the tensors themselves.

use std::path::Path;

use serde_json::{Value, json};

use crate::config::{Reader, wrong};
use crate::{Activation, Result, TextConfig};

/// The options of the vision tower, named and defaulted as in transformers' `CLIPVisionConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    /// Width D.
    pub hidden_size: i64,
    /// Width of the feed-forward layers.
    pub intermediate_size: i64,
    /// Layers.
    pub num_hidden_layers: i64,
    /// Heads of each attention.
    pub num_attention_heads: i64,
    /// Side of the square pictures, in pixels.
    pub image_size: i64,
    /// Side of a patch, in pixels.
    pub patch_size: i64,
    /// The nonlinearity.
    pub hidden_act: Activation,
    /// Epsilon of all layer norms.
    pub layer_norm_eps: f64,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            patch_size: 32,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

impl VisionConfig {
    /// Tokens of a picture: its patches and the class token.
    pub fn tokens(&self) -> i64 {
        (self.image_size / self.patch_size).pow(2) + 1
    }

    fn to_json(&self, projection_dim: i64) -> Value {
        json!({
            "attention_dropout": 0.0,
            "hidden_act": self.hidden_act.name(),
            "hidden_size": self.hidden_size,
            "image_size": self.image_size,
            "intermediate_size": self.intermediate_size,
            "layer_norm_eps": self.layer_norm_eps,
            "model_type": "clip_vision_model",
            "num_attention_heads": self.num_attention_heads,
            "num_channels": 3,
            "num_hidden_layers": self.num_hidden_layers,
            "patch_size": self.patch_size,
            "projection_dim": projection_dim,
        })
    }

    fn read(r: &mut Reader) -> Result<Self> {
        let (d, int) = (Self::default(), "an integer");
        Ok(Self {
            hidden_size: r.take("hidden_size", int, d.hidden_size)?,
            intermediate_size: r.take("intermediate_size", int, d.intermediate_size)?,
            num_hidden_layers: r.take("num_hidden_layers", int, d.num_hidden_layers)?,
            num_attention_heads: r.take("num_attention_heads", int, d.num_attention_heads)?,
            image_size: r.take("image_size", int, d.image_size)?,
            patch_size: r.take("patch_size", int, d.patch_size)?,
            hidden_act: r.activation("hidden_act", d.hidden_act)?,
            layer_norm_eps: r.take("layer_norm_eps", "a number", d.layer_norm_eps)?,
        })
    }
}

/// The sizes of a [`crate::ClipModel`].
#[derive(Clone, Debug, PartialEq)]
pub struct ClipConfig {
    /// The text tower's; its projection is always there.
    pub text: TextConfig,
    /// The vision tower's.
    pub vision: VisionConfig,
    /// Width P that both towers are projected to.
    pub projection_dim: i64,
    /// Whether the vision tower is conditioned on a diffusion timestep (SPO's step-aware preference model).
    pub time_conditioned: bool,
}

impl ClipConfig {
    /// Reads `config.json` of transformers' `CLIPModel`, or `open_clip_config.json`.
    ///
    /// Only the keys that shape the network are looked at: transformers 4 wrote sixty more into each tower's section.
    /// Errors: [`crate::Error::Config`] naming file, key, expected and found.
    pub fn from_file(path: &Path) -> Result<Self> {
        let mut reader = Reader::open(path)?;
        let config = match reader.section("model_cfg")? {
            Some(mut inner) => Self::read_open_clip(&mut inner)?,
            None if reader.has("text_cfg") => Self::read_open_clip(&mut reader)?,
            None => Self::read(&mut reader)?,
        };
        config.validate(path)?;
        Ok(config)
    }

    /// The contents of `config.json` as transformers' `CLIPModel` reads them; the timestep's conditioning, of which it
    /// knows nothing, is told by the tensors.
    pub fn to_json(&self) -> Value {
        let mut text = self.text.to_json();
        if let Some(text) = text.as_object_mut() {
            // Of a text encoder by itself.
            ["architectures", "torch_dtype"].iter().for_each(|key| drop(text.remove(*key)));
        }
        json!({
            "architectures": ["CLIPModel"],
            "initializer_factor": 1.0,
            "logit_scale_init_value": super::LOGIT_SCALE,
            "model_type": "clip",
            "projection_dim": self.projection_dim,
            "text_config": text,
            "torch_dtype": "float32",
            "vision_config": self.vision.to_json(self.projection_dim),
        })
    }

    fn read(reader: &mut Reader) -> Result<Self> {
        let projection_dim = reader.take("projection_dim", "an integer", 512)?;
        let (mut text, mut vision) = (reader.overlaid("text_config")?, reader.overlaid("vision_config")?);
        let text = TextConfig { projection_dim, ..TextConfig::fields(&mut text, true)? };
        Ok(Self { text, vision: VisionConfig::read(&mut vision)?, projection_dim, time_conditioned: false })
    }

    fn read_open_clip(reader: &mut Reader) -> Result<Self> {
        let int = "an integer";
        let projection_dim = reader.take("embed_dim", int, 512)?;
        let quick: bool = reader.take("quick_gelu", "true or false", false)?;
        let hidden_act = if quick { Activation::QuickGelu } else { Activation::Gelu };
        let (mut vision, mut text) = (reader.overlaid("vision_cfg")?, reader.overlaid("text_cfg")?);
        let inner = |r: &mut Reader, width: i64| -> Result<i64> {
            let ratio: f64 = r.take("mlp_ratio", "a number", 4.0)?;
            Ok((width as f64 * ratio) as i64)
        };
        let vision_width = vision.take("width", int, 768)?;
        let text_width = text.take("width", int, 512)?;
        let head_width: i64 = vision.take("head_width", int, 64)?;
        Ok(Self {
            vision: VisionConfig {
                hidden_size: vision_width,
                intermediate_size: inner(&mut vision, vision_width)?,
                num_hidden_layers: vision.take("layers", int, 12)?,
                num_attention_heads: vision_width / head_width.max(1),
                image_size: vision.take("image_size", int, 224)?,
                patch_size: vision.take("patch_size", int, 16)?,
                hidden_act,
                ..VisionConfig::default()
            },
            text: TextConfig {
                vocab_size: text.take("vocab_size", int, 49408)?,
                hidden_size: text_width,
                intermediate_size: inner(&mut text, text_width)?,
                num_hidden_layers: text.take("layers", int, 12)?,
                num_attention_heads: text.take("heads", int, 8)?,
                max_position_embeddings: text.take("context_length", int, 77)?,
                hidden_act,
                projection_dim,
                with_projection: true,
                // The largest id, as OpenCLIP pools.
                eos_token_id: 2,
                ..TextConfig::default()
            },
            projection_dim,
            time_conditioned: false,
        })
    }

    /// Checks that the options fit each other; `path` is what errors name.
    pub(crate) fn validate(&self, path: &Path) -> Result<()> {
        self.text.validate_at(path)?;
        let v = &self.vision;
        let positive = [
            ("hidden_size", v.hidden_size, 100_000),
            ("intermediate_size", v.intermediate_size, 1_000_000),
            ("num_attention_heads", v.num_attention_heads, 100_000),
            ("num_hidden_layers", v.num_hidden_layers, 1000),
            ("patch_size", v.patch_size, 10_000),
            ("image_size", v.image_size, 10_000),
            ("projection_dim", self.projection_dim, 100_000),
        ];
        for (key, found, most) in positive {
            if !(1..=most).contains(&found) {
                return Err(wrong(path, key, format!("1 to {most}"), found));
            }
        }
        if v.hidden_size % v.num_attention_heads != 0 {
            let expected = format!("a divisor of the vision tower's hidden_size ({})", v.hidden_size);
            return Err(wrong(path, "num_attention_heads", expected, v.num_attention_heads));
        }
        if v.patch_size > v.image_size {
            return Err(wrong(path, "patch_size", format!("at most image_size ({})", v.image_size), v.patch_size));
        }
        Ok(())
    }
}

impl Reader {
    /// An object inside this one, to be read by itself. Errors: something else stands there.
    fn section(&mut self, key: &str) -> Result<Option<Reader>> {
        match self.raw(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => Ok(Some(self.with_map(map))),
            Some(other) => Err(self.wrong(key, "an object", &other)),
        }
    }

    fn empty(&self) -> Reader {
        self.with_map(serde_json::Map::new())
    }

    /// `key`'s object with the keys of `<key>_dict` over it: old files have both, and transformers prefers the latter.
    fn overlaid(&mut self, key: &str) -> Result<Reader> {
        let base = self.section(key)?;
        let over = self.section(&format!("{key}_dict"))?;
        let mut merged = base.unwrap_or_else(|| self.empty());
        if let Some(over) = over {
            merged.overlay(over);
        }
        Ok(merged)
    }
}
