//! Diffusion-SDPO's winner-preserving safeguard: the loser's gradient is scaled so that, to first order, an update does
//! not raise the winner's error (arXiv 2511.03317; docs/stability.md).

use tch::{Kind, Tensor};

/// λ per pair, `[B]` f32 in [0, 1], what the gradient through the loser is to be multiplied by.
///
/// `winner` and `loser` are h_w and h_l, the gradients of the log-likelihoods with respect to the predicted noise,
/// `[B, C, h, w]`; `winner_weight` and `loser_weight` `[B]` are what the loss multiplies them by, up to a common factor
/// (1 each in plain DPO; 0 where the clip cut; the flipper's s for the loser). The loss moves the prediction along
/// w·h_w − λ·l·h_l. With E = −ℓ_w the winner's error, it does not rise where the inner product with h_w is not negative:
///
/// λ = min(1, (1−μ)·w·‖h_w‖² / (l·⟨h_w, h_l⟩)) where l·⟨h_w, h_l⟩ > 0, else 1;
///
/// μ in [0, 1] is the share of the winner's own descent that must remain.
pub fn loser_scale(winner: &Tensor, loser: &Tensor, winner_weight: &Tensor, loser_weight: &Tensor, mu: f64) -> Tensor {
    let _frozen = tch::no_grad_guard();
    let inner = |a: &Tensor, b: &Tensor| (a * b).to_kind(Kind::Double).flatten(1, -1).sum_dim_intlist(1, false, None);
    let descent = inner(winner, winner) * winner_weight.to_kind(Kind::Double) * (1.0 - mu);
    let ascent = inner(winner, loser) * loser_weight.to_kind(Kind::Double);
    let bound = (&descent / &ascent).clamp(0.0, 1.0);
    bound.where_self(&ascent.gt(0.0), &bound.ones_like()).to_kind(Kind::Float)
}

/// `log_ratio` `[B]` with the same values and `scale` times its gradient.
pub fn scale_gradient(log_ratio: &Tensor, scale: &Tensor) -> Tensor {
    let still = log_ratio.detach();
    // still + λ·(r − still) is r up to rounding; r + (λ − 1)·(r − still) is r exactly, as r − still is 0.
    log_ratio + (log_ratio - still) * (scale - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(values: &[[f32; 2]]) -> Tensor {
        Tensor::from_slice(values.as_flattened()).reshape([-1, 1, 1, 2])
    }

    fn scale(winner: [f32; 2], loser: [f32; 2], weights: [f32; 2], mu: f64) -> f64 {
        let [w, l] = weights.map(|weight| Tensor::from_slice(&[weight]));
        loser_scale(&rows(&[winner]), &rows(&[loser]), &w, &l, mu).double_value(&[0])
    }

    #[test]
    fn closed_form() {
        // ⟨h_w, h_l⟩ = 8, ‖h_w‖² = 4.
        assert_eq!(scale([2.0, 0.0], [4.0, 7.0], [1.0, 1.0], 0.0), 0.5);
        assert_eq!(scale([2.0, 0.0], [4.0, 7.0], [1.0, 1.0], 0.5), 0.25);
        // Opposite or small losers are left alone.
        assert_eq!(scale([2.0, 0.0], [-4.0, 7.0], [1.0, 1.0], 0.5), 1.0);
        assert_eq!(scale([2.0, 0.0], [0.5, 7.0], [1.0, 1.0], 0.0), 1.0);
        // A winner that the clip cut gives nothing to spend; s = −1 turns the loser round.
        assert_eq!(scale([2.0, 0.0], [4.0, 7.0], [0.0, 1.0], 0.0), 0.0);
        assert_eq!(scale([2.0, 0.0], [4.0, 7.0], [1.0, -1.0], 0.0), 1.0);
        assert_eq!(scale([2.0, 0.0], [-4.0, 7.0], [1.0, -1.0], 0.0), 0.5);
        // Neither moves: nothing to scale.
        assert_eq!(scale([0.0, 0.0], [0.0, 0.0], [1.0, 1.0], 0.0), 1.0);
    }

    /// A step along the scaled direction keeps the winner's squared error from rising, and one along the plain one raises
    /// it, on many random pairs whose gradients are aligned.
    #[test]
    fn the_winners_error_does_not_rise() {
        use seedpo_tensor::NoiseKey;
        let draw = |purpose: &'static str| NoiseKey::new(3, purpose).normal(&[64, 4, 3, 3]);
        let residual_w = draw("winner");
        let residual_l = &residual_w * 2.0 + draw("loser");
        let ones = Tensor::ones([64], (Kind::Float, tch::Device::Cpu));
        let lambda = loser_scale(&residual_w, &residual_l, &ones, &ones, 0.1).reshape([-1, 1, 1, 1]);
        let rise = |scale: &Tensor| {
            // ε_w moves along h_w − λ·h_l (the same parameters move both); its error is residual − movement.
            let after = &residual_w - (&residual_w - &residual_l * scale) * 1e-3;
            let error = |r: &Tensor| (r * r).sum_dim_intlist([1i64, 2, 3].as_slice(), false, None);
            (error(&after) - error(&residual_w)).max().double_value(&[])
        };
        assert!(rise(&lambda) < 0.0 && rise(&lambda.ones_like()) > 0.0);
    }

    #[test]
    fn values_stay_to_the_bit_and_gradients_scale() {
        let r = Tensor::from_slice(&[0.1f32, -3.7e-5, 12.3]).set_requires_grad(true);
        let lambda = Tensor::from_slice(&[0.3f32, 0.0, 1.0]);
        let scaled = scale_gradient(&r, &lambda);
        assert!(scaled.equal(&r));
        scaled.sum(Kind::Float).backward();
        assert!((r.grad() - lambda).abs().max().double_value(&[]) < 1e-7);
    }
}
