//! What can go wrong in a rollout.

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// Any error, as scorers return it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong in a rollout.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model refused its input.
    #[error(transparent)]
    Model(#[from] seedpo_model::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] seedpo_tensor::Error),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    /// A setting outside its range.
    #[error("`{name}`: expected {expected}, found {found}")]
    Setting {
        /// The setting's name, as in the configuration.
        name: &'static str,
        /// What is allowed.
        expected: String,
        /// What was given.
        found: String,
    },
    /// Tensors or lists that do not fit together.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// The argument concerned.
        what: &'static str,
        /// The shape or length expected.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A step without noise has no density.
    #[error(
        "the log-probability of the step at timestep {timestep} is undefined: its standard deviation is 0 \
         (use `eta` above 0, and a schedule with `steps_offset` 1 and `set_alpha_to_one` false)"
    )]
    NoDensity {
        /// The timestep of the row concerned.
        timestep: i64,
    },
    /// The scorer failed, or returned what cannot be ranked.
    #[error("scoring candidates at timestep {timestep}: {source}")]
    Scorer {
        /// The timestep scored at.
        timestep: i64,
        /// What went wrong, and for which prompt.
        source: BoxError,
    },
    /// A score that is NaN or infinite.
    #[error("the scorer at timestep {timestep}: expected a finite score, found {value} for prompt {prompt}")]
    NonFinite {
        /// The timestep scored at.
        timestep: i64,
        /// The prompt, as the caller numbers them.
        prompt: usize,
        /// The score.
        value: f64,
    },
}

impl Error {
    pub(crate) fn setting(name: &'static str, expected: impl Into<String>, found: impl ToString) -> Self {
        Self::Setting { name, expected: expected.into(), found: found.to_string() }
    }

    pub(crate) fn shape(what: &'static str, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self::Shape { what, expected: expected.into(), found: found.into() }
    }
}
