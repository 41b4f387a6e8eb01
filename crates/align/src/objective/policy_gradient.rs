//! DDPO's and DPOK's loss of single steps (docs/methods.md section 4.5).

use seedpo_rollout::ddim::per_row_mean;
use seedpo_rollout::{Ddim, Transition};
use tch::{Kind, Tensor};

use super::pairs::Rows;
use super::{LossOutput, Objective, PairBatch};
use crate::Result;

/// Steps x_t -> x_t' of a batch under the policy, the rewards' advantages, and what the steps are compared with.
pub(super) struct Steps {
    policy: Transition,
    /// The reference's steps, where the distance to it is part of the loss.
    reference: Option<Transition>,
    /// x_t', `[B, C, h, w]`.
    next: Tensor,
    /// log π_old(x_t' | x_t, c) of the policy that drew the steps, `[B]`.
    old_log_probs: Tensor,
    /// `[B]`.
    advantages: Tensor,
}

impl Steps {
    /// From predictions of policy and reference. `scalars` `[B, 2]`: old log-probabilities and advantages.
    pub(super) fn new(
        rows: &Rows,
        ddim: &Ddim,
        scalars: &Tensor,
        noise_pred: &Tensor,
        noise_ref: Option<&Tensor>,
    ) -> Result<Self> {
        let of = |noise: &Tensor| ddim.transition(&rows.timesteps, &rows.latents, noise);
        let scalars = scalars.to_device(noise_pred.device());
        Ok(Self {
            policy: of(noise_pred)?,
            reference: noise_ref.map(of).transpose()?,
            next: rows.sides[0].shallow_clone(),
            old_log_probs: scalars.select(1, 0),
            advantages: scalars.select(1, 1),
        })
    }

    /// mean over the batch of max(−A·ρ, −A·clip(ρ)) + w_KL·KL, ρ = π_θ/π_old, KL per element to the reference's step.
    ///
    /// Margins are A·ln ρ: above 0 where the policy has moved as the advantage asks. Errors: what the steps refuse.
    pub(super) fn loss(&self, batch: &PairBatch, objective: &Objective) -> Result<LossOutput> {
        objective.check()?;
        let log_ratio = self.policy.log_prob(&self.next)? - &self.old_log_probs;
        let (clipped, outside) = objective.clip.apply(&log_ratio);
        let (free, held) = (-&self.advantages * log_ratio.exp(), -&self.advantages * clipped.exp());
        // Beyond the clip the held value is constant; it is the larger one where moving on would gain.
        let cut = outside.logical_and(&held.detach().ge_tensor(&free.detach()));
        let mut per_sample = free.f_maximum(&held)?;
        let mut kl = per_sample.detach().zeros_like();
        if let Some(reference) = &self.reference {
            let apart = &self.policy.mean - reference.mean.detach();
            let std = self.policy.std.reshape([-1, 1, 1, 1]);
            let distance = per_row_mean(&((&apart / &std) * (&apart / &std))) * 0.5;
            kl = distance.detach();
            per_sample += distance * objective.kl_weight;
        }
        let weights = batch.weights.as_deref().map(|w| Tensor::from_slice(w).to_device(per_sample.device()));
        if let Some(weights) = &weights {
            per_sample *= weights;
        }
        let log_ratio = log_ratio.detach();
        let ones = log_ratio.ones_like();
        Ok(LossOutput {
            loss: per_sample.mean(Kind::Float),
            margin: &self.advantages * &log_ratio,
            per_pair: per_sample.detach(),
            log_ratios: [log_ratio.shallow_clone(), log_ratio],
            clipped: [cut.shallow_clone(), cut],
            decided: ones.to_kind(Kind::Bool),
            weights,
            kl: [kl.shallow_clone(), kl],
            loser_scale: ones,
            signs: None,
        })
    }

    /// ∂loss/∂ε, `[B, C, h, w]` f32, from the loss's output.
    pub(super) fn noise_gradient(
        &self,
        rows: &Rows,
        ddim: &Ddim,
        objective: &Objective,
        output: &LossOutput,
    ) -> Result<Tensor> {
        let slopes = rows.timesteps.iter().map(|&t| ddim.mean_slope(t)).collect::<seedpo_rollout::Result<Vec<_>>>()?;
        let column = |values: &Tensor| values.reshape([-1, 1, 1, 1]);
        let passes = output.clipped[0].logical_not().to_kind(Kind::Float);
        let slope = -&self.advantages * output.log_ratios[0].exp() * passes;
        let mut gradient = self.policy.log_prob_gradient(&self.next, &slopes)? * column(&slope);
        if let Some(reference) = &self.reference {
            // KL's is that of −ln π at μ_ref.
            gradient -= self.policy.log_prob_gradient(&reference.mean, &slopes)? * objective.kl_weight;
        }
        if let Some(weights) = &output.weights {
            gradient *= column(weights);
        }
        Ok(gradient / output.pairs() as f64)
    }
}
