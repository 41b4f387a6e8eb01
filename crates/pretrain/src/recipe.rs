//! The recipe: sizes of the networks and how each is trained.

use seedpo_model::config::{DownBlockType, PredictionType, UpBlockType};
use seedpo_model::{SchedulerConfig, TextConfig, UNetConfig, VaeConfig};
use serde::{Deserialize, Serialize};
use tch::Kind;

use crate::captions::CaptionMix;
use crate::{Error, Result};

/// How one stage is trained: AdamW, linear warm-up, then [`StageSettings::cosine`] or [`StageSettings::cooldown`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StageSettings {
    /// Optimizer steps.
    pub steps: u64,
    /// Images of one step.
    pub batch: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Steps of the warm-up.
    pub warmup: u64,
}

impl StageSettings {
    /// The learning rate of this step, counted from 0: half a cosine down to a fiftieth of the peak.
    pub fn cosine(&self, step: u64) -> f64 {
        let fall = 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / self.steps.max(1) as f64).cos());
        self.lr * self.rise(step) * (0.98 * fall + 0.02)
    }

    /// The learning rate of this step, counted from 0: constant, and over the last fifth a line down to a fiftieth.
    ///
    /// Until then it does not depend on `steps`, so that a run may be made longer or shorter while it goes.
    pub fn cooldown(&self, step: u64) -> f64 {
        let length = (self.steps as f64 / 5.0).max(1.0);
        let fall = ((self.steps as f64 - step as f64) / length).min(1.0);
        self.lr * self.rise(step) * (0.98 * fall + 0.02)
    }

    fn rise(&self, step: u64) -> f64 {
        ((step + 1) as f64 / self.warmup.max(1) as f64).min(1.0)
    }
}

/// The kind that the denoiser's forward and backward passes run in; weights and optimizer state stay f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// bfloat16: nearly twice as fast where the processor has it.
    Bf16,
    /// float32.
    F32,
}

impl Compute {
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Bf16 => Kind::BFloat16,
            Self::F32 => Kind::Float,
        }
    }
}

/// Sizes of the networks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sizes {
    /// Height and width of the images in pixels.
    pub image: i64,
    /// Channels of the VAE's levels, from the image inwards.
    pub vae_channels: Vec<i64>,
    /// Channels of the latents.
    pub latent_channels: i64,
    /// Groups of the VAE's group norms.
    pub vae_groups: i64,
    /// Channels of the U-Net's levels; all but the first have attention.
    pub unet_channels: Vec<i64>,
    /// Residual blocks of each level.
    pub unet_layers: i64,
    /// Heads of each attention.
    pub heads: i64,
    /// Groups of the U-Net's group norms.
    pub unet_groups: i64,
    /// Width of the text encoder.
    pub text_width: i64,
    /// Layers of the text encoder.
    pub text_layers: i64,
    /// Tokens of the vocabulary, at most.
    pub vocab: usize,
    /// Tokens that prompts are padded and cut to.
    pub tokens: i64,
}

/// What changes in stage 2 once the networks can denoise: the text gets the attention.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LatePhase {
    /// The first step of the phase, from 0.
    pub from: u64,
    /// Timesteps are drawn as `T u^power`, u uniform in [0, 1): below 1 the noisy ones come more often.
    pub timestep_power: f64,
    /// What captions are drawn.
    pub captions: CaptionMix,
}

/// Everything that decides the trained model, except the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Sizes of the networks.
    pub sizes: Sizes,
    /// Stage 1: the VAE.
    pub vae: StageSettings,
    /// Stage 2: text encoder and U-Net together.
    pub denoiser: StageSettings,
    /// Weight of the KL term, per latent element, in the VAE's loss.
    pub kl_weight: f64,
    /// Weight of the error of neighbouring pixels' differences, which keeps edges sharp.
    pub edge_weight: f64,
    /// Weight of the error of colour alone (the channels' difference from their mean).
    pub chroma_weight: f64,
    /// γ of the min-SNR loss weight (Hang et al. 2023).
    pub min_snr: f64,
    /// Decay of the moving average of weights that is kept as the result.
    pub ema: f64,
    /// What captions are drawn.
    pub captions: CaptionMix,
    /// What changes later in stage 2.
    pub late: LatePhase,
    /// Number type of the denoiser's passes.
    pub compute: Compute,
    /// What the U-Net predicts: `epsilon` or `v_prediction`.
    pub prediction: String,
    /// Seed of everything.
    pub seed: u64,
    /// Replicas the batch is split over, one thread each. More do not change what is drawn, only rounding.
    pub workers: usize,
}

impl Default for Recipe {
    /// The recipe of the committed model.
    fn default() -> Self {
        Self {
            sizes: Sizes {
                image: 64,
                vae_channels: vec![16, 32, 64, 96],
                latent_channels: 16,
                vae_groups: 8,
                unet_channels: vec![96, 160],
                unet_layers: 1,
                heads: 4,
                unet_groups: 32,
                text_width: 160,
                text_layers: 3,
                vocab: 2048,
                tokens: 24,
            },
            vae: StageSettings { steps: 5000, batch: 8, lr: 1.5e-3, warmup: 100 },
            denoiser: StageSettings { steps: 19_500, batch: 32, lr: 1.0e-3, warmup: 200 },
            kl_weight: 1e-4,
            edge_weight: 0.5,
            chroma_weight: 1.0,
            min_snr: 5.0,
            ema: 0.999,
            captions: CaptionMix::default(),
            late: LatePhase {
                from: 5000,
                timestep_power: 0.5,
                captions: CaptionMix { empty: 0.10, short: 0.15, keyword: 0.06, group: 0.04 },
            },
            compute: Compute::Bf16,
            prediction: "v_prediction".into(),
            seed: 0,
            workers: 2,
        }
    }
}

impl Recipe {
    /// Checks ranges. Errors: [`Error::Setting`] naming the first that is wrong.
    pub fn validate(&self) -> Result<()> {
        let wrong = |key, expected: &str, found: String| Err(Error::Setting { key, expected: expected.into(), found });
        let factor = 1 << (self.sizes.vae_channels.len().max(1) - 1);
        for (key, value) in [("batch", self.denoiser.batch), ("vae-batch", self.vae.batch), ("workers", self.workers)] {
            if value == 0 {
                return wrong(key, "1 or more", value.to_string());
            }
        }
        for (key, value) in [("lr", self.denoiser.lr), ("vae-lr", self.vae.lr)] {
            if !(value > 0.0 && value < 1.0) {
                return wrong(key, "a number above 0 and below 1", value.to_string());
            }
        }
        if self.sizes.image < factor || self.sizes.image % factor != 0 {
            return wrong("image", &format!("a multiple of {factor}"), self.sizes.image.to_string());
        }
        if self.sizes.vocab < 514 {
            return wrong("vocab", "514 or more (256 bytes twice, start and end)", self.sizes.vocab.to_string());
        }
        if self.prediction != "epsilon" && self.prediction != "v_prediction" {
            return wrong("prediction", "epsilon or v_prediction", self.prediction.clone());
        }
        Ok(())
    }

    /// Height and width of the latents.
    pub fn latent_size(&self) -> i64 {
        self.sizes.image >> (self.sizes.vae_channels.len() - 1)
    }

    /// The VAE's configuration; `scaling_factor` is known after its training.
    pub fn vae_config(&self, scaling_factor: f64) -> VaeConfig {
        VaeConfig {
            block_out_channels: self.sizes.vae_channels.clone(),
            latent_channels: self.sizes.latent_channels,
            norm_num_groups: self.sizes.vae_groups,
            sample_size: self.sizes.image,
            scaling_factor,
            force_upcast: false,
            ..VaeConfig::default()
        }
    }

    /// The text encoder's configuration, for a vocabulary whose last two tokens are start and end.
    pub fn text_config(&self, vocab_size: usize) -> TextConfig {
        let (width, vocab) = (self.sizes.text_width, vocab_size as i64);
        TextConfig {
            vocab_size: vocab,
            hidden_size: width,
            intermediate_size: 4 * width,
            num_hidden_layers: self.sizes.text_layers,
            num_attention_heads: self.sizes.heads,
            max_position_embeddings: self.sizes.tokens,
            projection_dim: width,
            bos_token_id: vocab - 2,
            eos_token_id: vocab - 1,
            pad_token_id: vocab - 1,
            ..TextConfig::default()
        }
    }

    /// The U-Net's configuration.
    pub fn unet_config(&self) -> UNetConfig {
        let levels = self.sizes.unet_channels.len();
        let down = |i: usize| {
            if i == 0 && levels > 1 { DownBlockType::DownBlock2D } else { DownBlockType::CrossAttnDownBlock2D }
        };
        let up = |i: usize| {
            if i + 1 == levels && levels > 1 { UpBlockType::UpBlock2D } else { UpBlockType::CrossAttnUpBlock2D }
        };
        UNetConfig {
            sample_size: Some([self.latent_size(); 2]),
            in_channels: self.sizes.latent_channels,
            out_channels: self.sizes.latent_channels,
            down_block_types: (0..levels).map(down).collect(),
            up_block_types: (0..levels).map(up).collect(),
            block_out_channels: self.sizes.unet_channels.clone(),
            layers_per_block: vec![self.sizes.unet_layers],
            norm_num_groups: self.sizes.unet_groups,
            cross_attention_dim: vec![self.sizes.text_width],
            attention_head_dim: vec![self.sizes.heads],
            ..UNetConfig::default()
        }
    }

    /// Stable Diffusion's schedule.
    pub fn scheduler_config(&self) -> SchedulerConfig {
        let prediction_type =
            if self.prediction == "epsilon" { PredictionType::Epsilon } else { PredictionType::VPrediction };
        SchedulerConfig { prediction_type, ..SchedulerConfig::stable_diffusion() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_rises_and_falls() {
        let stage = StageSettings { steps: 100, batch: 1, lr: 1.0, warmup: 10 };
        assert!((stage.cosine(0) - 0.1).abs() < 1e-12 && (stage.cooldown(0) - 0.1).abs() < 1e-12);
        assert!(stage.cosine(10) > 0.97 && stage.cosine(50) > 0.5 && stage.cosine(50) < 0.52);
        assert!(stage.cosine(99) < 0.021);
        assert!(stage.cooldown(10) == 1.0 && stage.cooldown(80) == 1.0);
        assert!((stage.cooldown(90) - 0.51).abs() < 1e-12 && stage.cooldown(99) < 0.07);
    }

    #[test]
    fn wrong_settings_are_named() {
        let error = Recipe { prediction: "x".into(), ..Recipe::default() }.validate().unwrap_err().to_string();
        assert_eq!(error, "`prediction`: expected epsilon or v_prediction, found x");
        let mut recipe = Recipe::default();
        recipe.denoiser.batch = 0;
        assert!(recipe.validate().unwrap_err().to_string().starts_with("`batch`: expected 1 or more"));
        Recipe::default().validate().unwrap();
    }
}
