//! A whole text-to-image model in the diffusers folder layout, read and written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use seedpo_tensor::{Params, WeightFile, write_atomic, write_weights_in};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::config::{PredictionType, SchedulerConfig, TextConfig, UNetConfig, VaeConfig};
use crate::index::Pipeline;
use crate::layout::{DIFFUSERS, TRANSFORMERS};
use crate::parts::{TextParts, check_parts};
use crate::prompts::SecondTextEncoder;
use crate::schedule::NoiseSchedule;
use crate::sources::Sources;
use crate::text::ClipTextModel;
use crate::tokenizer::ClipTokenizer;
use crate::unet::UNet2DConditionModel;
use crate::vae::{AutoencoderKl, Tiling};

const SETTINGS: &str = "tokenizer_config.json";
/// What CLIP's tokenizers fill rows with where no file says another.
const USUAL_PAD: &str = "<|endoftext|>";
/// What may lie in `tokenizer/`; those that do are copied on saving.
const TOKENIZER_FILES: &[&str] =
    &["vocab.json", "merges.txt", SETTINGS, "special_tokens_map.json", "added_tokens.json", "tokenizer.json"];

/// Where to put a model, in which number type, and what its files leave open.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadOptions {
    /// The device of all three networks.
    pub device: Device,
    /// The U-Net's number type: `Float`, `BFloat16` or `Half`.
    pub kind: Kind,
    /// The text encoders' number type.
    pub text_encoder_kind: Kind,
    /// The VAE's number type. Stable Diffusion's overflow in f16: unless its configuration says `force_upcast: false`,
    /// f16 becomes f32 and a warning is logged.
    pub vae_kind: Kind,
    /// Whether the VAE takes one picture at a time: [`AutoencoderKl::with_slicing`].
    pub vae_slicing: bool,
    /// Whether the VAE takes large pictures in tiles: [`AutoencoderKl::with_tiling`], with [`Tiling::of`] its configuration.
    pub vae_tiling: bool,
    /// Which of several sets of weight files to read, e.g. `fp16`; `None` is full precision, where it is there.
    pub variant: Option<String>,
    /// What the U-Net predicts, where the model's files say otherwise or nothing.
    pub prediction_type: Option<PredictionType>,
    /// A folder with a CLIP tokenizer, instead of the model's own.
    pub tokenizer: Option<PathBuf>,
    /// A folder with another U-Net for the model (config.json and weights), or one that holds it as `unet/`: the result of
    /// full fine-tuning.
    pub unet: Option<PathBuf>,
    /// Whether the U-Net's weights are read at all. Without them it knows its configuration and no more: for a run that
    /// trains a U-Net of its own and compares it with nothing.
    pub unet_weights: bool,
}

impl Default for LoadOptions {
    /// CPU, everything in f32.
    fn default() -> Self {
        Self::new(Device::Cpu, Kind::Float)
    }
}

impl LoadOptions {
    /// The U-Net in `kind`, the VAE in f32, the text encoders in bf16 beside a bf16 U-Net (SDXL's two take 3.3 GB in
    /// f32), else in f32.
    pub fn new(device: Device, kind: Kind) -> Self {
        Self {
            device,
            kind,
            text_encoder_kind: if kind == Kind::BFloat16 { kind } else { Kind::Float },
            vae_kind: Kind::Float,
            vae_slicing: false,
            vae_tiling: false,
            variant: None,
            prediction_type: None,
            tokenizer: None,
            unet: None,
            unet_weights: true,
        }
    }
}

/// The frozen base model: tokenizers, text encoders, U-Net, VAE and noise schedule of a Stable Diffusion folder.
#[derive(Debug)]
pub struct DiffusionModel {
    /// Prompts to token ids.
    pub tokenizer: ClipTokenizer,
    /// Token ids to prompt embeddings.
    pub text_encoder: ClipTextModel,
    /// SDXL's second tokenizer and text encoder; `None` in SD 1.x and 2.x.
    pub text_encoder_2: Option<SecondTextEncoder>,
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
    /// Loads a single-file checkpoint in the original latent-diffusion key layout (`.safetensors`, `.ckpt`), or a
    /// diffusers folder (`model_index.json`, `unet/`, `vae/`, `text_encoder/`, `tokenizer/`, `scheduler/`; SDXL:
    /// `text_encoder_2/` and `tokenizer_2/` too).
    ///
    /// Errors name file, key, expected and found: a missing or malformed file, an option that is not supported, a
    /// tensor that is missing, surplus or misshaped, parts that do not fit each other.
    pub fn load(folder: &Path, options: &LoadOptions) -> Result<Self> {
        let Sources { path, pipeline, scheduler, unet, vae, text, second } = Sources::open(folder, options)?;
        let schedule = NoiseSchedule::new(&scheduler)?;
        let device = options.device;
        let params = |file: WeightFile, kind| Params::from_file(file, device, kind);
        let load_text = |(parts, file): (TextParts, WeightFile)| -> Result<_> {
            let text_encoder = ClipTextModel::new(parts.config, params(file, options.text_encoder_kind))?;
            Ok((parts.tokenizer, text_encoder))
        };
        let (tokenizer, text_encoder) = load_text(text)?;
        let second = second.map(load_text).transpose()?;
        let vae_kind = vae_kind(options, &vae.0);
        let tiling = options.vae_tiling.then(|| Tiling::of(&vae.0));
        let unet = match options.unet_weights {
            true => UNet2DConditionModel::new(unet.0, params(unet.1, options.kind))?,
            false => UNet2DConditionModel::without_weights(unet.0, device, options.kind)?,
        };
        Ok(Self {
            tokenizer,
            text_encoder,
            text_encoder_2: second.map(|(tokenizer, text_encoder)| SecondTextEncoder {
                tokenizer,
                text_encoder,
                force_zeros_for_empty_prompt: pipeline.forces_zeros(),
            }),
            unet,
            vae: AutoencoderKl::new(vae.0, params(vae.1, vae_kind))?
                .with_slicing(options.vae_slicing)
                .with_tiling(tiling),
            schedule,
            scheduler,
            folder: path,
        })
    }

    /// The U-Net of a model alone, on the device and in the kind that `options` say. Errors: as [`Self::load`].
    pub fn load_unet(folder: &Path, options: &LoadOptions) -> Result<UNet2DConditionModel> {
        let (config, file) = Sources::open(folder, options)?.unet;
        UNet2DConditionModel::new(config, Params::from_file(file, options.device, options.kind))
    }

    /// The U-Net of a model read again into the tensors of `unet`, one tensor at a time. Errors: as [`Self::load`].
    pub(crate) fn reload_unet(folder: &Path, options: &LoadOptions, unet: &UNet2DConditionModel) -> Result<()> {
        unet.read_in_place(Sources::open(folder, options)?.unet.1)
    }

    /// A model with one text encoder and fresh random weights in PyTorch's default distributions (the text encoder:
    /// transformers'), each drawn from `seed` and its name.
    ///
    /// Errors: [`crate::Error::Config`] where a configuration contradicts itself or the parts do not fit each other.
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
        let text = TextParts { suffix: "", tokenizer, config: text };
        text.check(place)?;
        check_parts(place, &unet, &vae, &text, None)?;
        Ok(Self {
            tokenizer: text.tokenizer,
            text_encoder: ClipTextModel::new(text.config, Params::init(seed, device))?,
            text_encoder_2: None,
            unet: UNet2DConditionModel::new(unet, Params::init(seed, device))?,
            vae: AutoencoderKl::new(vae, Params::init(seed, device))?,
            schedule: NoiseSchedule::new(&scheduler)?,
            scheduler,
            folder: PathBuf::new(),
        })
    }

    /// Writes a folder that `StableDiffusionPipeline` (or `StableDiffusionXLPipeline`) `.from_pretrained` loads, weights as they are, or in `storage`
    /// (f16 halves the files). Existing files of the same names are replaced, each in one step.
    ///
    /// Errors: what the operating system refuses, by file.
    pub fn save(&self, folder: &Path, storage: Option<Kind>) -> Result<()> {
        for part in ["vae", "scheduler"] {
            make_folder(&folder.join(part))?;
        }
        self.unet.save(&folder.join("unet"), storage)?;
        save_weights(&folder.join("vae").join(DIFFUSERS.saved()), self.vae.parameters(), storage)?;
        save_json(&folder.join("vae/config.json"), &self.vae.config().to_json())?;
        save_json(&folder.join("scheduler/scheduler_config.json"), &self.scheduler.to_json())?;
        save_text(folder, "", &self.tokenizer, &self.text_encoder, storage)?;
        if let Some(second) = &self.text_encoder_2 {
            save_text(folder, "_2", &second.tokenizer, &second.text_encoder, storage)?;
        }
        // Last: a folder without it is no model yet.
        save_json(&folder.join("model_index.json"), &self.pipeline().to_json())
    }

    /// What kind of pipeline this is.
    pub fn pipeline(&self) -> Pipeline {
        match &self.text_encoder_2 {
            None => Pipeline::StableDiffusion,
            Some(second) => {
                Pipeline::StableDiffusionXl { force_zeros_for_empty_prompt: second.force_zeros_for_empty_prompt }
            }
        }
    }

    /// Where the U-Net is.
    pub fn device(&self) -> Device {
        self.unet.device()
    }

    /// Height and width of the latents the model was trained on: the U-Net's `sample_size`, else the VAE's
    /// `sample_size` divided by its scale.
    pub fn latent_size(&self) -> [i64; 2] {
        let vae = self.vae.config();
        self.unet.config().sample_size.unwrap_or([(vae.sample_size / vae.scale_factor()).max(1); 2])
    }
}

impl UNet2DConditionModel {
    /// Writes a folder that diffusers' `UNet2DConditionModel.from_pretrained` loads, weights as they are or in `storage`.
    /// Existing files of the same names are replaced, each in one step. Errors: what the operating system refuses.
    pub fn save(&self, folder: &Path, storage: Option<Kind>) -> Result<()> {
        make_folder(folder)?;
        save_weights(&folder.join(DIFFUSERS.saved()), self.parameters(), storage)?;
        save_json(&folder.join("config.json"), &self.config().to_json())
    }
}

/// The VAE's number type: f16 only where its configuration says that f16 suffices. Tells the user where it does not.
fn vae_kind(options: &LoadOptions, config: &VaeConfig) -> Kind {
    if !config.force_upcast || options.vae_kind != Kind::Half {
        return options.vae_kind;
    }
    tracing::warn!(
        "the autoencoder runs in f32, not f16: its configuration does not say `force_upcast: false`, and Stable Diffusion's \
         overflow in f16 (docs/models.md tells of one for SDXL that does not)"
    );
    Kind::Float
}

fn make_folder(path: &Path) -> Result<()> {
    Ok(std::fs::create_dir_all(path).map_err(|e| seedpo_tensor::Error::io(path, e))?)
}

/// Writes `text_encoder<suffix>` and `tokenizer<suffix>`.
fn save_text(
    folder: &Path,
    suffix: &str,
    tokenizer: &ClipTokenizer,
    text_encoder: &ClipTextModel,
    storage: Option<Kind>,
) -> Result<()> {
    let place = folder.join(format!("text_encoder{suffix}"));
    make_folder(&place)?;
    save_weights(&place.join(TRANSFORMERS.saved()), &with_text_prefix(text_encoder.parameters()), storage)?;
    save_json(&place.join("config.json"), &text_encoder.config().to_json())?;
    let place = folder.join(format!("tokenizer{suffix}"));
    make_folder(&place)?;
    copy_tokenizer(tokenizer, &place)
}

/// The transformer's names on disk all begin with `text_model.`, whatever the file they came from.
fn with_text_prefix(parameters: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let prefixed = |name: &String| match name.starts_with("text_model.") || name.starts_with("text_projection.") {
        true => name.clone(),
        false => format!("text_model.{name}"),
    };
    parameters.iter().map(|(name, tensor)| (prefixed(name), tensor.shallow_clone())).collect()
}

fn save_weights(path: &Path, tensors: &BTreeMap<String, Tensor>, storage: Option<Kind>) -> Result<()> {
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(write_weights_in(path, tensors, &metadata, storage)?)
}

fn save_json(path: &Path, value: &Value) -> Result<()> {
    Ok(write_atomic(path, format!("{value:#}\n").as_bytes())?)
}

/// Copies a tokenizer's files; its padding token is written into them, where it is another than theirs.
fn copy_tokenizer(tokenizer: &ClipTokenizer, to: &Path) -> Result<()> {
    for name in TOKENIZER_FILES {
        let (source, target) = (tokenizer.folder().join(name), to.join(name));
        if !source.exists() {
            continue;
        }
        let mut bytes = std::fs::read(&source).map_err(|e| seedpo_tensor::Error::io(&source, e))?;
        let unsaid = (*name == SETTINGS).then_some(USUAL_PAD);
        if let Ok(mut settings @ Value::Object(_)) = serde_json::from_slice(&bytes)
            && pad_token(&settings).or(unsaid).is_some_and(|pad| pad != tokenizer.pad_token())
        {
            settings["pad_token"] = tokenizer.pad_token().into();
            bytes = format!("{settings:#}\n").into_bytes();
        } else if source == target {
            continue;
        }
        write_atomic(&target, &bytes)?;
    }
    let settings = to.join(SETTINGS);
    if tokenizer.pad_token() != USUAL_PAD && !settings.exists() {
        save_json(&settings, &json!({"pad_token": tokenizer.pad_token(), "tokenizer_class": "CLIPTokenizer"}))?;
    }
    Ok(())
}

/// The padding token that a tokenizer's file names, as a text or described.
fn pad_token(settings: &Value) -> Option<&str> {
    let pad = settings.get("pad_token")?;
    pad.as_str().or_else(|| pad.get("content")?.as_str())
}
