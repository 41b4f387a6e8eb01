//! What can go wrong while pretraining.

use std::path::{Path, PathBuf};

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong while pretraining; every variant names its place.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The data folder, or a file in it, is not what the trainer reads.
    #[error("{path}: {reason}")]
    Data {
        /// The file or folder concerned.
        path: PathBuf,
        /// What was expected, what was found, what to do.
        reason: String,
    },
    /// A setting out of its range, or one that differs from the run that is being resumed.
    #[error("`{key}`: expected {expected}, found {found}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A loss that is not a number: the last checkpoint is intact.
    #[error("{stage}: the loss of step {step} is {loss}; lower --lr, or resume from the last checkpoint with --resume")]
    NotFinite {
        /// Which stage.
        stage: &'static str,
        /// The step, from 0.
        step: u64,
        /// The loss.
        loss: f64,
    },
    /// The caller asked to stop; the work so far is saved.
    #[error("stopped as asked at step {step} of {stage}; continue with --resume")]
    Stopped {
        /// Which stage.
        stage: &'static str,
        /// Steps done.
        step: u64,
    },
    /// A worker thread died; its panic is on standard error.
    #[error("a worker thread of the {0} stage failed")]
    Worker(&'static str),
    /// Files and tensors.
    #[error(transparent)]
    Tensor(#[from] seedpo_tensor::Error),
    /// Networks and folders.
    #[error(transparent)]
    Model(#[from] seedpo_model::Error),
    /// Sampling.
    #[error(transparent)]
    Rollout(#[from] seedpo_rollout::Error),
    /// The optimizer.
    #[error(transparent)]
    Align(#[from] seedpo_align::Error),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

impl Error {
    pub(crate) fn data(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Data { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }
}
