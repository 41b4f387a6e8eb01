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

/// Numbers that AdamW works on at a time, so that they stay in a core's cache.
const CHUNK: i64 = 1 << 16;

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
    groups: Vec<Group>,
    decay: f64,
}

/// A range of the weights that one thread updates.
struct Group {
    chunks: Vec<(i64, i64)>,
    optimizer: AdamW,
}

impl Group {
    fn parts(&self, flat: &Tensor) -> Vec<Tensor> {
        self.chunks.iter().map(|&(start, len)| flat.narrow(0, start, len)).collect()
    }

    /// AdamW, then the average.
    fn update(&mut self, gradient: &Tensor, weights: &Tensor, average: &Tensor, lr: f64, decay: f64) -> Result<()> {
        self.optimizer.step(&self.parts(gradient), lr)?;
        for (mut average, weights) in self.parts(average).into_iter().zip(self.parts(weights)) {
            let _ = tch::no_grad(|| average.f_lerp_(&weights, 1.0 - decay))?;
        }
        Ok(())
    }
}

impl State {
    /// A fresh state at step 0. `decay` is that of the moving average; updates run on `threads` threads, whose number
    /// changes no bit of the result.
    pub fn new(tensors: &BTreeMap<String, Tensor>, decay: f64, threads: usize) -> Self {
        let (layout, weights) = Layout::flatten(tensors);
        let chunks: Vec<(i64, i64)> =
            (0..layout.len()).step_by(CHUNK as usize).map(|start| (start, CHUNK.min(layout.len() - start))).collect();
        let group = |part: &[(i64, i64)]| {
            let named = part.iter().map(|&(start, len)| (format!("{start:012}"), weights.narrow(0, start, len)));
            Group { chunks: part.to_vec(), optimizer: AdamW::new(named.collect(), ADAMW) }
        };
        let groups = chunks.chunks(chunks.len().div_ceil(threads.max(1)).max(1)).map(group).collect();
        let average = weights.copy();
        Self { layout, weights, average, step: 0, groups, decay }
    }

    /// One update with the gradient `[N]`; returns the gradient's norm before clipping.
    pub fn update(&mut self, gradient: Tensor, lr: f64) -> Result<f64> {
        let mut gradient = [gradient];
        let norm = clip_grad_norm(&mut gradient, MAX_NORM)?;
        self.step += 1;
        // The average forgets its start at first: (1 + n) / (10 + n), as in the usual EMA warm-up.
        let decay = self.decay.min((1 + self.step) as f64 / (10 + self.step) as f64);
        let tensors = || [&gradient[0], &self.weights, &self.average].map(Tensor::shallow_clone);
        let work = |group: &mut Group, [gradient, weights, average]: [Tensor; 3]| {
            group.update(&gradient, &weights, &average, lr, decay)
        };
        if let [group] = &mut self.groups[..] {
            work(group, tensors())?;
            return Ok(norm);
        }
        std::thread::scope(|scope| {
            let start = |group| {
                let tensors = tensors();
                scope.spawn(move || {
                    tch::set_num_threads(1);
                    work(group, tensors)
                })
            };
            let running: Vec<_> = self.groups.iter_mut().map(start).collect();
            running.into_iter().try_for_each(|t| t.join().unwrap_or(Err(Error::Worker("update"))))
        })?;
        Ok(norm)
    }

    /// Writes everything to one file, atomically. `recipe` is what a resume must agree with.
    pub fn save(&self, path: &Path, stage: &str, recipe: &str) -> Result<()> {
        let mut tensors = BTreeMap::new();
        for moment in ["first", "second"] {
            let prefix = format!("{moment}.");
            let parts = self.groups.iter().flat_map(|g| g.optimizer.state());
            let parts: BTreeMap<String, Tensor> = parts.filter(|(name, _)| name.starts_with(&prefix)).collect();
            let parts: Vec<Tensor> = parts.into_values().collect();
            tensors.insert(moment.to_owned(), Tensor::f_cat(&parts, 0)?);
        }
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
        let step: u64 = step.ok_or_else(|| Error::data(path, "expected `step` in the metadata, found none"))?;
        let mut tensors = file.tensors()?;
        let mut take = |name: &str| -> Result<Tensor> {
            let found = tensors.remove(name).filter(|t| t.size() == [self.layout.len()]);
            found.ok_or_else(|| Error::data(path, format!("expected `{name}` of shape [{}]", self.layout.len())))
        };
        let (weights, average) = (take("weights")?, take("average")?);
        let moments = [("first", take("first")?), ("second", take("second")?)];
        for group in &mut self.groups {
            let mut state = BTreeMap::from([("steps".to_owned(), Tensor::from_slice(&[step as i64]))]);
            for (name, flat) in &moments {
                let parts = group.parts(flat);
                state.extend(group.chunks.iter().zip(parts).map(|(c, part)| (format!("{name}.{:012}", c.0), part)));
            }
            group.optimizer.load_state(state, path)?;
        }
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
pub fn batch_indices(seed: u64, purpose: &'static str, images: usize, step: u64, batch: usize) -> Vec<i64> {
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
    use tch::{Device, Kind};

    /// Five updates on so many threads, saved after the third and continued from the file.
    fn trained(threads: usize) -> Tensor {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.safetensors");
        let start = || [("w".to_owned(), Tensor::ones([3 * CHUNK + 5], (Kind::Float, Device::Cpu)))].into();
        let step = |state: &mut State| {
            let gradient = Tensor::linspace(-1.0, 1.0, state.layout.len(), (Kind::Float, Device::Cpu));
            state.update(gradient * (state.step + 1) as f64, 0.1).unwrap();
        };
        let mut state = State::new(&start(), 0.9, threads);
        (0..3).for_each(|_| step(&mut state));
        state.save(&path, "stage", "recipe").unwrap();
        let mut state = State::new(&start(), 0.9, threads + 1);
        state.load(&path, "stage", "recipe").unwrap();
        (0..2).for_each(|_| step(&mut state));
        assert!(state.load(&path, "stage", "other").unwrap_err().to_string().contains("another recipe"));
        Tensor::cat(&[state.weights, state.average], 0)
    }

    #[test]
    fn threads_and_checkpoints_change_no_bit() {
        let one = trained(1);
        assert!(one.isfinite().all().int64_value(&[]) == 1 && one.min().double_value(&[]) < 0.7);
        for threads in [2, 4] {
            assert!(one.equal(&trained(threads)), "{threads} threads");
        }
    }

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
