//! What the guard does to a run (docs/stability.md): a policy that is destroyed, NaN from the judge, and that a resumed
//! run decides alike.

use super::*;
use seedpo_align::GuardEvent;

fn events(run: &RunDir) -> Vec<GuardEvent> {
    let of = |record| if let Record::Guard(event) = record { Some(event) } else { None };
    run.records().unwrap().into_iter().filter_map(of).collect()
}

fn guarded(folder: &Path, guard: &str) -> TrainConfig {
    TrainConfig { guard: guard.into(), max_train_steps: 8, ..config(folder, "d3po") }
}

/// Its first update destroys the policy; with the learning rate of the second attempt all is well.
fn absurd(folder: &Path) -> TrainConfig {
    TrainConfig { learning_rate: 1e28, guard_back_off: 1e-30, guard_cooldown: 100, ..guarded(folder, "roll-back") }
}

fn run_of(folder: &Path) -> RunDir {
    RunDir::open(&folder.join("run")).unwrap()
}

#[test]
fn a_destroyed_policy_is_rolled_back_and_the_run_completes() {
    let model = common::tiny_model();
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = start(&model, &absurd(folder.path()), &Colourfulness);
    assert_eq!(trainer.run(&mut Silent, &STOP).unwrap(), Finished::Completed);
    let run = run_of(folder.path());
    let events = events(&run);
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!((events[0].action.as_str(), events[0].rolled_back_to), ("roll-back", Some(0)));
    let updates = updates(&run);
    assert_eq!(updates.iter().map(|m| m.step).collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>());
    assert!(updates.iter().all(|m| m.loss.is_finite() && (m.learning_rate / 1e-2 - 1.0).abs() < 1e-9));
    assert!(trainer.weights().trainable().iter().all(|(_, p)| p.isfinite().all().int64_value(&[]) == 1));
}

/// The data and noise after a roll-back are others: the rewards of the first iteration differ from those of a plain run.
#[test]
fn after_a_roll_back_other_samples_are_drawn() {
    let model = common::tiny_model();
    let rewards = |config: &TrainConfig, folder: &Path| {
        start(&model, config, &Colourfulness).run(&mut Silent, &STOP).unwrap();
        updates(&run_of(folder))[0].reward_mean
    };
    let (plain, rolled) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let before = rewards(&guarded(plain.path(), "stop"), plain.path());
    assert_ne!(before, rewards(&absurd(rolled.path()), rolled.path()));
}

#[test]
fn a_run_with_a_roll_back_continues_bit_for_bit() {
    let model = common::tiny_model();
    let folder = tempfile::tempdir().unwrap();
    let config = absurd(folder.path());
    start(&model, &config, &Colourfulness).run(&mut Silent, &STOP).unwrap();
    let whole = adapter(&folder.path().join("run"));
    for step in [1, 2, 5] {
        let stop = AtomicBool::new(false);
        let mut first = start(&model, &config, &Colourfulness);
        // The first update 1 is the one that is rolled back; it has no loss to be worried about yet.
        struct StopAt<'a>(u64, &'a AtomicBool, u64);
        impl Observer for StopAt<'_> {
            fn on_guard(&mut self, _: &GuardEvent) -> Result<(), ObserverError> {
                self.2 += 1;
                Ok(())
            }
            fn on_update(&mut self, metrics: &UpdateMetrics) -> Result<(), ObserverError> {
                self.1.store(metrics.step == self.0 && self.2 == 1, Ordering::SeqCst);
                Ok(())
            }
        }
        assert_eq!(first.run(&mut StopAt(step, &stop, 0), &stop).unwrap(), Finished::Interrupted);
        let (run, checkpoint) = RunDir::resolve("latest", folder.path(), "").unwrap();
        run.rewind(Some(step)).unwrap();
        open(&model, &config, &Colourfulness, run.clone(), checkpoint).run(&mut Silent, &STOP).unwrap();
        assert!(adapter(run.path()) == whole, "stopped after update {step}");
    }
}

#[test]
fn roll_backs_are_bounded_and_the_end_says_why() {
    let model = common::tiny_model();
    let folder = tempfile::tempdir().unwrap();
    let config = TrainConfig { guard_back_off: 1.0, guard_limit: 2, ..absurd(folder.path()) };
    let message = start(&model, &config, &Colourfulness).run(&mut Silent, &STOP).unwrap_err().to_string();
    assert!(message.contains("non-finite") || message.contains("NaN"), "{message}");
    let actions: Vec<String> = events(&run_of(folder.path())).into_iter().map(|event| event.action).collect();
    assert_eq!(actions, ["roll-back", "roll-back", "stop"]);
}

/// NaN for one call: that iteration is left out, whatever else is decided, and the run goes on to its length.
#[test]
fn one_nan_from_the_judge_costs_an_iteration() {
    struct Once(AtomicUsize);
    impl Judge for Once {
        fn name(&self) -> &str {
            "once"
        }
        fn unit(&self) -> &str {
            "1"
        }
        fn judge(&self, images: &ImageBatch, prompts: &[&str]) -> seedpo_judge::Result<Vec<f64>> {
            let scores = Colourfulness.judge(images, prompts)?;
            // Two pictures of each of two prompts are an iteration's, not a preview's.
            let spoilt = scores.len() == 4 && self.0.fetch_add(1, Ordering::SeqCst) == 2;
            Ok(if spoilt { vec![f64::NAN; scores.len()] } else { scores })
        }
    }
    let model = common::tiny_model();
    for (guard, back_off) in [("skip", 1.0), ("back-off", 0.5), ("roll-back", 0.5)] {
        let folder = tempfile::tempdir().unwrap();
        let judge = Once(AtomicUsize::new(0));
        let config = guarded(folder.path(), guard);
        assert_eq!(start(&model, &config, &judge).run(&mut Silent, &STOP).unwrap(), Finished::Completed);
        let run = run_of(folder.path());
        let events = events(&run);
        assert_eq!(events.iter().map(|e| e.action.as_str()).collect::<Vec<_>>(), [guard]);
        assert!(events[0].what.contains("NaN") && events[0].learning_rate_factor == back_off, "{events:?}");
        let updates = updates(&run);
        assert_eq!(updates.iter().map(|m| m.step).collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>(), "{guard}");
        assert!((updates[7].learning_rate / 1e-2 - back_off).abs() < 1e-9, "{guard}");
    }
}

/// NaN on a preview says nothing about the update before it: that is kept, with its checkpoint, and no prompt is left out.
#[test]
fn nan_on_a_preview_is_noted() {
    /// Knows previews by their number of pictures; those before training, seen by it and as held out, are well.
    struct Previews(AtomicUsize);
    impl Judge for Previews {
        fn name(&self) -> &str {
            "previews"
        }
        fn unit(&self) -> &str {
            "1"
        }
        fn judge(&self, images: &ImageBatch, prompts: &[&str]) -> seedpo_judge::Result<Vec<f64>> {
            let scores = Colourfulness.judge(images, prompts)?;
            let spoilt = scores.len() == 6 && self.0.fetch_add(1, Ordering::SeqCst) >= 2;
            Ok(if spoilt { vec![f64::NAN; 6] } else { scores })
        }
    }
    let model = common::tiny_model();
    let folder = tempfile::tempdir().unwrap();
    let sized = TrainConfig { validation_images_per_prompt: 2, validation_steps: 4, ..guarded(folder.path(), "skip") };
    let mut trainer = start(&model, &TrainConfig { validation_steps: 0, ..sized.clone() }, &Colourfulness);
    assert!(trainer.run(&mut Silent, &STOP).is_ok());
    let plain = adapter(&folder.path().join("run"));
    let folder = tempfile::tempdir().unwrap();
    let config = TrainConfig { output_dir: folder.path().display().to_string(), ..sized };
    let previews = || Previews(AtomicUsize::new(0));
    assert_eq!(start(&model, &config, &previews()).run(&mut Silent, &STOP).unwrap(), Finished::Completed);
    let run = run_of(folder.path());
    let events = events(&run);
    assert!(events.len() >= 2 && events.iter().all(|e| e.action == "note" && e.what.contains("NaN")), "{events:?}");
    assert!(adapter(run.path()) == plain);
    assert_eq!(Checkpoint::list(run.path()).unwrap(), [4, 6, 8]);
    let stopped = tempfile::tempdir().unwrap();
    let config = TrainConfig { guard: "stop".into(), output_dir: stopped.path().display().to_string(), ..config };
    assert!(start(&model, &config, &previews()).run(&mut Silent, &STOP).is_err());
}
