//! The kinds `preference` and `step-aware`: pairs, of which one picture is preferred; judged as they are, or as a diffusion
//! model predicts them from noise.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use image::RgbImage;
use seedpo_data::{BadRow, Pairs};
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

/// Loads pairs.
pub struct PairSource {
    pairs: Arc<Pairs>,
    examples: Vec<u32>,
    tokenizer: Arc<ClipTokenizer>,
    order: Order,
    view: View,
    seed: u64,
    /// Pairs whose pictures cannot be had, by place.
    bad: Mutex<BTreeMap<String, String>>,
    bad_limit: f64,
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
    /// Training on `pairs` for a vision tower of `side` pixels; with `noising` a step-aware one. More bad pairs than the
    /// share `bad_limit` end the run.
    ///
    /// Errors: [`Error::Setting`] where no pairs are left to train on or to hold out.
    pub fn new(
        pairs: Arc<Pairs>,
        tokenizer: Arc<ClipTokenizer>,
        side: i64,
        noising: Option<Noising>,
        settings: &Settings,
        bad_limit: f64,
    ) -> Result<Self> {
        let split = Split::new((0..pairs.len()).map(|index| pairs.pair(index).prompt), settings, "pairs")?;
        let view = match &noising {
            None => View::Prepared(side as usize),
            Some(noising) => View::Autoencoder(noising.resolution() as usize),
        };
        let heldout = split.heldout.into_iter().filter(|&index| !pairs.pair(index).tie).collect();
        let (examples, order, seed) = (pairs.examples_per_prompt(), Order::new(split.train, settings), settings.seed);
        let bad = Mutex::default();
        let source = PairSource { pairs, examples, tokenizer, order, view, seed, bad, bad_limit };
        Ok(Self { source: Arc::new(source), heldout, noising, seed })
    }

    /// exp(logit scale) · cosine of both pictures of each pair, `[B]` each.
    fn pair_scores(&self, model: &ClipModel, batch: &PairBatch, timesteps: Option<&[i64]>) -> Result<[Tensor; 2]> {
        let texts = model.text_features(&batch.input_ids)?;
        let features = self.features(model, batch, timesteps)?;
        Ok(features.map(|side| scores(&side, &texts, model.logit_scale())))
    }

    /// Features of both pictures, `[B, P]` each, in one pass of the vision tower.
    fn features(&self, model: &ClipModel, batch: &PairBatch, timesteps: Option<&[i64]>) -> Result<[Tensor; 2]> {
        let rows = batch.input_ids.size()[0];
        let side = model.config().vision.image_size;
        let (pixels, timesteps) = match (&self.noising, timesteps) {
            (Some(noising), Some(timesteps)) => {
                let pictures = noising.view(batch, timesteps, side)?;
                let timesteps = Tensor::from_slice(timesteps);
                (pictures, Some(Tensor::f_cat(&[&timesteps, &timesteps], 0)?))
            }
            _ => (Tensor::f_cat(&batch.pictures, 0)?, None),
        };
        let features = model.image_features(&pixels, timesteps.as_ref())?;
        Ok([features.narrow(0, 0, rows), features.narrow(0, rows, rows)])
    }

    /// The share of held-out pairs, ties aside, whose preferred picture has the higher score.
    fn accuracy(&self, model: &ClipModel, timestep: Option<i64>) -> Result<f64> {
        let (mut right, mut count) = (0.0, 0usize);
        for part in self.heldout.chunks(HELDOUT_BATCH) {
            let key = |index: usize| NoiseKey::new(self.seed, "judge held out").prompt(index as u64);
            let read = self.source.read(part.iter().map(|&index| (index, key(index))))?;
            if read.is_empty() {
                continue;
            }
            let rows = read.len();
            let batch = self.source.batch(read, vec![0.0; rows])?;
            let timesteps = timestep.map(|t| vec![t; rows]);
            let [first, second] = self.pair_scores(model, &batch, timesteps.as_deref())?;
            // Without ties the first picture is the preferred one.
            right += first.gt_tensor(&second).to_kind(Kind::Double).sum(Kind::Double).double_value(&[]);
            count += rows;
        }
        Ok(right / count.max(1) as f64)
    }
}

impl PairSource {
    /// The pairs whose pictures can be had. Errors: too many cannot.
    fn read(&self, wanted: impl Iterator<Item = (usize, NoiseKey)>) -> Result<Vec<ReadPair>> {
        let mut read = Vec::new();
        for (index, key) in wanted {
            let pair = self.pairs.pair(index);
            let both = self.pairs.picture(pair.winner).and_then(|winner| {
                // Pairs are opened with losers.
                Ok([winner, self.pairs.picture(pair.loser.unwrap_or(pair.winner))?])
            });
            match both {
                Ok(pictures) => read.push(ReadPair { index, pictures, key }),
                Err(bad) => self.note_bad(self.pairs.place(index), &bad)?,
            }
        }
        Ok(read)
    }

    fn note_bad(&self, place: String, bad: &BadRow) -> Result<()> {
        let mut known = self.bad.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(place, bad.to_string());
        if known.len() as f64 <= self.bad_limit * self.pairs.len() as f64 {
            return Ok(());
        }
        let list: Vec<String> = known.iter().take(5).map(|(place, detail)| format!("  {place}: {detail}")).collect();
        let (count, all, percent) = (known.len(), self.pairs.len(), self.bad_limit * 100.0);
        let reason = format!(
            "{count} of {all} pairs cannot be used, above the limit of {percent} % (--bad-rows-limit)\n{}",
            list.join("\n")
        );
        Err(Error::data(self.pairs.path(), reason))
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
            let some = self.read(keyed)?;
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
        let timesteps = self.noising.as_ref().map(|noising| noising.draw_timesteps(&batch.keys));
        let texts = model.text_features(&batch.input_ids)?;
        let [first, second] = self.features(model, batch, timesteps.as_deref())?;
        let on = |tensor: &Tensor| tensor.to_device(model.device());
        let (labels, weights) = (on(&batch.label_0), on(&batch.weights));
        Ok(preference([&first, &second], &texts, model.logit_scale(), &labels, &weights))
    }

    /// `heldout_pair_accuracy`; step-aware: of each timestep in turn (`heldout_pair_accuracy_t251`), and their mean.
    fn evaluate(&self, model: &ClipModel) -> Result<Vec<(String, f64)>> {
        const NAME: &str = "heldout_pair_accuracy";
        let Some(noising) = &self.noising else {
            return Ok(vec![(NAME.to_owned(), self.accuracy(model, None)?)]);
        };
        let timesteps = noising.heldout_timesteps();
        let one = |&t: &i64| Ok((format!("{NAME}_t{t}"), self.accuracy(model, Some(t))?));
        let mut all = timesteps.iter().map(one).collect::<Result<Vec<_>>>()?;
        let mean = all.iter().map(|(_, value)| value).sum::<f64>() / all.len().max(1) as f64;
        all.push((NAME.to_owned(), mean));
        Ok(all)
    }

    fn heldout(&self) -> usize {
        self.heldout.len()
    }
}
