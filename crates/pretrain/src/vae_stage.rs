//! Stage 1: the autoencoder. Absolute error of pixels and of neighbouring pixels' differences, and a little KL.

use std::collections::BTreeMap;

use seedpo_model::AutoencoderKl;
use seedpo_tensor::{NoiseKey, Params};
use tch::{Device, Kind, Tensor};

use crate::dataset::Dataset;
use crate::observer::StageReport;
use crate::recipe::Recipe;
use crate::replicas::Replicas;
use crate::state::{State, batch_indices};
use crate::{Error, Result};

/// The name of this stage in checkpoints and logs.
pub const STAGE: &str = "vae";

/// What a replica holds.
struct Networks {
    vae: AutoencoderKl,
}

/// The trainer of this stage.
pub struct VaeStage<'a> {
    recipe: &'a Recipe,
    data: &'a Dataset,
    replicas: Replicas<Networks>,
    /// Weights, average, optimizer.
    pub state: State,
}

impl<'a> VaeStage<'a> {
    /// Fresh weights from the recipe's seed.
    pub fn new(recipe: &'a Recipe, data: &'a Dataset) -> Result<Self> {
        let fresh = AutoencoderKl::new(recipe.vae_config(1.0), Params::init(recipe.seed, Device::Cpu))?;
        quiet_start(fresh.parameters(), recipe.sizes.latent_channels);
        // The average is over 200 steps: the last steps' learning rate is small anyway.
        let state = State::new(fresh.parameters(), recipe.ema.min(0.995), recipe.workers);
        let workers = workers(recipe.workers, recipe.vae.batch);
        let replicas = Replicas::new(STAGE, &state.layout, workers, Kind::Float, |_, map| {
            Ok(Networks { vae: build(recipe, map, 1.0)? })
        })?;
        Ok(Self { recipe, data, replicas, state })
    }

    /// One step. Errors: [`Error::NotFinite`].
    pub fn step(&mut self) -> Result<StageReport> {
        let (step, settings, recipe) = (self.state.step, self.recipe.vae, self.recipe);
        let indices = batch_indices(recipe.seed, "vae order", self.data.len(), step, settings.batch);
        let images = (0..self.replicas.workers()).map(|w| {
            let part = settings.batch / self.replicas.workers();
            (w * part, self.data.batch(&indices[w * part..(w + 1) * part]))
        });
        let images: Vec<std::sync::Mutex<(usize, Tensor)>> = images.map(std::sync::Mutex::new).collect();
        let (gradient, report) = self.replicas.gradient(&self.state.weights, |networks, index, _| {
            let part = images[index].lock().map_err(|_| Error::Worker(STAGE))?;
            loss(&networks.vae, &part.1, NoiseKey::new(recipe.seed, "vae posterior").epoch(step), part.0, recipe)
        })?;
        let value = report[0];
        if !value.is_finite() {
            return Err(Error::NotFinite { stage: STAGE, step, loss: value });
        }
        let lr = settings.cosine(step);
        let norm = self.state.update(gradient, lr)?;
        let metrics = vec![
            ("pixel_error", report[1]),
            ("edge_error", report[2]),
            ("chroma_error", report[3]),
            ("kl", report[4]),
            ("grad_norm", norm),
        ];
        let metrics = metrics.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Ok(StageReport { stage: STAGE, step: step + 1, total: settings.steps, loss: value, lr, metrics })
    }

    /// The averaged weights by name.
    pub fn result(&self) -> BTreeMap<String, Tensor> {
        self.state.layout.part(&self.state.average, "")
    }
}

/// Starts the posterior with a small standard deviation (e^-3 = 0.05). At the usual start of 1 most latent channels
/// are drowned in noise and take a thousand steps to be found; colours came last.
fn quiet_start(parameters: &BTreeMap<String, Tensor>, latent_channels: i64) {
    if let Some(bias) = parameters.get("quant_conv.bias") {
        let _ = bias.narrow(0, latent_channels, latent_channels).fill_(-6.0);
    }
}

/// How many replicas a batch can be split over evenly.
pub(crate) fn workers(asked: usize, batch: usize) -> usize {
    (1..=asked.max(1)).rev().find(|w| batch.is_multiple_of(*w)).unwrap_or(1)
}

/// A VAE of these tensors, which it shares.
pub(crate) fn build(recipe: &Recipe, tensors: BTreeMap<String, Tensor>, scaling_factor: f64) -> Result<AutoencoderKl> {
    let kind = tensors.values().next().map_or(Kind::Float, Tensor::kind);
    let params = Params::from_tensors("(weights in training)", tensors, Device::Cpu, kind);
    Ok(AutoencoderKl::new(recipe.vae_config(scaling_factor), params)?)
}

/// The loss, and what it is made of: loss; pixel, edge and colour error (of values from
/// -1 to 1); KL per latent element in nats.
fn loss(
    vae: &AutoencoderKl,
    images: &Tensor,
    key: NoiseKey,
    first: usize,
    recipe: &Recipe,
) -> Result<(Tensor, Vec<f64>)> {
    let (mean, logvar) = vae.encode(images)?;
    let logvar = logvar.clamp(-30.0, 20.0);
    let shape = mean.size();
    let noise: Vec<Tensor> = (0..shape[0]).map(|i| key.prompt(first as u64 + i as u64).normal(&shape[1..])).collect();
    let latents = &mean + (&logvar * 0.5).exp() * Tensor::stack(&noise, 0);
    let error = vae.decode(&latents)? - images;
    let size = recipe.sizes.image;
    let across = error.narrow(3, 1, size - 1) - error.narrow(3, 0, size - 1);
    let down = error.narrow(2, 1, size - 1) - error.narrow(2, 0, size - 1);
    let pixel = error.abs().mean(Kind::Float);
    let edge = across.abs().mean(Kind::Float) + down.abs().mean(Kind::Float);
    // The part of the error that is colour alone: greys come first by themselves.
    let chroma = (&error - error.mean_dim(1, true, Kind::Float)).abs().mean(Kind::Float);
    let kl = (&mean * &mean + logvar.exp() - 1.0 - &logvar).mean(Kind::Float) * 0.5;
    let loss = &pixel + &chroma * recipe.chroma_weight + &edge * recipe.edge_weight + &kl * recipe.kl_weight;
    let report = [&loss, &pixel, &edge, &chroma, &kl].map(|t| t.double_value(&[])).to_vec();
    Ok((loss, report))
}

/// The latents' means of all images, `[N, C, h, w]` f32, and the factor 1 / std that brings them to unit variance.
pub fn encode_all(vae: &AutoencoderKl, data: &Dataset) -> Result<(Tensor, f64)> {
    tch::no_grad(|| {
        let all: Vec<i64> = (0..data.len() as i64).collect();
        let parts = all.chunks(64).map(|part| Ok(vae.encode(&data.batch(part))?.0)).collect::<Result<Vec<_>>>()?;
        let latents = Tensor::f_cat(&parts, 0)?;
        let deviation = latents.to_kind(Kind::Double).std(true).double_value(&[]);
        Ok((latents, 1.0 / deviation))
    })
}
