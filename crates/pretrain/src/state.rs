//! What training a stage changes: weights, their moving average, the optimizer, the step; saved in one file.

use std::collections::BTreeMap;
use std::path::Path;

use seedpo_align::optimizer::{AdamW, AdamWOptions, clip_grad_norm};
use seedpo_tensor::{WeightFile, write_weights};
use tch::Tensor;

use crate::replicas::Layout;
use crate::{Error, Result};

const ADAMW: AdamWOptions = AdamWOptions { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 1e-4 };
/// Gradients with a larger 2-norm are scaled down to it.
const MAX_NORM: f64 = 1.0;

/// The state of one stage.
pub struct State {
    /// Names and shapes.
    pub layout: Layout,
    /// The weights, f32 `[N]`.
    pub weights: Tensor,
    /// Their exponential moving average, f32 `[N]`.
    pub average: Tensor,
    /// Steps done.
    pub step: u64,
    optimizer: AdamW,
    decay: f64,
}

impl State {
    /// A fresh state at step 0. `decay` is that of the moving average.
    pub fn new(tensors: &BTreeMap<String, Tensor>, decay: f64) -> Self {
        let (layout, weights) = Layout::flatten(tensors);
        let optimizer = AdamW::new(layout.views(&weights), ADAMW);
        let average = weights.copy();
        Self { layout, weights, average, step: 0, optimizer, decay }
    }

    /// One update with the gradient `[N]`; returns the gradient's norm before clipping.
    pub fn update(&mut self, gradient: Tensor, lr: f64) -> Result<f64> {
        let mut gradient = [gradient];
        let norm = clip_grad_norm(&mut gradient, MAX_NORM)?;
        let parts: Vec<Tensor> = self.layout.views(&gradient[0]).into_iter().map(|(_, g)| g).collect();
        self.optimizer.step(&parts, lr)?;
        self.step += 1;
        // The average forgets its start at first: (1 + n) / (10 + n), as in the usual EMA warm-up.
        let decay = self.decay.min((1 + self.step) as f64 / (10 + self.step) as f64);
        let _ = tch::no_grad(|| self.average.f_lerp_(&self.weights, 1.0 - decay))?;
        Ok(norm)
    }

    /// Writes everything to one file, atomically. `recipe` is what a resume must agree with.
    pub fn save(&self, path: &Path, stage: &str, recipe: &str) -> Result<()> {
        let mut tensors: BTreeMap<String, Tensor> =
            self.optimizer.state().into_iter().map(|(k, v)| (format!("optimizer.{k}"), v)).collect();
        tensors.insert("weights".into(), self.weights.shallow_clone());
        tensors.insert("average".into(), self.average.shallow_clone());
        let metadata = [("stage", stage), ("step", &self.step.to_string()), ("recipe", recipe)];
        let metadata = metadata.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        Ok(write_weights(path, &tensors, &metadata)?)
    }

    /// Takes back what [`State::save`] wrote.
    ///
    /// Errors: [`Error::Data`] where the file is of another stage or recipe, or lacks a tensor.
    pub fn load(&mut self, path: &Path, stage: &str, recipe: &str) -> Result<()> {
        let file = WeightFile::open(path)?;
        let metadata = file.metadata();
        for (key, expected) in [("stage", stage), ("recipe", recipe)] {
            let found = metadata.get(key).map(String::as_str).unwrap_or("nothing");
            if found != expected {
                let reason = format!("this checkpoint has another {key}: expected {expected}, found {found}");
                return Err(Error::data(path, reason));
            }
        }
        let step = metadata.get("step").and_then(|s| s.parse().ok());
        let step = step.ok_or_else(|| Error::data(path, "expected `step` in the metadata, found none"))?;
        let mut tensors = file.tensors()?;
        let mut take = |name: &str| -> Result<Tensor> {
            let found = tensors.remove(name).filter(|t| t.size() == [self.layout.len()]);
            found.ok_or_else(|| Error::data(path, format!("expected `{name}` of shape [{}]", self.layout.len())))
        };
        let (weights, average) = (take("weights")?, take("average")?);
        let state = tensors.into_iter().filter_map(|(k, v)| k.strip_prefix("optimizer.").map(|k| (k.to_owned(), v)));
        self.optimizer.load_state(state.collect(), path)?;
        tch::no_grad(|| -> Result<()> {
            self.weights.f_copy_(&weights)?;
            self.average.f_copy_(&average)?;
            Ok(())
        })?;
        self.step = step;
        Ok(())
    }
}

/// The indices of the images of a step: every epoch a permutation of its own, batches running across epochs.
pub(crate) fn batch_indices(seed: u64, purpose: &'static str, images: usize, step: u64, batch: usize) -> Vec<i64> {
    let mut order: Option<(u64, Vec<usize>)> = None;
    let first = step * batch as u64;
    let index = |i: u64| {
        let (epoch, place) = (i / images as u64, (i % images as u64) as usize);
        if order.as_ref().is_none_or(|(e, _)| *e != epoch) {
            order = Some((epoch, seedpo_tensor::NoiseKey::new(seed, purpose).epoch(epoch).permutation(images)));
        }
        order.as_ref().map_or(0, |(_, o)| o[place] as i64)
    };
    (first..first + batch as u64).map(index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_sees_each_image_once() {
        let mut seen: Vec<i64> = (0..5).flat_map(|s| batch_indices(3, "x", 10, s, 4)).collect();
        assert_eq!(seen.len(), 20);
        let (mut first, mut second) = (seen.drain(..10).collect::<Vec<_>>(), seen);
        assert_ne!(first, second);
        first.sort_unstable();
        second.sort_unstable();
        assert_eq!((first, second), ((0..10).collect(), (0..10).collect()));
    }
}
