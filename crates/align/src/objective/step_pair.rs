//! From a batch of pairs to loss and gradients: one policy pass and one reference pass (docs/methods.md section 6).

use seedpo_rollout::{Ddim, NoisePredictor, Transition};
use tch::{Kind, Tensor};

use super::pairs::Rows;
use super::policy_gradient::Steps;
use super::safeguard::{loser_scale, scale_gradient};
use super::{
    Flipper, LossOutput, Objective, PairBatch, PairLatents, Side, denoising_error, pairwise_loss, supervised_loss,
};
use crate::{Error, Result};

/// The loss of a batch of pairs, with graph: exactly one pass of `policy` and one of `reference`.
///
/// Where the pairs share x_t (SPO) the passes have B rows and serve both sides; else (D3PO) both sides are stacked into
/// 2B rows. `reference` runs without graph, and not at all for winners alone (SFT). Errors: what the predictors refuse, σ = 0, [`crate::Error::Input`].
pub fn step_pair_loss(
    policy: &dyn NoisePredictor,
    reference: &dyn NoisePredictor,
    ddim: &Ddim,
    batch: &PairBatch,
    objective: &Objective,
) -> Result<LossOutput> {
    let rows = batch.rows()?;
    let compared_with = || tch::no_grad(|| reference.predict(&rows.latents, &rows.timesteps, &rows.prompts));
    let noise_ref = batch.needs_reference().then(compared_with).transpose()?;
    let noise_pred = policy.predict(&rows.latents, &rows.timesteps, &rows.prompts)?;
    Ok(compare(&rows, ddim, batch, objective, &noise_pred, noise_ref.as_ref())?.output)
}

/// Loss of a batch of pairs, its gradient added to `.grad` of the policy's adapter tensors; the output has no graph.
///
/// `grad_scale` multiplies the gradient only (1/n where n batches make one update). `max_rows` bounds the U-Net rows
/// with a graph at any time: the batch is cut into micro-batches of whole pairs, each divided by the full batch's size,
/// so the result is that of one pass; with `max_rows` 1 a D3PO pair is split by [`two_pass`], which a policy with gradient
/// checkpointing always takes. Ties are never run
/// (their margin is reported as 0), and a micro-batch whose pairs are all clipped on both sides skips its backward pass.
/// Errors: as [`step_pair_loss`].
pub fn accumulate_step_pairs(
    policy: &dyn NoisePredictor,
    reference: &dyn NoisePredictor,
    ddim: &Ddim,
    batch: &PairBatch,
    objective: &Objective,
    max_rows: usize,
    grad_scale: f64,
) -> Result<LossOutput> {
    objective.check()?;
    let decided: Vec<usize> = (0..batch.len()).filter(|&i| batch.decided[i]).collect();
    let per_pass = (max_rows / batch.rows_per_pair()).max(1);
    let split_sides = max_rows < batch.rows_per_pair();
    let mut parts = Vec::new();
    for indices in decided.chunks(per_pass) {
        let part = batch.select(indices)?;
        let share = indices.len() as f64 / batch.len() as f64;
        parts.push(if split_sides || policy.checkpoints() {
            two_pass(policy, reference, ddim, &part, objective, max_rows, grad_scale * share)?
        } else {
            let mut output = step_pair_loss(policy, reference, ddim, &part, objective)?;
            if batch.regularised() || output.needs_grad().any().int64_value(&[]) != 0 {
                (&output.loss * (grad_scale * share)).f_backward()?;
            }
            // Where nothing ran backward, the activations would stay until the last part is done.
            output.loss = output.loss.detach();
            output
        });
    }
    Ok(LossOutput::gather(&parts, &decided, batch.len()))
}

/// The two-pass form: margins and ∂loss/∂ε without graph, then the backward pass of ⟨ε_θ, ∂loss/∂ε⟩, `max_rows` rows at
/// a time (docs/methods.md section 6).
///
/// Costs one more forward pass than [`step_pair_loss`] and keeps the activations of those rows only, or of one stage of
/// the U-Net under gradient checkpointing. Rows whose side is clipped are not run again. Gradients are added to `.grad`,
/// times `grad_scale`.
pub fn two_pass(
    policy: &dyn NoisePredictor,
    reference: &dyn NoisePredictor,
    ddim: &Ddim,
    batch: &PairBatch,
    objective: &Objective,
    max_rows: usize,
    grad_scale: f64,
) -> Result<LossOutput> {
    let rows = batch.rows()?;
    let total = rows.timesteps.len();
    let step = max_rows.clamp(1, total.max(1));
    let (mut noise_pred, mut noise_ref, mut pullbacks) = (Vec::new(), Vec::new(), Vec::new());
    for start in (0..total).step_by(step) {
        let range = start..(start + step).min(total);
        let latents = rows.latents.narrow(0, start as i64, range.len() as i64);
        let (timesteps, prompts) = (&rows.timesteps[range.clone()], &rows.prompts[range.clone()]);
        if batch.needs_reference() {
            noise_ref.push(tch::no_grad(|| reference.predict(&latents, timesteps, prompts))?);
        }
        let (noise, pullback) = policy.record(&latents, timesteps, prompts)?;
        noise_pred.push(noise);
        pullbacks.push((range, pullback));
    }
    let noise_pred = Tensor::f_cat(&noise_pred, 0)?;
    let noise_ref = batch.needs_reference().then(|| Tensor::f_cat(&noise_ref, 0)).transpose()?;
    let compared = compare(&rows, ddim, batch, objective, &noise_pred, noise_ref.as_ref())?;
    let gradient = noise_gradient(&rows, ddim, objective, &compared)? * grad_scale;
    for (range, pullback) in pullbacks {
        let part = gradient.narrow(0, range.start as i64, range.len() as i64);
        if part.count_nonzero(None).int64_value(&[]) > 0 {
            pullback(&part)?;
        }
    }
    Ok(compared.output)
}

/// What one policy pass and one reference pass say about a batch of pairs.
struct Compared {
    output: LossOutput,
    /// ∂ℓ_θ/∂ε_θ on each side comes from these.
    policy: PolicySides,
    /// The flipper's s; `None` = 1.
    signs: Option<Tensor>,
}

/// The policy's own part of the likelihood, winners and losers.
enum PolicySides {
    /// Its steps; the same one twice where x_t is shared.
    Steps([Transition; 2]),
    /// ε − ε_θ, `[B, C, h, w]` each, without graph.
    Residuals([Tensor; 2]),
    /// The same of winners that nothing is compared with.
    Winners(Tensor),
    /// Single steps, which the policy that drew them is compared with.
    Single(Steps),
}

impl PolicySides {
    /// ∂ℓ_θ/∂ε_θ of a side, `[B, C, h, w]`.
    fn likelihood_gradient(&self, rows: &Rows, ddim: &Ddim, side: usize) -> Result<Tensor> {
        match self {
            // There are no sides.
            Self::Winners(_) | Self::Single(_) => Ok(rows.sides[side].zeros_like()),
            Self::Residuals(residuals) => {
                let per_row = residuals[side].numel() as f64 / residuals[side].size()[0] as f64;
                Ok(&residuals[side] / per_row)
            }
            Self::Steps(steps) => {
                let pairs = rows.sides[side].size()[0] as usize;
                let slopes = rows.timesteps[..pairs].iter().map(|&t| ddim.mean_slope(t));
                let slopes = slopes.collect::<seedpo_rollout::Result<Vec<_>>>()?;
                Ok(steps[side].log_prob_gradient(&rows.sides[side], &slopes)?)
            }
        }
    }
}

fn compare(
    rows: &Rows,
    ddim: &Ddim,
    batch: &PairBatch,
    objective: &Objective,
    noise_pred: &Tensor,
    noise_ref: Option<&Tensor>,
) -> Result<Compared> {
    if let PairLatents::Winners { noise, .. } = &batch.latents {
        let noise = &noise.to_device(noise_pred.device());
        let output = supervised_loss(&denoising_error(noise_pred, noise), &batch.decided, batch.weights.as_deref())?;
        let residual = (noise - noise_pred).detach();
        return Ok(Compared { output, policy: PolicySides::Winners(residual), signs: None });
    }
    if let PairLatents::Single { scalars, .. } = &batch.latents {
        let steps = Steps::new(rows, ddim, scalars, noise_pred, noise_ref)?;
        let output = steps.loss(batch, objective)?;
        return Ok(Compared { output, policy: PolicySides::Single(steps), signs: None });
    }
    let Some(noise_ref) = noise_ref else {
        let (what, expected) = ("the reference's prediction".into(), "one for every pair".into());
        return Err(Error::Input { what, expected, found: "none".into() });
    };
    let pairs = batch.len() as i64;
    let start = |side: usize| if batch.rows_per_pair() == 1 { 0 } else { side as i64 * pairs };
    let of = |all: &Tensor, side: usize| all.narrow(0, start(side), pairs);
    if let PairLatents::Noised { noise, .. } = &batch.latents {
        let noise = &noise.to_device(noise_pred.device());
        let side = |s: usize| Side::denoising(&of(noise_pred, s), &of(noise_ref, s), noise);
        let residual = |s: usize| (noise - of(noise_pred, s)).detach();
        let policy = PolicySides::Residuals([residual(0), residual(1)]);
        let error = |all: &Tensor| denoising_error(&of(all, 0), noise);
        let signs = objective.flipper.signs(&error(noise_pred), &error(noise_ref));
        let sides = [side(0), side(1)];
        let mut output = guarded_loss(sides, rows, ddim, batch, objective, &policy, signs.as_ref())?;
        output.signs = signs.as_ref().map(Tensor::shallow_clone);
        return Ok(Compared { output, policy, signs });
    }
    if objective.flipper != Flipper::Off {
        return Err(Error::Setting {
            key: "shaping".into(),
            expected: "off: the flipper compares denoising errors, which step pairs do not have".into(),
            found: format!("{:?}", objective.flipper).to_lowercase(),
        });
    }
    let part =
        |side: usize, noise: &Tensor| ddim.transition(&batch.timesteps, &of(&rows.latents, side), &of(noise, side));
    let policy = [part(0, noise_pred)?, part(1, noise_pred)?];
    let reference = [part(0, noise_ref)?, part(1, noise_ref)?];
    let side = |s: usize| Side::transition(&policy[s], &reference[s], &rows.sides[s]);
    let (sides, kl) = ([side(0)?, side(1)?], [policy[0].kl(&reference[0])?, policy[1].kl(&reference[1])?]);
    let policy = PolicySides::Steps(policy);
    let output = guarded_loss(sides, rows, ddim, batch, objective, &policy, None)?;
    Ok(Compared { output: LossOutput { kl, ..output }, policy, signs: None })
}

/// The pairwise loss, the loser's gradient scaled where the safeguard is on.
fn guarded_loss(
    [winner, mut loser]: [Side; 2],
    rows: &Rows,
    ddim: &Ddim,
    batch: &PairBatch,
    objective: &Objective,
    policy: &PolicySides,
    signs: Option<&Tensor>,
) -> Result<LossOutput> {
    let mut scale = None;
    if let Some(mu) = objective.safeguard {
        let gradient = |s: usize| policy.likelihood_gradient(rows, ddim, s);
        let [pass_w, pass_l] = [&winner, &loser].map(|side| objective.clip.passes(&side.log_ratio));
        let weight = signs.map_or_else(|| pass_l.shallow_clone(), |signs| &pass_l * signs);
        let lambda = loser_scale(&gradient(0)?, &gradient(1)?, &pass_w, &weight, mu);
        loser.log_ratio = scale_gradient(&loser.log_ratio, &lambda);
        scale = Some(lambda);
    }
    let mut output = pairwise_loss(&winner, &loser, objective, signs, Some(&batch.decided), batch.weights.as_deref())?;
    output.loser_scale = scale.unwrap_or(output.loser_scale);
    Ok(output)
}

/// ∂loss/∂ε for every row of the U-Net pass, `[rows, C, h, w]` f32: the margin's slope times the likelihood's, 0 where
/// the clip cut. Where x_t is shared both sides add up in one row.
fn noise_gradient(rows: &Rows, ddim: &Ddim, objective: &Objective, compared: &Compared) -> Result<Tensor> {
    let output = &compared.output;
    let pairs = output.pairs();
    if let PolicySides::Winners(residual) = &compared.policy {
        let counts = output.decided.to_kind(Kind::Float);
        let counts = output.weights.as_ref().map_or_else(|| counts.shallow_clone(), |weights| &counts * weights);
        return Ok(residual * counts.reshape([-1, 1, 1, 1]) * (-2.0 / residual.numel() as f64));
    }
    if let PolicySides::Single(steps) = &compared.policy {
        return steps.noise_gradient(rows, ddim, objective, output);
    }
    let margin_slope = output.margin_gradient(objective.beta);
    let side = |s: usize| -> Result<Tensor> {
        let passes = output.clipped[s].logical_not().to_kind(Kind::Float);
        let weight = (&margin_slope * passes).reshape([-1, 1, 1, 1]);
        Ok(compared.policy.likelihood_gradient(rows, ddim, s)? * weight)
    };
    let losers = match &compared.signs {
        Some(signs) => side(1)? * signs.reshape([-1, 1, 1, 1]),
        None => side(1)?,
    };
    // Multiplied only where the safeguard is on: without it nothing may change, not by rounding either.
    let losers = match objective.safeguard {
        Some(_) => losers * output.loser_scale.reshape([-1, 1, 1, 1]),
        None => losers,
    };
    Ok(if rows.timesteps.len() == pairs { side(0)? - losers } else { Tensor::f_cat(&[side(0)?, -losers], 0)? })
}
