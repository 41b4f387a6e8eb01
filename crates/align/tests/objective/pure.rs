//! The pairwise loss as arithmetic: identities, and gradients against finite differences in float64.

use seedpo_align::objective::{
    Clip, EntropyForm, Flipper, LossOutput, Objective, Preference, SelfEntropy, Side, pairwise_loss,
};
use tch::{Device, Kind, Tensor};

pub fn objective(beta: f64, gamma: f64, form: EntropyForm, clip: Option<f64>) -> Objective {
    Objective {
        beta,
        entropy: SelfEntropy::new(gamma, form).unwrap(),
        clip: Clip(clip),
        flipper: Flipper::Off,
        safeguard: None,
        kl_weight: 0.0,
    }
}

fn side(log_ratio: &Tensor, reference: &Tensor) -> Side {
    Side { log_ratio: log_ratio.shallow_clone(), reference: reference.shallow_clone() }
}

/// Winner's and loser's log-ratio and reference value, `[6]` f64; the first ratios lie within a clip of 0.1, some beyond.
fn draws() -> [Tensor; 4] {
    let list = |values: [f64; 6]| Tensor::from_slice(&values);
    [
        list([0.02, -0.03, 0.3, -0.2, 0.05, -0.4]),
        list([-0.01, 0.04, -0.25, 0.02, 0.22, 0.31]),
        list([0.3, -0.1, 0.7, 1.2, -0.6, 0.0]),
        list([0.1, 0.2, -0.4, 0.9, -0.2, 0.5]),
    ]
}

fn loss(x: &[Tensor; 4], objective: &Objective, decided: Option<&[bool]>) -> LossOutput {
    pairwise_loss(&side(&x[0], &x[2]), &side(&x[1], &x[3]), objective, None, decided, None).unwrap()
}

fn value(tensor: &Tensor) -> f64 {
    tensor.to_kind(Kind::Double).double_value(&[])
}

#[test]
fn gradients_equal_finite_differences() {
    for clip in [None, Some(0.1)] {
        for (gamma, form) in
            [(0.0, EntropyForm::Flatten), (0.5, EntropyForm::Flatten), (2.0, EntropyForm::LiteralPower)]
        {
            let objective = objective(7.0, gamma, form, clip);
            let x = draws();
            let leaves = [x[0].copy().set_requires_grad(true), x[1].copy().set_requires_grad(true)];
            let inputs = [leaves[0].shallow_clone(), leaves[1].shallow_clone(), x[2].copy(), x[3].copy()];
            loss(&inputs, &objective, None).loss.backward();
            for (which, leaf) in leaves.iter().enumerate() {
                for i in 0..6 {
                    let at = |h: f64| {
                        let moved = draws();
                        let _ = moved[which].get(i).f_add_scalar_(h).unwrap();
                        value(&loss(&moved, &objective, None).loss)
                    };
                    let numeric = (at(1e-5) - at(-1e-5)) / 2e-5;
                    let ours = leaf.grad().double_value(&[i]);
                    assert!(
                        (numeric - ours).abs() < 1e-8,
                        "gamma {gamma} clip {clip:?} side {which} pair {i}: {numeric} {ours}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_margin_s_gradient_is_the_loss_s() {
    let objective = objective(7.0, 0.5, EntropyForm::Flatten, None);
    let x = draws();
    let leaf = x[0].copy().set_requires_grad(true);
    let decided = [true, true, false, true, true, true];
    let output = loss(&[leaf.shallow_clone(), x[1].copy(), x[2].copy(), x[3].copy()], &objective, Some(&decided));
    output.loss.backward();
    let apart = (leaf.grad() - output.margin_gradient(7.0)).abs().max();
    assert!(value(&apart) < 1e-15);
}

#[test]
fn gamma_zero_is_plain_dpo_bit_for_bit() {
    let x = draws().map(|t| t.to_kind(Kind::Float));
    for form in [EntropyForm::Flatten, EntropyForm::LiteralPower] {
        for clip in [None, Some(0.1)] {
            let ours = loss(&x, &objective(10.0, 0.0, form, clip), None);
            let shaped = |r: &Tensor| match clip {
                Some(e) => r.clamp((1.0f64 - e).ln(), (1.0f64 + e).ln()),
                None => r.shallow_clone(),
            };
            let margin = shaped(&x[0]) - shaped(&x[1]);
            assert_eq!(ours.margin, margin);
            let plain = ((&margin * 10.0).log_sigmoid().neg().sum(Kind::Float)) / 6.0;
            assert_eq!(value(&ours.loss).to_bits(), value(&plain).to_bits());
            // Whatever the reference says, even that a step is impossible, nothing changes.
            let wild = [x[0].copy(), x[1].copy(), x[2].full_like(f64::NEG_INFINITY), x[3].full_like(1e30)];
            assert_eq!(loss(&wild, &objective(10.0, 0.0, form, clip), None).margin, margin);
        }
    }
    assert_eq!(SelfEntropy::default().kappa(), 1.0);
}

#[test]
fn swapping_winner_and_loser_mirrors_margin_and_loss() {
    for clip in [None, Some(0.1)] {
        let objective = objective(3.0, 2.0, EntropyForm::Flatten, clip);
        let x = draws();
        let forward = loss(&x, &objective, None);
        let [a, b, c, d] = draws();
        let backward = loss(&[b, a, d, c], &objective, None);
        assert_eq!(forward.margin, -&backward.margin);
        // −ln σ(−z) + ln σ(z) = z.
        let difference = &backward.per_pair - &forward.per_pair - &forward.margin * 3.0;
        assert!(value(&difference.abs().max()) < 1e-14);
        assert!((forward.accuracy().unwrap() + backward.accuracy().unwrap() - 1.0).abs() < 1e-12);
    }
}

/// Clipping r to [ln(1−ε), ln(1+ε)] is clipping exp(r) to [1−ε, 1+ε]; the reference's part is never clipped.
#[test]
fn the_clip_is_in_ratio_space_and_spares_the_reference() {
    let (x, entropy) = (draws(), 1.0 - 1.0 / 1.5);
    let output = loss(&x, &objective(1.0, 0.5, EntropyForm::Flatten, Some(0.1)), None);
    let clipped = |r: &Tensor| r.exp().clamp(0.9, 1.1).log();
    let expected = clipped(&x[0]) + &x[2] * entropy - (clipped(&x[1]) + &x[3] * entropy);
    assert!(value(&(&output.margin - expected).abs().max()) < 1e-14);
    assert_eq!(Vec::<bool>::try_from(&output.clipped[0]).unwrap(), [false, false, true, true, false, true]);
    assert_eq!(Vec::<bool>::try_from(&output.clipped[1]).unwrap(), [false, false, true, false, true, true]);
    assert_eq!(Vec::<bool>::try_from(output.needs_grad()).unwrap(), [true, true, false, true, true, false]);
    assert_eq!(output.clip_fraction().unwrap(), 0.5);
}

#[test]
fn a_tie_adds_neither_loss_nor_gradient() {
    let objective = objective(5.0, 0.5, EntropyForm::Flatten, None);
    let x = draws();
    let leaf = x[0].copy().set_requires_grad(true);
    let decided = [true, false, true, false, false, true];
    let inputs = [leaf.shallow_clone(), x[1].copy(), x[2].copy(), x[3].copy()];
    let output = loss(&inputs, &objective, Some(&decided));
    output.loss.backward();
    let all = loss(&x, &objective, None);
    let mut expected = 0.0;
    for (i, &counts) in decided.iter().enumerate() {
        let i = i as i64;
        assert_eq!(leaf.grad().double_value(&[i]) != 0.0, counts);
        assert_eq!(output.per_pair.double_value(&[i]) != 0.0, counts);
        expected += if counts { all.per_pair.double_value(&[i]) } else { 0.0 };
    }
    assert!((value(&output.loss) - expected / 6.0).abs() < 1e-15);
    assert_eq!((output.pairs(), output.decided_pairs()), (6, 3));
    let none = loss(&x, &objective, Some(&[false; 6]));
    assert_eq!((value(&none.loss), none.accuracy(), none.clip_fraction()), (0.0, None, None));
}

#[test]
fn settings_out_of_range_are_named_and_negative_gamma_warns() {
    for gamma in [-1.0, -2.0, f64::NAN, f64::INFINITY] {
        assert!(SelfEntropy::new(gamma, EntropyForm::Flatten).unwrap_err().to_string().contains("entropy.gamma"));
    }
    assert!(SelfEntropy::new(-0.5, EntropyForm::Flatten).unwrap().warning().unwrap().contains("negative"));
    assert_eq!(SelfEntropy::new(-0.5, EntropyForm::Flatten).unwrap().kappa(), 2.0);
    assert!(SelfEntropy::new(0.5, EntropyForm::Flatten).unwrap().warning().is_none());
    assert_eq!(SelfEntropy::new(0.5, EntropyForm::LiteralPower).unwrap().kappa(), 1.5);
    let x = draws();
    let refuse = |beta: f64, clip: Option<f64>| {
        let objective = Objective {
            beta,
            entropy: SelfEntropy::default(),
            clip: Clip(clip),
            flipper: Flipper::Off,
            safeguard: None,
            kl_weight: 0.0,
        };
        pairwise_loss(&side(&x[0], &x[2]), &side(&x[1], &x[3]), &objective, None, None, None).unwrap_err().to_string()
    };
    assert!(refuse(-1.0, None).contains("beta") && refuse(f64::NAN, None).contains("beta"));
    assert!(refuse(1.0, Some(0.0)).contains("clip") && refuse(1.0, Some(1.0)).contains("clip"));
    let short = side(&x[0].narrow(0, 0, 5), &x[2]);
    let fine = objective(1.0, 0.0, EntropyForm::Flatten, None);
    assert!(
        pairwise_loss(&short, &side(&x[1], &x[3]), &fine, None, None, None).unwrap_err().to_string().contains("pairs")
    );
}

/// Large margins neither overflow nor lose their gradient's sign.
#[test]
fn extreme_margins_stay_finite() {
    let list = |v: f64| Tensor::from_slice(&[v as f32]);
    for (w, l) in [(1e4, -1e4), (-1e4, 1e4)] {
        let leaf = list(w).set_requires_grad(true);
        let x = [leaf.shallow_clone(), list(l), list(0.0), list(0.0)];
        let output = loss(&x, &objective(10.0, 0.0, EntropyForm::Flatten, None), None);
        output.loss.backward();
        assert!(value(&output.loss).is_finite() && leaf.grad().double_value(&[0]).is_finite());
    }
}

#[test]
fn a_sample_wins_only_by_dominance() {
    use Preference::{First, Second, Tie};
    for (a, b, expected) in [
        (vec![1.0], vec![0.5], First),
        (vec![0.5], vec![1.0], Second),
        (vec![1.0], vec![1.0], Tie),
        (vec![1.0, 2.0], vec![1.0, 1.0], First),
        (vec![1.0, 2.0], vec![2.0, 1.0], Tie),
        (vec![f64::NAN], vec![1.0], Tie),
    ] {
        assert_eq!(Preference::by_dominance(&a, &b), expected, "{a:?} {b:?}");
    }
}

/// The denoising surrogate's log-ratio is the difference of the two errors, and its gradient that of −½ the error.
#[test]
fn the_denoising_side_is_the_difference_of_errors() {
    tch::manual_seed(4);
    let draw = || Tensor::randn([3, 4, 2, 2], (Kind::Double, Device::Cpu));
    let (policy, reference, noise) = (draw().set_requires_grad(true), draw(), draw());
    let side = Side::denoising(&policy, &reference, &noise);
    let error = |x: &Tensor| (&noise - x).square().flatten(1, -1).mean_dim(1, false, Kind::Double);
    assert!(value(&(&side.log_ratio - (error(&reference) - error(&policy)) * 0.5).abs().max()) < 1e-14);
    assert!(value(&(&side.reference + error(&reference) * 0.5).abs().max()) < 1e-14);
    side.log_ratio.sum(Kind::Double).backward();
    let expected = (&noise - &policy) / 16.0;
    assert!(value(&(policy.grad() - expected).abs().max()) < 1e-14);
}

/// `F.binary_cross_entropy_with_logits(beta * margin, ones, weight=w)`: the sum of w times the loss, divided by B; the
/// slopes by hand, and the same through the graph.
#[test]
fn weights_are_factors_in_the_mean() {
    let (x, objective) = (draws(), objective(3.0, 0.0, EntropyForm::Flatten, None));
    let weights = [0.5f32, 2.0, 1.0, 0.25, 0.0, 1.25];
    let leaf = x[0].copy().set_requires_grad(true);
    let output =
        pairwise_loss(&side(&leaf, &x[2]), &side(&x[1], &x[3]), &objective, None, None, Some(&weights)).unwrap();
    output.loss.backward();
    let slopes = output.margin_gradient(3.0);
    let mut total = 0.0;
    for (i, w) in weights.iter().enumerate() {
        let margin = x[0].double_value(&[i as i64]) - x[1].double_value(&[i as i64]);
        total += f64::from(*w) * (1.0 + (-3.0 * margin).exp()).ln() / 6.0;
        let slope = -3.0 * f64::from(*w) / (1.0 + (3.0 * margin).exp()) / 6.0;
        assert!((slopes.double_value(&[i as i64]) - slope).abs() < 1e-12);
        assert!((leaf.grad().double_value(&[i as i64]) - slope).abs() < 1e-12);
    }
    assert!((value(&output.loss) - total).abs() < 1e-12);
    let short = pairwise_loss(&side(&x[0], &x[2]), &side(&x[1], &x[3]), &objective, None, None, Some(&[1.0]));
    assert!(short.unwrap_err().to_string().contains("pairs"));
}
