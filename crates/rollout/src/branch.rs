//! SPO's step-wise branching: pairs of candidates for the next latents (docs/methods.md section 4.3).

use std::collections::VecDeque;

use seedpo_tensor::NoiseKey;
use tch::{Kind, Tensor};

use crate::sample::{check_rows, predict};
use crate::{BoxError, Cost, Ddim, Error, NoisePredictor, Result, step_noise};

/// Scores candidates: clean latents x̂0 `[N, C, h, w]` (scaled, as the U-Net sees them), the timestep they were
/// predicted at (0 for finished images), and the prompt of each row. Returns N scores, higher is better.
pub type Scorer<'a> = dyn FnMut(&Tensor, i64, &[usize]) -> std::result::Result<Scores, BoxError> + 'a;

/// Scores that are called for a step or two after they were asked for: what makes them may work meanwhile.
pub type Scores = Box<dyn FnOnce() -> std::result::Result<Vec<f64>, BoxError>>;

/// Steps whose scores may be on their way while sampling goes on.
const AHEAD: usize = 2;

/// How SPO branches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BranchOptions {
    /// Ordinary steps before the first branching, 4 as published.
    pub divert_start_step: usize,
    /// Candidates K per step, at least 2; 4 as published for SD 1.5.
    pub candidates: usize,
    /// A pair is kept if the softmax over its two scores differs by more than this, in [0, 1); 0.3 as published.
    pub threshold: f64,
}

impl Default for BranchOptions {
    fn default() -> Self {
        Self { divert_start_step: 4, candidates: 4, threshold: 0.3 }
    }
}

/// A preference between two continuations of the same latents. The U-Net's prediction at `latents` serves both sides.
#[derive(Debug)]
pub struct StepPair {
    /// x_t, `[C, h, w]` f32.
    pub latents: Tensor,
    /// The preferred x_t', `[C, h, w]` f32.
    pub next_latents_w: Tensor,
    /// The rejected x_t', `[C, h, w]` f32.
    pub next_latents_l: Tensor,
    /// The clean latents x̂0 that were scored, of winner and loser, `[C, h, w]` f32 each.
    pub pred_x0: [Tensor; 2],
    /// t.
    pub timestep: i64,
    /// Index of the prompt.
    pub prompt: usize,
    /// The winner's and the loser's score.
    pub scores: [f64; 2],
}

/// What the scorer said at one branching step, over the prompts of the batch.
#[derive(Clone, Debug, PartialEq)]
pub struct StepRecord {
    /// The timestep scored at: that of the candidates' own U-Net pass, 0 after the last step.
    pub scored_at: i64,
    /// Scores `[B][K]`.
    pub scores: Vec<Vec<f64>>,
    /// Pairs kept of the B possible ones.
    pub kept: usize,
}

/// The outcome of a branching rollout.
#[derive(Debug)]
pub struct Branching {
    /// The pairs kept, by step, then prompt.
    pub pairs: Vec<StepPair>,
    /// One record per branching step.
    pub steps: Vec<StepRecord>,
    /// The chain's clean latents x_0, `[B, C, h, w]` f32: one uniformly chosen candidate per prompt.
    pub final_latents: Tensor,
    /// The scores of those latents at timestep 0, one per prompt.
    pub final_scores: Vec<f64>,
    /// What the rollout ran.
    pub cost: Cost,
}

/// Branches at every step from `divert_start_step` on, without gradients.
///
/// `x_t` `[B, C, h, w]`; `prompts` and `keys` have one entry per row. Candidate k of step i is drawn from
/// `keys[row].candidate(k)` at step i + 1 ([`step_noise`]; ordinary steps use candidate 0), the survivor from the same
/// key with purpose `"branch-survivor"`. All candidates of all prompts run in one U-Net pass, at the next timestep; the
/// survivor's row of that pass is its noise prediction for the next step, so nothing runs twice.
/// Errors: [`Error::Setting`], [`Error::Shape`], [`Error::Scorer`], [`Error::NonFinite`].
pub fn branch(
    predictor: &dyn NoisePredictor,
    x_t: &Tensor,
    prompts: &[usize],
    ddim: &Ddim,
    keys: &[NoiseKey],
    options: &BranchOptions,
    scorer: &mut Scorer,
    on_step: &mut dyn FnMut(usize, usize),
) -> Result<Branching> {
    check_rows(x_t, prompts)?;
    options.check(ddim)?;
    if keys.len() != prompts.len() {
        return Err(Error::shape("keys", format!("{} entries", prompts.len()), format!("{}", keys.len())));
    }
    let mut chain = Chain { predictor, ddim, prompts, keys, options, shape: x_t.size()[1..].to_vec() };
    tch::no_grad(|| chain.run(x_t, scorer, on_step))
}

impl BranchOptions {
    fn check(&self, ddim: &Ddim) -> Result<()> {
        if self.candidates < 2 {
            return Err(Error::setting("candidates", "at least 2", self.candidates));
        }
        if !(0.0..1.0).contains(&self.threshold) {
            return Err(Error::setting("threshold", "a number in [0, 1)", self.threshold));
        }
        if self.divert_start_step >= ddim.steps() {
            return Err(Error::setting(
                "divert_start_step",
                format!("below {} steps", ddim.steps()),
                self.divert_start_step,
            ));
        }
        if ddim.eta() == 0.0 {
            return Err(Error::setting("eta", "above 0: without noise all candidates are equal", 0));
        }
        Ok(())
    }
}

struct Chain<'a> {
    predictor: &'a dyn NoisePredictor,
    ddim: &'a Ddim,
    prompts: &'a [usize],
    keys: &'a [NoiseKey],
    options: &'a BranchOptions,
    shape: Vec<i64>,
}

/// The candidates of one step, prompt by prompt (`[B·K, C, h, w]`), with their scores on the way.
struct Asked {
    /// t.
    timestep: i64,
    /// x_t, `[B, C, h, w]`.
    latents: Tensor,
    candidates: Tensor,
    /// What is scored: the clean latents predicted from them.
    pred_x0: Tensor,
    scored_at: i64,
    scores: Scores,
    /// The row of the candidate that continues each chain.
    survivors: Vec<i64>,
}

impl Chain<'_> {
    fn run(&mut self, x_t: &Tensor, scorer: &mut Scorer, on_step: &mut dyn FnMut(usize, usize)) -> Result<Branching> {
        let total = self.ddim.steps();
        let mut latents = x_t.f_to_kind(Kind::Float)?;
        let mut noise_pred = None;
        let mut waiting = VecDeque::new();
        let (pairs, steps, final_scores) = (Vec::new(), Vec::new(), Vec::new());
        let mut done =
            Branching { pairs, steps, final_latents: latents.shallow_clone(), final_scores, cost: Cost::default() };
        for (step, &timestep) in self.ddim.timesteps().iter().enumerate() {
            let known = match noise_pred.take() {
                Some(known) => known,
                None => predict(self.predictor, &latents, timestep, self.prompts, &mut done.cost)?,
            };
            if step < self.options.divert_start_step {
                let transition = self.ddim.transition(&[timestep], &latents, &known)?;
                latents = transition.sample(Some(&step_noise(self.keys, step, &self.shape)))?;
            } else {
                let (asked, next) = self.ask(step, latents, &known, scorer, &mut done.cost)?;
                let rows = Tensor::from_slice(&asked.survivors).to_device(asked.latents.device());
                latents = asked.candidates.f_index_select(0, &rows)?;
                noise_pred = next.map(|pred| pred.f_index_select(0, &rows)).transpose()?;
                waiting.push_back(asked);
                if waiting.len() > AHEAD {
                    waiting.pop_front().map(|oldest| self.settle(oldest, &mut done)).transpose()?;
                }
            }
            on_step(step + 1, total);
        }
        waiting.into_iter().try_for_each(|asked| self.settle(asked, &mut done))?;
        done.final_latents = latents;
        Ok(done)
    }

    /// Draws a step's candidates from `latents` and has them scored; also returns the U-Net's prediction at them, which
    /// there is none of after the last step.
    fn ask(
        &self,
        step: usize,
        latents: Tensor,
        noise_pred: &Tensor,
        scorer: &mut Scorer,
        cost: &mut Cost,
    ) -> Result<(Asked, Option<Tensor>)> {
        let count = self.options.candidates;
        let timestep = self.ddim.timesteps()[step];
        let transition = self.ddim.transition(&[timestep], &latents, noise_pred)?;
        let per_candidate = (0..count)
            .map(|k| {
                let keys: Vec<NoiseKey> = self.keys.iter().map(|key| key.candidate(k as u64)).collect();
                transition.sample(Some(&step_noise(&keys, step, &self.shape)))
            })
            .collect::<Result<Vec<_>>>()?;
        let candidates = Tensor::f_stack(&per_candidate, 1)?.flatten(0, 1);
        let prompts: Vec<usize> = self.prompts.iter().flat_map(|&p| std::iter::repeat_n(p, count)).collect();
        let (pred_x0, noise_pred, scored_at) = match self.ddim.timesteps().get(step + 1) {
            Some(&next) => {
                let pred = predict(self.predictor, &candidates, next, &prompts, cost)?;
                (self.ddim.transition(&[next], &candidates, &pred)?.pred_x0, Some(pred), next)
            }
            None => (candidates.shallow_clone(), None, 0),
        };
        let scores =
            scorer(&pred_x0, scored_at, &prompts).map_err(|source| Error::Scorer { timestep: scored_at, source })?;
        let survivors = self.survivors(step);
        Ok((Asked { timestep, latents, candidates, pred_x0, scored_at, scores, survivors }, noise_pred))
    }

    /// Waits for a step's scores, keeps its pairs and takes note.
    fn settle(&self, mut asked: Asked, done: &mut Branching) -> Result<()> {
        let (scored_at, count) = (asked.scored_at, self.options.candidates);
        let scores = std::mem::replace(&mut asked.scores, Box::new(|| Ok(Vec::new())));
        let scores = scores().map_err(|source| Error::Scorer { timestep: scored_at, source })?;
        check_scores(&scores, self.prompts, count, scored_at)?;
        let kept = self.keep_pairs(&asked, &scores, &mut done.pairs);
        done.final_scores = asked.survivors.iter().map(|&row| scores[row as usize]).collect();
        let scores = scores.chunks(count).map(<[f64]>::to_vec).collect();
        done.steps.push(StepRecord { scored_at, scores, kept });
        Ok(())
    }

    /// Winner and loser of every prompt, where they differ enough. Returns how many were kept.
    fn keep_pairs(&self, asked: &Asked, scores: &[f64], pairs: &mut Vec<StepPair>) -> usize {
        let count = self.options.candidates;
        let before = pairs.len();
        for (row, &prompt) in self.prompts.iter().enumerate() {
            let scores = &scores[row * count..(row + 1) * count];
            let (best, worst) = extremes(scores);
            if softmax_difference(scores[best], scores[worst]) > self.options.threshold {
                let of = |all: &Tensor, k: usize| all.get((row * count + k) as i64);
                pairs.push(StepPair {
                    latents: asked.latents.get(row as i64),
                    next_latents_w: of(&asked.candidates, best),
                    next_latents_l: of(&asked.candidates, worst),
                    pred_x0: [of(&asked.pred_x0, best), of(&asked.pred_x0, worst)],
                    timestep: asked.timestep,
                    prompt,
                    scores: [scores[best], scores[worst]],
                });
            }
        }
        pairs.len() - before
    }

    /// The row of the candidate that continues each chain, drawn uniformly.
    fn survivors(&self, step: usize) -> Vec<i64> {
        let count = self.options.candidates;
        let draw = |key: &NoiseKey| NoiseKey { purpose: "branch-survivor", ..key.step(step as u64 + 1) }.below(count);
        self.keys.iter().enumerate().map(|(row, key)| (row * count + draw(key)) as i64).collect()
    }
}

/// p_best − p_worst of the softmax over two scores, in [0, 1): tanh of half their difference.
pub fn softmax_difference(best: f64, worst: f64) -> f64 {
    ((best - worst) / 2.0).tanh()
}

/// Indices of the highest and the lowest score; the first of equals.
fn extremes(scores: &[f64]) -> (usize, usize) {
    let (mut best, mut worst) = (0, 0);
    for (k, &score) in scores.iter().enumerate() {
        if score > scores[best] {
            best = k;
        }
        if score < scores[worst] {
            worst = k;
        }
    }
    (best, worst)
}

/// One finite score for each of the `count` candidates of each prompt.
fn check_scores(scores: &[f64], prompts: &[usize], count: usize, timestep: i64) -> Result<()> {
    if scores.len() != prompts.len() * count {
        let reason = format!("expected {} scores, found {}", prompts.len() * count, scores.len());
        return Err(Error::Scorer { timestep, source: reason.into() });
    }
    match scores.iter().position(|score| !score.is_finite()) {
        Some(row) => Err(Error::NonFinite { timestep, prompt: prompts[row / count], value: scores[row] }),
        None => Ok(()),
    }
}
