//! Judges: what scores an image, or a predicted clean image, for a prompt.
//!
//! A [`Judge`] takes a batch of u8 images and their prompts and returns one score each; **higher is always better**,
//! so a cost is negated inside. [`by_name`] builds one from the name users write; [`names`] lists them.
//!
//! | name | what it rewards | unit |
//! | --- | --- | --- |
//! | `jpeg-compressibility` | images that need few bytes as JPEG: flat, smooth | kB, negative |
//! | `jpeg-incompressibility` | images that need many bytes: texture, detail | kB |
//! | `colourfulness` | vivid, varied colour (Hasler and Süsstrunk 2003) | M |
//!
//! ```no_run,standalone_crate
//! use seedpo_judge::{by_name, Judge};
//! use tch::{Device, Kind, Tensor};
//!
//! let images = Tensor::zeros([1, 512, 512, 3], (Kind::Uint8, Device::Cpu));
//! let scores = by_name("jpeg-incompressibility")?.score(&images, &["a black square"])?;
//! assert_eq!(scores, [4.723]); // 4,723 bytes, what Pillow writes at quality 95
//! # Ok::<(), seedpo_judge::Error>(())
//! ```

mod catalogue;
mod colourfulness;
mod error;
mod images;
mod jpeg;
mod judge;
mod step;

pub use catalogue::{JudgeInfo, by_name, names};
pub use colourfulness::{Colourfulness, colourfulness};
pub use error::{Error, Result};
pub use images::{ImageBatch, to_u8};
pub use jpeg::{JpegSize, jpeg_bytes};
pub use judge::Judge;
pub use step::StepJudge;
