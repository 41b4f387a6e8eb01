//! What a run tells its caller while it works.

use serde::Serialize;

/// One training step.
#[derive(Debug, Clone, Serialize)]
pub struct StageReport {
    /// `vae` or `denoiser`; of a judge its kind.
    pub stage: &'static str,
    /// Steps done, this one included.
    pub step: u64,
    /// Steps of the stage.
    pub total: u64,
    /// The loss.
    pub loss: f64,
    /// The learning rate.
    pub lr: f64,
    /// More numbers by name.
    pub metrics: Vec<(String, f64)>,
}

/// Follows a run and may stop it. All methods have defaults that do nothing.
pub trait Observer {
    /// After each step.
    fn on_step(&mut self, _report: &StageReport) {}

    /// Something worth a line: a stage begins, a file was written.
    fn on_note(&mut self, _text: &str) {}

    /// Asked after each step; `true` saves a checkpoint and ends the run with [`crate::Error::Stopped`].
    fn stop(&self) -> bool {
        false
    }
}

/// An observer that listens to nothing.
pub struct Silent;

impl Observer for Silent {}
