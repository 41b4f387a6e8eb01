//! The kinds `preference` and `step-aware`: pairs, of which one picture is preferred; judged as they are, or as a diffusion
//! model predicts them from noise.

use std::sync::{Arc, Mutex, PoisonError};

use image::RgbImage;
use rayon::prelude::*;
use seedpo_data::{BadRow, Pairs, Report};
use seedpo_judge::step_aware_training;
use seedpo_model::{ClipModel, ClipTokenizer};
use seedpo_tensor::NoiseKey;
use tch::{Kind, Tensor};

use crate::noising::Noising;
use crate::objective::{preference, prompt_weights, scores};
use crate::pictures::{for_autoencoder, prepared};
use crate::source::{Order, Source};
use crate::split::Split;
use crate::{Error, Result, Settings, Task};

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
    /// What became of the rows, pairs whose pictures cannot be had among the bad ones.
    bad: Mutex<Report>,
    bad_rows_limit: f64,
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

/// A pair whose pictures could be read.
struct ReadPair {
    index: usize,
    pictures: [RgbImage; 2],
    key: NoiseKey,
}

impl Preference {
    /// Training on `pairs` for a vision tower of `side` pixels; with `noising` a step-aware one. More bad rows than the
    /// share `bad_rows_limit`, in [0, 1], end the run.
    ///
    /// Errors: [`Error::Setting`] where no pairs are left to train on or to hold out.
    pub fn new(
        pairs: Arc<Pairs>,
        tokenizer: Arc<ClipTokenizer>,
        side: i64,
        noising: Option<Noising>,
        settings: &Settings,
        bad_rows_limit: f64,
    ) -> Result<Self> {
        let prompts = (0..pairs.len()).map(|index| pairs.pair(index).prompt);
        let split = Split::new(prompts, |index| !pairs.pair(index).tie, settings, "pairs")?;
        let view = match &noising {
            None => View::Prepared(side as usize),
            Some(noising) => View::Autoencoder(noising.resolution() as usize),
        };
        let (examples, order, seed) = (pairs.examples_per_prompt(), Order::new(split.train, settings), settings.seed);
        let bad = Mutex::new(pairs.report().clone());
        let source = PairSource { pairs, examples, tokenizer, order, view, seed, bad, bad_rows_limit };
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
    /// of the pictures themselves. Every pair is read, prepared and encoded once. `None` where no pair can be read.
    fn accuracies(&self, model: &ClipModel, timesteps: &[Option<i64>]) -> Result<Option<Vec<f64>>> {
        let side = model.config().vision.image_size;
        let (mut right, mut count) = (vec![0.0; timesteps.len()], 0usize);
        for part in self.heldout.chunks(HELDOUT_BATCH) {
            let key = |index: usize| NoiseKey::new(self.seed, "judge held out").prompt(index as u64);
            let read = self.source.read(part.iter().map(|&index| (index, key(index))).collect())?;
            if read.is_empty() {
                continue;
            }
            let rows = read.len();
            let batch = self.source.batch(read, vec![0.0; rows])?;
            let texts = model.text_features(&batch.input_ids)?;
            let encoded = self.noising.as_ref().map(|noising| noising.encode_batch(&batch)).transpose()?;
            for (right, timestep) in right.iter_mut().zip(timesteps) {
                let each = timestep.map(|t| vec![t; rows]);
                let pixels = match (&self.noising, &encoded, &each) {
                    // At timestep 0 the picture itself is looked at.
                    (Some(_), _, Some(t)) if t[0] == 0 => {
                        step_aware_training(&Tensor::f_cat(&batch.pictures, 0)?, side)?
                    }
                    (Some(noising), Some(encoded), Some(t)) => {
                        step_aware_training(&noising.predict(encoded, t)?, side)?
                    }
                    _ => Tensor::f_cat(&batch.pictures, 0)?,
                };
                let features = self.features(model, &pixels, each.as_deref())?;
                let [first, second] = features.map(|side| scores(&side, &texts, model.logit_scale()));
                // Ties are not among them: the first picture is the preferred one.
                *right += first.gt_tensor(&second).to_kind(Kind::Double).sum(Kind::Double).double_value(&[]);
            }
            count += rows;
        }
        Ok((count > 0).then(|| right.into_iter().map(|right| right / count as f64).collect()))
    }
}

impl PairSource {
    /// The pairs whose pictures can be had, read side by side. Errors: too many cannot.
    fn read(&self, wanted: Vec<(usize, NoiseKey)>) -> Result<Vec<ReadPair>> {
        let both = |&(index, _): &(usize, NoiseKey)| -> Result<[RgbImage; 2], BadRow> {
            let pair = self.pairs.pair(index);
            let winner = self.pairs.picture(pair.winner)?;
            // Pairs are opened with losers.
            Ok([winner, self.pairs.picture(pair.loser.unwrap_or(pair.winner))?])
        };
        let all: Vec<_> = wanted.par_iter().map(both).collect();
        let mut read = Vec::with_capacity(all.len());
        for ((index, key), both) in wanted.into_iter().zip(all) {
            match both {
                Ok(pictures) => read.push(ReadPair { index, pictures, key }),
                Err(bad) => {
                    let mut report = self.bad.lock().unwrap_or_else(PoisonError::into_inner);
                    self.pairs.pass_over(index, bad, &mut report, self.bad_rows_limit)?;
                }
            }
        }
        Ok(read)
    }

    fn batch(&self, read: Vec<ReadPair>, weights: Vec<f32>) -> Result<PairBatch> {
        let label = |pair: &ReadPair| if self.pairs.pair(pair.index).tie { 0.5f32 } else { 1.0 };
        let labels: Vec<f32> = read.iter().map(label).collect();
        let prompts: Vec<String> = read.iter().map(|pair| self.pairs.pair(pair.index).prompt.to_owned()).collect();
        let keys = read.iter().map(|pair| pair.key).collect();
        let (first, second): (Vec<_>, Vec<_>) =
            read.into_iter().map(|ReadPair { pictures: [a, b], .. }| (a, b)).unzip();
        let side = |pictures: &[RgbImage]| match self.view {
            View::Prepared(side) => prepared(pictures, side),
            View::Autoencoder(resolution) => for_autoencoder(pictures, resolution),
        };
        Ok(PairBatch {
            pictures: [side(&first)?, side(&second)?],
            input_ids: self.tokenizer.encode(&prompts)?,
            prompts,
            label_0: Tensor::from_slice(&labels),
            weights: Tensor::from_slice(&weights),
            keys,
        })
    }
}

impl Source for PairSource {
    type Batch = PairBatch;

    fn load(&self, update: u64) -> Result<Vec<PairBatch>> {
        let mut row = 0;
        let mut read = Vec::new();
        for examples in self.order.batches(update) {
            let keyed = examples.into_iter().map(|index| {
                row += 1;
                (index, NoiseKey::new(self.seed, "judge noise").step(update).prompt(row))
            });
            let some = self.read(keyed.collect())?;
            if !some.is_empty() {
                read.push(some);
            }
        }
        if read.is_empty() {
            let reason = format!("no pair of update {} can be used; raise --batch, or mend the data", update + 1);
            return Err(Error::data(self.pairs.path(), reason));
        }
        let examples: Vec<u32> = read.iter().flatten().map(|pair| self.examples[pair.index]).collect();
        let mut weights = prompt_weights(&examples).into_iter();
        let batch = |pairs: Vec<ReadPair>| {
            let own = weights.by_ref().take(pairs.len()).collect();
            self.batch(pairs, own)
        };
        read.into_iter().map(batch).collect()
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
    fn evaluate(&self, model: &ClipModel) -> Result<Vec<(String, f64)>> {
        const NAME: &str = "heldout_pair_accuracy";
        let Some(noising) = &self.noising else {
            let found = self.accuracies(model, &[None])?;
            return Ok(found.into_iter().flatten().map(|value| (NAME.to_owned(), value)).collect());
        };
        let timesteps = noising.heldout_timesteps();
        let found = self.accuracies(model, &timesteps.iter().copied().map(Some).collect::<Vec<_>>())?;
        let Some(found) = found else { return Ok(Vec::new()) };
        let mean = found.iter().sum::<f64>() / found.len() as f64;
        let each = timesteps.iter().zip(found).map(|(t, value)| (format!("{NAME}_t{t}"), value));
        Ok(each.chain([(NAME.to_owned(), mean)]).collect())
    }

    fn heldout(&self) -> usize {
        self.heldout.len()
    }
}
