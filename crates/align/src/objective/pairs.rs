//! Batches of step pairs, whatever made them.

use seedpo_model::NoiseSchedule;
use seedpo_rollout::{StepPair, Trajectory, TrajectoryPair};
use tch::Tensor;

use super::Preference;
use crate::{Error, Result};

/// The latents of a batch of pairs; every tensor `[B, C, h, w]`. What is in them names the likelihood: that of a step
/// from x_t to x_t', or the denoising error.
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
    /// Two clean images with the same noise at the same t (Diffusion-DPO, SePPO).
    Noised {
        /// x_t of the preferred image.
        latents_w: Tensor,
        /// x_t of the rejected image.
        latents_l: Tensor,
        /// ε, the noise of both.
        noise: Tensor,
    },
    /// Clean images noised, with nothing on the other side (SFT).
    Winners {
        /// x_t of the image.
        latents_w: Tensor,
        /// ε.
        noise: Tensor,
    },
    /// Single steps with the advantages of the trajectories they are of (DDPO, DPOK).
    Single {
        /// x_t.
        latents: Tensor,
        /// x_t'.
        next_latents: Tensor,
        /// `[B, 2]`: the log-probability of the step under the policy that drew it, and the advantage.
        scalars: Tensor,
        /// Whether the distance to a reference is part of the loss.
        regularised: bool,
    },
}

impl PairLatents {
    /// Clean latents noised to timestep t: the same ε on both sides (docs/methods.md section 4.2).
    ///
    /// `clean_w`, `clean_l`, `noise` `[B, C, h, w]`, scaled as the U-Net sees them; `timesteps` `[B]`.
    pub fn noised(
        schedule: &NoiseSchedule,
        clean_w: &Tensor,
        clean_l: &Tensor,
        noise: Tensor,
        timesteps: &[i64],
    ) -> Result<Self> {
        let t = Tensor::from_slice(timesteps);
        let add = |clean: &Tensor| schedule.add_noise(clean, &noise, &t);
        Ok(Self::Noised { latents_w: add(clean_w)?, latents_l: add(clean_l)?, noise })
    }

    /// Clean latents `[B, C, h, w]` noised to timestep t, for supervision or as one side of pairs to come.
    pub fn winners(schedule: &NoiseSchedule, clean: &Tensor, noise: Tensor, timesteps: &[i64]) -> Result<Self> {
        let latents_w = schedule.add_noise(clean, &noise, &Tensor::from_slice(timesteps))?;
        Ok(Self::Winners { latents_w, noise })
    }

    /// Winners as pairs: the other side's clean latents `[B, C, h, w]` noised with the winners' ε and t.
    /// Errors: [`Error::Input`] for latents that have another side already.
    pub fn against(&self, schedule: &NoiseSchedule, clean_l: &Tensor, timesteps: &[i64]) -> Result<Self> {
        let Self::Winners { latents_w, noise } = self else {
            let expected = "winners alone".into();
            return Err(Error::Input { what: "latents".into(), expected, found: "pairs".into() });
        };
        let latents_l =
            schedule.add_noise(&clean_l.to_device(noise.device()), noise, &Tensor::from_slice(timesteps))?;
        Ok(Self::Noised { latents_w: latents_w.shallow_clone(), latents_l, noise: noise.shallow_clone() })
    }

    /// The tensors in the order of their fields.
    fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Self::Shared { latents, next_latents_w, next_latents_l } => vec![latents, next_latents_w, next_latents_l],
            Self::Separate { latents_w, next_latents_w, latents_l, next_latents_l } => {
                vec![latents_w, next_latents_w, latents_l, next_latents_l]
            }
            Self::Noised { latents_w, latents_l, noise } => vec![latents_w, latents_l, noise],
            Self::Winners { latents_w, noise } => vec![latents_w, noise],
            Self::Single { latents, next_latents, scalars, .. } => vec![latents, next_latents, scalars],
        }
    }

    /// The same kind of latents, each tensor made from the place it has in [`tensors`](Self::tensors).
    fn map(&self, mut make: impl FnMut(usize, &Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(match self {
            Self::Shared { latents, next_latents_w, next_latents_l } => Self::Shared {
                latents: make(0, latents)?,
                next_latents_w: make(1, next_latents_w)?,
                next_latents_l: make(2, next_latents_l)?,
            },
            Self::Separate { latents_w, next_latents_w, latents_l, next_latents_l } => Self::Separate {
                latents_w: make(0, latents_w)?,
                next_latents_w: make(1, next_latents_w)?,
                latents_l: make(2, latents_l)?,
                next_latents_l: make(3, next_latents_l)?,
            },
            Self::Noised { latents_w, latents_l, noise } => {
                Self::Noised { latents_w: make(0, latents_w)?, latents_l: make(1, latents_l)?, noise: make(2, noise)? }
            }
            Self::Winners { latents_w, noise } => {
                Self::Winners { latents_w: make(0, latents_w)?, noise: make(1, noise)? }
            }
            Self::Single { latents, next_latents, scalars, regularised } => Self::Single {
                latents: make(0, latents)?,
                next_latents: make(1, next_latents)?,
                scalars: make(2, scalars)?,
                regularised: *regularised,
            },
        })
    }
}

/// A batch of pairs, ready for the loss.
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
    /// The factor of each pair in the mean of the losses; `None` = 1 for all.
    pub weights: Option<Vec<f32>>,
}

/// Whether there are rows and steps, and all of them exist.
fn within(picks: &[(usize, usize)], rows: usize, steps: usize) -> bool {
    !picks.is_empty() && picks.iter().all(|&(row, step)| row < rows && step < steps)
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
            weights: None,
        })
    }

    /// D3PO's pairs of one rollout: for each of `picks` a row and a step of both its trajectories, the winner named by
    /// `preferences[row]`. Errors: [`Error::Input`] for a list of the wrong length, a row or step too far.
    pub fn from_trajectories(
        pair: &TrajectoryPair,
        preferences: &[Preference],
        picks: &[(usize, usize)],
    ) -> Result<Self> {
        let (rows, total) = (pair.prompts.len(), pair.sides[0].timesteps.len());
        if preferences.len() != rows || !within(picks, rows, total) {
            return Err(Error::Input {
                what: "preferences, rows and steps".into(),
                expected: format!("{rows} preferences, rows below {rows}, steps below {total}"),
                found: format!("{} and {picks:?}", preferences.len()),
            });
        }
        let gather = |winner: bool, offset: usize| {
            let latents = |&(row, step): &(usize, usize)| {
                let side = usize::from((preferences[row] == Preference::Second) == winner);
                pair.sides[side].latents[step + offset].get(row as i64)
            };
            Tensor::f_stack(&picks.iter().map(latents).collect::<Vec<_>>(), 0)
        };
        Ok(Self {
            latents: PairLatents::Separate {
                latents_w: gather(true, 0)?,
                next_latents_w: gather(true, 1)?,
                latents_l: gather(false, 0)?,
                next_latents_l: gather(false, 1)?,
            },
            timesteps: picks.iter().map(|&(_, step)| pair.sides[0].timesteps[step]).collect(),
            prompts: picks.iter().map(|&(row, _)| pair.prompts[row]).collect(),
            decided: picks.iter().map(|&(row, _)| preferences[row].decided()).collect(),
            weights: None,
        })
    }

    /// Steps of single trajectories: for each of `picks` a row and a step of it. `prompts` and `advantages` have an entry
    /// per row; `regularised` says whether the loss has a reference. Errors: [`Error::Input`] for lists of the wrong
    /// length, a row or step too far, or a trajectory without log-probabilities.
    pub fn from_samples(
        trajectory: &Trajectory,
        prompts: &[usize],
        advantages: &[f64],
        picks: &[(usize, usize)],
        regularised: bool,
    ) -> Result<Self> {
        let (rows, total) = (prompts.len(), trajectory.timesteps.len());
        let fits = advantages.len() == rows && within(picks, rows, total);
        let Some(log_probs) = trajectory.log_probs.as_ref().filter(|_| fits) else {
            return Err(Error::Input {
                what: "samples".into(),
                expected: format!("log-probabilities, {rows} advantages, rows below {rows}, steps below {total}"),
                found: format!("{} advantages, rows and steps {picks:?}", advantages.len()),
            });
        };
        let stage = |offset: usize| {
            let latents = |&(row, step): &(usize, usize)| trajectory.latents[step + offset].get(row as i64);
            Tensor::f_stack(&picks.iter().map(latents).collect::<Vec<_>>(), 0)
        };
        let old = |&(row, step): &(usize, usize)| log_probs.get(row as i64).get(step as i64);
        let old = Tensor::f_stack(&picks.iter().map(old).collect::<Vec<_>>(), 0)?;
        let advantages: Vec<f32> = picks.iter().map(|&(row, _)| advantages[row] as f32).collect();
        let scalars = Tensor::f_stack(&[&old, &Tensor::from_slice(&advantages).to_device(old.device())], 1)?;
        Ok(Self {
            latents: PairLatents::Single { latents: stage(0)?, next_latents: stage(1)?, scalars, regularised },
            timesteps: picks.iter().map(|&(_, step)| trajectory.timesteps[step]).collect(),
            prompts: picks.iter().map(|&(row, _)| prompts[row]).collect(),
            decided: vec![true; picks.len()],
            weights: None,
        })
    }

    /// Batches of one kind as one, in order. Errors: [`Error::Input`] for none, or for a mixture of the two kinds.
    pub fn join(batches: &[Self]) -> Result<Self> {
        let refuse = |found: &str| Error::Input {
            what: "batches".into(),
            expected: "at least one, all with the same kind of latents".into(),
            found: found.into(),
        };
        let first = &batches.first().ok_or_else(|| refuse("none"))?.latents;
        if batches.iter().any(|batch| std::mem::discriminant(&batch.latents) != std::mem::discriminant(first)) {
            return Err(refuse("a mixture"));
        }
        let columns: Vec<Vec<&Tensor>> = batches.iter().map(|batch| batch.latents.tensors()).collect();
        let cat = |i: usize| Tensor::f_cat(&columns.iter().map(|tensors| tensors[i]).collect::<Vec<_>>(), 0);
        let latents = first.map(|i, _| Ok(cat(i)?))?;
        let weighted = batches.iter().any(|batch| batch.weights.is_some());
        let weights = || batches.iter().flat_map(|b| b.weights.clone().unwrap_or_else(|| vec![1.0; b.len()])).collect();
        Ok(Self {
            weights: weighted.then(weights),
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

    /// U-Net rows per pair: 1 where x_t is shared or there is one side only, else 2.
    pub fn rows_per_pair(&self) -> usize {
        match self.latents {
            PairLatents::Shared { .. } | PairLatents::Winners { .. } | PairLatents::Single { .. } => 1,
            PairLatents::Separate { .. } | PairLatents::Noised { .. } => 2,
        }
    }

    /// Whether the loss compares the policy with a reference.
    pub fn needs_reference(&self) -> bool {
        !matches!(self.latents, PairLatents::Winners { .. } | PairLatents::Single { regularised: false, .. })
    }

    /// Whether there is a gradient where the clip has cut everything: that of the distance to the reference.
    pub(super) fn regularised(&self) -> bool {
        matches!(self.latents, PairLatents::Single { regularised: true, .. })
    }

    /// The pairs at `indices`, in that order (indices below `len`).
    pub fn select(&self, indices: &[usize]) -> Result<Self> {
        let rows = Tensor::from_slice(&indices.iter().map(|&i| i as i64).collect::<Vec<_>>());
        let latents = self.latents.map(|_, t| Ok(t.f_index_select(0, &rows.to_device(t.device()))?))?;
        Ok(Self {
            latents,
            timesteps: indices.iter().map(|&i| self.timesteps[i]).collect(),
            prompts: indices.iter().map(|&i| self.prompts[i]).collect(),
            decided: indices.iter().map(|&i| self.decided[i]).collect(),
            weights: self.weights.as_ref().map(|weights| indices.iter().map(|&i| weights[i]).collect()),
        })
    }

    /// The batch as the U-Net sees it: x_t of every row (winners first), with one timestep and prompt each.
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
            PairLatents::Noised { latents_w, latents_l, noise } => Ok(Rows {
                latents: Tensor::f_cat(&[latents_w, latents_l], 0)?,
                sides: [noise.shallow_clone(), noise.shallow_clone()],
                timesteps: self.timesteps.repeat(2),
                prompts: self.prompts.repeat(2),
            }),
            PairLatents::Winners { latents_w, noise } => Ok(Rows {
                latents: latents_w.shallow_clone(),
                sides: [noise.shallow_clone(), noise.shallow_clone()],
                timesteps: self.timesteps.clone(),
                prompts: self.prompts.clone(),
            }),
            PairLatents::Single { latents, next_latents, .. } => Ok(Rows {
                latents: latents.shallow_clone(),
                sides: [next_latents.shallow_clone(), next_latents.shallow_clone()],
                timesteps: self.timesteps.clone(),
                prompts: self.prompts.clone(),
            }),
        }
    }
}

/// The rows of one U-Net pass over a batch of pairs.
pub(super) struct Rows {
    pub(super) latents: Tensor,
    /// What winners and losers are compared with, `[B, C, h, w]` each: x_t', or ε.
    pub(super) sides: [Tensor; 2],
    pub(super) timesteps: Vec<i64>,
    pub(super) prompts: Vec<usize>,
}
