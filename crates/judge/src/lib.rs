//! Judges: what scores an image, or a predicted clean image, for a prompt.
//!
//! A [`Judge`] takes a batch of u8 images and their prompts and returns one score each; **higher is always better**,
//! so a cost is negated inside. [`names`] lists those with a name, [`load`] builds one from its files, and [`JudgeSpec`]
//! reads the one line by which users name a judge, an external scorer or an ensemble (docs/judges.md).
//!
//! ```no_run,standalone_crate
//! use seedpo_judge::{Judge, JudgeOptions, load};
//! use tch::{Device, Kind, Tensor};
//!
//! let images = Tensor::zeros([1, 512, 512, 3], (Kind::Uint8, Device::Cpu));
//! let scores = load("jpeg-incompressibility", &[], &JudgeOptions::default())?.score(&images, &["a black square"])?;
//! assert_eq!(scores, [4.723]); // 4,723 bytes, what Pillow writes at quality 95
//! # Ok::<(), seedpo_judge::Error>(())
//! ```

mod aesthetic;
mod background;
mod cache;
mod catalogue;
mod chroma;
mod clip_judge;
mod collected;
mod colourfulness;
mod ensemble;
mod error;
mod exec;
mod files;
mod image_reward;
mod images;
mod jpeg;
mod judge;
mod load;
mod preprocess;
mod spec;
mod statistics;
mod step;

pub use aesthetic::AestheticHead;
pub use background::{BackgroundJudge, Job, Pending, Pictures};
pub use catalogue::{HubFile, JudgeInfo, info, names};
pub use chroma::{Chroma, chroma};
pub use clip_judge::{ClipFormula, ClipJudge, normalised};
pub use collected::Collected;
pub use colourfulness::{Colourfulness, colourfulness};
pub use ensemble::{Ensemble, Member, Rule};
pub use error::{Error, Result};
pub use exec::{EXEC_TIMEOUT, ExecJudge, end_scorers};
pub use image_reward::ImageReward;
pub use images::{ImageBatch, Predicted, to_u8};
pub use jpeg::{JpegSize, jpeg_bytes};
pub use judge::Judge;
pub use load::{JudgeOptions, lacking, load, load_clip, recognised};
pub use preprocess::{
    CLIP_STATISTICS, Normalisation, Preparation, Window, padded, processor_square, resize_bicubic, step_aware,
    step_aware_training,
};
pub use spec::{JudgeSpec, Locate, MemberSpec, distinct_names, exec_line};
pub use statistics::Statistics;
pub use step::StepJudge;
