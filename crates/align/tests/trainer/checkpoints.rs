//! Which checkpoints a run keeps, and how it goes on from them.

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

/// From update 2 of 6 on, the run must be what it was: with its own later checkpoints set aside, not in the way.
#[test]
fn an_older_checkpoint_sets_the_later_ones_aside() {
    let model = common::tiny_model();
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "spo");
    start(&model, &config, &Colourfulness).run(&mut Silent, &STOP).unwrap();
    let whole = adapter(&folder.path().join("run"));
    let older = folder.path().join("run/checkpoint-2");
    let (run, checkpoint) = RunDir::resolve(older.to_str().unwrap(), folder.path(), "").unwrap();
    let aside = run.rewind(Some(2)).unwrap().unwrap();
    assert_eq!((Checkpoint::list(run.path()).unwrap(), Checkpoint::list(&aside).unwrap()), (vec![2], vec![4, 6]));
    assert!(aside.ends_with("superseded") && aside.join("metrics.jsonl").is_file());
    open(&model, &config, &Colourfulness, run.clone(), checkpoint).run(&mut Silent, &STOP).unwrap();
    assert!(adapter(run.path()) == whole);
    assert_eq!(Checkpoint::list(run.path()).unwrap(), [2, 4, 6]);
    assert_eq!(updates(&run).iter().map(|m| m.step).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    assert!(run.rewind(Some(6)).unwrap().is_none());
}

/// Drawn again on another machine an iteration may give fewer pairs than were trained on: the next one follows.
#[test]
fn an_iteration_with_fewer_pairs_than_before_comes_to_an_end() {
    let model = common::tiny_model();
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "d3po");
    start(&model, &config, &Colourfulness).run(&mut Silent, &STOP).unwrap();
    let run = RunDir::open(&folder.path().join("run")).unwrap();
    run.rewind(Some(2)).unwrap();
    let mut checkpoint = Checkpoint::of_step(run.path(), 2).unwrap();
    checkpoint.position.updates_done = 99;
    let rollout = checkpoint.folder.join("rollout_lora_weights.safetensors");
    std::fs::copy(checkpoint.folder.join("pytorch_lora_weights.safetensors"), rollout).unwrap();
    let mut trainer = open(&model, &config, &Colourfulness, run, Some(checkpoint));
    assert_eq!(trainer.run(&mut Silent, &STOP).unwrap(), Finished::Completed);
    assert_eq!(trainer.position().step, 6);
}

/// Fails after so many iterations, which are judged at once; nothing else is four pictures, as theirs of two pairs are.
struct Failing(AtomicUsize, usize);

impl Judge for Failing {
    fn name(&self) -> &str {
        "failing"
    }
    fn unit(&self) -> &str {
        "1"
    }
    fn judge(&self, images: &ImageBatch, prompts: &[&str]) -> seedpo_judge::Result<Vec<f64>> {
        if images.len() == 4 && self.0.fetch_add(1, Ordering::SeqCst) >= self.1 {
            return Err(seedpo_judge::Error::Exec { command: "scorer".into(), reason: "it died".into() });
        }
        Colourfulness.judge(images, prompts)
    }
}

#[test]
fn a_judge_that_dies_costs_no_update() {
    let model = common::tiny_model();
    let folder = tempfile::tempdir().unwrap();
    let config = TrainConfig { checkpointing_steps: 100, ..config(folder.path(), "d3po") };
    let judge = Failing(AtomicUsize::new(0), 2);
    let message = start(&model, &config, &judge).run(&mut Silent, &STOP).unwrap_err().to_string();
    assert!(message.contains("it died"), "{message}");
    let run = RunDir::open(&folder.path().join("run")).unwrap();
    let last = updates(&run).last().unwrap().step;
    assert!(last > 0 && message.contains(&format!("checkpoint-{last}")), "{last}: {message}");
    assert_eq!(Checkpoint::list(run.path()).unwrap(), [last]);
}
