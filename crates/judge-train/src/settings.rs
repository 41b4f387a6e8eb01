//! How a judge is trained, whatever its kind.

use std::fmt;
use std::str::FromStr;

use seedpo_align::TrainConfig;
use seedpo_align::optimizer::{AdamWOptions, LrSchedule};
use serde::Serialize;

use crate::{Error, Result};

/// What of a dataset is used: part `index` of `of`, from 1. Which part a prompt (or captioned picture) belongs to depends
/// on itself alone, so judges trained on different parts share no prompt whatever their seeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Part {
    /// Which, from 1.
    pub index: u64,
    /// Of how many.
    pub of: u64,
}

impl FromStr for Part {
    type Err = String;

    /// `K/N`. Errors: what was expected and found, for anything but 1 ≤ K ≤ N ≤ 1000.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
        match numbers {
            Some((index, of)) if 1 <= index && index <= of && of <= 1000 => Ok(Self { index, of }),
            _ => Err(format!("expected K/N with K from 1 to N and N at most 1000, as in 1/2, found `{text}`")),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

/// The settings that all kinds share.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Settings {
    /// Updates, 1 or more.
    pub steps: u64,
    /// Examples (pairs, captioned pictures) of one pass, 1 or more.
    pub batch: usize,
    /// Passes whose gradients make one update, 1 or more.
    pub accumulation: usize,
    /// Peak learning rate, above 0, below 1.
    pub lr: f64,
    /// AdamW's decoupled weight decay, of all parameters, in [0, 100).
    pub weight_decay: f64,
    /// A name of [`LrSchedule::NAMES`].
    pub schedule: String,
    /// Updates of the linear rise from 0.
    pub warmup: u64,
    /// Gradients with a larger 2-norm are scaled down to it; 0 never.
    pub max_grad_norm: f64,
    /// Seed of everything that is drawn.
    pub seed: u64,
    /// The share of prompts (or captioned pictures) that is never trained on, in [0, 0.9).
    pub heldout_share: f64,
    /// Examples looked at of those held out, evenly over the dataset; 0 all.
    pub heldout_limit: usize,
    /// What of the dataset is used.
    pub part: Part,
}

impl Settings {
    /// Checks ranges. Errors: [`Error::Setting`] naming the first that is wrong.
    pub fn validate(&self) -> Result<()> {
        let least = [("steps", self.steps), ("batch", self.batch as u64), ("accumulation", self.accumulation as u64)];
        if let Some((key, found)) = least.iter().find(|(_, value)| *value == 0) {
            return Err(Error::setting(key, "1 or more", found));
        }
        let ranges = [
            ("lr", self.lr, 0.0..1.0),
            ("weight-decay", self.weight_decay, -f64::MIN_POSITIVE..100.0),
            ("max-grad-norm", self.max_grad_norm, -f64::MIN_POSITIVE..f64::MAX),
            ("heldout-share", self.heldout_share, -f64::MIN_POSITIVE..0.9),
        ];
        for (key, value, range) in ranges {
            if !(value > range.start && value < range.end) {
                let from = if range.start < 0.0 { "0 or more" } else { "above 0" };
                let to = if range.end == f64::MAX { String::new() } else { format!(", below {}", range.end) };
                return Err(Error::setting(key, format!("{from}{to}"), value));
            }
        }
        self.learning_rates().map(|_| ())
    }

    /// The schedule's factor on the learning rate.
    pub(crate) fn learning_rates(&self) -> Result<LrSchedule> {
        let config = TrainConfig {
            lr_scheduler: self.schedule.clone(),
            lr_warmup_steps: self.warmup,
            max_train_steps: self.steps,
            learning_rate: self.lr,
            ..TrainConfig::default()
        };
        Ok(LrSchedule::from_settings(&config)?)
    }

    /// AdamW's constants: torch's defaults and the weight decay.
    pub(crate) fn adamw(&self) -> AdamWOptions {
        AdamWOptions { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: self.weight_decay }
    }
}
