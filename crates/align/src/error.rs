//! What can go wrong while a policy is aligned.

use std::path::PathBuf;

impl Error {
    /// What it says is not finite, and the number, where that is what it is about: an update's, a judge's, or a
    /// picture's that a broken policy drew.
    pub fn non_finite(&self) -> Option<(String, f64)> {
        match self {
            Self::NonFinite { what, value } => Some((what.clone(), *value)),
            Self::Judge(seedpo_judge::Error::NonFinite { value, .. }) => Some((self.to_string(), *value)),
            Self::Judge(seedpo_judge::Error::NonFiniteImage { .. }) => Some((self.to_string(), f64::NAN)),
            Self::Rollout(seedpo_rollout::Error::NonFinite { value, .. }) => Some((self.to_string(), *value)),
            Self::Rollout(seedpo_rollout::Error::Scorer { source, .. }) => {
                source.downcast_ref::<seedpo_judge::Error>().and_then(|judge| match judge {
                    seedpo_judge::Error::NonFinite { value, .. } => Some((self.to_string(), *value)),
                    seedpo_judge::Error::NonFiniteImage { .. } => Some((self.to_string(), f64::NAN)),
                    _ => None,
                })
            }
            Self::OffPolicy { mean_square, .. } if !mean_square.is_finite() => Some((self.to_string(), *mean_square)),
            _ => None,
        }
    }
}

impl Error {
    /// Whether the policy of the last finished update is worth keeping: it failed elsewhere than in its numbers.
    pub(crate) fn leaves_policy_sound(&self) -> bool {
        self.non_finite().is_none() && !matches!(self, Self::Diverged { .. } | Self::OffPolicy { .. })
    }
}

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every error names what, where, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is unknown, of the wrong type or out of range.
    #[error("setting `{key}`: expected {expected}, found {found}")]
    Setting {
        /// The key as written in the configuration file.
        key: String,
        /// Type and range that are accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// The configuration text is not valid TOML or has an unknown key.
    #[error("{origin}: {reason}")]
    Config {
        /// File or preset the text came from.
        origin: String,
        /// The parser's message, with line and column where known.
        reason: String,
    },
    /// A file of prompts cannot be used.
    #[error("{path}: {reason}", path = path.display())]
    Prompts {
        /// The file.
        path: PathBuf,
        /// What was expected and found.
        reason: String,
    },
    /// A run folder or checkpoint cannot be used.
    #[error("{path}: {reason}", path = path.display())]
    Run {
        /// Folder or file.
        path: PathBuf,
        /// What was expected and found, and what to do.
        reason: String,
    },
    /// A loss or gradient is NaN or infinite; the adapter was not touched.
    #[error("{what} is {value}; expected a finite number. Try a smaller learning_rate or beta, or dtype f32")]
    NonFinite {
        /// Which quantity, with denoising step and prompt where they are known.
        what: String,
        /// NaN or an infinity.
        value: f64,
    },
    /// The guard ended the run (docs/stability.md).
    #[error(
        "training has diverged: {what}, {patience} updates in a row or beyond guard_limit. Try a smaller learning_rate, \
         or a larger batch; `guard = \"back-off\"` or `\"roll-back\"` goes on by itself \
         (docs/stability.md)"
    )]
    Diverged {
        /// What was out of line, with its value and what is usual.
        what: String,
        /// The setting `guard_patience`.
        patience: u64,
    },
    /// The training policy does not reproduce the policy that drew the samples.
    #[error(
        "on-policy check failed before update {update}: the likelihood ratio of training policy to rollout policy must \
         be 1 within {tolerance:e}, found {low} to {high}; the mean square of the implied noise must be 1 within \
         {slack:.2}, found {mean_square}. Rollout and training disagree about adapter, guidance, timesteps or dtype"
    )]
    OffPolicy {
        /// Smallest ratio seen.
        low: f64,
        /// Largest ratio seen.
        high: f64,
        /// The accepted deviation.
        tolerance: f64,
        /// Mean square of the noise that the samples imply under the training policy.
        mean_square: f64,
        /// Its accepted deviation from 1.
        slack: f64,
        /// The update at which it was seen.
        update: u64,
    },
    /// Tensor, file and device errors.
    #[error(transparent)]
    Tensor(#[from] seedpo_tensor::Error),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    /// The observer could not do its part (write a picture, say).
    #[error("{0}")]
    Observer(#[source] crate::observer::ObserverError),
    /// Tensors or lists that do not fit together.
    #[error("{what}: expected {expected}, found {found}")]
    Input {
        /// Which input.
        what: String,
        /// Shape or length expected.
        expected: String,
        /// What was given.
        found: String,
    },
    /// Something went wrong within a run; says where, and what is left intact.
    #[error("{place}: {source}\n{hint}")]
    At {
        /// Iteration, update and seed.
        place: String,
        /// What happened.
        source: Box<Error>,
        /// Last good checkpoint and how to go on.
        hint: String,
    },
    /// The model refused its input.
    #[error(transparent)]
    Model(#[from] seedpo_model::Error),
    /// Sampling failed.
    #[error(transparent)]
    Rollout(#[from] seedpo_rollout::Error),
    /// A dataset of pairs cannot be used.
    #[error(transparent)]
    Data(#[from] seedpo_data::Error),
    /// Judging failed.
    #[error(transparent)]
    Judge(#[from] seedpo_judge::Error),
}
