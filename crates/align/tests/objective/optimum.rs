//! What the self-entropy term does to the optimal policy, on distributions small enough to solve (docs/methods.md
//! section 3).

use seedpo_align::objective::{EntropyForm, SelfEntropy, Side, pairwise_loss};
use tch::{Device, Kind, Tensor};

use crate::pure::objective;

const REFERENCE: [f64; 5] = [0.5, 0.25, 0.15, 0.07, 0.03];
const REWARD: [f64; 5] = [0.0, 0.3, -0.2, 0.4, 0.1];
const GAMMAS: [f64; 5] = [0.0, 0.2, 0.5, 1.0, 3.0];

fn normalised(log_weights: &[f64]) -> Vec<f64> {
    let top = log_weights.iter().copied().fold(f64::MIN, f64::max);
    let weights: Vec<f64> = log_weights.iter().map(|x| (x - top).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

fn entropy(policy: &[f64]) -> f64 {
    -policy.iter().map(|p| p * p.ln()).sum::<f64>()
}

/// J(π) = E[Q] − β KL(π‖ref) + βγ H(π).
fn j(policy: &[f64], beta: f64, gamma: f64) -> f64 {
    let terms = policy.iter().zip(REWARD).zip(REFERENCE);
    terms.map(|((p, q), r)| p * q - beta * p * (p / r).ln()).sum::<f64>() + beta * gamma * entropy(policy)
}

/// The maximum of J over distributions, by mirror ascent with central differences: knows no closed form.
fn numeric_optimum(beta: f64, gamma: f64) -> Vec<f64> {
    let mut policy = vec![0.2; 5];
    for _ in 0..200 {
        let slope = |i: usize| {
            let h = 1e-5 * policy[i];
            let at = |h: f64| {
                let mut moved = policy.clone();
                moved[i] += h;
                j(&moved, beta, gamma)
            };
            (at(h) - at(-h)) / (2.0 * h)
        };
        let logits: Vec<f64> = (0..5).map(|i| policy[i].ln() + 0.3 / (beta * (1.0 + gamma)) * slope(i)).collect();
        policy = normalised(&logits);
    }
    policy
}

/// π_ref^κ · exp(κ·Q/β), normalised: for κ = 1/(1+γ) the closed form of the optimum.
fn closed_form(beta: f64, kappa: f64) -> Vec<f64> {
    let log_weights: Vec<f64> = REFERENCE.iter().zip(REWARD).map(|(r, q)| kappa * (r.ln() + q / beta)).collect();
    normalised(&log_weights)
}

#[test]
fn the_closed_form_is_the_optimum_and_entropy_moves_as_promised() {
    let beta = 0.4;
    for form in [EntropyForm::Flatten, EntropyForm::LiteralPower] {
        let mut entropies = Vec::new();
        for gamma in GAMMAS {
            let kappa = SelfEntropy::new(gamma, form).unwrap().kappa();
            // The literal form is the same objective at the γ' whose 1/(1+γ') is its κ: a penalty on entropy.
            let effective = 1.0 / kappa - 1.0;
            let (numeric, closed) = (numeric_optimum(beta, effective), closed_form(beta, kappa));
            let apart = numeric.iter().zip(&closed).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(apart < 1e-5, "{form:?} gamma {gamma}: {numeric:?} {closed:?}");
            entropies.push(entropy(&closed));
        }
        let rises = entropies.windows(2).all(|pair| pair[1] > pair[0] + 0.01);
        let falls = entropies.windows(2).all(|pair| pair[1] < pair[0] - 0.01);
        assert_eq!((rises, falls), (form == EntropyForm::Flatten, form == EntropyForm::LiteralPower), "{entropies:?}");
    }
}

/// Minimising our pairwise loss over preferences drawn by Bradley-Terry from Q gives π_ref^κ · exp(Q/β).
///
/// Q = ln 1, ln 2, ln 4, so that of 15 comparisons 10, 10 and 12 go to the better one, exactly.
#[test]
fn the_pairwise_loss_leads_to_the_closed_form() {
    let (reference, reward) = ([0.7f64, 0.2, 0.1], [0.0, 2f64.ln(), 4f64.ln()]);
    let (mut winners, mut losers) = (Vec::new(), Vec::new());
    for (better, worse, wins) in [(1, 0, 10), (2, 1, 10), (2, 0, 12)] {
        for n in 0..15 {
            let (w, l): (i64, i64) = if n < wins { (better, worse) } else { (worse, better) };
            winners.push(w);
            losers.push(l);
        }
    }
    let (winners, losers) = (Tensor::from_slice(&winners), Tensor::from_slice(&losers));
    let log_reference = Tensor::from_slice(&reference.map(f64::ln));
    for (gamma, form) in [(0.0, EntropyForm::Flatten), (1.0, EntropyForm::Flatten), (1.0, EntropyForm::LiteralPower)] {
        let objective = objective(1.5, gamma, form, None);
        let mut logits = Tensor::zeros([3], (Kind::Double, Device::Cpu)).set_requires_grad(true);
        for _ in 0..80 {
            let log_policy = logits.log_softmax(0, Kind::Double);
            let side = |rows: &Tensor| Side {
                log_ratio: (&log_policy - &log_reference).index_select(0, rows),
                reference: log_reference.index_select(0, rows),
            };
            let loss = pairwise_loss(&side(&winners), &side(&losers), &objective, None, None, None).unwrap().loss;
            logits.zero_grad();
            loss.backward();
            tch::no_grad(|| {
                let _ = logits.f_sub_(&(logits.grad() * 2.0)).unwrap();
            });
        }
        let kappa = objective.entropy.kappa();
        let log_weights: Vec<f64> = reference.iter().zip(reward).map(|(r, q)| kappa * r.ln() + q / 1.5).collect();
        let found = Vec::<f64>::try_from(logits.softmax(0, Kind::Double)).unwrap();
        let apart = found.iter().zip(normalised(&log_weights)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart < 1e-6, "gamma {gamma} {form:?}: {found:?}");
    }
}

/// N(μ, σ²)^κ is N(μ, (1+γ)σ²) up to its constant: what remains of the reference in the margin is the flattened step.
#[test]
fn a_gaussian_reference_is_flattened() {
    let (mean, sigma) = (0.4, 0.7);
    let log_density =
        |x: f64, variance: f64| -(x - mean).powi(2) / (2.0 * variance) - (variance * std::f64::consts::TAU).ln() / 2.0;
    let (w, l) = (1.9, -0.3);
    let reference = |x: f64| log_density(x, sigma * sigma);
    for gamma in GAMMAS {
        let objective = objective(1.0, gamma, EntropyForm::Flatten, None);
        let side = |x: f64| Side {
            log_ratio: Tensor::from_slice(&[-reference(x)]),
            reference: Tensor::from_slice(&[reference(x)]),
        };
        // A policy flat everywhere: ℓ_θ = 0, so m = −κ(ℓ_ref,w − ℓ_ref,l).
        let margin = pairwise_loss(&side(w), &side(l), &objective, None, None, None).unwrap().margin.double_value(&[0]);
        let flattened = (1.0 + gamma) * sigma * sigma;
        let expected = log_density(w, flattened) - log_density(l, flattened);
        assert!((-margin - expected).abs() < 1e-12, "gamma {gamma}");
    }
}
