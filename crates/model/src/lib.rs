//! CLIP, U-Net, VAE, LoRA adapters, tokenizer and noise schedule; diffusers folders in and out.

mod attention;
mod error;
mod heads;
mod index;
mod layers;
mod layout;
mod parts;
mod prompts;
mod single_file;
mod sources;

pub mod adapter;
pub mod beginning;
pub mod blip;
pub mod clip;
pub mod config;
pub mod model;
pub mod policy;
pub mod schedule;
pub mod text;
pub mod tokenizer;
pub mod unet;
pub mod vae;
pub mod weights;

pub use adapter::{Adapter, Delta, Lora};
pub use attention::with_plain_attention;
pub use beginning::Beginning;
pub use clip::{ClipConfig, ClipModel, VisionConfig};
pub use config::{SchedulerConfig, TextConfig, UNetConfig, VaeConfig};
pub use error::{Error, Result};
pub use index::Pipeline;
pub use layers::Activation;
pub use layout::weight_files;
pub use model::{DiffusionModel, LoadOptions};
pub use policy::{AddedPair, Conditioning, Policy, PromptEmbeds};
pub use prompts::SecondTextEncoder;
pub use schedule::NoiseSchedule;
pub use text::{ClipTextModel, TextOutput};
pub use tokenizer::{ClipDialect, ClipTokenizer};
pub use unet::{AddedConditioning, Projection, UNet2DConditionModel};
pub use vae::{AutoencoderKl, Tiling};
pub use weights::{FinetuningType, PolicyWeights};
