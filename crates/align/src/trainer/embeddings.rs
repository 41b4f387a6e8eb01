//! Prompt embeddings, computed once per prompt.

use crate::error::Result;
use seedpo_model::{Conditioning, DiffusionModel, PromptEmbeds};
use std::collections::HashMap;

/// Above this many prompts the cache is emptied before it grows on (512 take 120 MB at Stable Diffusion's size).
const CACHE_LIMIT: usize = 512;

/// A cache of prompt embeddings, and the empty prompt's.
#[derive(Debug)]
pub struct Embeddings {
    negative: PromptEmbeds,
    cached: HashMap<String, PromptEmbeds>,
    /// Height and width of the pictures in pixels.
    size: (i64, i64),
}

impl Embeddings {
    /// Encodes the empty prompt. `size`: height and width of the pictures in pixels.
    pub fn new(model: &DiffusionModel, size: (i64, i64)) -> Result<Self> {
        let negative = model.encode_negative_prompt("")?.to_device(model.device());
        Ok(Self { negative, cached: HashMap::new(), size })
    }

    /// The conditioning of these prompts, one row each.
    pub fn conditioning(&mut self, model: &DiffusionModel, prompts: &[&str]) -> Result<Conditioning> {
        if self.cached.len() + prompts.len() > CACHE_LIMIT {
            self.cached.clear();
        }
        for prompt in prompts {
            if !self.cached.contains_key(*prompt) {
                // One at a time: a prompt's embedding must not depend on which others it is encoded with.
                let encoded = model.encode_prompts(&[prompt])?.to_device(model.device());
                self.cached.insert((*prompt).to_string(), encoded);
            }
        }
        let rows: Vec<&PromptEmbeds> = prompts.iter().filter_map(|prompt| self.cached.get(*prompt)).collect();
        let joined = PromptEmbeds::cat(&rows)?;
        // A batch larger than the cache is not kept twice.
        if self.cached.len() > CACHE_LIMIT {
            self.cached.clear();
        }
        Ok(Conditioning::new(&joined, &self.negative, self.size))
    }
}
