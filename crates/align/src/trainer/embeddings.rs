//! Prompt embeddings, computed once per prompt.

use crate::error::Result;
use seedpo_model::{Conditioning, DiffusionModel};
use std::collections::HashMap;
use tch::Tensor;

/// Above this many prompts the cache is emptied before it grows on (512 take 120 MB at Stable Diffusion's size).
const CACHE_LIMIT: usize = 512;

/// A cache of prompt embeddings, and the empty prompt's.
#[derive(Debug)]
pub struct Embeddings {
    negative: Tensor,
    cached: HashMap<String, Tensor>,
}

impl Embeddings {
    /// Encodes the empty prompt.
    pub fn new(model: &DiffusionModel) -> Result<Self> {
        Ok(Self { negative: model.encode_prompts(&[""])?.to_device(model.device()), cached: HashMap::new() })
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
        let rows: Vec<&Tensor> = prompts.iter().filter_map(|prompt| self.cached.get(*prompt)).collect();
        Ok(Conditioning {
            prompt_embeds: Tensor::f_cat(&rows, 0)?,
            negative_prompt_embeds: self.negative.shallow_clone(),
        })
    }
}
