//! The denoising-error losses as arithmetic, in float64: finite differences, and what the flipper does in each direction.

use seedpo_align::objective::{
    EntropyForm, Flipper, LossOutput, Objective, Side, denoising_error, pairwise_loss, supervised_loss,
};
use tch::{Device, Kind, Tensor};

use crate::pure::objective;

/// ε_θ and ε_ref of winner and other side, and ε: `[3, 2, 2, 2]` f64. The policy fits the first winner better than the
/// reference does, the second worse, the third equally well.
struct Predictions {
    policy: [Tensor; 2],
    reference: [Tensor; 2],
    noise: Tensor,
}

fn predictions() -> Predictions {
    tch::manual_seed(11);
    let draw = || Tensor::randn([3, 2, 2, 2], (Kind::Double, Device::Cpu));
    let noise = draw();
    let off = draw() * 0.3;
    let scale = |factors: [f64; 3]| Tensor::from_slice(&factors).reshape([3, 1, 1, 1]);
    let near = |factors: [f64; 3]| &noise + &off * scale(factors);
    Predictions { policy: [near([0.5, 2.0, 1.0]), draw()], reference: [near([1.0, 1.0, 1.0]), draw()], noise }
}

impl Predictions {
    fn signs(&self, flipper: Flipper) -> Option<Tensor> {
        let error = |noise_pred: &Tensor| denoising_error(noise_pred, &self.noise);
        flipper.signs(&error(&self.policy[0]), &error(&self.reference[0]))
    }

    fn loss(&self, objective: &Objective) -> LossOutput {
        let side = |s: usize| Side::denoising(&self.policy[s], &self.reference[s], &self.noise);
        let signs = self.signs(objective.flipper);
        pairwise_loss(&side(0), &side(1), objective, signs.as_ref(), None, None).unwrap()
    }
}

fn flipped(flipper: Flipper, gamma: f64) -> Objective {
    Objective { flipper, ..objective(3.0, gamma, EntropyForm::Flatten, None) }
}

/// dloss/dx at every element of a leaf, by central differences of `loss`.
fn assert_gradient(leaf: &Tensor, loss: &dyn Fn() -> f64, what: &str) {
    let gradient = leaf.grad();
    let flat = leaf.detach().view(-1);
    for i in 0..flat.numel() as i64 {
        let at = |h: f64| {
            let _ = flat.get(i).f_add_scalar_(h).unwrap();
            let value = loss();
            let _ = flat.get(i).f_sub_scalar_(h).unwrap();
            value
        };
        let numeric = (at(1e-5) - at(-1e-5)) / 2e-5;
        let ours = gradient.view(-1).double_value(&[i]);
        assert!((numeric - ours).abs() < 1e-8, "{what}, element {i}: {numeric} {ours}");
    }
}

#[test]
fn gradients_with_every_flipper_equal_finite_differences() {
    for flipper in [Flipper::Off, Flipper::Sign, Flipper::Indicator] {
        for gamma in [0.0, 0.5, 2.0] {
            let mut all = predictions();
            all.policy = all.policy.map(|x| x.set_requires_grad(true));
            let objective = flipped(flipper, gamma);
            all.loss(&objective).loss.backward();
            // The third winner sits on the edge of the flipper, where the loss has a jump and no slope.
            let rows = |x: &Tensor| x.narrow(0, 0, 2).copy();
            let two = Predictions {
                policy: all.policy.each_ref().map(|x| rows(&x.detach()).set_requires_grad(true)),
                reference: all.reference.each_ref().map(rows),
                noise: rows(&all.noise),
            };
            two.loss(&objective).loss.backward();
            for (s, leaf) in two.policy.iter().enumerate() {
                let value = || tch::no_grad(|| two.loss(&objective).loss.double_value(&[]));
                assert_gradient(leaf, &value, &format!("{flipper:?} gamma {gamma} side {s}"));
            }
        }
    }
}

#[test]
fn supervision_is_the_mean_squared_error_and_leaves_out_what_is_not_decided() {
    let Predictions { policy: [policy, _], noise, .. } = predictions();
    let policy = policy.set_requires_grad(true);
    let loss = || supervised_loss(&denoising_error(&policy, &noise), &[true, false, true], None).unwrap();
    let output = loss();
    let error = |row: i64| (noise.get(row) - policy.detach().get(row)).square().mean(Kind::Double).double_value(&[]);
    assert!((output.loss.double_value(&[]) - (error(0) + error(2)) / 3.0).abs() < 1e-14);
    output.loss.backward();
    assert_gradient(&policy, &|| tch::no_grad(|| loss().loss.double_value(&[])), "supervision");
    assert_eq!(policy.grad().get(1).abs().max().double_value(&[]), 0.0);
    assert_eq!((output.margin_mean(), output.clip_fraction(), output.ratio_mean()), (Some(0.0), Some(0.0), Some(1.0)));
    assert!(supervised_loss(&denoising_error(&policy, &noise), &[true], None).is_err());
}

/// s = +1 pushes the other side away, s = −1 learns from it, s = 0 leaves it alone.
#[test]
fn the_flipper_turns_the_other_sides_gradient_around() {
    let other_side = |flipper: Flipper| {
        let mut all = predictions();
        all.policy = all.policy.map(|x| x.set_requires_grad(true));
        all.loss(&flipped(flipper, 0.0)).loss.backward();
        // Along ε − ε_θ the error of the other side falls: how the loss changes when the policy goes that way.
        let towards = (&all.noise - all.policy[1].detach()) * all.policy[1].grad();
        let slope = towards.flatten(1, -1).sum_dim_intlist(1, false, Kind::Double);
        (Vec::<f64>::try_from(slope).unwrap(), all.signs(flipper).map(|s| Vec::<f64>::try_from(s).unwrap()))
    };
    let (slopes, signs) = other_side(Flipper::Off);
    assert!(slopes.iter().all(|slope| *slope > 1e-3) && signs.is_none(), "pushed away: {slopes:?}");
    let (slopes, signs) = other_side(Flipper::Sign);
    assert_eq!(signs.unwrap(), [1.0, -1.0, 0.0]);
    assert!(slopes[0] > 1e-3 && slopes[1] < -1e-3 && slopes[2] == 0.0, "{slopes:?}");
    let (slopes, signs) = other_side(Flipper::Indicator);
    assert_eq!(signs.unwrap(), [1.0, 0.0, 0.0]);
    assert!(slopes[0] > 1e-3 && slopes[1] == 0.0 && slopes[2] == 0.0, "{slopes:?}");
}
