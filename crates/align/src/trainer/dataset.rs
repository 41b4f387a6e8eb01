//! Pairs of pictures of a dataset, encoded and noised anew in every pass (docs/methods.md section 4.2).
//!
//! Pictures are decoded ahead on other threads, in the order that the seed fixes; a small set's encodings are kept, a
//! large one streams in constant memory (docs/data.md).

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use seedpo_data::{Fitted, Pairs as DataPairs, Prefetch};
use seedpo_model::DiffusionModel;
use seedpo_rollout::Cost;
use seedpo_tensor::NoiseKey;
use tch::{Kind, Tensor};

use super::bad_pairs::BadPairs;
use super::samples::{Pairs, Samples};
use super::stream::Slot;
use crate::config::TrainConfig;
use crate::error::Result;
use crate::objective::{PairBatch, PairLatents};

/// Sets whose encodings take up to this many bytes are encoded once and kept (4,096 pairs at 512 x 512); larger ones
/// stream.
const CACHE_BYTES: usize = 1 << 30;
/// What decoded pictures that wait may take, in bytes.
const AHEAD_BYTES: usize = 256 << 20;

/// A pair as the autoencoder sees it: means and standard deviations of its latents.
#[derive(Debug)]
struct Encoded {
    /// `[2, C, h, w]`, winner first; `[1, C, h, w]` for a winner alone.
    mean: Tensor,
    /// As `mean`.
    std: Tensor,
}

/// The pairs of a dataset on their way to latents.
#[derive(Debug)]
pub struct EncodedPairs {
    pairs: Arc<DataPairs>,
    ahead: Prefetch,
    /// Pairs that were asked of `ahead` and not yet taken.
    asked: HashSet<usize>,
    /// The iteration up to which `ahead` was asked, exclusive.
    pub asked_until: u64,
    /// Encodings of a set that is small enough, by pair and whether it is mirrored.
    cached: HashMap<(usize, bool), Encoded>,
    weights: Option<Vec<f32>>,
    bad: BadPairs,
    /// Side of the pictures in pixels.
    size: u32,
    /// Whether half of the pairs, drawn anew in every pass, are mirrored.
    random_flip: bool,
}

impl EncodedPairs {
    /// `size`: side of the pictures in pixels; pairs whose pictures cannot be had are recorded in the folder `run`.
    pub fn new(pairs: Arc<DataPairs>, config: &TrainConfig, size: i64, run: &Path) -> Result<Self> {
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        let workers = config.dataloader_num_workers as usize;
        Ok(Self {
            ahead: Prefetch::new(Arc::clone(&pairs), size, workers, AHEAD_BYTES),
            weights: (config.pair_weighting == "per-prompt").then(|| pairs.prompt_weights()),
            bad: BadPairs::open(&pairs, run, config.bad_rows_limit)?,
            pairs,
            asked: HashSet::new(),
            asked_until: 0,
            cached: HashMap::new(),
            size,
            random_flip: config.random_flip,
        })
    }

    /// Whether a pair is mirrored in this pass, both of its pictures alike; keyed by pass and pair.
    fn flipped(&self, slot: &Slot, seed: u64) -> bool {
        let key = || NoiseKey::new(seed, "random-flip").epoch(slot.pass).prompt(slot.prompt as u64);
        self.random_flip && key().below(2) == 1
    }

    /// Has the pictures of these slots decoded ahead, unless they are known or known to be bad.
    pub fn ask(&mut self, slots: &[Slot], seed: u64) {
        for slot in slots {
            let key = (slot.prompt, self.flipped(slot, seed));
            let known = self.cached.contains_key(&key) || self.bad.contains(slot.prompt);
            if !known && self.asked.insert(slot.prompt) {
                self.ahead.ask([slot.prompt]);
            }
        }
    }

    /// The pairs of `slots` (their `prompt` counts pairs), each with one t and one ε for both sides, keyed by pass and
    /// pair; where the dataset was opened for winners alone, the latents are theirs. Pairs whose pictures cannot be had are left out and counted.
    ///
    /// Errors: more of those than `bad_rows_limit` allows; those of the autoencoder.
    pub fn samples(
        &mut self,
        model: &DiffusionModel,
        slots: &[Slot],
        latent_shape: &[i64],
        seed: u64,
    ) -> Result<Samples> {
        let started = Instant::now();
        let _frozen = tch::no_grad_guard();
        let (mut sides, mut noise) = ([Vec::new(), Vec::new()], Vec::new());
        let (mut timesteps, mut prompts, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        for (row, slot) in slots.iter().enumerate() {
            let key = |purpose: &'static str| NoiseKey::new(seed, purpose).epoch(slot.pass).prompt(slot.prompt as u64);
            let flipped = self.flipped(slot, seed);
            let Some(encoded) = self.encoded(model, slot.prompt, flipped)? else { continue };
            let mut shape = vec![encoded.mean.size()[0]];
            shape.extend(latent_shape);
            let drawn = key("image-latents").normal(&shape).to_device(encoded.mean.device());
            let latents = (&encoded.mean + &encoded.std * drawn) * model.vae.scaling_factor();
            latents.unbind(0).into_iter().zip(&mut sides).for_each(|(side, all)| all.push(side));
            noise.push(key("image-noise").normal(latent_shape).to_device(latents.device()));
            timesteps.push(key("image-timestep").below(model.schedule.num_train_timesteps as usize) as i64);
            weights.extend(self.weights.as_ref().map(|weights| weights[slot.prompt]));
            prompts.push(row);
        }
        let pairs = if prompts.is_empty() {
            Pairs::Steps(Vec::new())
        } else {
            let (winners, noise) = (Tensor::f_stack(&sides[0], 0)?, Tensor::f_stack(&noise, 0)?);
            let latents = if sides[1].is_empty() {
                PairLatents::winners(&model.schedule, &winners, noise, &timesteps)?
            } else {
                PairLatents::noised(&model.schedule, &winners, &Tensor::f_stack(&sides[1], 0)?, noise, &timesteps)?
            };
            let (decided, weights) = (vec![true; prompts.len()], self.weights.is_some().then_some(weights));
            Pairs::Images(PairBatch { latents, timesteps, prompts, decided, weights })
        };
        Ok(Samples {
            pairs,
            tied: 0,
            rewards: Vec::new(),
            cost: Cost::default(),
            seconds_rollout: started.elapsed().as_secs_f64(),
            seconds_judge: 0.0,
        })
    }

    /// A pair's encoding, mirrored or not; `None` where a picture of it cannot be had.
    fn encoded(&mut self, model: &DiffusionModel, index: usize, flipped: bool) -> Result<Option<Encoded>> {
        // What was asked for is taken, or it would keep its room.
        let fitted = if self.asked.remove(&index) {
            self.ahead.take(index)
        } else if let Some(known) = self.cached.get(&(index, flipped)) {
            return Ok(Some(known.shallow_clone()));
        } else if self.bad.contains(index) {
            return Ok(None);
        } else {
            Fitted::read(&self.pairs, index, self.size)
        };
        let fitted = match fitted {
            Ok(fitted) => fitted,
            Err(bad) => return self.bad.add(index, bad).map(|()| None),
        };
        let pictures: Vec<&Vec<u8>> = std::iter::once(&fitted.winner).chain(&fitted.loser).collect();
        let pixels = pictures.iter().map(|bytes| self.pixels(bytes)).collect::<Result<Vec<_>>>()?;
        let pixels = Tensor::f_cat(&pixels, 0)?;
        let (mean, logvar) = model.vae.encode(&if flipped { pixels.f_flip([3])? } else { pixels })?;
        let f32_here = |x: Tensor| x.to_kind(Kind::Float).to_device(model.device());
        let encoded = Encoded { mean: f32_here(mean), std: f32_here((logvar * 0.5).exp()) };
        // Mirrored ones are kept beside the others.
        let bytes = (1 + usize::from(self.random_flip)) * 2 * encoded.mean.numel() * Kind::Float.elt_size_in_bytes();
        if self.pairs.len() <= CACHE_BYTES / bytes {
            self.cached.insert((index, flipped), encoded.shallow_clone());
        }
        Ok(Some(encoded))
    }

    /// RGB bytes as the autoencoder takes them, f32 `[1, 3, size, size]` in [-1, 1].
    fn pixels(&self, bytes: &[u8]) -> Result<Tensor> {
        let side = i64::from(self.size);
        let pixels = Tensor::from_slice(bytes).f_reshape([1, side, side, 3])?.permute([0, 3, 1, 2]);
        Ok((pixels.to_kind(Kind::Float) / 127.5 - 1.0).contiguous())
    }
}

impl Encoded {
    fn shallow_clone(&self) -> Self {
        Self { mean: self.mean.shallow_clone(), std: self.std.shallow_clone() }
    }
}
