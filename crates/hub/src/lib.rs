//! Models and adapters by hub id (`runwayml/stable-diffusion-v1-5`), in the cache that the Python tools share.
//!
//! The layout is that of `huggingface_hub`: `models--<user>--<repo>/{blobs, snapshots, refs}` below `HF_HUB_CACHE`, so
//! what either side downloaded the other finds. Files are resumed, checked against their checksums and placed in one
//! step; a lock per file keeps two processes from downloading it twice.

mod cache;
mod client;
mod config;
mod download;
mod error;
mod id;
mod select;
mod snapshot;

pub use config::{HubConfig, Token};
pub use error::{Error, Result};
pub use id::RepoId;
pub use select::Select;
pub use snapshot::Hub;

/// Follows a download.
pub trait Observer {
    /// `done` of `total` bytes of the files wanted are there; `file` is the one being fetched.
    fn progress(&mut self, file: &str, done: u64, total: u64);

    /// Something worth a line: an unreachable hub whose cached files are used, a try that failed and is repeated, a file
    /// of which the hub gives no checksum.
    fn note(&mut self, text: &str);

    /// Asked between blocks: whether to stop here and keep what has come.
    fn cancelled(&self) -> bool {
        false
    }
}
