//! Training the built-in Stable-Diffusion-shaped model from the emoji dataset: VAE, text encoder and U-Net.
//!
//! The recipe is in `docs/pretrain.md`. [`run()`] does everything, resumably; [`measure::measure`] says how good the
//! result is.

pub mod bpe;
pub mod captions;
pub mod card;
pub mod dataset;
pub mod denoiser_stage;
pub mod error;
pub mod export;
pub mod measure;
pub mod metrics;
pub mod observer;
pub mod preview;
pub mod recipe;
pub mod replicas;
pub mod run;
pub mod state;
pub mod vae_stage;

pub use dataset::Dataset;
pub use error::{Error, Result};
pub use observer::{Observer, Silent, StageReport};
pub use recipe::Recipe;
pub use run::{RunOptions, run};
