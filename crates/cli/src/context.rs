//! What every command is given: device, dtype, quiet or not.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use seedpo_model::LoadOptions;
use seedpo_model::config::PredictionType;
use seedpo_tensor::{Device, Kind, device::parse_device, tch};

use crate::args::Global;
use crate::progress::Progress;

/// The settings all commands share.
#[derive(Clone, Debug)]
pub struct Context {
    /// No progress and no notes on standard error.
    pub quiet: bool,
    device: Option<String>,
    dtype: Option<String>,
    files: FileFlags,
    revision: Option<String>,
}

/// How a model's files are to be read, as flags and settings spell it; empty texts are not given.
#[derive(Clone, Debug, Default)]
pub struct FileFlags {
    pub variant: String,
    pub prediction_type: String,
    pub tokenizer: String,
}

impl FileFlags {
    /// Options for loading a model. Errors: a prediction type that is none.
    pub fn load_options(&self, device: Device, kind: Kind) -> Result<LoadOptions> {
        let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let prediction_type = given(&self.prediction_type).map(|name| {
            let parsed = PredictionType::from_name(&name);
            parsed.with_context(|| format!("prediction type: expected epsilon or v_prediction, found `{name}`"))
        });
        Ok(LoadOptions {
            variant: given(&self.variant),
            prediction_type: prediction_type.transpose()?,
            tokenizer: given(&self.tokenizer).map(PathBuf::from),
            ..LoadOptions::new(device, kind)
        })
    }
}

impl Context {
    /// The context for the global flags; sets libtorch's thread count.
    pub fn new(global: &Global) -> Result<Self> {
        if let Some(threads) = global.threads {
            if !(1..=1024).contains(&threads) {
                bail!("--threads: expected 1 to 1024, found {threads}");
            }
            tch::set_num_threads(threads);
        }
        let text = |flag: &Option<String>| flag.clone().unwrap_or_default();
        let files = FileFlags {
            variant: text(&global.variant),
            prediction_type: text(&global.prediction_type),
            tokenizer: text(&global.tokenizer),
        };
        let (device, dtype, revision) = (global.device.clone(), global.dtype.clone(), global.revision.clone());
        Ok(Self { quiet: global.quiet, device, dtype, files, revision })
    }

    /// The branch, tag or commit of a model that is named by its hub id.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The device to compute on, `auto` where none was named; asked once, before the first tensor.
    pub fn device(&self) -> Result<Device> {
        self.device_or("auto")
    }

    /// The device to compute on, with another default than `auto`.
    pub fn device_or(&self, default: &str) -> Result<Device> {
        parse_device(self.device.as_deref().unwrap_or(default)).context("--device")
    }

    /// The dtype of the frozen base's weights; f32 where none was named.
    pub fn kind(&self) -> Result<Kind> {
        parse_kind(self.dtype.as_deref().unwrap_or("f32")).context("--dtype")
    }

    /// The device the user named, if any.
    pub fn device_flag(&self) -> Option<String> {
        self.device.clone()
    }

    /// The dtype the user named, if any, in its short spelling.
    pub fn dtype_flag(&self) -> Result<Option<String>> {
        let Some(name) = &self.dtype else { return Ok(None) };
        Ok(Some(match parse_kind(name).context("--dtype")? {
            Kind::BFloat16 => "bf16".to_owned(),
            Kind::Half => "f16".to_owned(),
            _ => "f32".to_owned(),
        }))
    }

    /// How the user wants a model's files to be read.
    pub fn files(&self) -> &FileFlags {
        &self.files
    }

    /// Options for loading a model on `device`, from all flags. Errors: an unknown dtype or prediction type.
    pub fn load_options(&self, device: Device) -> Result<LoadOptions> {
        self.files.load_options(device, self.kind()?)
    }

    /// Progress on standard error, unless `--quiet`.
    pub fn progress(&self, label: &str, total: usize, unit: &str) -> Progress {
        Progress::new(self.quiet, label, total, unit)
    }

    /// A line on standard error, unless `--quiet`.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }
}

/// `f32`, `bf16` or `f16` (and the long names other tools use) as a libtorch dtype.
pub fn parse_kind(name: &str) -> Result<Kind> {
    match name {
        "f32" | "fp32" | "float32" | "no" => Ok(Kind::Float),
        "bf16" | "bfloat16" => Ok(Kind::BFloat16),
        "f16" | "fp16" | "float16" => Ok(Kind::Half),
        _ => bail!("expected f32, bf16 or f16, found `{name}`"),
    }
}
