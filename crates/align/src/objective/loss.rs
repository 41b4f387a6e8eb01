//! The pairwise loss that every method shares (docs/methods.md section 3).

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::{Flipper, SelfEntropy, Side};
use crate::{Error, Result};

/// The clip of the likelihood ratio exp(r) to [1 − ε, 1 + ε]; `None` is off.
///
/// Done as a clamp of r to [ln(1−ε), ln(1+ε)]: the same function, without the rounding of exp and ln.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Clip(pub Option<f64>);

impl Clip {
    /// Refuses an ε outside (0, 1).
    pub fn check(&self) -> Result<()> {
        match self.0 {
            Some(epsilon) if !(epsilon > 0.0 && epsilon < 1.0) => Err(Error::Setting {
                key: "clip".into(),
                expected: "a number between 0 and 1, or none".into(),
                found: epsilon.to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// 1 where r passes the clip, 0 where the clip cuts it, `[B]` f32.
    pub fn passes(&self, log_ratio: &Tensor) -> Tensor {
        self.apply(log_ratio).1.logical_not().to_kind(Kind::Float)
    }

    /// The bounds of r, `None` where the clip is off.
    pub fn bounds(&self) -> Option<(f64, f64)> {
        self.0.map(|epsilon| ((1.0 - epsilon).ln(), (1.0 + epsilon).ln()))
    }

    /// `log_ratio` clipped, and which entries the clip changed (`[B]` bool; their gradient is 0).
    pub(super) fn apply(&self, log_ratio: &Tensor) -> (Tensor, Tensor) {
        match self.bounds() {
            Some((low, high)) => {
                let outside = log_ratio.detach().lt(low).logical_or(&log_ratio.detach().gt(high));
                (log_ratio.clamp(low, high), outside)
            }
            None => (log_ratio.shallow_clone(), log_ratio.detach().zeros_like().to_kind(Kind::Bool)),
        }
    }
}

/// β, the self-entropy term and the clip: what turns likelihoods into a loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// β of the tuned loss, above 0: 0.1 for D3PO, 10 for SPO as published.
    pub beta: f64,
    /// The self-entropy term.
    pub entropy: SelfEntropy,
    /// The clip of the likelihood ratio.
    pub clip: Clip,
    /// What becomes of the rejected side; only where the likelihood is the denoising error.
    pub flipper: Flipper,
    /// μ of the winner-preserving safeguard, in [0, 1]; `None` is off.
    pub safeguard: Option<f64>,
    /// Weight of the KL to the reference in the loss of single steps (DPOK), 0 or more.
    pub kl_weight: f64,
}

impl Objective {
    /// Refuses values outside their ranges.
    pub fn check(&self) -> Result<()> {
        if !(self.beta.is_finite() && self.beta > 0.0) {
            let found = self.beta.to_string();
            return Err(Error::Setting { key: "beta".into(), expected: "a finite number above 0".into(), found });
        }
        if let Some(mu) = self.safeguard.filter(|mu| !(0.0..=1.0).contains(mu)) {
            let expected = "a number from 0 to 1".into();
            return Err(Error::Setting { key: "safeguard_mu".into(), expected, found: mu.to_string() });
        }
        self.entropy.check()?;
        self.clip.check()
    }
}

/// The loss of a batch of pairs and what to log of it. All tensors but `loss` are without graph.
#[derive(Debug)]
pub struct LossOutput {
    /// Σ over decided pairs of −w·ln σ(β·m), divided by the number of all pairs; scalar, with graph where inputs have one.
    pub loss: Tensor,
    /// m = Δ_w − s·Δ_l before β, `[B]` nats.
    pub margin: Tensor,
    /// −w·ln σ(β·m), `[B]`; 0 for ties.
    pub per_pair: Tensor,
    /// r = ℓ_θ − ℓ_ref of winner and loser, unclipped, `[B]` each.
    pub log_ratios: [Tensor; 2],
    /// Where the clip cut, winner and loser, `[B]` bool each: no gradient through that side.
    pub clipped: [Tensor; 2],
    /// Pairs with a winner, `[B]` bool.
    pub decided: Tensor,
    /// The factor of each pair in the mean, `[B]`; `None` = 1 for all.
    pub weights: Option<Tensor>,
    /// Per-element KL of the policy's step to the reference's, mean((μ−μ_ref)²)/(2σ²), winner and loser, `[B]` each;
    /// 0 where the likelihood is not that of a Gaussian step. For logs.
    pub kl: [Tensor; 2],
    /// λ, what the safeguard multiplied the loser's gradient by, `[B]` in [0, 1]; 1 where it is off.
    pub loser_scale: Tensor,
    /// The flipper's s, `[B]`; `None` = 1 throughout. For logs.
    pub signs: Option<Tensor>,
}

/// −ln σ(β·m) over a batch of pairs, m = Δ_w − s·Δ_l, Δ = clip(r) + (1−κ)·ℓ_ref.
///
/// `signs` are the flipper's s `[B]`; `None` = 1.
/// Shapes: each tensor of `winner` and `loser` `[B]`, any float dtype; `decided` `[B]`, `None` = all. A tie (false)
/// adds neither loss nor gradient, but counts in the mean, as in the public D3PO code (training leaves ties out before). `weights` w `[B]` are factors in
/// that mean, `(w * loss).mean()`, as PyTorch's `binary_cross_entropy_with_logits(weight=w)`; `None` = 1. With γ = 0 the reference term
/// is left out, not multiplied by 0. Errors: [`Error::Setting`], [`Error::Input`] for unequal lengths.
pub fn pairwise_loss(
    winner: &Side,
    loser: &Side,
    objective: &Objective,
    signs: Option<&Tensor>,
    decided: Option<&[bool]>,
    weights: Option<&[f32]>,
) -> Result<LossOutput> {
    objective.check()?;
    let rows = winner.log_ratio.size();
    let lengths = [&winner.reference, &loser.log_ratio, &loser.reference];
    let decided_fits =
        decided.is_none_or(|d| rows == [d.len() as i64]) && weights.is_none_or(|w| rows == [w.len() as i64]);
    if rows.len() != 1 || rows[0] == 0 || lengths.iter().any(|t| t.size() != rows) || !decided_fits {
        let found = lengths.iter().map(|t| format!("{:?}", t.size())).collect::<Vec<_>>().join(", ");
        return Err(Error::Input { what: "pairs".into(), expected: format!("{rows:?} everywhere, at least 1"), found });
    }
    let (clipped_w, cut_w) = objective.clip.apply(&winner.log_ratio);
    let (clipped_l, cut_l) = objective.clip.apply(&loser.log_ratio);
    let signed = |side: Tensor| match signs {
        Some(signs) => side * signs,
        None => side,
    };
    let mut margin = clipped_w - signed(clipped_l);
    let kappa = objective.entropy.kappa();
    if kappa != 1.0 {
        margin += (&winner.reference - signed(loser.reference.shallow_clone())).detach() * (1.0 - kappa);
    }
    let decided = match decided {
        Some(decided) => Tensor::from_slice(decided).to_device(margin.device()),
        None => margin.detach().ones_like().to_kind(Kind::Bool),
    };
    let weights = weights.map(|w| Tensor::from_slice(w).to_kind(margin.kind()).to_device(margin.device()));
    let all = weighted((&margin * objective.beta).log_sigmoid().neg(), weights.as_ref());
    // `where`, not a product: a tie's loss must not turn an infinity into NaN.
    let per_pair = all.where_self(&decided, &all.zeros_like());
    let loss = per_pair.sum(margin.kind()) / rows[0] as f64;
    Ok(LossOutput {
        loss,
        margin: margin.detach(),
        per_pair: per_pair.detach(),
        log_ratios: [winner.log_ratio.detach(), loser.log_ratio.detach()],
        clipped: [cut_w, cut_l],
        decided,
        weights,
        kl: [winner.log_ratio.detach().zeros_like(), loser.log_ratio.detach().zeros_like()],
        loser_scale: winner.log_ratio.detach().ones_like(),
        signs: None,
    })
}

/// The mean denoising error on winners alone (SFT, docs/methods.md section 4.5): `errors` `[B]` with graph, those not
/// `decided` left out of the sum, each times its weight w where there are such. There is no margin, no ratio and no clip: 0, 1 and nothing. Errors: [`Error::Input`]
/// for unequal lengths.
pub fn supervised_loss(errors: &Tensor, decided: &[bool], weights: Option<&[f32]>) -> Result<LossOutput> {
    let fits = weights.is_none_or(|weights| weights.len() == decided.len());
    if errors.size() != [decided.len() as i64] || decided.is_empty() || !fits {
        let (expected, found) = (format!("[{}], at least 1", decided.len()), format!("{:?}", errors.size()));
        return Err(Error::Input { what: "errors".into(), expected, found });
    }
    let decided = Tensor::from_slice(decided).to_device(errors.device());
    let weights = weights.map(|w| Tensor::from_slice(w).to_kind(errors.kind()).to_device(errors.device()));
    let all = weighted(errors.shallow_clone(), weights.as_ref());
    let per_pair = all.where_self(&decided, &all.zeros_like());
    let loss = per_pair.sum(errors.kind()) / errors.numel() as f64;
    let zeros = || errors.detach().zeros_like();
    let nothing = || zeros().to_kind(Kind::Bool);
    Ok(LossOutput {
        loss,
        margin: zeros(),
        per_pair: per_pair.detach(),
        log_ratios: [zeros(), zeros()],
        clipped: [nothing(), nothing()],
        decided,
        weights,
        kl: [zeros(), zeros()],
        loser_scale: zeros().ones_like(),
        signs: None,
    })
}

fn weighted(values: Tensor, weights: Option<&Tensor>) -> Tensor {
    match weights {
        Some(weights) => values * weights,
        None => values,
    }
}

impl LossOutput {
    /// Number of pairs, ties included.
    pub fn pairs(&self) -> usize {
        self.margin.numel()
    }

    /// Number of pairs with a winner.
    pub fn decided_pairs(&self) -> usize {
        self.decided.sum(Kind::Int64).int64_value(&[]) as usize
    }

    /// Which pairs have a gradient at all, `[B]` bool: not tied, and not clipped on both sides. The backward pass of
    /// the others can be skipped (docs/methods.md section 6).
    pub fn needs_grad(&self) -> Tensor {
        self.clipped[0].logical_and(&self.clipped[1]).logical_not().logical_and(&self.decided)
    }

    /// ∂loss/∂m per pair, `[B]`: −w·β·σ(−β·m)/B, 0 for ties.
    pub fn margin_gradient(&self, beta: f64) -> Tensor {
        let slope = (&self.margin * -beta).sigmoid() * (-beta / self.pairs() as f64);
        let slope = weighted(slope, self.weights.as_ref());
        slope.where_self(&self.decided, &slope.zeros_like())
    }

    /// Implicit accuracy: the share of decided pairs with a positive margin, in [0, 1]; a margin of exactly 0 counts ½.
    /// `None` where all pairs are tied.
    pub fn accuracy(&self) -> Option<f64> {
        let right = self.margin.gt(0.0).to_kind(Kind::Double) + self.margin.eq(0.0).to_kind(Kind::Double) * 0.5;
        self.mean_decided(&[&right])
    }

    /// Mean margin of the decided pairs, nats. `None` where all pairs are tied.
    pub fn margin_mean(&self) -> Option<f64> {
        self.mean_decided(&[&self.margin])
    }

    /// Share of the decided pairs' sides that the clip cut, in [0, 1]. `None` where all pairs are tied.
    pub fn clip_fraction(&self) -> Option<f64> {
        self.mean_decided(&[&self.clipped[0], &self.clipped[1]])
    }

    /// Mean unclipped likelihood ratio of the decided pairs' sides; 1 where policy equals reference. `None` as above.
    pub fn ratio_mean(&self) -> Option<f64> {
        self.mean_decided(&[&self.log_ratios[0].exp(), &self.log_ratios[1].exp()])
    }

    fn mean_decided(&self, values: &[&Tensor]) -> Option<f64> {
        let pick = |v: &&Tensor| v.to_kind(Kind::Double).masked_select(&self.decided);
        let picked = Tensor::cat(&values.iter().map(pick).collect::<Vec<_>>(), 0);
        (picked.numel() > 0).then(|| picked.mean(Kind::Double).double_value(&[]))
    }

    /// The outputs of parts of a batch of `total` pairs as one; `indices` says which pair each entry of the parts is, in
    /// order. The pairs not named are ties: margin and loss 0, ratio 1.
    pub(super) fn gather(parts: &[LossOutput], indices: &[usize], total: usize) -> LossOutput {
        let device = parts.first().map_or(Device::Cpu, |part| part.margin.device());
        let rows = Tensor::from_slice(&indices.iter().map(|&i| i as i64).collect::<Vec<_>>()).to_device(device);
        let fill = |default: f64, pick: &dyn Fn(&LossOutput) -> &Tensor| {
            let values: Vec<&Tensor> = parts.iter().map(pick).collect();
            let kind = values.first().map_or(Kind::Float, |v| v.kind());
            let full = Tensor::full([total as i64], default, (kind, device));
            if values.is_empty() { full } else { full.index_copy(0, &rows, &Tensor::cat(&values, 0)) }
        };
        let flags = |pick: &dyn Fn(&LossOutput) -> &Tensor| fill(0.0, pick).to_kind(Kind::Bool);
        let per_pair = fill(0.0, &|p| &p.per_pair);
        // 1 for the pairs left out; absent where a part has none.
        let optional = |pick: &dyn Fn(&LossOutput) -> Option<&Tensor>| {
            let all = parts.iter().map(pick).collect::<Option<Vec<_>>>().filter(|all| !all.is_empty())?;
            let ones = Tensor::ones([total as i64], (all[0].kind(), device));
            Some(ones.index_copy(0, &rows, &Tensor::cat(&all, 0)))
        };
        LossOutput {
            loss: per_pair.sum(per_pair.kind()) / total as f64,
            margin: fill(0.0, &|p| &p.margin),
            per_pair,
            log_ratios: [fill(0.0, &|p| &p.log_ratios[0]), fill(0.0, &|p| &p.log_ratios[1])],
            clipped: [flags(&|p| &p.clipped[0]), flags(&|p| &p.clipped[1])],
            decided: flags(&|p| &p.decided),
            weights: optional(&|p| p.weights.as_ref()),
            kl: [fill(0.0, &|p| &p.kl[0]), fill(0.0, &|p| &p.kl[1])],
            loser_scale: fill(1.0, &|p| &p.loser_scale),
            signs: optional(&|p| p.signs.as_ref()),
        }
    }
}
