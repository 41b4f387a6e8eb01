//! Metrics of quality and diversity, logs and reports.
//!
//! * [`diversity`](diversity()): how different the images of one prompt are (docs/methods.md section 5)
//! * [`stats`]: summaries, win rates, intervals

mod diversity;
mod error;
mod images;
mod ssim;
pub mod stats;

pub use diversity::{
    Diversity, KernelEntropies, PSNR_CAP, diversity, intensity_entropy, kernel_entropies, mean_diversity,
};
pub use error::{Error, Result};
