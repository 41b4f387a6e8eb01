//! Carrying out what the watch for reward hacking decides (docs/reward-hacking.md).

use super::Trainer;
use crate::error::{Error, Result};
use crate::metrics::{Record, WatchEvent};
use crate::observer::Observer;
use crate::watch::{WatchAction, WatchOptions, assess, since_last_finding};

impl Trainer<'_> {
    /// Sets γ to what the findings on record made of it. All that the watch remembers is in `metrics.jsonl`.
    pub(super) fn restore_gamma(&mut self) -> Result<()> {
        let options = WatchOptions::from_settings(&self.parts.config)?;
        let (_, raises) = since_last_finding(&self.parts.run.records()?);
        self.objective.entropy.gamma = options.gamma(self.parts.config.entropy.gamma, raises);
        Ok(())
    }

    /// Looks at the previews so far and does what the settings say about a finding. Looking twice changes nothing.
    pub(super) fn watch(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let options = WatchOptions::from_settings(&self.parts.config)?;
        if options.action == WatchAction::Off {
            return Ok(());
        }
        let (previews, raises) = since_last_finding(&self.parts.run.records()?);
        let Some(finding) = assess(&previews, &options) else { return Ok(()) };
        let raised = options.gamma(self.parts.config.entropy.gamma, raises + 1);
        let gamma =
            (options.action == WatchAction::RaiseGamma && raised > self.objective.entropy.gamma).then_some(raised);
        let action = match (options.action, gamma) {
            (WatchAction::Stop, _) => "stop",
            (_, Some(_)) => "raise-gamma",
            // γ is at its limit.
            _ => "warn",
        };
        let event = WatchEvent { step: self.position.step, action: action.into(), what: finding.sentence(), gamma };
        self.parts.run.append(&Record::Watch(event.clone()))?;
        self.objective.entropy.gamma = gamma.unwrap_or(self.objective.entropy.gamma);
        self.watch_stopped |= options.action == WatchAction::Stop;
        observer.on_watch(&event).map_err(Error::Observer)
    }
}
