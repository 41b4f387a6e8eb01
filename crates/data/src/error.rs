//! What can be wrong with a dataset as a whole; single bad rows are counted in a [`crate::Report`] instead.

use std::path::{Path, PathBuf};

use crate::report::Report;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every error names the file or folder, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// A file or folder is not what it should be.
    #[error("{path}: {reason}", path = path.display())]
    Format {
        /// The file or folder.
        path: PathBuf,
        /// What was expected and found.
        reason: String,
    },
    /// More rows are bad than the limit allows.
    #[error("{path}: {bad} of {rows} rows are bad, above the limit of {limit_percent} % (bad_rows_limit)\n{list}", path = path.display())]
    TooManyBad {
        /// The dataset.
        path: PathBuf,
        /// Bad rows.
        bad: u64,
        /// Rows read.
        rows: u64,
        /// The limit in per cent.
        limit_percent: f64,
        /// Reasons with their counts and first examples.
        list: String,
    },
}

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    pub(crate) fn format(path: &Path, reason: impl Into<String>) -> Self {
        Self::Format { path: path.into(), reason: reason.into() }
    }

    /// The error that lists a report's bad rows; `limit` is the share that was allowed.
    pub fn too_many_bad(path: &Path, report: &Report, limit: f64) -> Self {
        Self::TooManyBad {
            path: path.into(),
            bad: report.bad_rows(),
            rows: report.rows,
            limit_percent: limit * 100.0,
            list: report.bad_list(),
        }
    }
}
