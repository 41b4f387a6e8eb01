//! The kind `clip`: pictures and captions brought together.

use std::sync::Arc;

use rayon::prelude::*;
use seedpo_data::{BadRow, Pairs};
use seedpo_judge::processor_square;
use seedpo_model::{ClipModel, ClipTokenizer};
use seedpo_tensor::NoiseKey;
use tch::{Kind, Tensor};

use crate::heldout::{Heldout, Part};
use crate::objective::{MAX_LOGIT_SCALE, contrastive, logits};
use crate::pictures::{Crop, normalised, stacked};
use crate::source::{Loaded, Order, Source, Unreadable};
use crate::split::Split;
use crate::{Captions, Error, Result, Settings, Task};

/// Held-out pictures that are told apart from each other at a time.
const HELDOUT_BATCH: usize = 100;

/// Contrastive training of a CLIP.
pub struct Contrastive {
    source: Arc<CaptionSource>,
    heldout: Vec<usize>,
}

/// Loads captioned pictures; public as the [`Task::Source`] of [`Contrastive`] alone.
pub struct CaptionSource {
    captions: Box<dyn Captions>,
    tokenizer: Arc<ClipTokenizer>,
    order: Order,
    crop: Crop,
    side: usize,
    seed: u64,
}

/// Pictures f32 `[B, 3, S, S]` and the token ids of their captions i64 `[B, L]`.
pub struct CaptionBatch {
    pixels: Tensor,
    input_ids: Tensor,
}

impl Contrastive {
    /// Training on `captions` for a vision tower of `side` pixels.
    ///
    /// Errors: [`Error::Setting`] where too few pictures are left to train on or to hold out.
    pub fn new(
        captions: Box<dyn Captions>,
        tokenizer: Arc<ClipTokenizer>,
        side: i64,
        crop: Crop,
        settings: &Settings,
    ) -> Result<Self> {
        let groups: Vec<String> = (0..captions.len()).map(|index| captions.group(index)).collect();
        let split = Split::new(groups.iter().map(String::as_str), |_| true, settings, "captioned pictures")?;
        if settings.batch < 2 {
            return Err(Error::setting("batch", "2 or more, since pictures are compared", settings.batch));
        }
        if settings.heldout_share > 0.0 && settings.heldout_limit == 1 {
            return Err(Error::setting("heldout-limit", "2 or more, since pictures are compared, or 0 for all", 1));
        }
        if split.heldout.len() == 1 {
            let expected = "a share that holds two or more pictures out, since they are compared, or 0";
            return Err(Error::setting("heldout-share", expected, format!("{}, which is one", settings.heldout_share)));
        }
        let order = Order::new(split.train, settings);
        let source = CaptionSource { captions, tokenizer, order, crop, side: side as usize, seed: settings.seed };
        Ok(Self { source: Arc::new(source), heldout: split.heldout })
    }
}

impl CaptionSource {
    /// The pictures of examples that can be had, each cropped as soon as it is decoded, as bytes, with their places in
    /// `examples`.
    fn read(
        &self,
        examples: &[usize],
        unreadable: &mut Vec<Unreadable>,
        square: impl Fn(usize) -> Result<Vec<u8>, BadRow> + Send + Sync,
    ) -> (Vec<usize>, Vec<Vec<u8>>) {
        let read: Vec<_> = (0..examples.len()).into_par_iter().map(square).collect();
        let (mut places, mut squares) = (Vec::new(), Vec::new());
        for (place, square) in read.into_iter().enumerate() {
            match square {
                Ok(square) => {
                    places.push(place);
                    squares.push(square);
                }
                Err(why) => unreadable.push(Unreadable { index: examples[place], why }),
            }
        }
        (places, squares)
    }
}

impl Source for CaptionSource {
    type Batch = CaptionBatch;

    const NEEDS: &'static str =
        "no batch has two pictures that can be read, and one alone has nothing to be told apart from";

    fn load(&self, update: u64) -> Result<Loaded<CaptionBatch>> {
        let mut loaded = Loaded { batches: Vec::new(), unreadable: Vec::new() };
        let mut first = 0;
        for examples in self.order.batches(update) {
            let key = |purpose: &'static str, place: usize| {
                NoiseKey::new(self.seed, purpose).step(update).prompt(first + place as u64)
            };
            let (places, squares) = self.read(&examples, &mut loaded.unreadable, |place| {
                let look = self.captions.look(examples[place], key("judge look", place))?;
                Ok(self.crop.square(&look, self.side, key("judge crop", place)))
            });
            if places.len() > 1 {
                let text = |&place: &usize| self.captions.caption(examples[place], key("judge caption", place));
                loaded.batches.push(CaptionBatch {
                    input_ids: self.tokenizer.encode(&places.iter().map(text).collect::<Vec<_>>())?,
                    pixels: normalised(&stacked(squares.iter(), self.side)?)?,
                });
            }
            first += examples.len() as u64;
        }
        Ok(loaded)
    }

    fn pairs(&self) -> Option<&Pairs> {
        self.captions.pairs()
    }
}

impl Contrastive {
    /// A part of the held-out pictures, as bytes; `None` where fewer than two can be read: a picture alone, as the last of 101
    /// is, wins every comparison.
    fn part(&self, examples: &[usize], unreadable: &mut Vec<Unreadable>) -> Result<Option<Part>> {
        let source = &self.source;
        let (places, squares) = source.read(examples, unreadable, |place| {
            Ok(processor_square(&source.captions.picture(examples[place])?, source.side))
        });
        if places.len() < 2 {
            return Ok(None);
        }
        let titles: Vec<String> = places.iter().map(|&place| source.captions.title(examples[place])).collect();
        let pictures = vec![stacked(squares.iter(), source.side)?];
        Ok(Some(Part { pictures, input_ids: source.tokenizer.encode(&titles)? }))
    }
}

impl Task for Contrastive {
    type Source = CaptionSource;

    fn kind(&self) -> &'static str {
        "clip"
    }

    fn source(&self) -> Arc<CaptionSource> {
        Arc::clone(&self.source)
    }

    fn loss(&self, model: &ClipModel, batch: &CaptionBatch, batches: usize) -> Result<Tensor> {
        let (images, texts) = (model.image_features(&batch.pixels, None)?, model.text_features(&batch.input_ids)?);
        Ok(contrastive(&images, &texts, model.logit_scale()) / batches as f64)
    }

    fn logit_scale_limit(&self) -> Option<f64> {
        Some(MAX_LOGIT_SCALE)
    }

    /// `heldout_loss`; `heldout_top1`: how often a caption's own picture scores highest of (up to) 100;
    /// `heldout_pair_accuracy`: how often it scores above another picture.
    fn evaluate(&self, model: &ClipModel, heldout: &mut Heldout) -> Result<Vec<(String, f64)>> {
        let (mut loss, mut top, mut pairs, mut compared, mut all_rows) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (number, examples) in self.heldout.chunks(HELDOUT_BATCH).enumerate() {
            let made = heldout.part(number, |unreadable| self.part(examples, unreadable))?;
            let Some(Part { pictures, input_ids }) = made else { continue };
            let count = input_ids.size()[0] as f64;
            let images = model.image_features(&normalised(&pictures[0])?, None)?;
            let texts = model.text_features(&input_ids)?;
            loss += contrastive(&images, &texts, model.logit_scale()).double_value(&[]) * count;
            let all = logits(&texts, &images, model.logit_scale());
            let own = all.diagonal(0, 0, 1).unsqueeze(1);
            let beaten = own.gt_tensor(&all).to_kind(Kind::Double).sum_dim_intlist(1, false, None);
            top += beaten.eq(count - 1.0).sum(Kind::Double).double_value(&[]);
            pairs += beaten.sum(Kind::Double).double_value(&[]);
            compared += count * (count - 1.0);
            all_rows += count;
        }
        if all_rows == 0.0 {
            return Ok(Vec::new());
        }
        let rates = [("loss", loss / all_rows), ("top1", top / all_rows), ("pair_accuracy", pairs / compared)];
        Ok(rates.into_iter().map(|(name, value)| (format!("heldout_{name}"), value)).collect())
    }

    fn heldout(&self) -> usize {
        self.heldout.len()
    }
}
