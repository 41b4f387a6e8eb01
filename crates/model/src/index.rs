//! `model_index.json`: which pipeline a folder holds.

use std::path::Path;

use serde_json::{Value, json};

use crate::Result;
use crate::config::{Reader, wrong};

/// What kind of pipeline a folder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pipeline {
    /// Stable Diffusion 1.x or 2.x: one text encoder.
    StableDiffusion,
    /// Stable Diffusion XL: two text encoders.
    StableDiffusionXl {
        /// Guidance without a negative prompt points away from zeros rather than from the empty prompt's embedding.
        force_zeros_for_empty_prompt: bool,
    },
}

const CLIP: &[&str] = &["CLIPTextModel"];
const CLIP_PROJECTED: &[&str] = &["CLIPTextModelWithProjection"];
const TOKENIZERS: &[&str] = &["CLIPTokenizer", "CLIPTokenizerFast"];
/// Parts of every pipeline, and the classes that are implemented.
const PARTS: [(&str, &[&str]); 4] = [
    ("unet", &["UNet2DConditionModel"]),
    ("vae", &["AutoencoderKL"]),
    ("text_encoder", CLIP),
    ("tokenizer", TOKENIZERS),
];
const XL_PARTS: [(&str, &[&str]); 2] = [("text_encoder_2", CLIP_PROJECTED), ("tokenizer_2", TOKENIZERS)];
const NAMES: [&str; 2] = ["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"];
const XL_NAMES: [&str; 2] = ["StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"];

impl Pipeline {
    /// Reads `model_index.json`; a file without `_class_name` is taken for Stable Diffusion 1.x.
    ///
    /// Errors: [`crate::Error::Config`] for another pipeline or a part of another class, naming it.
    pub fn from_file(path: &Path) -> Result<Self> {
        let mut index = Reader::open(path)?;
        let class = index.raw("_class_name").filter(|value| !value.is_null());
        let class = class.unwrap_or_else(|| json!(NAMES[0]));
        let is = |names: &[&str]| class.as_str().is_some_and(|name| names.contains(&name));
        let pipeline = if is(&NAMES) {
            Self::StableDiffusion
        } else if is(&XL_NAMES) {
            let force_zeros = index.take("force_zeros_for_empty_prompt", "true or false", true)?;
            Self::StableDiffusionXl { force_zeros_for_empty_prompt: force_zeros }
        } else {
            return Err(index.wrong("_class_name", [NAMES, XL_NAMES].concat().join(" or "), &class));
        };
        for (part, classes) in pipeline.parts() {
            let Some(value) = index.raw(part) else {
                return Err(wrong(path, part, format!("a {}", classes[0]), "no such key"));
            };
            let class = value.get(1).and_then(Value::as_str);
            if !class.is_some_and(|c| classes.contains(&c)) {
                return Err(index.wrong(part, format!("a {}", classes.join(" or ")), &value));
            }
        }
        // The noise schedule is read from any sampler; the rest takes no part in training.
        index.ignore(&[
            "scheduler",
            "safety_checker",
            "feature_extractor",
            "requires_safety_checker",
            "add_watermarker",
        ]);
        // Parts that are not there, and options that are off: of img2img's pipelines, of IP-Adapter's, ..
        index.drop_where(is_absent);
        for (key, expected) in [
            ("image_encoder", "null (image prompts are not supported)"),
            ("requires_aesthetics_score", "false (the SDXL refiner, which asks for it, is not supported)"),
        ] {
            if let Some(value) = index.raw(key) {
                return Err(index.wrong(key, expected, &value));
            }
        }
        index.finish()?;
        Ok(pipeline)
    }

    /// Whether guidance without a negative prompt points away from zeros.
    pub(crate) fn forces_zeros(self) -> bool {
        matches!(self, Self::StableDiffusionXl { force_zeros_for_empty_prompt: true })
    }

    fn parts(self) -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
        let more = match self {
            Self::StableDiffusion => &[][..],
            Self::StableDiffusionXl { .. } => &XL_PARTS,
        };
        PARTS.iter().chain(more).copied()
    }

    /// The contents of the `model_index.json` of a folder written here: no safety checker, DDIM.
    pub fn to_json(self) -> Value {
        let mut index = json!({
            "_class_name": NAMES[0],
            "_diffusers_version": "0.38.0",
            "feature_extractor": [null, null],
            "image_encoder": [null, null],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        });
        match self {
            Self::StableDiffusion => {
                index["requires_safety_checker"] = json!(false);
                index["safety_checker"] = json!([null, null]);
            }
            Self::StableDiffusionXl { force_zeros_for_empty_prompt } => {
                index["_class_name"] = json!(XL_NAMES[0]);
                index["force_zeros_for_empty_prompt"] = json!(force_zeros_for_empty_prompt);
                index["text_encoder_2"] = json!(["transformers", "CLIPTextModelWithProjection"]);
                index["tokenizer_2"] = json!(["transformers", "CLIPTokenizer"]);
            }
        }
        index
    }
}

/// Whether a value says that there is no such part, or that an option is off.
fn is_absent(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(entries) => entries.iter().all(Value::is_null),
        _ => false,
    }
}
