//! What every command is given: device, dtype, quiet or not.

use anyhow::{Context as _, Result, bail};
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
        Ok(Self { quiet: global.quiet, device: global.device.clone(), dtype: global.dtype.clone() })
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
