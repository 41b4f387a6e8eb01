//! Which checkpoints a run keeps.

use super::*;

/// The newest one and the best one, whichever that is.
#[test]
fn the_best_checkpoint_outlives_newer_ones() {
    let model = common::tiny_model();
    let mut was_older = false;
    for learning_rate in [1e-2, 1e-1] {
        let folder = tempfile::tempdir().unwrap();
        let config = TrainConfig {
            checkpoint_metric: "heldout".into(),
            heldout_judge: "colourfulness".into(),
            checkpoints_total_limit: 1,
            validation_steps: 2,
            max_train_steps: 8,
            learning_rate,
            ..config(folder.path(), "spo")
        };
        start(&model, &config, &Colourfulness).run(&mut Silent, &STOP).unwrap();
        let run = RunDir::open(&folder.path().join("run")).unwrap();
        let value = |record: &Record| match record {
            Record::Preview(m) if m.step > 0 => m.heldout_mean.map(|value| (m.step, value)),
            _ => None,
        };
        let previews: Vec<(u64, f64)> = run.records().unwrap().iter().filter_map(value).collect();
        assert_eq!(previews.len(), 4);
        // The earliest of equals.
        let best = previews.iter().rev().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
        let text = std::fs::read_to_string(run.path().join("best.json")).unwrap();
        let found: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((found["step"].as_u64(), found["value"].as_f64()), (Some(best.0), Some(best.1)), "{previews:?}");
        let mut kept = vec![best.0, 8];
        kept.dedup();
        assert_eq!(Checkpoint::list(run.path()).unwrap(), kept, "{previews:?}");
        was_older |= best.0 < 8;
    }
    assert!(was_older, "the best checkpoint was the newest in every run: nothing was tested");
}
