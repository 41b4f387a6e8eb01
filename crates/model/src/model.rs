//! A whole text-to-image model in the diffusers folder layout, read and written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use seedpo_tensor::{Params, WeightFile, write_atomic, write_weights};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::config::{Reader, SchedulerConfig, TextConfig, UNetConfig, VaeConfig, wrong};
use crate::policy::PromptEmbeds;
use crate::schedule::NoiseSchedule;
use crate::text::ClipTextModel;
use crate::tokenizer::ClipTokenizer;
use crate::unet::UNet2DConditionModel;
use crate::vae::{AutoencoderKl, modern_names};
use crate::{Error, Result};

const UNET_FILES: &[&str] = &["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"];
const TEXT_FILES: &[&str] = &["model.safetensors", "model.fp16.safetensors"];
/// What may lie in `tokenizer/`; those that do are copied on saving.
const TOKENIZER_FILES: &[&str] = &[
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
];

/// Where to put a model, and in which number type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadOptions {
    /// The device of all three networks.
    pub device: Device,
    /// The U-Net's number type: `Float`, `BFloat16` or `Half`.
    pub kind: Kind,
    /// The text encoder's number type; prompts are encoded once, so f32 costs nothing.
    pub text_encoder_kind: Kind,
    /// The VAE's number type; Stable Diffusion's overflows in f16.
    pub vae_kind: Kind,
}

impl Default for LoadOptions {
    /// CPU, everything in f32.
    fn default() -> Self {
        Self::new(Device::Cpu, Kind::Float)
    }
}

impl LoadOptions {
    /// The U-Net in `kind`, text encoder and VAE in f32.
    pub fn new(device: Device, kind: Kind) -> Self {
        Self { device, kind, text_encoder_kind: Kind::Float, vae_kind: Kind::Float }
    }
}

/// The frozen base model: tokenizer, text encoder, U-Net, VAE and noise schedule of a Stable Diffusion folder.
#[derive(Debug)]
pub struct DiffusionModel {
    /// Prompts to token ids.
    pub tokenizer: ClipTokenizer,
    /// Token ids to prompt embeddings.
    pub text_encoder: ClipTextModel,
    /// Predicts the noise in latents.
    pub unet: UNet2DConditionModel,
    /// Images to latents and back.
    pub vae: AutoencoderKl,
    /// How much noise each timestep has.
    pub schedule: NoiseSchedule,
    /// What the schedule was made from, for saving.
    pub scheduler: SchedulerConfig,
    /// Where it was loaded from; empty for a fresh model.
    pub folder: PathBuf,
}

impl DiffusionModel {
    /// Loads a diffusers folder (`model_index.json`, `unet/`, `vae/`, `text_encoder/`, `tokenizer/`, `scheduler/`).
    ///
    /// Errors name file, key, expected and found: a missing or malformed file, an option that is not implemented, a
    /// tensor that is missing, surplus or misshaped, parts that do not fit each other.
    pub fn load(folder: &Path, options: &LoadOptions) -> Result<Self> {
        check_index(&folder.join("model_index.json"))?;
        let scheduler = SchedulerConfig::from_file(&folder.join("scheduler/scheduler_config.json"))?;
        let unet_config = UNetConfig::from_file(&folder.join("unet/config.json"))?;
        let vae_config = VaeConfig::from_file(&folder.join("vae/config.json"))?;
        let text_config = TextConfig::from_file(&folder.join("text_encoder/config.json"))?;
        check_parts(folder, &unet_config, &vae_config, &text_config)?;
        let schedule = NoiseSchedule::new(&scheduler)?;
        let tokenizer = ClipTokenizer::from_folder(&folder.join("tokenizer"))?;
        check_tokenizer(folder, &tokenizer, &text_config)?;
        let device = options.device;
        let open = |part: &str, files| open_weights(&folder.join(part), files);
        let text = Params::from_file(open("text_encoder", TEXT_FILES)?, device, options.text_encoder_kind);
        let unet = Params::from_file(open("unet", UNET_FILES)?, device, options.kind);
        let vae = vae_params(open("vae", UNET_FILES)?, device, options.vae_kind)?;
        Ok(Self {
            tokenizer,
            text_encoder: ClipTextModel::new(text_config, text)?,
            unet: UNet2DConditionModel::new(unet_config, unet)?,
            vae: AutoencoderKl::new(vae_config, vae)?,
            schedule,
            scheduler,
            folder: folder.to_path_buf(),
        })
    }

    /// A model with fresh random weights in PyTorch's default distributions (the text encoder: transformers'), each
    /// drawn from `seed` and its name.
    ///
    /// Errors: [`Error::Config`] where a configuration contradicts itself or the parts do not fit each other.
    pub fn init(
        tokenizer: ClipTokenizer,
        text: TextConfig,
        unet: UNetConfig,
        vae: VaeConfig,
        scheduler: SchedulerConfig,
        seed: u64,
        device: Device,
    ) -> Result<Self> {
        let place = Path::new("");
        check_parts(place, &unet, &vae, &text)?;
        check_tokenizer(place, &tokenizer, &text)?;
        Ok(Self {
            tokenizer,
            text_encoder: ClipTextModel::new(text, Params::init(seed, device))?,
            unet: UNet2DConditionModel::new(unet, Params::init(seed, device))?,
            vae: AutoencoderKl::new(vae, Params::init(seed, device))?,
            schedule: NoiseSchedule::new(&scheduler)?,
            scheduler,
            folder: PathBuf::new(),
        })
    }

    /// Writes a folder that `StableDiffusionPipeline.from_pretrained` loads, weights as they are, or in `storage`
    /// (f16 halves the files). Existing files of the same names are replaced, each in one step.
    ///
    /// Errors: what the operating system refuses, by file.
    pub fn save(&self, folder: &Path, storage: Option<Kind>) -> Result<()> {
        for part in ["unet", "vae", "text_encoder", "tokenizer", "scheduler"] {
            let path = folder.join(part);
            std::fs::create_dir_all(&path).map_err(|e| seedpo_tensor::Error::io(&path, e))?;
        }
        save_weights(&folder.join("unet").join(UNET_FILES[0]), self.unet.parameters(), storage)?;
        save_weights(&folder.join("vae").join(UNET_FILES[0]), self.vae.parameters(), storage)?;
        let text = with_text_prefix(self.text_encoder.parameters());
        save_weights(&folder.join("text_encoder").join(TEXT_FILES[0]), &text, storage)?;
        save_json(&folder.join("unet/config.json"), &self.unet.config().to_json())?;
        save_json(&folder.join("vae/config.json"), &self.vae.config().to_json())?;
        save_json(&folder.join("text_encoder/config.json"), &self.text_encoder.config().to_json())?;
        save_json(&folder.join("scheduler/scheduler_config.json"), &self.scheduler.to_json())?;
        copy_tokenizer(self.tokenizer.folder(), &folder.join("tokenizer"))?;
        // Last: a folder without it is no model yet.
        save_json(&folder.join("model_index.json"), &model_index())
    }

    /// Prompt embeddings, f32 `[B, L, D]`, on the text encoder's device; prompts longer than L tokens are cut.
    /// No gradient is recorded.
    ///
    /// Errors: [`Error::Argument`] for no prompts; what the tokenizer refuses.
    pub fn encode_prompts(&self, prompts: &[impl AsRef<str>]) -> Result<PromptEmbeds> {
        if prompts.is_empty() {
            return Err(Error::Argument {
                what: "prompts".into(),
                expected: "at least one prompt".into(),
                found: "none".into(),
            });
        }
        let input_ids = self.tokenizer.encode(prompts)?;
        let output = tch::no_grad(|| self.text_encoder.forward(&input_ids))?;
        Ok(PromptEmbeds { prompt_embeds: output.prompt_embeds.to_kind(Kind::Float), pooled: None })
    }

    /// What guidance points away from: the embeddings of one negative prompt, or of the empty prompt.
    ///
    /// Errors: as [`Self::encode_prompts`].
    pub fn encode_negative_prompt(&self, prompt: &str) -> Result<PromptEmbeds> {
        self.encode_prompts(&[prompt])
    }

    /// Where the U-Net is.
    pub fn device(&self) -> Device {
        self.unet.device()
    }

    /// Height and width of the latents the model was trained on: the U-Net's `sample_size`, else the VAE's
    /// `sample_size` divided by its scale.
    pub fn latent_size(&self) -> i64 {
        let vae = self.vae.config();
        self.unet.config().sample_size.unwrap_or((vae.sample_size / vae.scale_factor()).max(1))
    }
}

/// Refuses pipelines other than Stable Diffusion 1.x and 2.x, naming the part that is different.
fn check_index(path: &Path) -> Result<()> {
    let mut index = Reader::open(path)?;
    index.class("_class_name", &["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"])?;
    let parts = [
        ("unet", &["UNet2DConditionModel"][..]),
        ("vae", &["AutoencoderKL"]),
        ("text_encoder", &["CLIPTextModel"]),
        ("tokenizer", &["CLIPTokenizer", "CLIPTokenizerFast"]),
    ];
    for (part, classes) in parts {
        let Some(value) = index.raw(part) else {
            return Err(wrong(path, part, format!("a {}", classes[0]), "no such key"));
        };
        let class = value.get(1).and_then(Value::as_str);
        if !class.is_some_and(|c| classes.contains(&c)) {
            return Err(index.wrong(part, format!("a {}", classes.join(" or ")), &value));
        }
    }
    // The noise schedule is read from any sampler; the rest takes no part in training.
    index.ignore(&["scheduler", "safety_checker", "feature_extractor", "requires_safety_checker"]);
    if let Some(value) =
        index.raw("image_encoder").filter(|v| v.as_array().is_none_or(|a| a.iter().any(|x| !x.is_null())))
        && !value.is_null()
    {
        return Err(index.wrong("image_encoder", "null (image prompts are not implemented)", &value));
    }
    index.finish()
}

fn check_parts(folder: &Path, unet: &UNetConfig, vae: &VaeConfig, text: &TextConfig) -> Result<()> {
    let path = folder.join("unet/config.json");
    if let Some(width) = unet.cross_attention_dim.iter().find(|d| **d != text.hidden_size) {
        let expected = format!("{} (hidden_size of text_encoder/config.json)", text.hidden_size);
        return Err(wrong(&path, "cross_attention_dim", expected, width));
    }
    for (key, channels) in [("in_channels", unet.in_channels), ("out_channels", unet.out_channels)] {
        if channels != vae.latent_channels {
            let expected = format!("{} (latent_channels of vae/config.json)", vae.latent_channels);
            return Err(wrong(&path, key, expected, channels));
        }
    }
    Ok(())
}

fn check_tokenizer(folder: &Path, tokenizer: &ClipTokenizer, text: &TextConfig) -> Result<()> {
    let longest = text.max_position_embeddings;
    if tokenizer.max_length() as i64 > longest {
        let path = folder.join("tokenizer/tokenizer_config.json");
        let expected = format!("at most {longest} (max_position_embeddings of text_encoder/config.json)");
        return Err(wrong(&path, "model_max_length", expected, tokenizer.max_length()));
    }
    let largest = tokenizer.eos_token_id().max(tokenizer.pad_token_id());
    if largest >= text.vocab_size {
        let path = folder.join("text_encoder/config.json");
        let expected = format!("more than {largest} (the tokenizer's largest special token)");
        return Err(wrong(&path, "vocab_size", expected, text.vocab_size));
    }
    Ok(())
}

/// Opens the first of `files` that is in `folder`.
fn open_weights(folder: &Path, files: &[&str]) -> Result<WeightFile> {
    if let Some(path) = files.iter().map(|f| folder.join(f)).find(|p| p.exists()) {
        return Ok(WeightFile::open(&path)?);
    }
    let expected = folder.join(files[0]);
    let reason = if folder.join(format!("{}.index.json", files[0])).exists() {
        "not there, only shards of it; save the model in one file (max_shard_size) and try again"
    } else if has_pickle(folder) {
        "not there, only a .bin file; save the model with safe_serialization=True and try again"
    } else {
        "no such file"
    };
    Err(seedpo_tensor::Error::format(expected, reason).into())
}

fn has_pickle(folder: &Path) -> bool {
    ["diffusion_pytorch_model.bin", "pytorch_model.bin"].iter().any(|name| folder.join(name).exists())
}

fn vae_params(file: WeightFile, device: Device, kind: Kind) -> Result<Params> {
    let old = file.names().any(|name| name.ends_with(".query.weight"));
    if !old {
        return Ok(Params::from_file(file, device, kind));
    }
    let tensors = modern_names(file.tensors()?);
    Ok(Params::from_tensors(file.path(), tensors, device, kind))
}

/// The names on disk all begin with `text_model.`, whatever the file they came from.
fn with_text_prefix(parameters: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let prefixed = |name: &String| match name.starts_with("text_model.") {
        true => name.clone(),
        false => format!("text_model.{name}"),
    };
    parameters.iter().map(|(name, tensor)| (prefixed(name), tensor.shallow_clone())).collect()
}

fn save_weights(path: &Path, tensors: &BTreeMap<String, Tensor>, storage: Option<Kind>) -> Result<()> {
    let stored = |t: &Tensor| {
        let t = t.detach();
        match storage {
            Some(kind) => t.f_to_kind(kind),
            None => Ok(t),
        }
    };
    let mut converted = BTreeMap::new();
    for (name, tensor) in tensors {
        converted.insert(name.clone(), stored(tensor)?.f_to_device(Device::Cpu)?);
    }
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(write_weights(path, &converted, &metadata)?)
}

fn save_json(path: &Path, value: &Value) -> Result<()> {
    Ok(write_atomic(path, format!("{value:#}\n").as_bytes())?)
}

fn copy_tokenizer(from: &Path, to: &Path) -> Result<()> {
    for name in TOKENIZER_FILES {
        let source = from.join(name);
        if source.exists() && source != to.join(name) {
            let bytes = std::fs::read(&source).map_err(|e| seedpo_tensor::Error::io(&source, e))?;
            write_atomic(&to.join(name), &bytes)?;
        }
    }
    Ok(())
}

/// `model_index.json` of the folders written here: a `StableDiffusionPipeline` without safety checker.
pub fn model_index() -> Value {
    json!({
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.38.0",
        "feature_extractor": [null, null],
        "image_encoder": [null, null],
        "requires_safety_checker": false,
        "safety_checker": [null, null],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    })
}
