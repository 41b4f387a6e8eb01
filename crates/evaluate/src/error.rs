//! What can go wrong while measuring, logging and reporting.

use std::path::PathBuf;

/// Everything this crate can complain of.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor has the wrong shape, element type or too few rows.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// The quantity being computed.
        what: &'static str,
        /// The expected shape and element type.
        expected: String,
        /// What the tensor has.
        found: String,
    },
    /// A number that must be finite is not.
    #[error("{what}: value {index} is {value}; expected a finite number")]
    NonFinite {
        /// The quantity being computed.
        what: &'static str,
        /// Position of the first offender, from 0.
        index: usize,
        /// The offender.
        value: f64,
    },
    /// Two lists that must pair up have different lengths.
    #[error("{what}: expected two lists of equal length, found {left} and {right}")]
    Lengths {
        /// The quantity being computed.
        what: &'static str,
        /// Length of the first.
        left: usize,
        /// Length of the second.
        right: usize,
    },
    /// A file's content is not what it should be.
    #[error("{path}: {reason}")]
    Format {
        /// The file concerned.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// A PNG could not be made.
    #[error("cannot encode PNG: {reason}")]
    Encode {
        /// The encoder's reason.
        reason: String,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] seedpo_tensor::Error),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
