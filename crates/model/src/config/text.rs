//! `text_encoder/config.json`.

use std::path::Path;

use serde_json::{Value, json};

use super::{Reader, wrong};
use crate::Result;
use crate::layers::Activation;

/// The options of [`crate::ClipTextModel`], named and defaulted as in transformers' `CLIPTextConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// Tokens known.
    pub vocab_size: i64,
    /// Width D of the embeddings.
    pub hidden_size: i64,
    /// Width of the feed-forward layers.
    pub intermediate_size: i64,
    /// Layers.
    pub num_hidden_layers: i64,
    /// Heads of each attention.
    pub num_attention_heads: i64,
    /// Longest sequence L.
    pub max_position_embeddings: i64,
    /// The nonlinearity (`quick_gelu` in SD 1.x, `gelu` in SD 2.x).
    pub hidden_act: Activation,
    /// Epsilon of all layer norms.
    pub layer_norm_eps: f64,
    /// Width P of the projection that `CLIPTextModelWithProjection` adds.
    pub projection_dim: i64,
    /// Whether that projection is there (`architectures`): SDXL's second encoder.
    pub with_projection: bool,
    /// First token of every prompt.
    pub bos_token_id: i64,
    /// Last token of every prompt; 2 stands for "the largest id", an old slip that transformers keeps.
    pub eos_token_id: i64,
    /// Padding token.
    pub pad_token_id: i64,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            projection_dim: 512,
            with_projection: false,
            bos_token_id: 49406,
            eos_token_id: 49407,
            pad_token_id: 1,
        }
    }
}

const PLAIN: &str = "CLIPTextModel";
const WITH_PROJECTION: &str = "CLIPTextModelWithProjection";

/// Keys of transformers' configurations that do not change the forward pass of a frozen text encoder.
const WITHOUT_EFFECT: &[&str] = &[
    "chunk_size_feed_forward",
    "dtype",
    "finetuning_task",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

super::from_json_file!(TextConfig);

impl TextConfig {
    fn read(mut r: Reader, path: &Path) -> Result<Self> {
        r.class("model_type", &["clip_text_model"])?;
        let with_projection = read_architecture(&mut r)?;
        let config = Self::fields(&mut r, with_projection)?;
        r.only(&[("attention_dropout", json!(0.0)), ("dropout", json!(0.0))])?;
        r.ignore(WITHOUT_EFFECT);
        r.finish()?;
        config.validate_at(path)?;
        Ok(config)
    }

    /// The options alone; other keys stay in `r`.
    pub(crate) fn fields(r: &mut Reader, with_projection: bool) -> Result<Self> {
        let d = Self::default();
        let int = "an integer";
        Ok(Self {
            vocab_size: r.take("vocab_size", int, d.vocab_size)?,
            hidden_size: r.take("hidden_size", int, d.hidden_size)?,
            intermediate_size: r.take("intermediate_size", int, d.intermediate_size)?,
            num_hidden_layers: r.take("num_hidden_layers", int, d.num_hidden_layers)?,
            num_attention_heads: r.take("num_attention_heads", int, d.num_attention_heads)?,
            max_position_embeddings: r.take("max_position_embeddings", int, d.max_position_embeddings)?,
            hidden_act: r.activation("hidden_act", d.hidden_act)?,
            layer_norm_eps: r.take("layer_norm_eps", "a number", d.layer_norm_eps)?,
            projection_dim: r.take("projection_dim", int, d.projection_dim)?,
            with_projection,
            bos_token_id: r.take("bos_token_id", int, d.bos_token_id)?,
            eos_token_id: r.take("eos_token_id", int, d.eos_token_id)?,
            pad_token_id: r.take("pad_token_id", int, d.pad_token_id)?,
        })
    }

    /// The contents of `config.json`, as transformers reads them.
    pub fn to_json(&self) -> Value {
        json!({
            "architectures": [if self.with_projection { WITH_PROJECTION } else { PLAIN }],
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "dropout": 0.0,
            "eos_token_id": self.eos_token_id,
            "hidden_act": self.hidden_act.name(),
            "hidden_size": self.hidden_size,
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "layer_norm_eps": self.layer_norm_eps,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": "clip_text_model",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "pad_token_id": self.pad_token_id,
            "projection_dim": self.projection_dim,
            // Without it transformers 5 keeps the file's f16 beside the U-Net's f32, and the pipeline fails.
            "torch_dtype": "float32",
            "vocab_size": self.vocab_size,
        })
    }

    /// Checks that the options fit each other. Errors: [`crate::Error::Config`] naming the key.
    pub fn validate(&self) -> Result<()> {
        self.validate_at(Path::new("text encoder config"))
    }

    pub(crate) fn validate_at(&self, path: &Path) -> Result<()> {
        let positive = [
            ("vocab_size", self.vocab_size, 10_000_000),
            ("hidden_size", self.hidden_size, 100_000),
            ("intermediate_size", self.intermediate_size, 1_000_000),
            ("num_attention_heads", self.num_attention_heads, 100_000),
            ("num_hidden_layers", self.num_hidden_layers, 1000),
            ("max_position_embeddings", self.max_position_embeddings, 1_000_000),
        ];
        // Without the projection its width is kept for saving only.
        let projection = self.with_projection.then_some(("projection_dim", self.projection_dim, 100_000));
        for (key, found, most) in positive.into_iter().chain(projection) {
            if !(1..=most).contains(&found) {
                return Err(wrong(path, key, format!("1 to {most}"), found));
            }
        }
        if self.hidden_size % self.num_attention_heads != 0 {
            let expected = format!("a divisor of hidden_size ({})", self.hidden_size);
            return Err(wrong(path, "num_attention_heads", expected, self.num_attention_heads));
        }
        Ok(())
    }
}

/// Whether `architectures` names the class with a projection; absent means the plain one.
fn read_architecture(r: &mut Reader) -> Result<bool> {
    let Some(value) = r.raw("architectures").filter(|value| !value.is_null()) else { return Ok(false) };
    let all = |class: &str| value.as_array().is_some_and(|names| names.iter().all(|name| name == class));
    match (all(PLAIN), all(WITH_PROJECTION)) {
        (true, _) => Ok(false),
        (_, true) => Ok(true),
        _ => Err(r.wrong("architectures", format!("[{PLAIN:?}] or [{WITH_PROJECTION:?}]"), &value)),
    }
}
