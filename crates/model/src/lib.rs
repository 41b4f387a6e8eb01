//! CLIP, U-Net, VAE, LoRA adapters, tokenizer and noise schedule; diffusers folders in and out.

mod error;
mod layers;

pub mod adapter;
pub mod config;
pub mod model;
pub mod policy;
pub mod schedule;
pub mod text;
pub mod tokenizer;
pub mod unet;
pub mod vae;

pub use adapter::{Adapter, Delta};
pub use config::{SchedulerConfig, TextConfig, UNetConfig, VaeConfig};
pub use error::{Error, Result};
pub use layers::{Activation, with_plain_attention};
pub use model::{DiffusionModel, LoadOptions, model_index};
pub use policy::{AddedPair, Conditioning, Policy, PromptEmbeds};
pub use schedule::NoiseSchedule;
pub use text::{ClipTextModel, TextOutput};
pub use tokenizer::ClipTokenizer;
pub use unet::{AddedConditioning, Projection, UNet2DConditionModel};
pub use vae::AutoencoderKl;
