//! What can go wrong while judging.

use std::error::Error as StdError;
use std::path::PathBuf;

/// Everything a judge can complain of; each variant says what was expected, what was found and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No judge has this name.
    #[error("unknown judge `{name}`: did you mean `{nearest}`? Known judges: {known}")]
    UnknownJudge {
        /// What was asked for.
        name: String,
        /// The known name closest to it.
        nearest: String,
        /// Every known name, comma separated.
        known: String,
    },
    /// The image tensor has the wrong shape or element type.
    #[error("images for judging: expected {expected}, found {found}")]
    Images {
        /// The expected shape and element type.
        expected: &'static str,
        /// What the tensor has.
        found: String,
    },
    /// A float image holds NaN or an infinity.
    #[error("image {index} holds non-finite values (NaN or infinity); the model that drew it has diverged")]
    NonFiniteImage {
        /// Position in the batch, from 0.
        index: usize,
    },
    /// The number of prompts differs from the number of images.
    #[error("judge `{judge}`: {images} images but {prompts} prompts; give one prompt per image")]
    PromptCount {
        /// The judge's name.
        judge: String,
        /// Images in the batch.
        images: usize,
        /// Prompts given.
        prompts: usize,
    },
    /// A judge returned more or fewer scores than images.
    #[error("judge `{judge}` returned {found} scores for {expected} images; this is a fault of the judge")]
    ScoreCount {
        /// The judge's name.
        judge: String,
        /// Images in the batch.
        expected: usize,
        /// Scores returned.
        found: usize,
    },
    /// A score is NaN or infinite.
    #[error("judge `{judge}` gave {value} for image {index}, prompt \"{prompt}\"; a score must be finite")]
    NonFinite {
        /// The judge's name.
        judge: String,
        /// Position in the batch, from 0.
        index: usize,
        /// The image's prompt.
        prompt: String,
        /// The offending score.
        value: f64,
    },
    /// The JPEG encoder refused an image.
    #[error("cannot encode a {width}x{height} image as JPEG: {reason}")]
    Encode {
        /// Image width in pixels.
        width: usize,
        /// Image height in pixels.
        height: usize,
        /// The encoder's reason.
        reason: String,
    },
    /// Decoding the predicted clean latent for a step judge failed.
    #[error("cannot decode the predicted image at timestep {timestep}: {source}")]
    Decode {
        /// The timestep being judged.
        timestep: i64,
        /// The decoder's own error.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The files of a judge do not hold what it needs.
    #[error("judge `{judge}`: {path}: expected {expected}, found {found}")]
    Files {
        /// The judge's name.
        judge: String,
        /// The file or folder.
        path: PathBuf,
        /// What it needs.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A judge's name cannot be read.
    #[error("judge `{text}`: {reason}")]
    Spec {
        /// What was written.
        text: String,
        /// What is wrong with it, and how it should look.
        reason: String,
    },
    /// A judge's weights could not be found or fetched.
    #[error("judge `{judge}`: {source}")]
    Locate {
        /// The judge's name.
        judge: String,
        /// Why, and what to do.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// An external scorer misbehaved.
    #[error("judge `exec:{command}`: {reason}")]
    Exec {
        /// The command.
        command: String,
        /// What it did, and what was expected.
        reason: String,
    },
    /// The thread of a judge that works in the background is gone.
    #[error("judge `{judge}`: its thread could not be started, or ended by itself; set `judge_background` to off")]
    Background {
        /// The judge's name.
        judge: String,
    },
    /// A model, its configuration or its tokenizer.
    #[error(transparent)]
    Model(#[from] seedpo_model::Error),
    /// A weight file.
    #[error(transparent)]
    Tensor(#[from] seedpo_tensor::Error),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
