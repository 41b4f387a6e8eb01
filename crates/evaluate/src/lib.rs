//! Metrics of quality and diversity, logs and reports.
//!
//! * [`diversity`](diversity()): how different the images of one prompt are (docs/methods.md section 5)
//! * [`stats`]: summaries, win rates, intervals
//! * [`tensorboard`]: event files, written record by record and cut back on resume
//! * [`report`]: one self-contained `report.html`
//! * [`png`] and [`grid`](mod@grid): images with their prompt and seed inside, and preview sheets

mod diversity;
mod error;
pub mod grid;
mod images;
pub mod png;
pub mod report;
mod ssim;
pub mod stats;
pub mod tensorboard;

pub use diversity::{
    Diversity, KernelEntropies, PSNR_CAP, diversity, intensity_entropy, kernel_entropies, mean_diversity,
    mean_kernel_entropies,
};
pub use error::{Error, Result};
