//! The kind `clip`: pictures and captions brought together.

use std::path::Path;
use std::sync::Arc;

use image::RgbImage;
use rayon::prelude::*;
use seedpo_data::BadRow;
use seedpo_model::{ClipModel, ClipTokenizer};
use seedpo_tensor::NoiseKey;
use tch::{Kind, Tensor};

use crate::objective::{MAX_LOGIT_SCALE, contrastive, logits};
use crate::pictures::{Crop, cropped, prepared};
use crate::source::{Order, Source};
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
    /// The pictures that can be had, with their examples' places in `examples`. Errors: too many cannot.
    fn read(
        &self,
        examples: &[usize],
        picture: impl Fn(usize, usize) -> Result<RgbImage, BadRow> + Sync,
    ) -> Result<(Vec<usize>, Vec<RgbImage>)> {
        let read: Vec<_> = examples.par_iter().enumerate().map(|(place, &index)| picture(place, index)).collect();
        let (mut places, mut pictures) = (Vec::new(), Vec::new());
        for (place, picture) in read.into_iter().enumerate() {
            match picture {
                Ok(picture) => {
                    places.push(place);
                    pictures.push(picture);
                }
                Err(bad) => self.captions.pass_over(examples[place], bad)?,
            }
        }
        Ok((places, pictures))
    }
}

impl Source for CaptionSource {
    type Batch = CaptionBatch;

    fn load(&self, update: u64) -> Result<Vec<CaptionBatch>> {
        let mut batches = Vec::new();
        let mut first = 0;
        for examples in self.order.batches(update) {
            let key = |purpose: &'static str, place: usize| {
                NoiseKey::new(self.seed, purpose).step(update).prompt(first + place as u64)
            };
            let look = |place: usize, index: usize| self.captions.look(index, key("judge look", place));
            let (places, pictures) = self.read(&examples, look)?;
            // A picture alone has nothing to be told apart from.
            if places.len() > 1 {
                let crops: Vec<NoiseKey> = places.iter().map(|&place| key("judge crop", place)).collect();
                let text = |&place: &usize| self.captions.caption(examples[place], key("judge caption", place));
                batches.push(CaptionBatch {
                    input_ids: self.tokenizer.encode(&places.iter().map(text).collect::<Vec<_>>())?,
                    pixels: cropped(&pictures, self.side, self.crop, &crops)?,
                });
            }
            first += examples.len() as u64;
        }
        if batches.is_empty() {
            let reason = format!("none of update {} can be read; raise --batch, or mend the data", update + 1);
            return Err(Error::data(Path::new("pictures"), reason));
        }
        Ok(batches)
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
    fn evaluate(&self, model: &ClipModel) -> Result<Vec<(String, f64)>> {
        let (mut loss, mut top, mut pairs, mut compared, mut all_rows) = (0.0, 0.0, 0.0, 0.0, 0.0);
        let captions = &self.source.captions;
        for part in self.heldout.chunks(HELDOUT_BATCH) {
            let (places, pictures) = self.source.read(part, |_, index| captions.picture(index))?;
            // A picture alone, as the last of 101 is, wins every comparison.
            if places.len() < 2 {
                continue;
            }
            let count = places.len() as f64;
            let titles: Vec<String> = places.iter().map(|&place| captions.title(part[place])).collect();
            let images = model.image_features(&prepared(&pictures, self.source.side)?, None)?;
            let texts = model.text_features(&self.source.tokenizer.encode(&titles)?)?;
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
