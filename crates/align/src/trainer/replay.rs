//! Offline replay: rollouts of the initial policy written to a store, and training on a store in place of sampling.

use super::iteration::Iteration;
use super::renoise::renoised;
use super::rollout::decode;
use super::samples::{Pairs, Samples};
use super::stream::Slot;
use super::{Finished, Trainer};
use crate::error::{Error, Result};
use crate::method::{Likelihood, PairsFrom};
use crate::objective::Preference;
use crate::observer::Observer;
use crate::store::{Store, StoreOrigin, StoreSettings, Stored};
use seedpo_judge::to_u8;
use seedpo_rollout::Cost;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tch::Tensor;

/// Two pictures of a prompt, u8 `[H, W, 3]` each.
#[derive(Debug)]
pub struct DrawnPair {
    /// What both are pictures of.
    pub prompt: String,
    /// The one the judge prefers.
    pub winner: Tensor,
    /// The other.
    pub loser: Tensor,
}

impl Trainer<'_> {
    /// Samples every iteration of the run with the policy as it stands, the initial one in a new run, and writes the pairs
    /// to `folder`; what is there already is not sampled again. Nothing is trained.
    ///
    /// Errors: those of sampling and judging; a folder that holds something else; settings without a number of passes.
    pub fn roll_out(&mut self, folder: &Path, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Finished> {
        if self.method.pairs == PairsFrom::Samples {
            let expected =
                "a method whose rollouts give pairs: a policy gradient needs samples of the policy as it stands".into();
            return Err(Error::Setting { key: "method".into(), expected, found: self.method.name.into() });
        }
        let iterations = self.planned_iterations()?;
        let prompts = self.parts.prompts.clone();
        let mut store = Store::create(folder, self.store_settings(), self.store_origin(), &prompts, iterations)?;
        let merged = self.weights.merged(self.parts.model)?;
        for index in store.len() as u64..iterations {
            if stop.load(Ordering::Relaxed) {
                return Ok(Finished::Interrupted);
            }
            let slots = self.stream.iteration(index);
            let texts: Vec<&str> = slots.iter().map(|slot| prompts[slot.prompt].as_str()).collect();
            let conditioning = self.embeddings.conditioning(self.parts.model, &texts)?;
            let Samples { pairs, tied, .. } = match self.draw(&slots, &texts, &conditioning, &merged, observer, stop) {
                Err(_) if stop.load(Ordering::Relaxed) => return Ok(Finished::Interrupted),
                drawn => drawn?,
            };
            let stored = match pairs {
                Pairs::Steps(pairs) => Stored::Steps(pairs),
                Pairs::Trajectories(pair, preferences) => Stored::Trajectories(pair, preferences),
                // No rollout makes them; refused above.
                Pairs::Images(_) | Pairs::Samples(_) => continue,
            };
            let prompts: Vec<usize> = slots.iter().map(|slot| slot.prompt).collect();
            store.add(&stored, &prompts, tied as u64)?;
        }
        Ok(Finished::Completed)
    }

    /// Samples every iteration of the run with the policy as it stands and hands each pair that the judge decides to
    /// `each`, as pictures. Errors: as [`Trainer::roll_out`], a method whose pairs are no whole pictures, those of `each`.
    pub fn draw_pictures(
        &mut self,
        each: &mut dyn FnMut(DrawnPair) -> Result<()>,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Finished> {
        let prompts = self.parts.prompts.clone();
        let merged = self.weights.merged(self.parts.model)?;
        for index in 0..self.planned_iterations()? {
            let slots = self.stream.iteration(index);
            let texts: Vec<&str> = slots.iter().map(|slot| prompts[slot.prompt].as_str()).collect();
            let conditioning = self.embeddings.conditioning(self.parts.model, &texts)?;
            let drawn = match self.draw(&slots, &texts, &conditioning, &merged, observer, stop) {
                Err(_) if stop.load(Ordering::Relaxed) => return Ok(Finished::Interrupted),
                drawn => drawn?,
            };
            let Pairs::Trajectories(pair, preferences) = drawn.pairs else {
                let expected = "trajectories, whose ends are pictures (d3po)".into();
                return Err(Error::Setting { key: "method".into(), expected, found: self.method.name.into() });
            };
            let picture = |side: usize, row: usize| -> Result<Tensor> {
                let latents = pair.sides[side].final_latents().narrow(0, row as i64, 1);
                Ok(to_u8(&decode(self.parts.model, &latents, 1)?)?.squeeze_dim(0))
            };
            for (row, preference) in preferences.iter().enumerate().filter(|(_, p)| p.decided()) {
                let won = usize::from(*preference == Preference::Second);
                let prompt = texts[row].to_owned();
                each(DrawnPair { prompt, winner: picture(won, row)?, loser: picture(1 - won, row)? })?;
            }
        }
        Ok(Finished::Completed)
    }

    fn planned_iterations(&self) -> Result<u64> {
        self.stream.iterations().ok_or_else(|| Error::Setting {
            key: "num_train_epochs".into(),
            expected: "how many passes over the prompts to draw, 1 or more".into(),
            found: "0".into(),
        })
    }

    /// One iteration on the pairs of a stored file: which one, the order of the seed says.
    pub(super) fn replay(
        &mut self,
        store: &Store,
        index: u64,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Finished> {
        let started = Instant::now();
        let Some(file) = self.stream.iteration(index).first().copied() else {
            self.next_iteration();
            return Ok(Finished::Completed);
        };
        let model = self.parts.model;
        let (stored, of_row) = store.read(file.prompt, model.device())?;
        let slots: Vec<Slot> = of_row.iter().map(|&prompt| Slot { pass: file.pass, prompt }).collect();
        let texts: Vec<&str> = of_row.iter().map(|&prompt| store.prompts()[prompt].as_str()).collect();
        let conditioning = self.embeddings.conditioning(model, &texts)?;
        let samples = Samples {
            pairs: match stored {
                Stored::Steps(pairs) => Pairs::Steps(pairs),
                Stored::Trajectories(pair, preferences) => Pairs::Trajectories(pair, preferences),
            },
            tied: store.shards()[file.prompt].tied as usize,
            rewards: Vec::new(),
            cost: Cost::default(),
            seconds_rollout: started.elapsed().as_secs_f64(),
            seconds_judge: 0.0,
        };
        let transition = self.method.likelihood == Likelihood::Transition;
        let samples = if transition { samples } else { renoised(samples, &slots, model, self.data_seed())? };
        let this = Iteration { index, slots, texts, conditioning, merged: None, judges: BTreeMap::new() };
        self.updates(&this, &samples, observer, stop)
    }

    /// Refuses a store whose samples were drawn otherwise than this run would draw them.
    pub(super) fn check_store(&self) -> Result<()> {
        match &self.parts.store {
            Some(store) => store.check(&self.store_settings()),
            None => Ok(()),
        }
    }

    fn store_settings(&self) -> StoreSettings {
        let schedule = &self.parts.model.schedule;
        StoreSettings::new(self.method.pairs.name(), &self.latent_shape, &self.ddim, schedule, self.rollout_guidance())
    }

    fn store_origin(&self) -> StoreOrigin {
        let config = &self.parts.config;
        let steps = self.method.pairs == PairsFrom::Steps;
        let branching = || {
            let (candidates, first) = (config.candidates, config.divert_start_step);
            let (threshold, scale) = (config.threshold, config.judge_scale);
            format!("{candidates} candidates from step {first}, threshold {threshold}, judge_scale {scale}")
        };
        StoreOrigin {
            model: config.model.clone(),
            judge: self.parts.judge.name().to_owned(),
            seed: config.seed,
            prompts_per_iteration: config.prompts_per_iteration,
            branching: steps.then(branching),
        }
    }
}
