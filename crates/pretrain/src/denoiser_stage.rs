//! Stage 2: text encoder and U-Net together, on cached latents, with captions drawn anew each time.

use std::collections::BTreeMap;
use std::sync::Mutex;

use seedpo_model::{ClipTextModel, ClipTokenizer, UNet2DConditionModel};
use seedpo_tensor::{NoiseKey, Params};
use tch::{Device, Kind, Tensor};

use crate::dataset::Dataset;
use crate::observer::StageReport;
use crate::recipe::Recipe;
use crate::replicas::Replicas;
use crate::state::{State, batch_indices};
use crate::vae_stage::workers;
use crate::{Error, Result};

/// The name of this stage in checkpoints and logs.
pub const STAGE: &str = "denoiser";
const TEXT: &str = "text_encoder.";
const UNET: &str = "unet.";

/// What a replica holds.
struct Networks {
    text: ClipTextModel,
    unet: UNet2DConditionModel,
}

/// One replica's part of a batch.
struct Part {
    /// x_0, scaled, f32 `[b, C, h, w]`.
    clean: Tensor,
    noise: Tensor,
    /// i64 `[b]`.
    timesteps: Tensor,
    /// i64 `[b, L]`.
    input_ids: Tensor,
}

/// The trainer of this stage.
pub struct DenoiserStage<'a> {
    recipe: &'a Recipe,
    data: &'a Dataset,
    tokenizer: &'a ClipTokenizer,
    /// Scaled to unit variance, f32 `[N, C, h, w]`.
    latents: Tensor,
    alphas_cumprod: Vec<f64>,
    replicas: Replicas<Networks>,
    /// Weights, average, optimizer.
    pub state: State,
}

impl<'a> DenoiserStage<'a> {
    /// Fresh weights from the recipe's seed. `latents` `[N, C, h, w]` in the order of `data`, scaled.
    pub fn new(
        recipe: &'a Recipe,
        data: &'a Dataset,
        tokenizer: &'a ClipTokenizer,
        vocab_size: usize,
        latents: Tensor,
        alphas_cumprod: Vec<f64>,
    ) -> Result<Self> {
        let text_config = recipe.text_config(vocab_size);
        let text = ClipTextModel::new(text_config.clone(), Params::init(recipe.seed, Device::Cpu))?;
        let unet = UNet2DConditionModel::new(recipe.unet_config(), Params::init(recipe.seed + 1, Device::Cpu))?;
        let prefixed = |prefix: &'static str, map: &BTreeMap<String, Tensor>| -> Vec<(String, Tensor)> {
            map.iter().map(|(n, t)| (format!("{prefix}{n}"), t.shallow_clone())).collect()
        };
        let all = prefixed(TEXT, text.parameters()).into_iter().chain(prefixed(UNET, unet.parameters())).collect();
        let state = State::new(&all, recipe.ema, recipe.workers);
        let kind = recipe.compute.kind();
        let count = workers(recipe.workers, recipe.denoiser.batch);
        let replicas = Replicas::new(STAGE, &state.layout, count, kind, |_, map| {
            let params = |prefix| {
                let part =
                    map.iter().filter_map(|(n, t)| Some((n.strip_prefix(prefix)?.to_owned(), t.shallow_clone())));
                Params::from_tensors("(weights in training)", part.collect(), Device::Cpu, kind)
            };
            Ok(Networks {
                text: ClipTextModel::new(text_config.clone(), params(TEXT))?,
                unet: UNet2DConditionModel::new(recipe.unet_config(), params(UNET))?,
            })
        })?;
        Ok(Self { recipe, data, tokenizer, latents, alphas_cumprod, replicas, state })
    }

    /// One step. Errors: [`Error::NotFinite`].
    pub fn step(&mut self) -> Result<StageReport> {
        let (step, settings) = (self.state.step, self.recipe.denoiser);
        let count = self.replicas.workers();
        let parts: Vec<Mutex<Part>> =
            (0..count).map(|w| Ok(Mutex::new(self.part(step, w, count)?))).collect::<Result<_>>()?;
        let (alphas, recipe) = (&self.alphas_cumprod, self.recipe);
        let (gradient, report) = self.replicas.gradient(&self.state.weights, |networks, index, _| {
            let part = parts[index].lock().map_err(|_| Error::Worker(STAGE))?;
            seedpo_model::with_plain_attention(|| loss(networks, &part, alphas, recipe))
        })?;
        let value = report[0];
        if !value.is_finite() {
            return Err(Error::NotFinite { stage: STAGE, step, loss: value });
        }
        let lr = settings.cooldown(step);
        let norm = self.state.update(gradient, lr)?;
        let metrics = vec![("squared_error".to_owned(), report[1]), ("grad_norm".to_owned(), norm)];
        Ok(StageReport { stage: STAGE, step: step + 1, total: settings.steps, loss: value, lr, metrics })
    }

    /// The averaged weights of the text encoder and of the U-Net, by name.
    pub fn result(&self) -> (BTreeMap<String, Tensor>, BTreeMap<String, Tensor>) {
        let part = |prefix| self.state.layout.part(&self.state.average, prefix);
        (part(TEXT), part(UNET))
    }

    /// Replica `worker`'s share of the step's batch. Every draw is keyed by step and row, not by worker.
    fn part(&self, step: u64, worker: usize, count: usize) -> Result<Part> {
        let (recipe, batch) = (self.recipe, self.recipe.denoiser.batch);
        let rows = worker * batch / count..(worker + 1) * batch / count;
        let order = batch_indices(recipe.seed, "denoiser order", self.data.len(), step, batch);
        let key = |purpose, row: usize| NoiseKey::new(recipe.seed, purpose).step(step).prompt(row as u64);
        let shape = self.latents.size();
        let noise: Vec<Tensor> = rows.clone().map(|r| key("denoiser noise", r).normal(&shape[1..])).collect();
        // One timestep from each of `batch` equal parts of the schedule, dealt out at random: a smaller variance.
        let late = step >= recipe.late.from;
        let power = if late { recipe.late.timestep_power } else { 1.0 };
        let captions = if late { recipe.late.captions } else { recipe.captions };
        let total = self.alphas_cumprod.len() as f64;
        let deal = NoiseKey::new(recipe.seed, "denoiser deal").step(step).permutation(batch);
        let timestep = |r: usize| {
            let place = ((deal[r] as f64 + key("denoiser timestep", r).uniform()) / batch as f64).powf(power);
            ((place * total) as i64).min(total as i64 - 1)
        };
        let timesteps: Vec<i64> = rows.clone().map(timestep).collect();
        let caption = |r: usize| captions.draw(&self.data.emoji[order[r] as usize], key("denoiser caption", r));
        let captions: Vec<String> = rows.clone().map(caption).collect();
        Ok(Part {
            clean: self.latents.index_select(0, &Tensor::from_slice(&order[rows])),
            noise: Tensor::stack(&noise, 0),
            timesteps: Tensor::from_slice(&timesteps),
            input_ids: self.tokenizer.encode(&captions)?,
        })
    }
}

/// The min-SNR-weighted squared error, and what is reported: loss, unweighted squared error.
fn loss(networks: &Networks, part: &Part, alphas: &[f64], recipe: &Recipe) -> Result<(Tensor, Vec<f64>)> {
    let timesteps = Vec::<i64>::try_from(&part.timesteps)?;
    let column = |f: &dyn Fn(f64) -> f64| {
        let values: Vec<f32> = timesteps.iter().map(|&t| f(alphas[t as usize]) as f32).collect();
        Tensor::from_slice(&values).view([-1, 1, 1, 1])
    };
    let (signal, sigma) = (column(&|a| a.sqrt()), column(&|a| (1.0 - a).sqrt()));
    let noisy = &signal * &part.clean + &sigma * &part.noise;
    let epsilon = recipe.prediction == "epsilon";
    let target = if epsilon { part.noise.shallow_clone() } else { &signal * &part.noise - &sigma * &part.clean };
    // Hang et al. 2023, as weights on the error of x_0: min(SNR, γ); for v min(SNR + 1, γ), so that the noisiest
    // steps, which decide what is drawn, count in full. An error of epsilon is one of x_0 times SNR, of v SNR + 1.
    let weight = column(&|a| {
        let factor = a / (1.0 - a) + if epsilon { 0.0 } else { 1.0 };
        factor.min(recipe.min_snr) / factor
    });
    let prompt_embeds = networks.text.forward(&part.input_ids)?.prompt_embeds;
    let prediction = networks.unet.forward(&noisy, &part.timesteps, &prompt_embeds, None, None)?;
    let square = (prediction.to_kind(Kind::Float) - target).square();
    let plain = square.mean(Kind::Float);
    let loss = (square * weight).mean(Kind::Float);
    let report = vec![loss.double_value(&[]), plain.double_value(&[])];
    Ok((loss, report))
}
