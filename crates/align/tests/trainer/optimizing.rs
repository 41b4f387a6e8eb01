//! Optimizers, schedules, averages and accumulation within a run; each on its own is compared with Python's elsewhere.

use super::*;

const AVERAGE: &str = "pytorch_lora_weights_ema.safetensors";

/// Adafactor, a schedule that ends and an average: stopped after any update, all of it goes on bit for bit.
#[test]
fn adafactor_and_the_average_continue_bit_for_bit() {
    let model = common::tiny_model();
    let folder = tempfile::tempdir().unwrap();
    let config = TrainConfig {
        optimizer: "adafactor".into(),
        lr_scheduler: "polynomial".into(),
        ema_decay: 0.9,
        validation_steps: 0,
        ..config(folder.path(), "d3po")
    };
    start(&model, &config, &Colourfulness).run(&mut Silent, &STOP).unwrap();
    let whole = folder.path().join("run");
    let average = |run: &Path| std::fs::read(run.join(AVERAGE)).unwrap();
    assert_ne!(average(&whole), adapter(&whole));
    for step in [1, 4] {
        let stop = AtomicBool::new(false);
        let mut first = start(&model, &config, &Colourfulness);
        assert_eq!(first.run(&mut StopAt(step, &stop), &stop).unwrap(), Finished::Interrupted);
        let (run, checkpoint) = RunDir::resolve("latest", folder.path(), "").unwrap();
        run.rewind(Some(step)).unwrap();
        open(&model, &config, &Colourfulness, run.clone(), checkpoint).run(&mut Silent, &STOP).unwrap();
        assert!(adapter(run.path()) == adapter(&whole) && average(run.path()) == average(&whole), "update {step}");
    }
}

/// Two batches accumulated are one batch of twice the size.
#[test]
fn accumulation_is_a_larger_batch() {
    let model = common::tiny_model();
    let norms = |batch: u64, steps: u64| {
        let folder = tempfile::tempdir().unwrap();
        let config = TrainConfig {
            train_batch_size: batch,
            gradient_accumulation_steps: steps,
            validation_steps: 0,
            learning_rate: 1e-3,
            ..config(folder.path(), "spo")
        };
        start(&model, &config, &Colourfulness).run(&mut Silent, &STOP).unwrap();
        let of = |m: UpdateMetrics| (m.grad_norm, m.loss);
        updates(&RunDir::open(&folder.path().join("run")).unwrap()).into_iter().map(of).collect::<Vec<_>>()
    };
    for ((norm, loss), (other_norm, other_loss)) in norms(2, 1).into_iter().zip(norms(1, 2)) {
        assert!((norm / other_norm - 1.0).abs() < 1e-4, "{norm} {other_norm}");
        assert!((loss - other_loss).abs() < 1e-5, "{loss} {other_loss}");
    }
}
