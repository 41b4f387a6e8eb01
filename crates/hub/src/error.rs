//! What can go wrong between a hub id and files on disk.

use std::path::{Path, PathBuf};

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong between a hub id and files on disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The hub knows no such repository, or hides it.
    #[error("{id}: no such repository at {endpoint}, or a private one; {hint}")]
    NoRepository {
        /// The id asked for.
        id: String,
        /// The hub.
        endpoint: String,
        /// What to do.
        hint: String,
    },
    /// The repository's terms must be accepted first.
    #[error(
        "{id}: access is gated: open {endpoint}/{id} in a browser, accept its terms with your account, then {hint}"
    )]
    Gated {
        /// The repository.
        id: String,
        /// The hub.
        endpoint: String,
        /// What to do about the token.
        hint: String,
    },
    /// The hub refuses for another reason.
    #[error("{id}: the hub refuses access ({status}{message}); {hint}")]
    Forbidden {
        /// The repository.
        id: String,
        /// The HTTP status.
        status: u16,
        /// The hub's own words, after a colon.
        message: String,
        /// What to do about the token.
        hint: String,
    },
    /// No such branch, tag or commit.
    #[error("{id}: no revision `{revision}`; expected a branch, a tag or a whole commit hash")]
    NoRevision {
        /// The repository.
        id: String,
        /// What was asked for.
        revision: String,
    },
    /// No such file in the repository.
    #[error("{id}: no file `{file}` in it{hint}")]
    NoFile {
        /// The repository.
        id: String,
        /// What was asked for.
        file: String,
        /// What there is instead.
        hint: String,
    },
    /// The repository does not hold what is needed.
    #[error("{id}: {reason}")]
    Unsuitable {
        /// The repository.
        id: String,
        /// What is expected, what was found, what to do.
        reason: String,
    },
    /// Not in the cache, and nobody may be asked.
    #[error("{id}: {missing} is not in the cache {cache}, and {why}; {hint}")]
    NotCached {
        /// The repository.
        id: String,
        /// What is missing.
        missing: String,
        /// The cache.
        cache: PathBuf,
        /// Why the hub was not asked.
        why: String,
        /// What to do.
        hint: String,
    },
    /// The hub does not answer.
    #[error("{url}: no answer from the hub: {reason}; check the network, HF_ENDPOINT and the proxy settings")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// What the network said.
        reason: String,
    },
    /// The hub answers, but with an error of its own or with nonsense.
    #[error("{url}: the hub answered with {reason}; try again later")]
    Server {
        /// What was asked for.
        url: String,
        /// The status or what was wrong.
        reason: String,
        /// Whether another try may succeed.
        passing: bool,
    },
    /// A download that broke off and was not taken up again.
    #[error("{file}: the download broke off after {done} of {total} bytes ({reason}); run again to go on from there")]
    Broken {
        /// The file.
        file: String,
        /// Bytes that are there.
        done: u64,
        /// Bytes expected.
        total: u64,
        /// What the network said.
        reason: String,
    },
    /// The observer asked to stop.
    #[error("{file}: stopped; run again to go on from there")]
    Cancelled {
        /// The file being downloaded.
        file: String,
    },
    /// The bytes received are not those the hub announced.
    #[error(
        "{file}: wrong bytes: expected the checksum {expected}, found {found}; nothing was kept. A proxy or a mirror may be changing files: try again, or another HF_ENDPOINT"
    )]
    Checksum {
        /// The file.
        file: String,
        /// The hub's checksum.
        expected: String,
        /// That of the bytes received.
        found: String,
    },
    /// Not enough room for the download.
    #[error(
        "{folder}: expected {needed} bytes of free space, found {free}; free some, or set HF_HUB_CACHE to a larger disk"
    )]
    NoSpace {
        /// The cache.
        folder: PathBuf,
        /// Bytes still to download.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// The operating system refused something.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
}

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }

    /// Whether another try may succeed.
    pub(crate) fn passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Broken { .. } | Self::Server { passing: true, .. })
    }
}
