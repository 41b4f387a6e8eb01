//! Carrying out what the guard decides (docs/stability.md).

use super::{PromptStream, Trainer, previewed_step};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::guard::{Trouble, Verdict};
use crate::metrics::{GuardEvent, Record};
use crate::observer::Observer;
use seedpo_tensor::NoiseKey;
use std::sync::atomic::AtomicBool;

/// What became of an update.
pub(super) enum Turn<T> {
    /// It is to be applied, or was.
    Applied(T),
    /// It was left out.
    Skipped,
    /// The run is at an earlier checkpoint.
    RolledBack,
}

impl Trainer<'_> {
    /// The key of the run's data order and noise: the seed, and another number after each roll-back.
    pub(super) fn data_seed(&self) -> u64 {
        let seed = self.parts.config.seed;
        match self.guard.state.roll_backs {
            0 => seed,
            times => NoiseKey::new(seed, "roll-back").epoch(times).below(1 << 53) as u64,
        }
    }

    /// Prompts in the order that [`Trainer::data_seed`] gives.
    pub(super) fn prompt_stream(&self) -> PromptStream {
        let config = &self.parts.config;
        let (prompts, batch) = (self.items(), self.items_per_iteration());
        PromptStream::new(self.data_seed(), prompts, batch, config.num_train_epochs)
    }

    /// Records a verdict and does what it says.
    ///
    /// Errors: the run is to end; a checkpoint to go back to cannot be read.
    pub(super) fn carry_out(&mut self, verdict: Verdict, observer: &mut dyn Observer) -> Result<Turn<()>> {
        let (action, trouble, turn) = match verdict {
            Verdict::Apply => return Ok(Turn::Applied(())),
            Verdict::Note(trouble) => ("note", trouble, Turn::Applied(())),
            Verdict::Skip(trouble) => ("skip", trouble, Turn::Skipped),
            Verdict::BackOff(trouble) => ("back-off", trouble, Turn::Skipped),
            Verdict::RollBack(trouble) => ("roll-back", trouble, Turn::RolledBack),
            Verdict::Stop(trouble) => ("stop", trouble, Turn::Skipped),
        };
        let finite = |value: f64| value.is_finite().then_some(value);
        let mut event = GuardEvent {
            step: self.position.step + 1,
            iteration: self.position.iteration,
            action: action.into(),
            what: trouble.sentence(),
            value: finite(trouble.value),
            limit: finite(trouble.limit),
            learning_rate_factor: self.guard.learning_rate_factor(),
            rolled_back_to: None,
        };
        if matches!(turn, Turn::RolledBack) {
            event.rolled_back_to = Some(self.roll_back()?);
            event.learning_rate_factor = self.guard.learning_rate_factor();
        }
        let record = Record::Guard(event);
        self.parts.run.append(&record)?;
        if let Record::Guard(event) = &record {
            observer.on_guard(event).map_err(Error::Observer)?;
        }
        self.guard_stopped |= action == "stop";
        match action {
            "stop" if trouble.limit.is_finite() => {
                Err(Error::Diverged { what: trouble.sentence(), patience: self.parts.config.guard_patience })
            }
            "stop" => Err(Error::NonFinite { what: trouble.what, value: trouble.value }),
            _ => Ok(turn),
        }
    }

    /// What to do about an iteration that ended in `error`: goes on where that came of numbers that are not finite and
    /// the guard allows it (with the next prompts, or from a checkpoint), else gives the error back.
    pub(super) fn after_failed_iteration(&mut self, error: Error, observer: &mut dyn Observer) -> Result<()> {
        let found = if self.guard_stopped { None } else { error.non_finite() };
        let Some((what, value)) = found else { return Err(error) };
        match self.guard.broken(Trouble::non_finite(what, value)) {
            // The error itself says more than the guard can.
            verdict @ Verdict::Stop(_) => {
                let _ = self.carry_out(verdict, observer);
                Err(error)
            }
            verdict => {
                if let Turn::Skipped = self.carry_out(verdict, observer)? {
                    self.next_iteration();
                }
                Ok(())
            }
        }
    }

    /// Draws previews where they are due. Numbers that are not finite there end the run only if the guard ends runs for
    /// such; else they are noted, and training goes on.
    pub(super) fn watched_preview(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<()> {
        let Err(error) = self.preview(observer, stop) else { return Ok(()) };
        match error.non_finite() {
            Some((what, value)) if !self.guard.ends_runs() => {
                self.carry_out(Verdict::Note(Trouble::non_finite(what, value)), observer).map(drop)
            }
            _ => Err(error),
        }
    }

    /// What a run that ends in an error can go on from.
    pub(super) fn intact(&self) -> String {
        let run = self.parts.run.path();
        let Some(lost) = self.not_restored else {
            return match &self.saved {
                Some((_, folder)) => {
                    let (folder, run) = (folder.display(), run.display());
                    format!("The last good checkpoint is {folder}; `--resume {run}` continues from it.")
                }
                None => "No checkpoint had been written yet.".to_string(),
            };
        };
        let place = |step| run.join(Checkpoint::folder_name(step)).display().to_string();
        let others = Checkpoint::list(run).unwrap_or_default();
        let rest = match others.into_iter().rfind(|step| *step != lost).map(place) {
            Some(other) => format!("the newest of the others is {other}; `--resume {other}` continues from it"),
            None => "there is no other".to_string(),
        };
        format!("The run could not be taken back to {}; {rest}.", place(lost))
    }

    /// Goes back to the newest checkpoint, or, where the last roll-back led there already, to the one before it;
    /// without a checkpoint to the beginning. Returns its step. Newer checkpoints and the records after it are dropped.
    fn roll_back(&mut self) -> Result<u64> {
        // Neither what is taken back nor what is half read is to be saved.
        self.half_changed = true;
        let run = self.parts.run.clone();
        let mut steps = Checkpoint::list(run.path())?;
        if self.rolled_back_to.is_some_and(|step| steps.last() == Some(&step)) {
            steps.pop();
        }
        self.not_restored = steps.last().copied();
        let checkpoint = self.not_restored.map(|step| Checkpoint::of_step(run.path(), step)).transpose()?;
        let step = checkpoint.as_ref().map_or(0, |c| c.position.step);
        let guard = checkpoint.as_ref().map(|c| c.guard.clone()).unwrap_or_default();
        self.restore(checkpoint)?;
        self.not_restored = None;
        Checkpoint::discard_after(run.path(), step);
        run.roll_back(step)?;
        self.guard.rolled_back_to(guard);
        self.rolled_back_to = Some(step);
        self.half_changed = false;
        self.previewed = previewed_step(&run, step)?;
        self.stream = self.prompt_stream();
        // What was decoded ahead was for the other order.
        self.encoded_pairs = None;
        self.restore_gamma()?;
        if self.saved.is_some() {
            self.save_result()?;
        } else {
            self.drop_result();
        }
        self.keep_best()?;
        Ok(step)
    }
}
