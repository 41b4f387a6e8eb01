//! SPO's branching against a plain re-implementation that runs everything separately and twice.

use std::cell::Cell;
use std::rc::Rc;

use seedpo_rollout::{
    BoxError, BranchOptions, Branching, Ddim, Error, NoisePredictor, Scorer, Scores, branch,
    branch::softmax_difference, initial_noise, step_noise,
};
use seedpo_tensor::NoiseKey;
use tch::{Kind, Tensor};

use crate::toy::{Toy, keys, largest, same, sampler};

const SHAPE: [i64; 3] = [4, 3, 3];
const OPTIONS: BranchOptions = BranchOptions { divert_start_step: 2, candidates: 3, threshold: 0.2 };

/// A score per row: the mean of x̂0, with a slope that depends on the timestep and the prompt.
fn score(x0: &Tensor, timestep: i64, prompts: &[usize]) -> Result<Vec<f64>, BoxError> {
    let means = Vec::<f64>::try_from(x0.flatten(1, -1).mean_dim(1, false, Kind::Double))?;
    let slope = |p: usize| 20.0 * (1.0 + p as f64) * if timestep == 0 { -1.0 } else { 1.0 };
    Ok(means.iter().zip(prompts).map(|(mean, &p)| mean * slope(p)).collect())
}

fn asked(x0: &Tensor, timestep: i64, prompts: &[usize]) -> Result<Scores, BoxError> {
    let scores = score(x0, timestep, prompts)?;
    Ok(Box::new(|| Ok(scores)))
}

fn run(ddim: &Ddim, prompts: &[usize], keys: &[NoiseKey], options: &BranchOptions) -> (Branching, Toy) {
    let toy = Toy::default();
    let x_t = initial_noise(keys, &SHAPE);
    let outcome = branch(&toy, &x_t, prompts, ddim, keys, options, &mut asked, &mut |_, _| {}).unwrap();
    (outcome, toy)
}

/// docs/methods.md section 4.3 word by word for one prompt: x_t, x_w, x_l, t of each kept pair, and x_0.
fn plain(ddim: &Ddim, prompt: usize, key: NoiseKey) -> (Vec<(Tensor, Tensor, Tensor, i64)>, Tensor) {
    let toy = Toy::default();
    let mut latents = initial_noise(&[key], &SHAPE);
    let mut pairs = Vec::new();
    for (step, &t) in ddim.timesteps().iter().enumerate() {
        let move_on = |candidate: u64| {
            let noise_pred = toy.predict(&latents, &[t], &[prompt]).unwrap();
            let noise = step_noise(&[key.candidate(candidate)], step, &SHAPE);
            ddim.transition(&[t], &latents, &noise_pred).unwrap().sample(Some(&noise)).unwrap()
        };
        if step < OPTIONS.divert_start_step {
            latents = move_on(0);
            continue;
        }
        let candidates: Vec<Tensor> = (0..OPTIONS.candidates as u64).map(move_on).collect();
        let score_of = |x: &Tensor| {
            let Some(&next) = ddim.timesteps().get(step + 1) else { return score(x, 0, &[prompt]).unwrap()[0] };
            let noise_pred = toy.predict(x, &[next], &[prompt]).unwrap();
            score(&ddim.transition(&[next], x, &noise_pred).unwrap().pred_x0, next, &[prompt]).unwrap()[0]
        };
        let mut ranked: Vec<(f64, &Tensor)> = candidates.iter().map(|x| (score_of(x), x)).collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
        let ((best, w), (worst, l)) = (ranked[0], ranked[ranked.len() - 1]);
        let (p_best, p_worst) = (best.exp() / (best.exp() + worst.exp()), worst.exp() / (best.exp() + worst.exp()));
        if p_best - p_worst > OPTIONS.threshold {
            pairs.push((latents.get(0), w.get(0), l.get(0), t));
        }
        let draw = NoiseKey { purpose: "branch-survivor", ..key.step(step as u64 + 1) };
        latents = candidates[draw.below(OPTIONS.candidates)].shallow_clone();
    }
    (pairs, latents)
}

#[test]
fn equals_the_method_done_one_by_one() {
    let (ddim, keys, prompts) = (sampler(7, 1.0), keys(3), [1, 0, 2]);
    let (outcome, _) = run(&ddim, &prompts, &keys, &OPTIONS);
    let mut kept = 0;
    for (row, &prompt) in prompts.iter().enumerate() {
        let (pairs, x_0) = plain(&ddim, prompt, keys[row]);
        let ours: Vec<_> = outcome.pairs.iter().filter(|pair| pair.prompt == prompt).collect();
        assert_eq!(ours.len(), pairs.len(), "prompt {prompt}");
        for (ours, (latents, w, l, t)) in ours.iter().zip(&pairs) {
            assert_eq!(ours.timestep, *t);
            for (a, b) in [(&ours.latents, latents), (&ours.next_latents_w, w), (&ours.next_latents_l, l)] {
                assert!(largest(&(a - b)) < 1e-5, "prompt {prompt}, timestep {t}");
            }
            assert!(ours.scores[0] > ours.scores[1]);
        }
        assert!(largest(&(outcome.final_latents.get(row as i64) - x_0.get(0))) < 1e-5);
        kept += pairs.len();
    }
    // Some pairs kept, some dropped by the threshold: both roads were walked.
    assert!(kept > 3 && kept < 15, "{kept} of 15 kept");
    assert_eq!(outcome.steps.iter().map(|step| step.kept).sum::<usize>(), kept);
}

#[test]
fn nothing_runs_twice() {
    let ddim = sampler(7, 1.0);
    let (outcome, toy) = run(&ddim, &[0, 1], &keys(2), &OPTIONS);
    let t = ddim.timesteps();
    // Two ordinary steps, the first branching step's own x_t, then all candidates at the next timestep; none after the last.
    let expected = [(t[0], 2), (t[1], 2), (t[2], 2), (t[3], 6), (t[4], 6), (t[5], 6), (t[6], 6)];
    assert_eq!(*toy.calls.borrow(), expected);
    assert_eq!((outcome.cost.passes, outcome.cost.evaluations), (7, 2 * 30));
    let scored_at: Vec<i64> = outcome.steps.iter().map(|step| step.scored_at).collect();
    assert_eq!(scored_at, [t[3], t[4], t[5], t[6], 0]);
    let last = score(&outcome.final_latents, 0, &[0, 1]).unwrap();
    assert_eq!(outcome.final_scores, last, "the scores kept are those of the images that came out");
}

#[test]
fn a_prompt_s_pairs_do_not_depend_on_the_batch() {
    let (ddim, keys) = (sampler(6, 1.0), keys(3));
    let (all, _) = run(&ddim, &[0, 1, 2], &keys, &OPTIONS);
    for row in 0..3 {
        let (alone, _) = run(&ddim, &[row], &keys[row..=row], &OPTIONS);
        let together: Vec<_> = all.pairs.iter().filter(|pair| pair.prompt == row).collect();
        assert_eq!(alone.pairs.len(), together.len());
        for (a, b) in alone.pairs.iter().zip(together) {
            assert!(same(&a.next_latents_w, &b.next_latents_w) && same(&a.next_latents_l, &b.next_latents_l));
        }
        assert!(same(&alone.final_latents.get(0), &all.final_latents.get(row as i64)));
    }
}

/// The survivor is uniform, not the best: 600 draws of 4, each within five standard deviations of 150 (10.6 each).
#[test]
fn the_survivor_is_uniform() {
    let (ddim, options) = (sampler(2, 1.0), BranchOptions { divert_start_step: 0, candidates: 4, threshold: 0.0 });
    let keys: Vec<NoiseKey> = (0..300).map(|i| NoiseKey::new(8, "uniform").prompt(i)).collect();
    let (outcome, _) = run(&ddim, &[0; 300], &keys, &options);
    let mut ranks = [0; 4];
    let last = &outcome.steps[1];
    for (row, scores) in last.scores.iter().enumerate() {
        ranks[scores.iter().filter(|&&score| score > outcome.final_scores[row]).count()] += 1;
    }
    assert!(ranks.iter().all(|&count| (75 - 38..=75 + 38).contains(&count)), "{ranks:?}");
}

#[test]
fn equal_scores_give_no_pair_and_bad_scores_an_error() {
    let (ddim, keys, toy) = (sampler(5, 1.0), keys(2), Toy::default());
    let x_t = initial_noise(&keys, &SHAPE);
    let options = BranchOptions { threshold: 0.0, ..OPTIONS };
    let run = |scorer: &mut dyn FnMut(usize) -> Vec<f64>| {
        let mut scorer = |_: &Tensor, _: i64, prompts: &[usize]| {
            let scores = scorer(prompts.len());
            Ok(Box::new(|| Ok(scores)) as Scores)
        };
        branch(&toy, &x_t, &[0, 1], &ddim, &keys, &options, &mut scorer, &mut |_, _| {})
    };
    assert!(run(&mut |rows| vec![0.5; rows]).unwrap().pairs.is_empty());
    let message = |values: &mut dyn FnMut(usize) -> Vec<f64>| run(values).unwrap_err().to_string();
    let nan = message(&mut |rows| (0..rows).map(|row| if row == 4 { f64::NAN } else { 1.0 }).collect());
    assert!(nan.contains("NaN") && nan.contains("prompt 1"), "{nan}");
    assert!(message(&mut |_| vec![1.0]).contains("expected 6 scores, found 1"));
    let mut broken = |_: &Tensor, _: i64, _: &[usize]| Err("the judge is out".into());
    let mut later = |_: &Tensor, _: i64, _: &[usize]| Ok(Box::new(|| Err("the judge is out".into())) as Scores);
    for scorer in [&mut broken as &mut Scorer, &mut later] {
        let refused = branch(&toy, &x_t, &[0, 1], &ddim, &keys, &options, scorer, &mut |_, _| {}).unwrap_err();
        assert!(matches!(&refused, Error::Scorer { .. }) && refused.to_string().contains("the judge is out"));
    }
}

/// Scores are called for in order and never more than two steps late.
#[test]
fn scores_may_be_two_steps_late() {
    let (ddim, keys) = (sampler(6, 1.0), keys(2));
    let x_t = initial_noise(&keys, &SHAPE);
    let (given, taken) = (Cell::new(0), Rc::new(Cell::new(0)));
    let mut scorer = |x0: &Tensor, timestep: i64, prompts: &[usize]| {
        let (scores, nth, taken) = (score(x0, timestep, prompts)?, given.get(), Rc::clone(&taken));
        assert!(nth <= taken.get() + 2, "{nth} steps are asked for, {} scored", taken.get());
        given.set(nth + 1);
        Ok(Box::new(move || {
            assert_eq!(taken.replace(nth + 1), nth);
            Ok(scores)
        }) as Scores)
    };
    let late = branch(&Toy::default(), &x_t, &[0, 1], &ddim, &keys, &OPTIONS, &mut scorer, &mut |_, _| {}).unwrap();
    assert_eq!((given.get(), taken.get(), late.steps.len()), (4, 4, 4));
}

#[test]
fn options_out_of_range_are_named() {
    let (ddim, keys) = (sampler(5, 1.0), keys(1));
    let x_t = initial_noise(&keys, &SHAPE);
    let refuse = |ddim: &Ddim, options: BranchOptions| {
        branch(&Toy::default(), &x_t, &[0], ddim, &keys, &options, &mut asked, &mut |_, _| {}).unwrap_err().to_string()
    };
    assert!(refuse(&ddim, BranchOptions { candidates: 1, ..OPTIONS }).contains("`candidates`"));
    assert!(refuse(&ddim, BranchOptions { threshold: 1.0, ..OPTIONS }).contains("`threshold`"));
    assert!(refuse(&ddim, BranchOptions { divert_start_step: 5, ..OPTIONS }).contains("`divert_start_step`"));
    assert!(refuse(&sampler(5, 0.0), OPTIONS).contains("`eta`"));
}

#[test]
fn the_threshold_is_on_the_softmax_of_two_scores() {
    let softmax = |a: f64, b: f64| (a.exp() - b.exp()) / (a.exp() + b.exp());
    for (a, b) in [(1.0, 0.3), (0.2, 0.2), (-3.0, -3.5)] {
        assert!((softmax_difference(a, b) - softmax(a, b)).abs() < 1e-12);
    }
    assert_eq!(softmax_difference(900.0, -900.0), 1.0, "no overflow");
}
