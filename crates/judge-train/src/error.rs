//! What can go wrong while a judge is trained.

use std::path::{Path, PathBuf};

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong while a judge is trained; every variant names its place.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder is not what training reads.
    #[error("{path}: {reason}", path = path.display())]
    Data {
        /// The file or folder.
        path: PathBuf,
        /// What was expected, what was found, what to do.
        reason: String,
    },
    /// A setting out of its range, or one that differs from the run that is being resumed.
    #[error("`{key}`: expected {expected}, found {found}")]
    Setting {
        /// The setting.
        key: String,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A loss or gradient that is not a number: nothing of it is applied, the last checkpoint is intact.
    #[error("the {what} of update {step} is {value}; {advice}", advice = advice(*checkpoint))]
    NotFinite {
        /// The update, from 1.
        step: u64,
        /// `loss` or `gradient's norm`.
        what: &'static str,
        /// Infinite or not a number.
        value: f64,
        /// The update of the last checkpoint, if there is one.
        checkpoint: Option<u64>,
    },
    /// The thread that loads batches died; its panic is on standard error.
    #[error("the thread that loads batches failed")]
    Loader,
    /// Pairs and captioned pictures.
    #[error(transparent)]
    Pairs(#[from] seedpo_data::Error),
    /// The emoji, and the file of metrics.
    #[error(transparent)]
    Pretrain(#[from] seedpo_pretrain::Error),
    /// The optimizer.
    #[error(transparent)]
    Align(#[from] seedpo_align::Error),
    /// Weights to start from, preparation of pictures.
    #[error(transparent)]
    Judge(#[from] seedpo_judge::Error),
    /// Networks and tokenizers.
    #[error(transparent)]
    Model(#[from] seedpo_model::Error),
    /// Files and tensors.
    #[error(transparent)]
    Tensor(#[from] seedpo_tensor::Error),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

fn advice(checkpoint: Option<u64>) -> String {
    match checkpoint {
        Some(update) => format!(
            "the checkpoint of update {update} is from before it, but would come here again: start anew with a lower --lr \
             (or --max-grad-norm) and another --out"
        ),
        None => "nothing was saved before it: start anew with a lower --lr (or --max-grad-norm)".into(),
    }
}

impl Error {
    pub(crate) fn data(path: &Path, reason: impl Into<String>) -> Self {
        Self::Data { path: path.to_path_buf(), reason: reason.into() }
    }

    pub(crate) fn setting(key: &str, expected: impl Into<String>, found: impl ToString) -> Self {
        Self::Setting { key: key.to_owned(), expected: expected.into(), found: found.to_string() }
    }
}
