//! Sampling, decoding, judging and pairing one prompt batch with the merged adapter.

use super::samples::{Pairs, Samples, Singles, join, join_rows};
use super::stream::Slot;
use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::method::PairsFrom;
use crate::objective::Preference;
use crate::observer::{Observer, Phase};
use seedpo_judge::{ImageBatch, Job, Judge, Pending, Pictures, StepJudge, to_u8};
use seedpo_model::{Conditioning, DiffusionModel, Policy, PolicyWeights};
use seedpo_rollout::{
    BranchOptions, Cost, Ddim, GuidedPolicy, NoisePredictor, Scores, StepPair, branch, initial_noise, sample,
    sample_pair, step_noise,
};
use seedpo_tensor::NoiseKey;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tch::Tensor;

/// A predictor that refuses to go on once the user asked to stop, so that a long rollout can be abandoned.
pub struct Interruptible<'a> {
    /// The predictor.
    pub inner: GuidedPolicy<'a>,
    /// Set when the user asks to stop.
    pub stop: &'a AtomicBool,
}

impl NoisePredictor for Interruptible<'_> {
    fn predict(&self, latents: &Tensor, timesteps: &[i64], prompts: &[usize]) -> seedpo_rollout::Result<Tensor> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(seedpo_rollout::Error::Torch(tch::TchError::Kind("stopped on request".into())));
        }
        self.inner.predict(latents, timesteps, prompts)
    }

    fn branches(&self) -> usize {
        self.inner.branches()
    }
}

/// Where the rows that are sampled together begin.
struct Start<'a> {
    predictor: &'a dyn NoisePredictor,
    /// x_T of each row, `[rows, C, h, w]`.
    x_t: &'a Tensor,
    /// The slot of each row.
    rows: &'a [usize],
    /// The key of each row's noise.
    keys: &'a [NoiseKey],
    /// The prompt of each slot.
    texts: &'a [&'a str],
}

/// Samples that are drawn and being judged; called for when they are needed.
type Judging = Box<dyn FnOnce() -> Result<Samples>>;

/// What a rollout needs besides the adapter.
pub struct RolloutContext<'a> {
    /// The settings.
    pub config: &'a TrainConfig,
    /// The base.
    pub model: &'a DiffusionModel,
    /// The judge.
    pub judge: &'a dyn Judge,
    /// The sampler.
    pub ddim: &'a Ddim,
    /// Shape of one latent, `[C, h, w]`.
    pub latent_shape: &'a [i64],
    /// Key of the noise.
    pub seed: u64,
    /// Set when the user asks to stop.
    pub stop: &'a AtomicBool,
}

impl RolloutContext<'_> {
    /// Samples the iteration's pairs. `texts` and `conditioning` have one entry per slot; `policy` is merged, with the
    /// guidance it is sampled under.
    pub fn samples(
        &self,
        pairs_from: PairsFrom,
        slots: &[Slot],
        texts: &[&str],
        conditioning: &Conditioning,
        (policy, guidance): (&PolicyWeights, f64),
        observer: &mut dyn Observer,
    ) -> Result<Samples> {
        let policy = Policy::of(self.model, Some(policy));
        let inner = GuidedPolicy::new(policy, conditioning, guidance);
        let predictor = Interruptible { inner, stop: self.stop };
        let chunk = self.config.rollout_batch_size as usize;
        let total = slots.len().div_ceil(chunk) * self.ddim.steps();
        let mut part = |i: usize| -> Result<Judging> {
            let start = i * chunk;
            let rows: Vec<usize> = (start..slots.len().min(start + chunk)).collect();
            let key = |&row: &usize| {
                NoiseKey::new(self.seed, "rollout").epoch(slots[row].pass).prompt(slots[row].prompt as u64)
            };
            let keys: Vec<NoiseKey> = rows.iter().map(key).collect();
            let x_t = initial_noise(&keys, self.latent_shape).to_device(self.model.unet.device());
            let offset = i * self.ddim.steps();
            let mut on_step = |done: usize, _: usize| observer.on_phase(Phase::Rollout, offset + done, total);
            let start = Start { predictor: &predictor, x_t: &x_t, rows: &rows, keys: &keys, texts };
            match pairs_from {
                PairsFrom::Steps => self.branches(start, &mut on_step),
                PairsFrom::Trajectories => self.trajectories(start, &mut on_step),
                PairsFrom::Samples => self.singles(start, &mut on_step),
                PairsFrom::Images | PairsFrom::WinnersAndSamples | PairsFrom::Winners => Err(Error::Input {
                    what: "pairs to sample".into(),
                    expected: "trajectories, steps or samples".into(),
                    found: "image files, which are not sampled".into(),
                }),
            }
        };
        // A part may be judged while the next one is sampled.
        let (mut parts, mut judged) = (Vec::new(), None);
        for i in 0..slots.len().div_ceil(chunk) {
            let next = part(i)?;
            parts.extend(judged.replace(next).map(|before| before()).transpose()?);
        }
        parts.extend(judged.map(|last| last()).transpose()?);
        merge_parts(parts)
    }

    fn branches(&self, start: Start, on_step: &mut dyn FnMut(usize, usize)) -> Result<Judging> {
        let Start { predictor, x_t, rows, keys, texts } = start;
        let options = BranchOptions {
            divert_start_step: self.config.divert_start_step as usize,
            candidates: self.config.candidates as usize,
            threshold: self.config.threshold,
        };
        let judge = StepJudge::new(self.judge, |latents: &Tensor| decode(self.model, latents, self.chunk()));
        let (started, waited) = (Instant::now(), Rc::new(Cell::new(0.0)));
        let scale = self.config.judge_scale;
        let mut scorer = |latents: &Tensor, timestep: i64, prompts: &[usize]| {
            let of: Vec<&str> = prompts.iter().map(|&row| texts[row]).collect();
            let pending = timed(&waited, || judge.submit(latents, timestep, &of))?;
            let waited = Rc::clone(&waited);
            let scores =
                move || Ok(timed(&waited, || pending.wait())?.into_iter().map(|score| score * scale).collect());
            Ok(Box::new(scores) as Scores)
        };
        let branching = branch(predictor, x_t, rows, self.ddim, keys, &options, &mut scorer, on_step)?;
        let possible: usize = branching.steps.iter().map(|step| step.scores.len()).sum();
        let samples = Samples {
            tied: possible - branching.pairs.len(),
            pairs: Pairs::Steps(branching.pairs),
            rewards: branching.final_scores.iter().map(|score| score / scale).collect(),
            cost: branching.cost,
            seconds_rollout: started.elapsed().as_secs_f64() - waited.get(),
            seconds_judge: waited.get(),
        };
        Ok(Box::new(|| Ok(samples)))
    }

    fn trajectories(&self, start: Start, on_step: &mut dyn FnMut(usize, usize)) -> Result<Judging> {
        let Start { predictor, x_t, rows, keys, texts } = start;
        let started = Instant::now();
        let pair = sample_pair(predictor, x_t, rows, self.ddim, keys, on_step)?;
        let seconds_rollout = started.elapsed().as_secs_f64();
        let of: Vec<&str> = rows.iter().chain(rows).map(|&row| texts[row]).collect();
        // In one call: some judges compare pictures of a prompt with each other.
        let latents = Tensor::f_cat(&[0, 1].map(|side: usize| pair.sides[side].final_latents()), 0)?;
        let (judged, waited) = self.judge(&latents, &of)?;
        let count = rows.len();
        Ok(Box::new(move || {
            let rewards = timed(&waited, || judged.wait())?;
            let (first, second) = rewards.split_at(count);
            let preferences: Vec<_> =
                first.iter().zip(second).map(|(a, b)| Preference::by_dominance(&[*a], &[*b])).collect();
            Ok(Samples {
                tied: preferences.iter().filter(|p| !p.decided()).count(),
                cost: pair.cost,
                pairs: Pairs::Trajectories(pair, preferences),
                rewards,
                seconds_rollout,
                seconds_judge: waited.get(),
            })
        }))
    }

    /// One trajectory per row; the advantages are for the caller, who knows the other rows.
    fn singles(&self, start: Start, on_step: &mut dyn FnMut(usize, usize)) -> Result<Judging> {
        let Start { predictor, x_t, rows, keys, texts } = start;
        let started = Instant::now();
        let mut noise = |step: usize| Some(step_noise(keys, step, self.latent_shape));
        let trajectory = sample(predictor, x_t, rows, self.ddim, &mut noise, on_step)?;
        let seconds_rollout = started.elapsed().as_secs_f64();
        let of: Vec<&str> = rows.iter().map(|&row| texts[row]).collect();
        let (judged, waited) = self.judge(trajectory.final_latents(), &of)?;
        let prompts = rows.to_vec();
        Ok(Box::new(move || {
            Ok(Samples {
                tied: 0,
                rewards: timed(&waited, || judged.wait())?,
                cost: trajectory.cost,
                pairs: Pairs::Samples(Singles { trajectory, prompts, advantages: Vec::new(), regularised: false }),
                seconds_rollout,
                seconds_judge: waited.get(),
            })
        }))
    }

    /// Decodes finished latents and begins to judge them; also returns the seconds that this took.
    fn judge(&self, latents: &Tensor, prompts: &[&str]) -> Result<(Pending, Cell<f64>)> {
        let seconds = Cell::new(0.0);
        let pending = timed(&seconds, || -> Result<Pending> {
            let images = to_u8(&decode(self.model, latents, self.chunk())?)?;
            let images = Pictures::Finished(ImageBatch::from_tensor(&images)?);
            Ok(self.judge.submit(Job::new(images, prompts)))
        })?;
        Ok((pending, seconds))
    }

    fn chunk(&self) -> usize {
        self.config.rollout_batch_size as usize
    }
}

/// Adds the time that `work` takes to `seconds`.
fn timed<T>(seconds: &Cell<f64>, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = work();
    seconds.set(seconds.get() + begun.elapsed().as_secs_f64());
    done
}

/// Images `[B, 3, H, W]` from scaled latents, at most `chunk` at a time, without gradients.
pub fn decode(model: &DiffusionModel, latents: &Tensor, chunk: usize) -> seedpo_model::Result<Tensor> {
    let _guard = tch::no_grad_guard();
    let parts = latents.split(chunk.max(1) as i64, 0);
    let images = parts.iter().map(|part| model.vae.decode_latents(part)).collect::<seedpo_model::Result<Vec<_>>>()?;
    Ok(Tensor::cat(&images, 0))
}

fn merge_parts(parts: Vec<Samples>) -> Result<Samples> {
    let (mut step_pairs, mut trajectories, mut all_preferences) = (Vec::new(), Vec::new(), Vec::new());
    let mut singles: Vec<Singles> = Vec::new();
    let (mut rewards, mut cost) = (Vec::new(), Cost::default());
    let (mut tied, mut seconds_rollout, mut seconds_judge) = (0, 0.0, 0.0);
    for part in parts {
        rewards.extend(part.rewards);
        cost += part.cost;
        tied += part.tied;
        seconds_rollout += part.seconds_rollout;
        seconds_judge += part.seconds_judge;
        match part.pairs {
            Pairs::Steps(pairs) => step_pairs.extend(pairs),
            Pairs::Trajectories(pair, preferences) => {
                trajectories.push(pair);
                all_preferences.extend(preferences);
            }
            Pairs::Samples(part) => singles.push(part),
            // No rollout makes them.
            Pairs::Images(_) => {}
        }
    }
    // By step, then prompt, however the batch was cut: the order that updates shuffle must not depend on it.
    step_pairs.sort_by_key(|pair: &StepPair| (std::cmp::Reverse(pair.timestep), pair.prompt));
    let pairs = if !singles.is_empty() {
        let trajectory = join_rows(&singles.iter().map(|part| &part.trajectory).collect::<Vec<_>>())?;
        let prompts = singles.iter().flat_map(|part| part.prompts.iter().copied()).collect();
        Pairs::Samples(Singles { trajectory, prompts, advantages: Vec::new(), regularised: false })
    } else if trajectories.is_empty() {
        Pairs::Steps(step_pairs)
    } else {
        Pairs::Trajectories(join(trajectories)?, all_preferences)
    };
    Ok(Samples { pairs, tied, rewards, cost, seconds_rollout, seconds_judge })
}
