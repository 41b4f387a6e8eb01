//! DDPO and DPOK within a run. That they go on bit for bit is tested with the other methods.

use super::*;
use seedpo_judge::{BackgroundJudge, Ensemble, Member, Rule};

#[test]
fn single_samples_start_at_a_ratio_of_one_and_move() {
    let model = common::tiny_model();
    for (method, clip) in [("ddpo", 1e-4), ("dpok", 1e-4), ("ddpo", 0.0)] {
        let folder = tempfile::tempdir().unwrap();
        let config = TrainConfig { clip, kl_weight: 10.0, ..config(folder.path(), method) };
        assert_eq!(start(&model, &config, &Colourfulness).run(&mut Silent, &STOP).unwrap(), Finished::Completed);
        let updates = updates(&RunDir::open(&folder.path().join("run")).unwrap());
        assert_eq!(updates.iter().map(|m| m.step).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6], "{method}");
        // The policy that drew the samples is the policy: also in the third iteration, when the adapter is not 0.
        for first in [&updates[0], &updates[2], &updates[4]] {
            assert!((first.ratio_mean - 1.0).abs() < 1e-5 && first.clip_fraction == 0.0, "{method} {first:?}");
            assert!(first.grad_norm > 0.0, "{method} {first:?}");
        }
        // The second update of an iteration is off the policy that drew its samples.
        assert!((updates[1].ratio_mean - 1.0).abs() > 1e-5, "{method}");
        assert_eq!(updates[1].clip_fraction > 0.0, clip > 0.0, "{method}");
        // Only DPOK has a reference, and only its loss has the distance to it.
        assert_eq!(updates[4].kl_to_reference > 0.0, method == "dpok");
    }
}

#[test]
fn what_needs_pairs_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |config: TrainConfig| config.validate().unwrap_err().to_string();
    let good = config(folder.path(), "ddpo");
    assert!(refused(TrainConfig { safeguard: true, ..good.clone() }).contains("no pairs"));
    assert!(refused(TrainConfig { likelihood: "denoising-error".into(), ..good.clone() }).contains("no other"));
    assert!(refused(TrainConfig { advantage_clip: 0.0, ..good.clone() }).contains("`advantage_clip`"));
    let mut sharper = good;
    sharper.entropy.gamma = 1.0;
    assert!(refused(sharper).contains("entropy.gamma"));
}

/// A judge on a thread of its own answers late; what is trained must be the same to the bit.
#[test]
fn a_judge_in_the_background_changes_nothing() {
    let model = common::tiny_model();
    for method in ["spo", "d3po", "ddpo"] {
        let train = |judge: &dyn Judge| {
            let folder = tempfile::tempdir().unwrap();
            // Two batches in each rollout, so that one is judged while the next is sampled.
            let sized =
                TrainConfig { prompts_per_iteration: 3, rollout_batch_size: 2, ..config(folder.path(), method) };
            let config = TrainConfig { max_train_steps: 3, validation_steps: 0, ..sized };
            start(&model, &config, judge).run(&mut Silent, &STOP).unwrap();
            adapter(&folder.path().join("run"))
        };
        let background = BackgroundJudge::new(Box::new(Colourfulness)).unwrap();
        assert_eq!(train(&background), train(&Colourfulness), "{method}");
    }
}

/// What is judged to measure the time of judging is in no statistics: neither in those of the whole run nor in a record's.
#[test]
fn the_forecast_is_not_in_the_judges_statistics() {
    let member =
        || Member { name: "colourfulness".into(), judge: Box::new(Colourfulness), weight: 1.0, typical: (0.0, 1.0) };
    let ensemble = || Ensemble::new(Rule::Weighted, vec![member()]);
    let judges: [Box<dyn Judge>; 2] =
        [Box::new(ensemble()), Box::new(BackgroundJudge::new(Box::new(ensemble())).unwrap())];
    let model = common::tiny_model();
    for judge in judges {
        let folder = tempfile::tempdir().unwrap();
        start(&model, &config(folder.path(), "d3po"), judge.as_ref()).forecast(true).unwrap();
        let counts = [judge.statistics(), judge.take_statistics()].map(|of| of[0].count);
        assert_eq!(counts, [0, 0]);
    }
}
