//! Learning-rate schedules equal to `diffusers.optimization.get_scheduler`.

use crate::error::{Error, Result};

/// A learning-rate schedule: a factor on the base rate for each update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LrSchedule {
    /// Always 1.
    Constant,
    /// From 0 to 1 in `warmup` updates, then 1.
    ConstantWithWarmup {
        /// Updates of the rise.
        warmup: u64,
    },
    /// As above, then half a cosine down to 0 at `total` updates.
    Cosine {
        /// Updates of the rise.
        warmup: u64,
        /// Updates of the whole run.
        total: u64,
    },
}

impl LrSchedule {
    /// From the settings `lr_scheduler`, `lr_warmup_steps` and `max_train_steps`.
    ///
    /// Errors: [`Error::Setting`] for an unknown name, or cosine without a length.
    pub fn from_settings(name: &str, warmup: u64, total: u64) -> Result<Self> {
        match name {
            "constant" => Ok(Self::Constant),
            "constant_with_warmup" => Ok(Self::ConstantWithWarmup { warmup }),
            "cosine" if total > 0 => Ok(Self::Cosine { warmup, total }),
            _ => Err(Error::Setting {
                key: "lr_scheduler".into(),
                expected: "constant, constant_with_warmup, or cosine (which needs max_train_steps above 0)".into(),
                found: format!("`{name}` with max_train_steps = {total}"),
            }),
        }
    }

    /// The factor for the update with this index, counted from 0. In [0, 1].
    pub fn factor(&self, update: u64) -> f64 {
        let rise = |warmup: u64| update as f64 / warmup.max(1) as f64;
        match *self {
            Self::Constant => 1.0,
            Self::ConstantWithWarmup { warmup } | Self::Cosine { warmup, .. } if update < warmup => rise(warmup),
            Self::ConstantWithWarmup { .. } => 1.0,
            Self::Cosine { warmup, total } => {
                let progress = (update - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
                (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use seedpo_tensor::WeightFile;
    use std::path::Path;

    #[test]
    fn factors_equal_diffusers() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/optimizer.safetensors");
        let file = WeightFile::open(&path).unwrap();
        for name in ["constant", "constant_with_warmup", "cosine"] {
            for warmup in [0, 7] {
                let schedule = LrSchedule::from_settings(name, warmup, 40).unwrap();
                let expected = file.tensor(&format!("schedule.{name}.{warmup}")).unwrap();
                for update in 0..expected.size()[0] {
                    let difference = (schedule.factor(update as u64) - expected.double_value(&[update])).abs();
                    assert!(difference < 1e-12, "{name} warm-up {warmup} update {update}: {difference}");
                }
            }
        }
    }
}
