//! Guards of a long run (docs/stability.md): which updates are out of line, and what is done about them.
//!
//! Everything here is arithmetic on the numbers an update reports; the trainer carries out what is decided.

mod baseline;

use baseline::Baseline;
use serde::{Deserialize, Serialize};

use crate::choice::choice;
use crate::config::TrainConfig;
use crate::error::Result;

choice! {
    /// What is done when an update is out of line; the setting `guard`.
    GuardAction, "guard" {
        /// Nothing; a number that is not finite still ends the run.
        Off = "off",
        /// Spikes are noted; several in a row, or a number that is not finite, end the run.
        Stop = "stop",
        /// The update is left out.
        Skip = "skip",
        /// The update is left out and the learning rate lowered for a while.
        BackOff = "back-off",
        /// Back to the last good checkpoint, on with other data and noise and a lower learning rate.
        RollBack = "roll-back",
    }
}

/// What a guard looks for and does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GuardOptions {
    /// What is done.
    pub action: GuardAction,
    /// A loss, or fall of the winner's reward, this many spreads above its median is a spike; 0 is off.
    pub loss_factor: f64,
    /// A gradient norm this many times its median is a spike; 0 is off.
    pub grad_factor: f64,
    /// Spikes in a row that count as divergence.
    pub patience: u64,
    /// Updates that the running statistics cover.
    pub window: u64,
    /// Factor on the learning rate at each back-off or roll-back.
    pub back_off: f64,
    /// Updates in line after which one back-off is taken back.
    pub cooldown: u64,
    /// Back-offs or roll-backs in a run, or updates left out in a row, before the run ends.
    pub limit: u64,
}

impl GuardOptions {
    /// The guard of a run's settings. Errors: an unknown `guard`.
    pub fn from_settings(config: &TrainConfig) -> Result<Self> {
        Ok(Self {
            action: GuardAction::by_name(&config.guard)?,
            loss_factor: config.guard_loss_factor,
            grad_factor: config.guard_grad_factor,
            patience: config.guard_patience,
            window: config.guard_window,
            back_off: config.guard_back_off,
            cooldown: config.guard_cooldown,
            limit: config.guard_limit,
        })
    }
}

/// What an update reports before it is applied.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Vitals {
    /// The loss, nats.
    pub loss: f64,
    /// β·r of the winners, nats: what the policy gained on its reference on the preferred samples.
    pub winner_reward: f64,
    /// The global gradient norm before clipping.
    pub grad_norm: f64,
}

/// A number that is out of line.
#[derive(Debug, Clone, PartialEq)]
pub struct Trouble {
    /// Which one, in words.
    pub what: String,
    /// Its value.
    pub value: f64,
    /// The most it may be; NaN where any finite number would do.
    pub limit: f64,
    /// The median of the running statistic; NaN where there is none.
    pub usual: f64,
}

impl Trouble {
    /// A number that is NaN or infinite.
    pub fn non_finite(what: impl Into<String>, value: f64) -> Self {
        Self { what: what.into(), value, limit: f64::NAN, usual: f64::NAN }
    }

    /// What is out of line, in one sentence.
    pub fn sentence(&self) -> String {
        if self.limit.is_finite() {
            return format!("{} is {:.4}, usual {:.4}, at most {:.4}", self.what, self.value, self.usual, self.limit);
        }
        if self.value.is_nan() { self.what.clone() } else { format!("{} is {}", self.what, self.value) }
    }
}

/// What is to be done with an update, or about a policy.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Apply it.
    Apply,
    /// Apply it, and note the spike.
    Note(Trouble),
    /// Leave it out.
    Skip(Trouble),
    /// Leave it out; the learning rate has been lowered.
    BackOff(Trouble),
    /// Go back to a checkpoint.
    RollBack(Trouble),
    /// End the run.
    Stop(Trouble),
}

/// The guard's memory: saved with every checkpoint, so that a resumed run decides alike.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuardState {
    baseline: Baseline,
    /// Spikes in a row.
    spikes: u64,
    /// Updates left out in a row.
    skipped: u64,
    /// Updates in line since the last back-off, or since the last one taken back.
    calm: u64,
    /// Back-offs in force.
    lowered: u32,
    /// Back-offs and roll-backs so far.
    pub actions: u64,
    /// Roll-backs so far; the data and noise of what follows are keyed by it.
    pub roll_backs: u64,
}

impl Default for GuardState {
    fn default() -> Self {
        let baseline = Baseline::default();
        Self { baseline, spikes: 0, skipped: 0, calm: 0, lowered: 0, actions: 0, roll_backs: 0 }
    }
}

/// Decides about updates.
#[derive(Debug, Clone, PartialEq)]
pub struct Guard {
    options: GuardOptions,
    /// What is saved and restored.
    pub state: GuardState,
}

impl Guard {
    /// A guard that remembers `state`.
    pub fn new(options: GuardOptions, state: GuardState) -> Self {
        Self { options, state }
    }

    /// What the learning rate is multiplied by now, in (0, 1].
    pub fn learning_rate_factor(&self) -> f64 {
        self.options.back_off.powi(self.state.lowered as i32)
    }

    /// Whether numbers that are not finite end the run at once.
    pub fn ends_runs(&self) -> bool {
        matches!(self.options.action, GuardAction::Off | GuardAction::Stop)
    }

    /// Decides about an update that reports `vitals` and is not yet applied.
    pub fn judge(&mut self, vitals: &Vitals) -> Verdict {
        let named = [("the loss", vitals.loss), ("the gradient norm", vitals.grad_norm)];
        if let Some((what, value)) = named.into_iter().find(|(_, value)| !value.is_finite()) {
            return self.broken(Trouble::non_finite(what, value));
        }
        let spike = match self.options.action {
            GuardAction::Off => None,
            _ => self.state.baseline.spike(vitals, self.options.loss_factor, self.options.grad_factor),
        };
        let Some(trouble) = spike else {
            self.in_line(vitals);
            return Verdict::Apply;
        };
        self.state.spikes += 1;
        if self.state.spikes >= self.options.patience {
            return self.act(trouble);
        }
        if self.options.action == GuardAction::Stop { Verdict::Note(trouble) } else { self.skip(trouble) }
    }

    /// Decides about numbers that are not finite, in an update or in a rollout.
    pub fn broken(&mut self, trouble: Trouble) -> Verdict {
        self.act(trouble)
    }

    /// An update in line: it enters the statistics.
    fn in_line(&mut self, vitals: &Vitals) {
        let state = &mut self.state;
        state.baseline.add(vitals, self.options.window as usize);
        (state.spikes, state.skipped) = (0, 0);
        state.calm += 1;
        if state.lowered > 0 && state.calm >= self.options.cooldown {
            (state.lowered, state.calm) = (state.lowered - 1, 0);
        }
    }

    fn skip(&mut self, trouble: Trouble) -> Verdict {
        self.state.skipped += 1;
        if self.state.skipped > self.options.limit { Verdict::Stop(trouble) } else { Verdict::Skip(trouble) }
    }

    fn act(&mut self, trouble: Trouble) -> Verdict {
        let bounded = matches!(self.options.action, GuardAction::BackOff | GuardAction::RollBack);
        if bounded && self.state.actions >= self.options.limit {
            return Verdict::Stop(trouble);
        }
        match self.options.action {
            GuardAction::Off | GuardAction::Stop => Verdict::Stop(trouble),
            GuardAction::Skip => self.skip(trouble),
            GuardAction::BackOff => {
                let state = &mut self.state;
                (state.spikes, state.calm) = (0, 0);
                (state.lowered, state.actions) = (state.lowered + 1, state.actions + 1);
                Verdict::BackOff(trouble)
            }
            GuardAction::RollBack => {
                self.state.actions += 1;
                Verdict::RollBack(trouble)
            }
        }
    }

    /// After a roll-back: the memory is the checkpoint's, but what was done is not forgotten, and the learning rate is
    /// lowered as by a back-off.
    pub fn rolled_back_to(&mut self, saved: GuardState) {
        let (actions, roll_backs) = (self.state.actions, self.state.roll_backs + 1);
        let lowered = self.state.lowered.max(saved.lowered) + 1;
        let baseline = saved.baseline;
        self.state = GuardState { baseline, spikes: 0, skipped: 0, calm: 0, lowered, actions, roll_backs };
    }
}

#[cfg(test)]
mod tests;
