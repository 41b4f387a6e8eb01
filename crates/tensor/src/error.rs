//! What can go wrong with files, devices and tensors.

use std::path::{Path, PathBuf};

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong with files, devices and tensors; every variant names its place.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder concerned.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The disk, or the quota, is full. Nothing half-written is left behind.
    #[error("{path}: no space left on the device; free some and run again (what was saved before is intact)")]
    NoSpace {
        /// The file that could not be written.
        path: PathBuf,
    },
    /// A file's bytes are not what its format asks for.
    #[error("{path}: {reason}")]
    Format {
        /// The file concerned.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// The tensors of a file do not fit the network: each missing, surplus and misshaped one is listed.
    #[error("{path}: {} tensor(s) do not fit the model:\n  {}", problems.len(), problems.join("\n  "))]
    Tensors {
        /// The file concerned.
        path: PathBuf,
        /// One line per tensor.
        problems: Vec<String>,
    },
    /// A device that is not there or not understood.
    #[error("device `{asked}`: {reason}")]
    Device {
        /// What was asked for.
        asked: String,
        /// Why it cannot be had.
        reason: String,
    },
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

impl Error {
    /// An I/O error at a path; a full disk becomes [`Error::NoSpace`].
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Self::NoSpace { path },
            _ => Self::Io { path, source },
        }
    }

    /// A format error at a path.
    pub fn format(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Format { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }
}
