//! The running statistics an update is compared with: medians, which a few spikes do not move.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

use super::{Trouble, Vitals};

/// Updates in line before anything counts as a spike.
const ENOUGH: usize = 10;
/// The spread is at least this share of the median's size.
const LEAST_SPREAD: f64 = 0.1;
/// The least spread of the winner's reward, which starts at exactly 0; nats.
const LEAST_REWARD_SPREAD: f64 = 0.1;
/// A median absolute deviation times this is a normal distribution's standard deviation.
const DEVIATION: f64 = 1.4826;

/// The last updates in line; in f32, which JSON gives back to the bit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Baseline {
    losses: VecDeque<f32>,
    /// −β·r of the winners.
    winner_losses: VecDeque<f32>,
    grad_norms: VecDeque<f32>,
}

impl Baseline {
    /// Adds an update, keeping the newest `window`. Gradients of 0 (every pair clipped) say nothing of their usual size.
    pub fn add(&mut self, vitals: &Vitals, window: usize) {
        push(&mut self.losses, vitals.loss, window);
        push(&mut self.winner_losses, -vitals.winner_reward, window);
        if vitals.grad_norm > 0.0 {
            push(&mut self.grad_norms, vitals.grad_norm, window);
        }
    }

    /// The first number that is out of line, if any (docs/stability.md says how that is decided).
    pub fn spike(&self, vitals: &Vitals, loss_factor: f64, grad_factor: f64) -> Option<Trouble> {
        let above = |what: &str, value: f64, values: &VecDeque<f32>, least: f64| {
            let usual = enough(values)?;
            let spread = DEVIATION * median(values.iter().map(|v| (f64::from(*v) - usual).abs()))?;
            let limit = usual + loss_factor * spread.max(LEAST_SPREAD * usual.abs()).max(least);
            (loss_factor > 0.0 && value > limit).then(|| Trouble { what: what.into(), value, limit, usual })
        };
        let times = || {
            let usual = enough(&self.grad_norms)?;
            let (value, limit) = (vitals.grad_norm, usual * grad_factor);
            (grad_factor > 0.0 && value > limit).then(|| Trouble {
                what: "the gradient norm".into(),
                value,
                limit,
                usual,
            })
        };
        above("the loss", vitals.loss, &self.losses, 0.0)
            .or_else(|| above("what the winners lost", -vitals.winner_reward, &self.winner_losses, LEAST_REWARD_SPREAD))
            .or_else(times)
    }
}

fn push(values: &mut VecDeque<f32>, value: f64, window: usize) {
    let value = value as f32;
    if value.is_finite() {
        values.push_back(value);
    }
    while values.len() > window.max(1) {
        values.pop_front();
    }
}

/// The median, once there are enough values.
fn enough(values: &VecDeque<f32>) -> Option<f64> {
    if values.len() < ENOUGH { None } else { median(values.iter().copied().map(f64::from)) }
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let (low, high) = (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
    Some((low + high) / 2.0)
}
