//! What a model is built from, found and checked before any weight is read.

use std::path::{Path, PathBuf};

use seedpo_tensor::WeightFile;

use crate::Result;
use crate::config::{SchedulerConfig, UNetConfig, VaeConfig};
use crate::index::Pipeline;
use crate::layout::{self, DIFFUSERS, Stems, TRANSFORMERS};
use crate::model::LoadOptions;
use crate::parts::{TextParts, check_parts};
use crate::single_file;
use crate::vae::modern_names;

/// Configurations and opened weight files of all parts, in diffusers' names whatever the files' own.
pub(crate) struct Sources {
    /// The folder or file that the model was named by.
    pub path: PathBuf,
    pub pipeline: Pipeline,
    pub scheduler: SchedulerConfig,
    pub unet: (UNetConfig, WeightFile),
    pub vae: (VaeConfig, WeightFile),
    pub text: (TextParts, WeightFile),
    pub second: Option<(TextParts, WeightFile)>,
}

impl Sources {
    /// From a diffusers folder, or a single-file checkpoint.
    pub fn open(path: &Path, options: &LoadOptions) -> Result<Self> {
        let sources = if path.is_file() { single_file::open(path, options)? } else { Self::of_folder(path, options)? };
        match &options.unet {
            None => Ok(sources),
            Some(folder) => sources.with_unet(folder),
        }
    }

    /// With another U-Net in the place of the model's own. Errors: a file that is missing or malformed; a U-Net that does
    /// not fit the other parts.
    fn with_unet(mut self, folder: &Path) -> Result<Self> {
        let within = folder.join("unet");
        let folder = if within.join("config.json").is_file() { within } else { folder.to_path_buf() };
        let config = UNetConfig::from_file(&folder.join("config.json"))?;
        let place = folder.parent().unwrap_or(&folder);
        check_parts(place, &config, &self.vae.0, &self.text.0, self.second.as_ref().map(|(text, _)| text))?;
        self.unet = (config, DIFFUSERS.open(&folder, None)?);
        Ok(self)
    }

    fn of_folder(folder: &Path, options: &LoadOptions) -> Result<Self> {
        let pipeline = Pipeline::from_file(&folder.join("model_index.json"))?;
        let variant = options.variant.as_deref();
        variant.map_or(Ok(()), |variant| layout::check_variant(folder, variant))?;
        let mut scheduler = SchedulerConfig::from_file(&folder.join("scheduler/scheduler_config.json"))?;
        scheduler.prediction_type = options.prediction_type.unwrap_or(scheduler.prediction_type);
        let unet = UNetConfig::from_file(&folder.join("unet/config.json"))?;
        let vae = VaeConfig::from_file(&folder.join("vae/config.json"))?;
        let tokenizer = options.tokenizer.as_deref();
        let text = TextParts::read(folder, "", false, tokenizer)?;
        let second = match pipeline {
            Pipeline::StableDiffusion => None,
            Pipeline::StableDiffusionXl { .. } => Some(TextParts::read(folder, "_2", true, tokenizer)?),
        };
        check_parts(folder, &unet, &vae, &text, second.as_ref())?;
        let open = |part: &str, stems: Stems| stems.open(&folder.join(part), variant);
        let second = match second {
            None => None,
            Some(second) => Some((second, open("text_encoder_2", TRANSFORMERS)?)),
        };
        Ok(Self {
            path: folder.to_path_buf(),
            pipeline,
            scheduler,
            unet: (unet, open("unet", DIFFUSERS)?),
            vae: (vae, modern_names(open("vae", DIFFUSERS)?)?),
            text: (text, open("text_encoder", TRANSFORMERS)?),
            second,
        })
    }
}
