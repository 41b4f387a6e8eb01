//! Pairs of image files, encoded once and noised anew in every pass (docs/methods.md section 4.2).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Instant;

use seedpo_model::DiffusionModel;
use seedpo_rollout::Cost;
use seedpo_tensor::NoiseKey;
use tch::{Kind, Tensor};

use super::samples::{Pairs, Samples};
use super::stream::Slot;
use crate::error::Result;
use crate::image_pairs::{ImagePair, read_image};
use crate::objective::{PairBatch, PairLatents};

/// Above this many pairs the cache is emptied before it grows on (4,096 take 1 GB at 512 x 512).
const CACHE_LIMIT: usize = 4096;

/// Winner and loser of a pair (or the winner alone) as the autoencoder sees them: means and standard deviations of their
/// latents.
#[derive(Debug)]
struct Encoded {
    /// `[2, C, h, w]`, winner first; `[1, C, h, w]` for the winner alone.
    mean: Tensor,
    /// The same shape.
    std: Tensor,
}

/// A cache of encoded pairs.
#[derive(Debug, Default)]
pub struct EncodedPairs {
    cached: HashMap<usize, Encoded>,
}

impl EncodedPairs {
    /// The pairs of `slots` (their `prompt` counts pairs), each with one t and one ε for both sides, keyed by pass and
    /// pair. With `winners_only` losers are neither read nor encoded, and the latents are those of winners; a run asks
    /// for the one or the other throughout. Errors: a picture that cannot be read.
    pub fn samples(
        &mut self,
        model: &DiffusionModel,
        pairs: &[ImagePair],
        slots: &[Slot],
        latent_shape: &[i64],
        seed: u64,
        winners_only: bool,
    ) -> Result<Samples> {
        let started = Instant::now();
        let _frozen = tch::no_grad_guard();
        let size = latent_shape[1] * model.vae.config().scale_factor();
        let (mut sides, mut noise, mut timesteps) = ([Vec::new(), Vec::new()], Vec::new(), Vec::new());
        for slot in slots {
            let key = |purpose: &'static str| NoiseKey::new(seed, purpose).epoch(slot.pass).prompt(slot.prompt as u64);
            let encoded = self.encoded(model, &pairs[slot.prompt], slot.prompt, size, winners_only)?;
            let mut shape = vec![encoded.mean.size()[0]];
            shape.extend(latent_shape);
            let drawn = key("image-latents").normal(&shape).to_device(encoded.mean.device());
            let latents = (&encoded.mean + &encoded.std * drawn) * model.vae.scaling_factor();
            latents.unbind(0).into_iter().zip(&mut sides).for_each(|(side, all)| all.push(side));
            noise.push(key("image-noise").normal(latent_shape).to_device(latents.device()));
            timesteps.push(key("image-timestep").below(model.schedule.num_train_timesteps as usize) as i64);
        }
        let (winners, noise) = (Tensor::f_stack(&sides[0], 0)?, Tensor::f_stack(&noise, 0)?);
        let latents = if winners_only {
            PairLatents::winners(&model.schedule, &winners, noise, &timesteps)?
        } else {
            let losers = Tensor::f_stack(&sides[1], 0)?;
            PairLatents::noised(&model.schedule, &winners, &losers, noise, &timesteps)?
        };
        let rows = slots.len();
        let batch =
            PairBatch { latents, timesteps, prompts: (0..rows).collect(), decided: vec![true; rows], weights: None };
        Ok(Samples {
            pairs: Pairs::Images(batch),
            tied: 0,
            rewards: Vec::new(),
            cost: Cost::default(),
            seconds_rollout: started.elapsed().as_secs_f64(),
            seconds_judge: 0.0,
        })
    }

    fn encoded(
        &mut self,
        model: &DiffusionModel,
        pair: &ImagePair,
        index: usize,
        size: i64,
        winner_only: bool,
    ) -> Result<&Encoded> {
        if self.cached.len() >= CACHE_LIMIT && !self.cached.contains_key(&index) {
            self.cached.clear();
        }
        Ok(match self.cached.entry(index) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let mut images = vec![read_image(&pair.winner, size)?];
                if !winner_only {
                    images.push(read_image(&pair.loser, size)?);
                }
                let images = Tensor::f_cat(&images, 0)?;
                let (mean, logvar) = model.vae.encode(&images)?;
                let f32_here = |x: Tensor| x.to_kind(Kind::Float).to_device(model.device());
                place.insert(Encoded { mean: f32_here(mean), std: f32_here((logvar * 0.5).exp()) })
            }
        })
    }
}
