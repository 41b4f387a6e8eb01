//! Batches of step pairs, whatever made them.

use seedpo_rollout::{StepPair, TrajectoryPair};
use tch::Tensor;

use super::Preference;
use crate::{Error, Result};

/// The latents of a batch of pairs; every tensor `[B, C, h, w]`.
#[derive(Debug)]
pub enum PairLatents {
    /// Both sides leave the same x_t (SPO): one prediction serves both.
    Shared {
        /// x_t.
        latents: Tensor,
        /// The preferred x_t'.
        next_latents_w: Tensor,
        /// The rejected x_t'.
        next_latents_l: Tensor,
    },
    /// Each side has its own x_t (D3PO).
    Separate {
        /// x_t of the preferred trajectory.
        latents_w: Tensor,
        /// x_t' of the preferred trajectory.
        next_latents_w: Tensor,
        /// x_t of the rejected trajectory.
        latents_l: Tensor,
        /// x_t' of the rejected trajectory.
        next_latents_l: Tensor,
    },
}

impl PairLatents {
    /// The tensors in the order of their fields: three where x_t is shared, else four.
    fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Self::Shared { latents, next_latents_w, next_latents_l } => vec![latents, next_latents_w, next_latents_l],
            Self::Separate { latents_w, next_latents_w, latents_l, next_latents_l } => {
                vec![latents_w, next_latents_w, latents_l, next_latents_l]
            }
        }
    }
}

/// A batch of pairs of DDIM steps, ready for the loss.
#[derive(Debug)]
pub struct PairBatch {
    /// The latents.
    pub latents: PairLatents,
    /// The timestep of each pair; both sides share it.
    pub timesteps: Vec<i64>,
    /// The prompt of each pair, an index into the predictors' conditioning.
    pub prompts: Vec<usize>,
    /// Whether each pair has a winner; ties give no gradient.
    pub decided: Vec<bool>,
}

impl PairBatch {
    /// SPO's pairs of one rollout, in the order given. Errors: [`Error::Input`] for an empty list.
    pub fn from_step_pairs(pairs: &[&StepPair]) -> Result<Self> {
        if pairs.is_empty() {
            return Err(Error::Input { what: "pairs".into(), expected: "at least one".into(), found: "none".into() });
        }
        let stack = |pick: fn(&StepPair) -> &Tensor| {
            Tensor::f_stack(&pairs.iter().map(|pair| pick(pair)).collect::<Vec<_>>(), 0)
        };
        Ok(Self {
            latents: PairLatents::Shared {
                latents: stack(|p| &p.latents)?,
                next_latents_w: stack(|p| &p.next_latents_w)?,
                next_latents_l: stack(|p| &p.next_latents_l)?,
            },
            timesteps: pairs.iter().map(|p| p.timestep).collect(),
            prompts: pairs.iter().map(|p| p.prompt).collect(),
            decided: vec![true; pairs.len()],
        })
    }

    /// D3PO's pairs of one rollout at one step per prompt: row i takes step `steps[i]` of both its trajectories, with
    /// the winner named by `preferences[i]`. Errors: [`Error::Input`] for lists of the wrong length or a step too far.
    pub fn from_trajectories(pair: &TrajectoryPair, preferences: &[Preference], steps: &[usize]) -> Result<Self> {
        let (rows, total) = (pair.prompts.len(), pair.sides[0].timesteps.len());
        if preferences.len() != rows || steps.len() != rows || steps.iter().any(|&s| s >= total) {
            return Err(Error::Input {
                what: "preferences and steps".into(),
                expected: format!("{rows} each, steps below {total}"),
                found: format!("{} and {steps:?}", preferences.len()),
            });
        }
        let gather = |winner: bool, offset: usize| {
            let row = |i: usize| {
                let side = usize::from((preferences[i] == Preference::Second) == winner);
                pair.sides[side].latents[steps[i] + offset].get(i as i64)
            };
            Tensor::f_stack(&(0..rows).map(row).collect::<Vec<_>>(), 0)
        };
        Ok(Self {
            latents: PairLatents::Separate {
                latents_w: gather(true, 0)?,
                next_latents_w: gather(true, 1)?,
                latents_l: gather(false, 0)?,
                next_latents_l: gather(false, 1)?,
            },
            timesteps: steps.iter().map(|&s| pair.sides[0].timesteps[s]).collect(),
            prompts: pair.prompts.clone(),
            decided: preferences.iter().map(|p| p.decided()).collect(),
        })
    }

    /// Batches of one kind as one, in order. Errors: [`Error::Input`] for none, or for a mixture of the two kinds.
    pub fn join(batches: &[Self]) -> Result<Self> {
        let columns: Vec<Vec<&Tensor>> = batches.iter().map(|batch| batch.latents.tensors()).collect();
        let refuse = |found: &str| Error::Input {
            what: "batches".into(),
            expected: "at least one, all with the same kind of latents".into(),
            found: found.into(),
        };
        let width = columns.first().ok_or_else(|| refuse("none"))?.len();
        if columns.iter().any(|tensors| tensors.len() != width) {
            return Err(refuse("a mixture"));
        }
        let cat = |i: usize| Tensor::f_cat(&columns.iter().map(|tensors| tensors[i]).collect::<Vec<_>>(), 0);
        let latents = if width == 3 {
            PairLatents::Shared { latents: cat(0)?, next_latents_w: cat(1)?, next_latents_l: cat(2)? }
        } else {
            PairLatents::Separate {
                latents_w: cat(0)?,
                next_latents_w: cat(1)?,
                latents_l: cat(2)?,
                next_latents_l: cat(3)?,
            }
        };
        Ok(Self {
            latents,
            timesteps: batches.iter().flat_map(|batch| batch.timesteps.iter().copied()).collect(),
            prompts: batches.iter().flat_map(|batch| batch.prompts.iter().copied()).collect(),
            decided: batches.iter().flat_map(|batch| batch.decided.iter().copied()).collect(),
        })
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.timesteps.len()
    }

    /// Whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.timesteps.is_empty()
    }

    /// U-Net rows per pair: 1 where x_t is shared, else 2.
    pub fn rows_per_pair(&self) -> usize {
        match self.latents {
            PairLatents::Shared { .. } => 1,
            PairLatents::Separate { .. } => 2,
        }
    }

    /// The pairs at `indices`, in that order (indices below `len`).
    pub fn select(&self, indices: &[usize]) -> Result<Self> {
        let rows = Tensor::from_slice(&indices.iter().map(|&i| i as i64).collect::<Vec<_>>());
        let pick = |t: &Tensor| t.f_index_select(0, &rows.to_device(t.device()));
        let latents = match &self.latents {
            PairLatents::Shared { latents, next_latents_w, next_latents_l } => PairLatents::Shared {
                latents: pick(latents)?,
                next_latents_w: pick(next_latents_w)?,
                next_latents_l: pick(next_latents_l)?,
            },
            PairLatents::Separate { latents_w, next_latents_w, latents_l, next_latents_l } => PairLatents::Separate {
                latents_w: pick(latents_w)?,
                next_latents_w: pick(next_latents_w)?,
                latents_l: pick(latents_l)?,
                next_latents_l: pick(next_latents_l)?,
            },
        };
        Ok(Self {
            latents,
            timesteps: indices.iter().map(|&i| self.timesteps[i]).collect(),
            prompts: indices.iter().map(|&i| self.prompts[i]).collect(),
            decided: indices.iter().map(|&i| self.decided[i]).collect(),
        })
    }

    /// The batch as the U-Net sees it: x_t and x_t' of every row (winners first), with one timestep and prompt each.
    pub(super) fn rows(&self) -> Result<Rows> {
        match &self.latents {
            PairLatents::Shared { latents, next_latents_w, next_latents_l } => Ok(Rows {
                latents: latents.shallow_clone(),
                sides: [next_latents_w.shallow_clone(), next_latents_l.shallow_clone()],
                timesteps: self.timesteps.clone(),
                prompts: self.prompts.clone(),
            }),
            PairLatents::Separate { latents_w, next_latents_w, latents_l, next_latents_l } => Ok(Rows {
                latents: Tensor::f_cat(&[latents_w, latents_l], 0)?,
                sides: [next_latents_w.shallow_clone(), next_latents_l.shallow_clone()],
                timesteps: self.timesteps.repeat(2),
                prompts: self.prompts.repeat(2),
            }),
        }
    }
}

/// The rows of one U-Net pass over a batch of pairs.
pub(super) struct Rows {
    pub(super) latents: Tensor,
    /// x_t' of winners and losers, `[B, C, h, w]` each.
    pub(super) sides: [Tensor; 2],
    pub(super) timesteps: Vec<i64>,
    pub(super) prompts: Vec<usize>,
}
