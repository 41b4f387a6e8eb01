//! What a step-aware judge looks at: pictures noised and predicted back by a diffusion model.

use seedpo_judge::step_aware_training;
use seedpo_model::{Conditioning, DiffusionModel, Policy, PromptEmbeds};
use seedpo_tensor::NoiseKey;
use tch::{Kind, Tensor};

use crate::preference::PairBatch;
use crate::{Error, Result};

/// The timesteps that SPO's trainer looks at held-out pairs at; at 0 the picture itself, without noise.
const HELDOUT_TIMESTEPS: [i64; 5] = [0, 251, 501, 701, 951];

/// One-step predictions of x̂0 from noised pictures. Source: SPO's SPM trainer.
#[derive(Debug)]
pub struct Noising {
    model: DiffusionModel,
    guidance_scale: f64,
    resolution: i64,
    negative: PromptEmbeds,
}

impl Noising {
    /// Predictions of `model` with guidance (5 in SPO) at pictures of `resolution` pixels.
    ///
    /// Errors: [`Error::Setting`] where the resolution is no multiple of the autoencoder's factor.
    pub fn new(model: DiffusionModel, guidance_scale: f64, resolution: i64) -> Result<Self> {
        let factor = model.vae.config().scale_factor();
        if resolution < factor || resolution % factor != 0 {
            return Err(Error::setting("resolution", format!("a multiple of {factor}"), resolution));
        }
        if !guidance_scale.is_finite() {
            return Err(Error::setting("guidance-scale", "a finite number", guidance_scale));
        }
        let negative = model.encode_negative_prompt("")?;
        Ok(Self { model, guidance_scale, resolution, negative })
    }

    /// Side of the pictures that are noised, in pixels.
    pub fn resolution(&self) -> i64 {
        self.resolution
    }

    /// A timestep for each key, uniform over the model's schedule.
    pub(crate) fn draw_timesteps(&self, keys: &[NoiseKey]) -> Vec<i64> {
        let total = self.model.schedule.num_train_timesteps as usize;
        keys.iter().map(|key| key.candidate(0).below(total) as i64).collect()
    }

    /// The published timesteps, or the last of a shorter schedule.
    pub(crate) fn heldout_timesteps(&self) -> Vec<i64> {
        let last = self.model.schedule.num_train_timesteps - 1;
        let mut timesteps: Vec<i64> = HELDOUT_TIMESTEPS.iter().map(|&t| t.min(last)).collect();
        timesteps.dedup();
        timesteps
    }

    /// Both pictures of each pair as the vision tower takes them, `[2B, 3, S, S]`, first pictures first.
    pub(crate) fn view(&self, batch: &PairBatch, timesteps: &[i64], side: i64) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        Ok(step_aware_training(&self.predict(&self.encode_batch(batch)?, timesteps)?, side)?)
    }

    /// A batch encoded, with draws by its keys.
    pub(crate) fn encode_batch(&self, batch: &PairBatch) -> Result<Encoded> {
        let draws = Draws::of(&batch.keys, &self.latent_shape())?;
        self.encode(&Tensor::f_cat(&batch.pictures, 0)?, &batch.prompts, &draws)
    }

    /// The shape of a picture's latents.
    pub fn latent_shape(&self) -> [i64; 3] {
        let config = self.model.vae.config();
        let side = self.resolution / config.scale_factor();
        [config.latent_channels, side, side]
    }

    /// `pictures` `[2B, 3, R, R]` in [−1, 1] (the pairs' first pictures, then their second ones) encoded, noised to the
    /// pair's timestep with the same noise, predicted in one step with guidance, and decoded: `[2B, 3, R, R]`.
    ///
    /// Errors: shapes that do not fit. Run it without gradients.
    pub fn predicted(&self, pictures: &Tensor, prompts: &[String], timesteps: &[i64], draws: &Draws) -> Result<Tensor> {
        self.predict(&self.encode(pictures, prompts, draws)?, timesteps)
    }

    /// What does not depend on the timestep of [`Noising::predicted`].
    fn encode(&self, pictures: &Tensor, prompts: &[String], draws: &Draws) -> Result<Encoded> {
        let model = &self.model;
        let on = |tensor: &Tensor| tensor.to_device(model.device());
        let (mean, logvar) = model.vae.encode(&on(pictures))?;
        let deviation = (logvar.to_kind(Kind::Float) * 0.5).exp();
        let latents = (mean.to_kind(Kind::Float) + deviation * on(&draws.posterior)) * model.vae.scaling_factor();
        let noise = on(&Tensor::f_cat(&[&draws.noise, &draws.noise], 0)?);
        let embeds = model.encode_prompts(prompts)?;
        let embeds = PromptEmbeds::cat(&[&embeds, &embeds])?;
        let conditioning = Conditioning::new(&embeds, &self.negative, (self.resolution, self.resolution));
        Ok(Encoded { latents, noise, conditioning })
    }

    /// The pictures predicted from their noised latents at each pair's timestep, `[2B, 3, R, R]`.
    pub(crate) fn predict(&self, encoded: &Encoded, timesteps: &[i64]) -> Result<Tensor> {
        let (model, Encoded { latents, noise, conditioning }) = (&self.model, encoded);
        let timesteps = Tensor::from_slice(&[timesteps, timesteps].concat());
        let noised = model.schedule.add_noise(latents, noise, &timesteps)?;
        let policy = Policy::new(model, None);
        let output = policy.predict_output(&noised, &timesteps, conditioning, self.guidance_scale)?;
        let clean = model.schedule.to_clean(&output, &noised, &timesteps)?;
        Ok(model.vae.decode_latents(&clean)?)
    }
}

/// Pairs in the diffusion model's latent space: `[2B, C, h, w]` each, and what they are of.
pub(crate) struct Encoded {
    latents: Tensor,
    noise: Tensor,
    conditioning: Conditioning,
}

/// Standard normal draws for pairs of pictures.
#[derive(Debug)]
pub struct Draws {
    /// Of the autoencoder's posterior, each picture its own: `[2B, C, h, w]`.
    pub posterior: Tensor,
    /// The noise, which both pictures of a pair share: `[B, C, h, w]`.
    pub noise: Tensor,
}

impl Draws {
    /// Draws by a key for each pair.
    fn of(keys: &[NoiseKey], shape: &[i64]) -> Result<Self> {
        let rows = |candidate: u64| keys.iter().map(move |key| key.candidate(candidate).normal(shape));
        let posterior: Vec<Tensor> = rows(1).chain(rows(2)).collect();
        let noise: Vec<Tensor> = rows(3).collect();
        Ok(Self { posterior: Tensor::f_stack(&posterior, 0)?, noise: Tensor::f_stack(&noise, 0)? })
    }
}
