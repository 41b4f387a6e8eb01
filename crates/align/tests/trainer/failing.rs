//! What a run that fails leaves on disk: nothing of the update it failed in.

use super::axes::with;
use super::*;
use seedpo_tensor::Tensor;

const FULL: &str = "finetuning_type = 'full'\nlearning_rate = 1e-3\n";

/// Everything that the newest checkpoint and the top of a run folder hold of weights.
fn weights(run: &Path) -> Vec<Vec<u8>> {
    let names = ["pytorch_lora_weights.safetensors", "unet/diffusion_pytorch_model.safetensors"];
    let files: Vec<_> = names.iter().filter_map(|name| std::fs::read(run.join(name)).ok()).collect();
    assert_eq!(files.len(), 1);
    files
}

/// Goes on from the newest checkpoint of `run`; its weights must be those of a run that nothing went wrong in.
fn goes_on_as_if_nothing_had_been(model: &DiffusionModel, config: &TrainConfig, run: &RunDir) {
    let whole = TrainConfig { name: "whole".into(), ..config.clone() };
    start(model, &whole, &Colourfulness).run(&mut Silent, &STOP).unwrap();
    let checkpoint = Checkpoint::latest(run.path()).unwrap();
    run.rewind(checkpoint.as_ref().map(|c| c.position.step)).unwrap();
    open(model, config, &Colourfulness, run.clone(), checkpoint).run(&mut Silent, &STOP).unwrap();
    assert!(weights(run.path()) == weights(&run.path().with_file_name("whole")));
}

/// Gives a parameter another shape than its gradient has, after so many updates; may ask to stop meanwhile.
struct Misshape<'a> {
    parameter: Tensor,
    after: u64,
    updates: u64,
    stop: Option<&'a AtomicBool>,
}

impl Observer for Misshape<'_> {
    fn on_update(&mut self, metrics: &UpdateMetrics) -> Result<(), ObserverError> {
        self.updates = metrics.step;
        Ok(())
    }
    fn on_phase(&mut self, phase: Phase, done: usize, total: usize) {
        if phase == Phase::Train && done == total && self.updates == self.after {
            self.parameter.set_data(&Tensor::zeros([7], (Kind::Float, Device::Cpu)));
            self.stop.inspect(|stop| stop.store(true, Ordering::SeqCst));
        }
    }
}

#[test]
fn a_half_applied_update_is_not_saved() {
    let model = common::tiny_model();
    for (method, lines) in [
        ("d3po", ""),
        ("d3po", "optimizer = 'adafactor'\nema_decay = 0.9"),
        ("diffusion-dpo", FULL),
        ("spo", "finetuning_type = 'full'\noptimizer = 'adafactor'\nlearning_rate = 1e-3"),
    ] {
        for stops in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let config =
                with(folder.path(), method, &format!("checkpointing_steps = 2\nvalidation_steps = 0\n{lines}"));
            let mut trainer = start(&model, &config, &Colourfulness);
            let stop = AtomicBool::new(false);
            let parameters = trainer.weights().trainable();
            let (first, parameter) = (&parameters[0].1, parameters[parameters.len() - 1].1.shallow_clone());
            let mut observer = Misshape { parameter, after: 3, updates: 0, stop: stops.then_some(&stop) };
            let message = trainer.run(&mut observer, &stop).unwrap_err().to_string();
            assert!(message.contains("update 4") && message.contains("checkpoint-2"), "{method}: {message}");
            let run = RunDir::open(&folder.path().join("run")).unwrap();
            assert_eq!(Checkpoint::list(run.path()).unwrap(), [2], "{method}, stops: {stops}");
            assert!(weights(run.path()) == weights(&run.path().join("checkpoint-2")), "{method}");
            // Update 3 and a part of update 4 are in memory.
            let checkpoint = Checkpoint::latest(run.path()).unwrap();
            let before = open(&model, &config, &Colourfulness, run.clone(), checkpoint);
            assert_ne!(*first, before.weights().trainable()[0].1, "{method}");
            goes_on_as_if_nothing_had_been(&model, &config, &run);
        }
    }
}

/// Puts a file where the folder of snapshots is to be, after the first update.
struct NoRoom<'a>(&'a Path);

impl Observer for NoRoom<'_> {
    fn on_update(&mut self, metrics: &UpdateMetrics) -> Result<(), ObserverError> {
        if metrics.step == 1 {
            std::fs::write(self.0, b"in the way")?;
        }
        Ok(())
    }
}

#[test]
fn a_checkpoint_never_lacks_the_snapshot_of_its_update() {
    let model = common::tiny_model();
    for method in ["seppo", "spin"] {
        let folder = tempfile::tempdir().unwrap();
        let config = with(folder.path(), method, &format!("checkpointing_steps = 1\nvalidation_steps = 0\n{FULL}"));
        let mut trainer = start(&model, &config, &Colourfulness);
        let run = RunDir::open(&folder.path().join("run")).unwrap();
        let history = run.path().join("reference_history");
        let message = trainer.run(&mut NoRoom(&history), &STOP).unwrap_err().to_string();
        assert!(message.contains("reference_history") && message.contains("checkpoint-1"), "{method}: {message}");
        assert_eq!(Checkpoint::list(run.path()).unwrap(), [1], "{method}");
        std::fs::remove_file(&history).unwrap();
        goes_on_as_if_nothing_had_been(&model, &config, &run);
    }
}

#[test]
fn a_nan_reward_stops_and_leaves_the_last_checkpoint() {
    let model = common::tiny_model();
    let folder = tempfile::tempdir().unwrap();
    let config = TrainConfig { max_train_steps: 50, ..config(folder.path(), "d3po") };
    let judge = Spoilt { calls: AtomicUsize::new(0), from: 9, value: Some(f64::NAN) };
    let error = start(&model, &config, &judge).run(&mut Silent, &STOP).unwrap_err();
    let message = error.to_string();
    assert!(
        ["NaN", "update ", "seed 42", "prompt", "checkpoint-"].iter().all(|part| message.contains(part)),
        "{message}"
    );
    let run = RunDir::open(&folder.path().join("run")).unwrap();
    let newest = Checkpoint::latest(run.path()).unwrap().unwrap();
    assert_eq!(std::fs::read(newest.folder.join("pytorch_lora_weights.safetensors")).unwrap(), adapter(run.path()));
    assert!(
        !std::fs::read_dir(run.path()).unwrap().any(|e| e.unwrap().file_name().to_string_lossy().ends_with(".tmp"))
    );
}

#[test]
fn a_loss_that_overflows_stops_before_the_adapter_is_touched() {
    let model = common::tiny_model();
    let folder = tempfile::tempdir().unwrap();
    let config = TrainConfig { learning_rate: 1e30, max_train_steps: 20, ..config(folder.path(), "spo") };
    let error = start(&model, &config, &Colourfulness).run(&mut Silent, &STOP).unwrap_err();
    assert!(matches!(error, Error::At { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("seed 42") && message.contains("update"), "{message}");
}
