//! The kind `clip`: pictures and captions brought together.

use std::sync::Arc;

use seedpo_model::{ClipModel, ClipTokenizer};
use seedpo_tensor::NoiseKey;
use tch::{Kind, Tensor};

use crate::objective::{MAX_LOGIT_SCALE, contrastive, logits};
use crate::pictures::{Crop, cropped, prepared};
use crate::source::{Order, Source};
use crate::split::Split;
use crate::{Captions, Result, Settings, Task};

/// Held-out pictures that are told apart from each other at a time.
const HELDOUT_BATCH: usize = 100;

/// Contrastive training of a CLIP.
pub struct Contrastive {
    source: Arc<CaptionSource>,
    heldout: Vec<usize>,
}

/// Loads captioned pictures.
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
    /// Errors: [`crate::Error::Setting`] where too few pictures are left to train on or to hold out.
    pub fn new(
        captions: Box<dyn Captions>,
        tokenizer: Arc<ClipTokenizer>,
        side: i64,
        crop: Crop,
        settings: &Settings,
    ) -> Result<Self> {
        let groups: Vec<String> = (0..captions.len()).map(|index| captions.group(index)).collect();
        let split = Split::new(groups.iter().map(String::as_str), settings, "captioned pictures")?;
        if settings.batch < 2 {
            return Err(crate::Error::setting("batch", "2 or more, since pictures are compared", settings.batch));
        }
        let order = Order::new(split.train, settings);
        let source = CaptionSource { captions, tokenizer, order, crop, side: side as usize, seed: settings.seed };
        Ok(Self { source: Arc::new(source), heldout: split.heldout })
    }
}

impl Source for CaptionSource {
    type Batch = CaptionBatch;

    fn load(&self, update: u64) -> Result<Vec<CaptionBatch>> {
        let mut row = 0;
        let batch = |examples: Vec<usize>| {
            let rows = row..row + examples.len() as u64;
            row = rows.end;
            let key = |purpose: &'static str, row: u64| NoiseKey::new(self.seed, purpose).step(update).prompt(row);
            let crops: Vec<NoiseKey> = rows.clone().map(|row| key("judge crop", row)).collect();
            let looks = examples.iter().zip(rows.clone());
            let looks = looks.map(|(&i, row)| self.captions.look(i, key("judge look", row)));
            let pictures = looks.collect::<Result<Vec<_>>>()?;
            let texts = examples.iter().zip(rows).map(|(&i, row)| self.captions.caption(i, key("judge caption", row)));
            Ok(CaptionBatch {
                input_ids: self.tokenizer.encode(&texts.collect::<Vec<_>>())?,
                pixels: cropped(&pictures, self.side, self.crop, &crops)?,
            })
        };
        self.order.batches(update).into_iter().map(batch).collect()
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
        let (mut loss, mut top, mut pairs, mut compared) = (0.0, 0.0, 0.0, 0.0);
        let captions = &self.source.captions;
        for part in self.heldout.chunks(HELDOUT_BATCH) {
            let count = part.len() as f64;
            let titles: Vec<String> = part.iter().map(|&i| captions.title(i)).collect();
            let pictures = part.iter().map(|&i| captions.picture(i)).collect::<Result<Vec<_>>>()?;
            let images = model.image_features(&prepared(&pictures, self.source.side)?, None)?;
            let texts = model.text_features(&self.source.tokenizer.encode(&titles)?)?;
            loss += contrastive(&images, &texts, model.logit_scale()).double_value(&[]) * count;
            let all = logits(&texts, &images, model.logit_scale());
            let own = all.diagonal(0, 0, 1).unsqueeze(1);
            let beaten = own.gt_tensor(&all).to_kind(Kind::Double).sum_dim_intlist(1, false, None);
            top += beaten.eq(count - 1.0).sum(Kind::Double).double_value(&[]);
            pairs += beaten.sum(Kind::Double).double_value(&[]);
            compared += count * (count - 1.0);
        }
        let count = self.heldout.len().max(1) as f64;
        let rates = [("loss", loss / count), ("top1", top / count), ("pair_accuracy", pairs / f64::max(compared, 1.0))];
        Ok(rates.into_iter().map(|(name, value)| (format!("heldout_{name}"), value)).collect())
    }

    fn heldout(&self) -> usize {
        self.heldout.len()
    }
}
