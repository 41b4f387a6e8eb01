//! What an iteration's rollout gives the updates: pairs, from whichever source the method names.

use crate::error::Result;
use crate::objective::{PairBatch, Preference};
use seedpo_rollout::{Cost, StepPair, Trajectory, TrajectoryPair};
use seedpo_tensor::NoiseKey;
use tch::Tensor;

/// Single trajectories and what their rewards were worth.
#[derive(Debug)]
pub struct Singles {
    /// A row per sample.
    pub trajectory: Trajectory,
    /// The prompt of each row, an index into the iteration's texts.
    pub prompts: Vec<usize>,
    /// The advantage of each row.
    pub advantages: Vec<f64>,
    /// Whether the loss has a reference.
    pub regularised: bool,
}

/// The preference pairs of one iteration.
#[derive(Debug)]
pub enum Pairs {
    /// SPO: pairs that share x_t, those above the threshold only.
    Steps(Vec<StepPair>),
    /// D3PO: two trajectories per row, and who won.
    Trajectories(TrajectoryPair, Vec<Preference>),
    /// DDPO: one trajectory per row.
    Samples(Singles),
    /// Noised images: winners and losers (Diffusion-DPO), or winners (SFT; SePPO, whose updates draw the other side).
    Images(PairBatch),
}

/// An iteration's rollout.
#[derive(Debug)]
pub struct Samples {
    /// The pairs.
    pub pairs: Pairs,
    /// Pairs that were tied or below the threshold.
    pub tied: usize,
    /// The judge's scores of the final images.
    pub rewards: Vec<f64>,
    /// What the rollout ran.
    pub cost: Cost,
    /// Seconds of sampling, judging excluded.
    pub seconds_rollout: f64,
    /// Seconds of decoding and judging.
    pub seconds_judge: f64,
}

impl Pairs {
    /// Indices of the pairs with a winner.
    fn decided(&self) -> Vec<usize> {
        match self {
            Self::Steps(pairs) => (0..pairs.len()).collect(),
            Self::Images(batch) => (0..batch.len()).collect(),
            Self::Samples(singles) => (0..singles.prompts.len()).collect(),
            Self::Trajectories(_, preferences) => {
                (0..preferences.len()).filter(|&i| preferences[i].decided()).collect()
            }
        }
    }

    /// How many pairs are trained on.
    pub fn kept(&self) -> usize {
        self.decided().len()
    }

    /// The pairs of each update: all decided pairs once, in an order keyed by `key`. Ties are left out beforehand, since
    /// they carry no gradient; the last update may have fewer.
    pub fn updates(&self, per_update: usize, key: NoiseKey) -> Vec<Vec<usize>> {
        let decided = self.decided();
        let order: Vec<usize> = key.permutation(decided.len()).into_iter().map(|i| decided[i]).collect();
        order.chunks(per_update.max(1)).map(<[usize]>::to_vec).collect()
    }

    /// The batches whose gradients one update accumulates: at most `train_batch` pairs each. A trajectory pair gives as
    /// many batches as it has steps, its time order shuffled by a key of its own (docs/methods.md section 4.1). Their
    /// gradients are summed anyway, so steps that fit into one pass of `at_once` pairs are joined: the same update in
    /// fewer, larger passes.
    pub fn batches(
        &self,
        group: &[usize],
        train_batch: usize,
        at_once: usize,
        key: NoiseKey,
    ) -> Result<Vec<PairBatch>> {
        let mut batches = Vec::new();
        for part in group.chunks(train_batch.max(1)) {
            match self {
                Self::Steps(pairs) => {
                    let chosen: Vec<&StepPair> = part.iter().map(|&i| &pairs[i]).collect();
                    batches.push(PairBatch::from_step_pairs(&chosen)?);
                }
                Self::Images(batch) => batches.push(batch.select(part)?),
                Self::Trajectories(pair, preferences) => {
                    let of = |picks: &[_]| PairBatch::from_trajectories(pair, preferences, picks);
                    batches.extend(over_steps(pair.sides[0].timesteps.len(), part, at_once, key, &of)?);
                }
                Self::Samples(Singles { trajectory, prompts, advantages, regularised }) => {
                    let of =
                        |picks: &[_]| PairBatch::from_samples(trajectory, prompts, advantages, picks, *regularised);
                    batches.extend(over_steps(trajectory.timesteps.len(), part, at_once, key, &of)?);
                }
            }
        }
        Ok(batches)
    }
}

/// A row of a rollout and a step of it.
type Pick = (usize, usize);

/// The rows `part` of rollouts of `steps` steps, each row's in an order of its own, as many steps in a batch as fit into
/// `at_once` pairs. `of` makes the batch of (row, step)s.
fn over_steps(
    steps: usize,
    part: &[usize],
    at_once: usize,
    key: NoiseKey,
    of: &dyn Fn(&[Pick]) -> Result<PairBatch>,
) -> Result<Vec<PairBatch>> {
    let orders: Vec<_> = part.iter().map(|&row| (row, key.prompt(row as u64).permutation(steps))).collect();
    let turns: Vec<usize> = (0..steps).collect();
    let joined = |turns: &[usize]| {
        let picks: Vec<Pick> =
            turns.iter().flat_map(|&turn| orders.iter().map(move |(row, order)| (*row, order[turn]))).collect();
        of(&picks)
    };
    turns.chunks((at_once / part.len()).max(1)).map(joined).collect()
}

/// Trajectories of the same steps as one, row after row. `parts` is not empty.
pub fn join_rows(parts: &[&Trajectory]) -> Result<Trajectory> {
    let stage = |i: usize| Tensor::f_cat(&parts.iter().map(|t| &t.latents[i]).collect::<Vec<_>>(), 0);
    let latents = (0..parts[0].latents.len()).map(stage).collect::<Result<Vec<_>, _>>()?;
    let log_probs: Option<Vec<&Tensor>> = parts.iter().map(|t| t.log_probs.as_ref()).collect();
    let log_probs = log_probs.map(|parts| Tensor::f_cat(&parts, 0)).transpose()?;
    Ok(Trajectory { latents, timesteps: parts[0].timesteps.clone(), log_probs, cost: Cost::default() })
}

/// Rollouts of parts of a prompt batch as one. `parts` is not empty.
pub fn join(parts: Vec<TrajectoryPair>) -> Result<TrajectoryPair> {
    let side = |s: usize| join_rows(&parts.iter().map(|p| &p.sides[s]).collect::<Vec<_>>());
    let sides = [side(0)?, side(1)?];
    let mut cost = Cost::default();
    parts.iter().for_each(|p| cost += p.cost);
    Ok(TrajectoryPair { sides, prompts: parts.iter().flat_map(|p| p.prompts.iter().copied()).collect(), cost })
}
