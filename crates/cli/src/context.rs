//! What every command is given: device, dtype, quiet or not.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use seedpo_align::config::given;
use seedpo_model::LoadOptions;
use seedpo_model::config::PredictionType;
use seedpo_tensor::{Device, Kind, device::parse_device, speed::Speed, tch};
use toml::{Table, Value};

use crate::args::Global;
use crate::progress::Progress;

/// The settings all commands share.
#[derive(Clone, Debug)]
pub struct Context {
    /// No progress and no notes on standard error.
    pub quiet: bool,
    /// The flags about the model as settings of a training run, those that were given.
    given: Table,
    revision: Option<String>,
}

/// How a model is to be loaded, as flags and settings spell it; empty texts are not given.
#[derive(Clone, Debug, Default)]
pub struct ModelFlags {
    pub dtype: String,
    pub vae_dtype: String,
    pub vae_slicing: bool,
    pub vae_tiling: bool,
    pub variant: String,
    pub prediction_type: String,
    pub tokenizer: String,
}

impl ModelFlags {
    /// Options for loading a model on `device`; `auto` dtypes are resolved, in a note to the user.
    ///
    /// Errors: a dtype or prediction type that is none.
    pub fn load_options(&self, device: Device, context: &Context) -> Result<LoadOptions> {
        let prediction_type = given(&self.prediction_type).map(|name| {
            let parsed = PredictionType::from_name(name);
            parsed.with_context(|| format!("prediction type: expected epsilon, v_prediction or sample, found `{name}`"))
        });
        let kind = context.base_kind(&self.dtype, device).context("dtype")?;
        Ok(LoadOptions {
            // Beside f16 too: an autoencoder that overflows in it is loaded in f32.
            vae_kind: parse_dtype(&self.vae_dtype).context("vae_dtype")?.unwrap_or(kind),
            vae_slicing: self.vae_slicing,
            vae_tiling: self.vae_tiling,
            variant: given(&self.variant).map(str::to_owned),
            prediction_type: prediction_type.transpose()?,
            tokenizer: given(&self.tokenizer).map(PathBuf::from),
            ..LoadOptions::new(device, kind)
        })
    }
}

impl Context {
    /// The context for the global flags; sets libtorch's thread count. Errors: a thread count or dtype out of range.
    pub fn new(global: &Global) -> Result<Self> {
        if let Some(threads) = global.threads {
            if !(1..=1024).contains(&threads) {
                bail!("--threads: expected 1 to 1024, found {threads}");
            }
            tch::set_num_threads(threads);
        }
        let dtype = |flag: &Option<String>, name: &'static str| {
            flag.as_ref().map(|text| parse_dtype(text).context(name).map(dtype_name)).transpose()
        };
        let texts = [
            ("device", global.device.clone()),
            ("dtype", dtype(&global.dtype, "--dtype")?.map(str::to_owned)),
            ("vae_dtype", dtype(&global.vae_dtype, "--vae-dtype")?.map(str::to_owned)),
            ("variant", global.variant.clone()),
            ("prediction_type", global.prediction_type.clone()),
            ("tokenizer", global.tokenizer.clone()),
        ];
        let switches = [("vae_slicing", global.vae_slicing), ("vae_tiling", global.vae_tiling)];
        let texts = texts.into_iter().filter_map(|(key, text)| Some((key.to_owned(), Value::String(text?))));
        let switches = switches.into_iter().filter_map(|(key, on)| Some((key.to_owned(), Value::Boolean(on?))));
        Ok(Self { quiet: global.quiet, given: texts.chain(switches).collect(), revision: global.revision.clone() })
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
        parse_device(self.flag("device").unwrap_or(default)).context("--device")
    }

    /// The text given for a key (`device`, `dtype`) by its global flag, if any.
    pub fn flag(&self, key: &str) -> Option<&str> {
        self.given.get(key).and_then(Value::as_str)
    }

    /// What the global flags say, as settings of a training run: those that were given.
    pub fn given(&self) -> Table {
        self.given.clone()
    }

    /// Options for loading a model on `device`, from all flags. Errors: an unknown prediction type.
    pub fn load_options(&self, device: Device) -> Result<LoadOptions> {
        self.load_options_or(device, AUTO)
    }

    /// As [`Context::load_options`], with `dtype` for the base where none was named.
    pub fn load_options_or(&self, device: Device, dtype: &str) -> Result<LoadOptions> {
        let text =
            |key: &str, default: &str| self.flag(key).filter(|text| !text.is_empty()).unwrap_or(default).to_owned();
        let switch = |key: &str| self.given.get(key).and_then(Value::as_bool).unwrap_or(false);
        let flags = ModelFlags {
            dtype: text("dtype", dtype),
            vae_dtype: text("vae_dtype", AUTO),
            vae_slicing: switch("vae_slicing"),
            vae_tiling: switch("vae_tiling"),
            variant: text("variant", ""),
            prediction_type: text("prediction_type", ""),
            tokenizer: text("tokenizer", ""),
        };
        flags.load_options(device, self)
    }

    /// The base's dtype: the one named, or for `auto` what this machine multiplies best; that is told.
    fn base_kind(&self, name: &str, device: Device) -> Result<Kind> {
        if let Some(kind) = parse_dtype(name)? {
            return Ok(kind);
        }
        let (kind, why) = Speed::of(device).best(device);
        self.note(&format!("dtype {}: {why} (--dtype chooses another)", kind_name(kind)));
        Ok(kind)
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

/// The dtype that is chosen when the model is loaded.
pub const AUTO: &str = "auto";

/// `f32`, `bf16` or `f16` (and the long names other tools use) as a libtorch dtype; `None` for `auto`.
pub fn parse_dtype(name: &str) -> Result<Option<Kind>> {
    match name {
        AUTO => Ok(None),
        "f32" | "fp32" | "float32" | "no" => Ok(Some(Kind::Float)),
        "bf16" | "bfloat16" => Ok(Some(Kind::BFloat16)),
        "f16" | "fp16" | "float16" => Ok(Some(Kind::Half)),
        _ => bail!("expected auto, f32, bf16 or f16, found `{name}`"),
    }
}

fn dtype_name(dtype: Option<Kind>) -> &'static str {
    dtype.map_or(AUTO, kind_name)
}

/// A base's dtype in its short spelling.
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "bf16",
        Kind::Half => "f16",
        _ => "f32",
    }
}
