//! Learning-rate schedules equal to `diffusers.optimization.get_scheduler`.

use crate::config::TrainConfig;
use crate::error::{Error, Result};
use std::f64::consts::PI;

/// The learning rate that `polynomial` ends at, as in diffusers.
const POLYNOMIAL_END: f64 = 1e-7;

/// How the factor goes on once the warm-up is over.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Shape {
    /// Always 1, without warm-up.
    Constant,
    /// 1.
    AfterWarmup,
    /// A straight line to 0.
    Linear,
    /// Half a cosine to 0.
    Cosine,
    /// As many half cosines to 0, each from 1.
    CosineWithRestarts { cycles: u64 },
    /// (share left)^power, to `end`, a share of the base rate.
    Polynomial { power: f64, end: f64 },
}

/// A learning-rate schedule: a factor on the base rate for each update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LrSchedule {
    shape: Shape,
    /// Updates of the rise from 0.
    warmup: u64,
    /// Updates of the whole run.
    total: u64,
}

impl LrSchedule {
    /// The names the setting `lr_scheduler` takes.
    pub const NAMES: &[&str] =
        &["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"];

    /// From the settings `lr_scheduler`, `lr_warmup_steps`, `lr_num_cycles`, `lr_power`, `learning_rate` and
    /// `max_train_steps`.
    ///
    /// Errors: [`Error::Setting`] for an unknown name, or one that needs a length without one.
    pub fn from_settings(config: &TrainConfig) -> Result<Self> {
        let refuse = |key: &str, expected: String, found: String| Error::Setting { key: key.into(), expected, found };
        let name = config.lr_scheduler.as_str();
        let shape = match name {
            "constant" => Shape::Constant,
            "constant_with_warmup" => Shape::AfterWarmup,
            "linear" => Shape::Linear,
            "cosine" => Shape::Cosine,
            "cosine_with_restarts" => Shape::CosineWithRestarts { cycles: config.lr_num_cycles },
            "polynomial" if config.learning_rate > POLYNOMIAL_END => {
                Shape::Polynomial { power: config.lr_power, end: POLYNOMIAL_END / config.learning_rate }
            }
            "polynomial" => {
                let expected = format!("above {POLYNOMIAL_END:e}, at which the schedule polynomial ends");
                return Err(refuse("learning_rate", expected, config.learning_rate.to_string()));
            }
            _ => return Err(refuse("lr_scheduler", format!("one of {}", Self::NAMES.join(", ")), format!("`{name}`"))),
        };
        let (warmup, total) = (config.lr_warmup_steps, config.max_train_steps);
        if Self::needs_length(name) && total == 0 {
            let expected = format!("max_train_steps above 0 for `{name}`, whose shape it fixes");
            return Err(refuse("lr_scheduler", expected, format!("`{name}` with max_train_steps = 0")));
        }
        Ok(Self { shape, warmup, total })
    }

    /// Whether the schedule of this name depends on the length of the run.
    pub fn needs_length(name: &str) -> bool {
        !matches!(name, "constant" | "constant_with_warmup")
    }

    /// The factor for the update with this index, counted from 0. In [0, 1].
    pub fn factor(&self, update: u64) -> f64 {
        if self.shape == Shape::Constant {
            return 1.0;
        }
        if update < self.warmup {
            return update as f64 / self.warmup.max(1) as f64;
        }
        let span = self.total.saturating_sub(self.warmup);
        let progress = (update - self.warmup) as f64 / span.max(1) as f64;
        match self.shape {
            Shape::Constant | Shape::AfterWarmup => 1.0,
            Shape::Linear => (self.total.saturating_sub(update) as f64 / span.max(1) as f64).max(0.0),
            Shape::Cosine => (0.5 * (1.0 + (PI * progress).cos())).max(0.0),
            Shape::CosineWithRestarts { .. } if progress >= 1.0 => 0.0,
            Shape::CosineWithRestarts { cycles } => {
                (0.5 * (1.0 + (PI * ((cycles as f64 * progress) % 1.0)).cos())).max(0.0)
            }
            Shape::Polynomial { end, .. } if update > self.total => end,
            // Without a span diffusers divides by 0; the end is where this leads.
            Shape::Polynomial { end, .. } if span == 0 => end,
            Shape::Polynomial { power, end } => {
                let left = 1.0 - (update - self.warmup) as f64 / span as f64;
                (1.0 - end) * left.powf(power) + end
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use seedpo_tensor::WeightFile;
    use std::path::Path;

    fn schedule(name: &str, warmup: u64) -> LrSchedule {
        let config = TrainConfig {
            lr_scheduler: name.into(),
            lr_warmup_steps: warmup,
            max_train_steps: 40,
            lr_num_cycles: 3,
            lr_power: 2.0,
            learning_rate: 1e-4,
            ..TrainConfig::default()
        };
        LrSchedule::from_settings(&config).unwrap()
    }

    #[test]
    fn factors_equal_diffusers() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/optimizer.safetensors");
        let file = WeightFile::open(&path).unwrap();
        for name in LrSchedule::NAMES {
            for warmup in [0, 7] {
                let schedule = schedule(name, warmup);
                let expected = file.tensor(&format!("schedule.{name}.{warmup}")).unwrap();
                for update in 0..expected.size()[0] {
                    let difference = (schedule.factor(update as u64) - expected.double_value(&[update])).abs();
                    assert!(difference < 1e-12, "{name} warm-up {warmup} update {update}: {difference}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_scheduled_is_refused() {
        let refused = |config: TrainConfig| LrSchedule::from_settings(&config).unwrap_err().to_string();
        let named = |name: &str| TrainConfig { lr_scheduler: name.into(), ..TrainConfig::default() };
        assert!(refused(named("cosin")).contains("polynomial"));
        assert!(refused(named("linear")).contains("max_train_steps"));
        let message = refused(TrainConfig { learning_rate: 1e-8, max_train_steps: 9, ..named("polynomial") });
        assert!(message.contains("learning_rate"), "{message}");
    }
}
