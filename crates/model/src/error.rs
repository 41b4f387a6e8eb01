//! The crate's error type: every variant says where, what was expected, what was found.

use std::path::PathBuf;

/// What can go wrong while a model, an adapter, a tokenizer or a schedule is read, built or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A weight file, a device or libtorch failed; the inner error names file and tensor.
    #[error(transparent)]
    Tensor(#[from] seedpo_tensor::Error),
    /// libtorch refused an operation (shapes, memory).
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    /// A configuration key holds a value that is wrong or not supported.
    #[error("{path}: key `{key}`: expected {expected}, found {found}")]
    Config {
        /// The file.
        path: PathBuf,
        /// The key in it.
        key: String,
        /// What would be accepted.
        expected: String,
        /// What is there.
        found: String,
    },
    /// An argument to a function has the wrong shape or range.
    #[error("{what}: expected {expected}, found {found}")]
    Argument {
        /// The argument.
        what: String,
        /// What would be accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// An adapter file does not fit the model; every problem is listed.
    #[error("adapter {path}: {}", problems.join("; "))]
    Adapter {
        /// The file.
        path: PathBuf,
        /// One line per problem, each naming the tensor, expected and found.
        problems: Vec<String>,
    },
    /// A tokenizer cannot be built or refuses a text.
    #[error("tokenizer {path}: {reason}")]
    Tokenizer {
        /// The folder or file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;
