//! The kinds `preference` and `step-aware`: pairs, of which one picture is preferred; judged as they are, or as a diffusion
//! model predicts them from noise.

use std::sync::Arc;

use rayon::prelude::*;
use seedpo_data::Pairs;
use seedpo_judge::{processor_square, step_aware_training};
use seedpo_model::{ClipModel, ClipTokenizer};
use seedpo_tensor::NoiseKey;
use tch::{Kind, Tensor};

use crate::heldout::{Heldout, Part};
use crate::noising::Noising;
use crate::objective::{preference, prompt_weights, scores};
use crate::pictures::{for_autoencoder, normalised, stacked};
use crate::source::{Loaded, Order, Source, Unreadable};
use crate::split::Split;
use crate::{Result, Settings, Task};

/// Held-out pairs judged at a time.
const HELDOUT_BATCH: usize = 32;

/// Training on pairs.
pub struct Preference {
    source: Arc<PairSource>,
    heldout: Vec<usize>,
    noising: Option<Noising>,
    seed: u64,
}

/// Loads pairs; public as the [`Task::Source`] of [`Preference`] alone.
pub struct PairSource {
    pairs: Arc<Pairs>,
    examples: Vec<u32>,
    tokenizer: Arc<ClipTokenizer>,
    order: Order,
    view: View,
    seed: u64,
}

/// What pictures are loaded as.
#[derive(Debug, Clone, Copy)]
enum View {
    /// As PickScore's processor prepares them, S pixels.
    Prepared(usize),
    /// For the autoencoder, R pixels.
    Autoencoder(usize),
}

/// Pairs as tensors.
pub struct PairBatch {
    /// Both pictures f32 `[B, 3, S, S]`: prepared for the vision tower, or in [−1, 1] for the autoencoder.
    pub pictures: [Tensor; 2],
    /// The prompts.
    pub prompts: Vec<String>,
    /// Their token ids, i64 `[B, L]`.
    pub input_ids: Tensor,
    /// f32 `[B]`: 1 where the first picture is preferred, 0 the second, ½ neither.
    pub label_0: Tensor,
    /// f32 `[B]`, 1 in sum over the update.
    pub weights: Tensor,
    /// What timestep and noise of each pair are drawn by.
    pub keys: Vec<NoiseKey>,
}

/// A pair whose pictures could be read, each resized as soon as it was decoded.
struct ReadPair {
    index: usize,
    /// Bytes of squares as wide as the view is.
    pictures: [Vec<u8>; 2],
    key: NoiseKey,
}

impl View {
    /// Side of the squares, in pixels.
    fn side(self) -> usize {
        let (Self::Prepared(side) | Self::Autoencoder(side)) = self;
        side
    }
}

impl Preference {
    /// Training on `pairs` for a vision tower of `side` pixels; with `noising` a step-aware one.
    ///
    /// Errors: [`crate::Error::Setting`] where no pairs are left to train on or to hold out.
    pub fn new(
        pairs: Arc<Pairs>,
        tokenizer: Arc<ClipTokenizer>,
        side: i64,
        noising: Option<Noising>,
        settings: &Settings,
    ) -> Result<Self> {
        let prompts = (0..pairs.len()).map(|index| pairs.pair(index).prompt);
        let split = Split::new(prompts, |index| !pairs.pair(index).tie, settings, "pairs")?;
        let view = match &noising {
            None => View::Prepared(side as usize),
            Some(noising) => View::Autoencoder(noising.resolution() as usize),
        };
        let (examples, order, seed) = (pairs.examples_per_prompt(), Order::new(split.train, settings), settings.seed);
        let source = PairSource { pairs, examples, tokenizer, order, view, seed };
        Ok(Self { source: Arc::new(source), heldout: split.heldout, noising, seed })
    }

    /// Features of both pictures of each pair, `[B, P]` each, in one pass of the vision tower over `[2B, 3, S, S]`.
    fn features(&self, model: &ClipModel, pixels: &Tensor, timesteps: Option<&[i64]>) -> Result<[Tensor; 2]> {
        let rows = pixels.size()[0] / 2;
        let timesteps = timesteps.map(|timesteps| Tensor::from_slice(&[timesteps, timesteps].concat()));
        let features = model.image_features(pixels, timesteps.as_ref())?;
        Ok([features.narrow(0, 0, rows), features.narrow(0, rows, rows)])
    }

    /// The share of held-out pairs whose preferred picture has the higher score, at each of these timesteps (step-aware) or
    /// of the pictures themselves. `None` where no pair can be read.
    fn accuracies(
        &self,
        model: &ClipModel,
        timesteps: &[Option<i64>],
        heldout: &mut Heldout,
    ) -> Result<Option<Vec<f64>>> {
        let side = model.config().vision.image_size;
        let (mut right, mut count) = (vec![0.0; timesteps.len()], 0);
        for (number, examples) in self.heldout.chunks(HELDOUT_BATCH).enumerate() {
            let made = heldout.part(number, |unreadable| self.part(examples, timesteps, side, unreadable))?;
            let Some(Part { pictures, input_ids }) = made else { continue };
            let rows = input_ids.size()[0];
            let texts = model.text_features(&input_ids)?;
            for ((right, timestep), pictures) in right.iter_mut().zip(timesteps).zip(pictures) {
                let each = timestep.map(|t| vec![t; rows as usize]);
                let pixels = if timestep.is_some() { pictures } else { normalised(&pictures)? };
                let features = self.features(model, &pixels, each.as_deref())?;
                let [first, second] = features.map(|side| scores(&side, &texts, model.logit_scale()));
                // Ties are not among them: the first picture is the preferred one.
                *right += first.gt_tensor(&second).to_kind(Kind::Double).sum(Kind::Double).double_value(&[]);
            }
            count += rows;
        }
        Ok((count > 0).then(|| right.into_iter().map(|right| right / count as f64).collect()))
    }

    /// A part of the held-out pairs, each read and encoded once: what the vision tower sees of both pictures at each of
    /// these timesteps, f32 `[2B, 3, S, S]`, or the pictures as bytes. `None` where none of them can be read.
    fn part(
        &self,
        examples: &[usize],
        timesteps: &[Option<i64>],
        side: i64,
        unreadable: &mut Vec<Unreadable>,
    ) -> Result<Option<Part>> {
        let key = |index: usize| NoiseKey::new(self.seed, "judge held out").prompt(index as u64);
        let keyed = examples.iter().map(|&index| (index, key(index))).collect();
        let read = self.source.read(keyed, unreadable);
        if read.is_empty() {
            return Ok(None);
        }
        let rows = read.len();
        let Some(noising) = &self.noising else {
            let squares = [0, 1].into_iter().flat_map(|side| read.iter().map(move |pair| &pair.pictures[side]));
            let pictures = vec![stacked(squares, self.source.view.side())?];
            let prompts: Vec<String> = read.iter().map(|pair| self.source.prompt(pair.index)).collect();
            return Ok(Some(Part { pictures, input_ids: self.source.tokenizer.encode(&prompts)? }));
        };
        let batch = self.source.batch(&read, vec![0.0; rows])?;
        let encoded = noising.encode_batch(&batch)?;
        let view = |timestep: &Option<i64>| -> Result<Tensor> {
            let images = match timestep.unwrap_or(0) {
                // At timestep 0 the picture itself is looked at.
                0 => Tensor::f_cat(&batch.pictures, 0)?,
                timestep => noising.predict(&encoded, &vec![timestep; rows])?,
            };
            Ok(step_aware_training(&images, side)?.f_contiguous()?)
        };
        Ok(Some(Part { pictures: timesteps.iter().map(view).collect::<Result<_>>()?, input_ids: batch.input_ids }))
    }
}

impl PairSource {
    /// The pairs whose pictures can be had, read side by side.
    fn read(&self, wanted: Vec<(usize, NoiseKey)>, unreadable: &mut Vec<Unreadable>) -> Vec<ReadPair> {
        let side = self.view.side();
        let both = |(index, key): (usize, NoiseKey)| {
            let pair = self.pairs.pair(index);
            let square = |id| self.pairs.picture(id).map(|picture| processor_square(&picture, side));
            // Pairs are opened with losers.
            let pictures =
                square(pair.winner).and_then(|winner| Ok([winner, square(pair.loser.unwrap_or(pair.winner))?]));
            match pictures {
                Ok(pictures) => Ok(ReadPair { index, pictures, key }),
                Err(why) => Err(Unreadable { index, why }),
            }
        };
        let all: Vec<_> = wanted.into_par_iter().map(both).collect();
        let mut read = Vec::with_capacity(all.len());
        for pair in all {
            match pair {
                Ok(pair) => read.push(pair),
                Err(bad) => unreadable.push(bad),
            }
        }
        read
    }

    fn prompt(&self, index: usize) -> String {
        self.pairs.pair(index).prompt.to_owned()
    }

    fn batch(&self, read: &[ReadPair], weights: Vec<f32>) -> Result<PairBatch> {
        let label = |pair: &ReadPair| if self.pairs.pair(pair.index).tie { 0.5f32 } else { 1.0 };
        let labels: Vec<f32> = read.iter().map(label).collect();
        let prompts: Vec<String> = read.iter().map(|pair| self.prompt(pair.index)).collect();
        let side = |side: usize| {
            let bytes = stacked(read.iter().map(|pair| &pair.pictures[side]), self.view.side())?;
            match self.view {
                View::Prepared(_) => normalised(&bytes),
                View::Autoencoder(_) => for_autoencoder(&bytes),
            }
        };
        Ok(PairBatch {
            pictures: [side(0)?, side(1)?],
            input_ids: self.tokenizer.encode(&prompts)?,
            prompts,
            label_0: Tensor::from_slice(&labels),
            weights: Tensor::from_slice(&weights),
            keys: read.iter().map(|pair| pair.key).collect(),
        })
    }
}

impl Source for PairSource {
    type Batch = PairBatch;

    const NEEDS: &'static str = "no pair has two pictures that can be read";

    fn load(&self, update: u64) -> Result<Loaded<PairBatch>> {
        let mut row = 0;
        let (mut read, mut unreadable) = (Vec::new(), Vec::new());
        for examples in self.order.batches(update) {
            let keyed = examples.into_iter().map(|index| {
                row += 1;
                (index, NoiseKey::new(self.seed, "judge noise").step(update).prompt(row))
            });
            let some = self.read(keyed.collect(), &mut unreadable);
            if !some.is_empty() {
                read.push(some);
            }
        }
        let examples: Vec<u32> = read.iter().flatten().map(|pair| self.examples[pair.index]).collect();
        let mut weights = prompt_weights(&examples).into_iter();
        let batch = |pairs: Vec<ReadPair>| {
            let own = weights.by_ref().take(pairs.len()).collect();
            self.batch(&pairs, own)
        };
        Ok(Loaded { batches: read.into_iter().map(batch).collect::<Result<_>>()?, unreadable })
    }

    fn pairs(&self) -> Option<&Pairs> {
        Some(&self.pairs)
    }
}

impl Task for Preference {
    type Source = PairSource;

    fn kind(&self) -> &'static str {
        if self.noising.is_some() { "step-aware" } else { "preference" }
    }

    fn source(&self) -> Arc<PairSource> {
        Arc::clone(&self.source)
    }

    fn loss(&self, model: &ClipModel, batch: &PairBatch, _: usize) -> Result<Tensor> {
        let side = model.config().vision.image_size;
        let (pixels, timesteps) = match &self.noising {
            Some(noising) => {
                let timesteps = noising.draw_timesteps(&batch.keys);
                (noising.view(batch, &timesteps, side)?, Some(timesteps))
            }
            None => (Tensor::f_cat(&batch.pictures, 0)?, None),
        };
        let texts = model.text_features(&batch.input_ids)?;
        let [first, second] = self.features(model, &pixels, timesteps.as_deref())?;
        let on = |tensor: &Tensor| tensor.to_device(model.device());
        let (labels, weights) = (on(&batch.label_0), on(&batch.weights));
        Ok(preference([&first, &second], &texts, model.logit_scale(), &labels, &weights))
    }

    /// `heldout_pair_accuracy`; step-aware: of each timestep in turn (`heldout_pair_accuracy_t251`), and their mean.
    fn evaluate(&self, model: &ClipModel, heldout: &mut Heldout) -> Result<Vec<(String, f64)>> {
        const NAME: &str = "heldout_pair_accuracy";
        let Some(noising) = &self.noising else {
            let found = self.accuracies(model, &[None], heldout)?;
            return Ok(found.into_iter().flatten().map(|value| (NAME.to_owned(), value)).collect());
        };
        let timesteps = noising.heldout_timesteps();
        let each: Vec<_> = timesteps.iter().copied().map(Some).collect();
        let found = self.accuracies(model, &each, heldout)?;
        let Some(found) = found else { return Ok(Vec::new()) };
        let mean = found.iter().sum::<f64>() / found.len() as f64;
        let each = timesteps.iter().zip(found).map(|(t, value)| (format!("{NAME}_t{t}"), value));
        Ok(each.chain([(NAME.to_owned(), mean)]).collect())
    }

    fn heldout(&self) -> usize {
        self.heldout.len()
    }
}
