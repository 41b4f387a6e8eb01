//! What a pass goes over, prompts or pairs of a dataset, and what the U-Net is told they are.

use super::Trainer;
use super::dataset::EncodedPairs;
use super::samples::Samples;
use super::stream::Slot;
use crate::error::{Error, Result};
use seedpo_tensor::NoiseKey;

impl Trainer<'_> {
    /// How many prompts, pairs of a dataset or files of a store one pass visits.
    pub(super) fn items(&self) -> usize {
        match (&self.parts.image_pairs, &self.parts.store) {
            (Some(pairs), _) => pairs.len(),
            (None, Some(store)) => store.len(),
            (None, None) => self.parts.prompts.len(),
        }
    }

    /// How many of them one iteration takes.
    pub(super) fn items_per_iteration(&self) -> u64 {
        if self.parts.store.is_some() { 1 } else { self.parts.config.prompts_per_iteration }
    }

    /// Prompts of one iteration, whatever it takes them from.
    pub(super) fn prompts_per_iteration(&self) -> u64 {
        self.parts.store.as_ref().map_or(self.parts.config.prompts_per_iteration, |store| store.prompts_per_file())
    }

    /// The prompt of each slot, of several captions one drawn anew in every pass; of a dataset's pairs the share
    /// `proportion_empty_prompts`, drawn anew likewise, is trained without one (docs/methods.md section 4.2).
    pub(super) fn texts(&self, slots: &[Slot]) -> Vec<String> {
        let (config, seed) = (&self.parts.config, self.data_seed());
        let empty = |slot: &Slot| {
            let key = || NoiseKey::new(seed, "caption-dropout").epoch(slot.pass).prompt(slot.prompt as u64);
            config.proportion_empty_prompts > 0.0 && key().uniform() < config.proportion_empty_prompts
        };
        let text = |slot: &Slot| match &self.parts.image_pairs {
            Some(_) if empty(slot) => String::new(),
            Some(pairs) => caption(pairs, slot, seed).to_owned(),
            None => self.parts.prompts[slot.prompt].clone(),
        };
        slots.iter().map(text).collect()
    }

    /// The dataset's pairs of `slots`, encoded and noised.
    pub(super) fn dataset_samples(&mut self, slots: &[Slot]) -> Result<Samples> {
        let (model, seed, latent_shape) = (self.parts.model, self.data_seed(), self.latent_shape.clone());
        self.open_dataset()?.samples(model, slots, &latent_shape, seed)
    }

    /// Has pictures decoded ahead up to and including those of iteration `index`.
    pub(super) fn ask_ahead(&mut self, index: u64) -> Result<()> {
        let begin = self.open_dataset()?.asked_until.max(self.position.iteration);
        for iteration in begin..=index {
            let slots = self.stream.iteration(iteration);
            let seed = self.data_seed();
            self.open_dataset()?.ask(&slots, seed);
        }
        self.open_dataset()?.asked_until = index + 1;
        Ok(())
    }

    /// The dataset with its decoding threads, started when it is first needed.
    fn open_dataset(&mut self) -> Result<&mut EncodedPairs> {
        let Some(pairs) = &self.parts.image_pairs else {
            let expected = "a dataset (pairs_file)".to_owned();
            return Err(Error::Input { what: "pairs of pictures".into(), expected, found: "none".into() });
        };
        let size = self.latent_shape[1] * self.parts.model.vae.config().scale_factor();
        let opened = match self.encoded_pairs.take() {
            Some(opened) => opened,
            None => EncodedPairs::new(pairs.clone(), &self.parts.config, size, self.parts.run.path())?,
        };
        Ok(self.encoded_pairs.insert(opened))
    }
}

/// What a pair's pictures are said to be in this pass.
fn caption<'p>(pairs: &'p seedpo_data::Pairs, slot: &Slot, seed: u64) -> &'p str {
    let pair = pairs.pair(slot.prompt);
    match pair.captions {
        [] => pair.prompt,
        captions => {
            let key = NoiseKey::new(seed, "caption").epoch(slot.pass).prompt(slot.prompt as u64);
            &captions[key.below(captions.len())]
        }
    }
}
