//! D3PO's pairs: what they share, what they cost, and that each side is an ordinary trajectory.

use std::collections::HashMap;

use seedpo_rollout::{initial_noise, sample, sample_pair, step_noise};

use crate::toy::{Toy, keys, largest, same, sampler};

const SHAPE: [i64; 3] = [4, 3, 3];

#[test]
fn each_side_is_the_plain_trajectory_of_its_keys() {
    let (ddim, keys, prompts) = (sampler(6, 1.0), keys(3), [2, 0, 1]);
    let x_t = initial_noise(&keys, &SHAPE);
    let toy = Toy::default();
    let pair = sample_pair(&toy, &x_t, &prompts, &ddim, &keys, &mut |_, _| {}).unwrap();
    for (s, side) in pair.sides.iter().enumerate() {
        let keys: Vec<_> = keys.iter().map(|key| key.candidate(s as u64)).collect();
        let mut noise = |step: usize| Some(step_noise(&keys, step, &SHAPE));
        let plain = sample(&Toy::default(), &x_t, &prompts, &ddim, &mut noise, &mut |_, _| {}).unwrap();
        assert_eq!(side.latents.len(), 7);
        assert!(side.latents.iter().zip(&plain.latents).all(|(a, b)| largest(&(a - b)) < 1e-6));
        let (ours, theirs) = (side.log_probs.as_ref().unwrap(), plain.log_probs.as_ref().unwrap());
        assert_eq!(ours.size(), [3, 6]);
        assert!(largest(&(ours - theirs)) < 1e-5);
    }
    assert!(same(&pair.sides[0].latents[0], &pair.sides[1].latents[0]), "both start from x_T");
    assert!(!same(&pair.sides[0].latents[1], &pair.sides[1].latents[1]), "and part at the first step");
}

#[test]
fn the_first_prediction_is_shared() {
    let (ddim, keys) = (sampler(5, 1.0), keys(2));
    let toy = Toy::default();
    let mut seen = Vec::new();
    let pair = sample_pair(&toy, &initial_noise(&keys, &SHAPE), &[0, 1], &ddim, &keys, &mut |done, total| {
        seen.push((done, total));
    })
    .unwrap();
    let calls = toy.calls.borrow();
    let rows: Vec<usize> = calls.iter().map(|call| call.1).collect();
    assert_eq!(rows, [2, 4, 4, 4, 4]);
    // The toy has two guidance branches.
    assert_eq!((pair.cost.passes, pair.cost.evaluations), (5, 2 * 18));
    assert_eq!(seen, [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]);
}

#[test]
fn a_deterministic_sampler_has_no_log_probabilities_and_ignores_nothing() {
    let (ddim, keys) = (sampler(5, 0.0), keys(2));
    let x_t = initial_noise(&keys, &SHAPE);
    let run = || sample(&Toy::default(), &x_t, &[0, 1], &ddim, &mut |_| None, &mut |_, _| {}).unwrap();
    let (first, second) = (run(), run());
    assert!(first.log_probs.is_none());
    assert!(same(first.final_latents(), second.final_latents()), "eta = 0 twice is bit-equal");
    let refused = sample(&Toy::default(), &x_t, &[0], &ddim, &mut |_| None, &mut |_, _| {}).unwrap_err();
    assert!(refused.to_string().contains("latents"), "{refused}");
    let refused = sample_pair(&Toy::default(), &x_t, &[0, 1], &ddim, &keys[..1], &mut |_, _| {}).unwrap_err();
    assert!(refused.to_string().contains("keys"), "{refused}");
}

/// No two draws of a rollout share a key: x_T, and every step of either side.
#[test]
fn all_noise_of_a_rollout_differs() {
    let keys = keys(2);
    let mut seen = HashMap::new();
    let mut add = |what: String, noise: tch::Tensor| {
        let bits = Vec::<f32>::try_from(noise.flatten(0, -1)).unwrap()[0].to_bits();
        assert_eq!(seen.insert(bits, what.clone()), None, "{what}");
    };
    for row in 0..2 {
        add(format!("x_T of {row}"), initial_noise(&keys[row..=row], &SHAPE));
        for step in 0..4 {
            for side in 0..3 {
                add(format!("{row} {step} {side}"), step_noise(&[keys[row].candidate(side)], step, &SHAPE));
            }
        }
    }
}
