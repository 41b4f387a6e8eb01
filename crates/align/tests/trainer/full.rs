//! Full fine-tuning: every parameter of the U-Net trained by the same loop.

use super::axes::with;
use super::*;
use seedpo_align::Role;
use seedpo_model::FinetuningType;
use seedpo_tensor::Tensor;
use std::sync::Mutex;

const FULL: &str = "finetuning_type = 'full'\nlearning_rate = 1e-3";

fn full(folder: &Path, method: &str, lines: &str) -> TrainConfig {
    let mut table: toml::Table = FULL.parse().unwrap();
    seedpo_align::config::layer(&mut table, lines.parse().unwrap());
    with(folder, method, &table.to_string())
}

/// The bytes of the U-Net at the top of a run folder or checkpoint.
fn unet(run: &Path, role: Role) -> Vec<u8> {
    let folder = run.join(role.place(FinetuningType::Full));
    assert!(folder.join("config.json").is_file());
    std::fs::read(folder.join("diffusion_pytorch_model.safetensors")).unwrap()
}

fn train(model: &DiffusionModel, config: &TrainConfig) -> RunDir {
    assert_eq!(start(model, config, &Colourfulness).run(&mut Silent, &STOP).unwrap(), Finished::Completed);
    RunDir::resolve("latest", Path::new(&config.output_dir), "").unwrap().0
}

/// Every method; what is compared with a reference begins at it, to the bit, and the base is not touched.
#[test]
fn every_method_trains_every_parameter() {
    let model = common::tiny_model();
    let before = model.unet.frozen_copy(Kind::Float).unwrap();
    for method in METHODS {
        let folder = tempfile::tempdir().unwrap();
        let lines = "max_train_steps = 2\ncheckpointing_steps = 1\nvalidation_steps = 2";
        let config = full(folder.path(), method.name, lines);
        let mut trainer = start(&model, &config, &Colourfulness);
        assert_eq!(trainer.run(&mut Silent, &STOP).unwrap(), Finished::Completed, "{}", method.name);
        let run = RunDir::open(&folder.path().join("run")).unwrap();
        let updates = updates(&run);
        assert!(updates.iter().all(|m| m.loss.is_finite() && m.grad_norm > 0.0), "{}: {updates:?}", method.name);
        let first = &updates[0];
        // Single samples are compared with the pass that drew them, of another batch size.
        let rounding = if method.pairs == PairsFrom::Samples { 1e-6 } else { 0.0 };
        assert!((first.ratio_mean - 1.0).abs() <= rounding, "{}: {first:?}", method.name);
        assert_eq!((first.clip_fraction, first.kl_to_reference), (0.0, 0.0), "{}", method.name);
        for (name, tensor) in trainer.weights().tensors() {
            assert!(
                tensor.requires_grad() && tensor.ne_tensor(&before.parameters()[&name]).any().int64_value(&[]) == 1
            );
        }
        for (name, tensor) in model.unet.parameters() {
            assert_eq!(tensor, &before.parameters()[name], "{name}");
        }
        // What is handed back is a U-Net that the base takes: the trained one.
        let options = LoadOptions { unet: Some(run.path().to_path_buf()), ..LoadOptions::default() };
        let base = folder.path().join("base");
        model.save(&base, None).unwrap();
        let loaded = DiffusionModel::load(&base, &options).unwrap();
        for (name, tensor) in trainer.weights().tensors() {
            assert_eq!(tensor.detach(), loaded.unet.parameters()[&name], "{name}");
        }
        assert_eq!(unet(&run.path().join("checkpoint-2"), Role::Trained), unet(run.path(), Role::Trained));
        assert!(!run.path().join("pytorch_lora_weights.safetensors").exists());
    }
}

#[test]
fn gamma_zero_is_the_plain_method_bit_for_bit_for_whole_weights() {
    let model = common::tiny_model();
    let weights = |method: &str, entropy: &str| {
        let folder = tempfile::tempdir().unwrap();
        let lines = format!("max_train_steps = 2\nvalidation_steps = 0\n{entropy}");
        unet(train(&model, &full(folder.path(), method, &lines)).path(), Role::Trained)
    };
    for method in ["spo", "diffusion-dpo", "seppo"] {
        let plain = weights(method, "");
        assert_eq!(plain, weights(method, "entropy = { gamma = 0.0, form = 'literal-power' }"), "{method}");
        assert_ne!(plain, weights(method, "entropy = { gamma = 2.0 }"), "{method}");
    }
}

/// Stopped after any update, all of it goes on bit for bit: moments, averages, snapshots on disk, samples of an iteration.
#[test]
fn a_stopped_run_of_whole_weights_continues_bit_for_bit() {
    let model = common::tiny_model();
    for (method, lines) in [
        ("spo", "ema_decay = 0.9"),
        ("d3po", "reference = 'ema'\noptimizer = 'adafactor'"),
        ("ddpo", "prompts_per_iteration = 3"),
        ("diffusion-dpo", "gradient_checkpointing = true"),
        ("seppo", ""),
        ("spin", "checkpoints_total_limit = 1"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let config = full(folder.path(), method, &format!("validation_steps = 0\n{lines}"));
        let whole = unet(train(&model, &config).path(), Role::Trained);
        let mut within = false;
        for step in [1, 4] {
            let stop = AtomicBool::new(false);
            let mut first = start(&model, &config, &Colourfulness);
            assert_eq!(first.run(&mut StopAt(step, &stop), &stop).unwrap(), Finished::Interrupted);
            let path = folder.path().join(format!("run-{}", if step == 1 { 2 } else { 3 }));
            let (run, checkpoint) = RunDir::resolve(path.to_str().unwrap(), folder.path(), "").unwrap();
            within |= checkpoint.as_ref().unwrap().position.updates_done > 0;
            run.rewind(Some(step)).unwrap();
            open(&model, &config, &Colourfulness, run, checkpoint).run(&mut Silent, &STOP).unwrap();
            assert_eq!(unet(&path, Role::Trained), whole, "{method} stopped after update {step}");
        }
        assert!(within, "{method}: no stop fell within an iteration");
    }
}

/// An older checkpoint has the snapshots it needs, whatever became of those at the top of the run folder.
#[test]
fn checkpoints_keep_their_snapshots() {
    let model = common::tiny_model();
    for method in ["seppo", "spin"] {
        let folder = tempfile::tempdir().unwrap();
        let config = full(folder.path(), method, "validation_steps = 0\ncheckpoints_total_limit = 0");
        let run = train(&model, &config);
        let whole = unet(run.path(), Role::Trained);
        std::fs::remove_dir_all(run.path().join("reference_history")).unwrap();
        let older = run.path().join("checkpoint-4");
        let checkpoint = Checkpoint::load(&older).unwrap();
        Checkpoint::discard_after(run.path(), 4);
        run.rewind(Some(4)).unwrap();
        open(&model, &config, &Colourfulness, run.clone(), Some(checkpoint)).run(&mut Silent, &STOP).unwrap();
        assert_eq!(unet(run.path(), Role::Trained), whole, "{method}");
    }
}

/// A method without reference trains the only U-Net in memory; with one it would have nothing to compare with.
#[test]
fn without_a_reference_no_second_copy_is_needed() {
    let base = tempfile::tempdir().unwrap();
    common::tiny_model().save(base.path(), None).unwrap();
    let load = |unet_weights, kind| {
        let options = LoadOptions { unet_weights, ..LoadOptions::new(Device::Cpu, kind) };
        DiffusionModel::load(base.path(), &options).unwrap()
    };
    for kind in [Kind::Float, Kind::BFloat16] {
        let (with_base, without) = (load(true, kind), load(false, kind));
        for method in ["sft", "ddpo"] {
            let folder = tempfile::tempdir().unwrap();
            let config = full(folder.path(), method, "max_train_steps = 2\nvalidation_steps = 2");
            let run = train(&with_base, &config);
            let again = train(&without, &config);
            assert_eq!(unet(run.path(), Role::Trained), unet(again.path(), Role::Trained), "{method} {kind:?}");
            let kl = |run: &RunDir| {
                let of = |record| if let Record::Preview(m) = record { Some(m.kl_to_reference) } else { None };
                run.records().unwrap().into_iter().filter_map(of).next_back().unwrap()
            };
            assert!(kl(&run).is_some() && kl(&again).is_none(), "{method}");
        }
        let config = full(base.path(), "spo", "");
        let message = seedpo_align::trainer::check(&config, &config.prompts, &without).unwrap_err().to_string();
        assert!(message.contains("method spo compares the policy with it"), "{message}");
    }
}

/// The passes are bf16; what is trained, averaged and saved is f32, and starts on policy.
#[test]
fn passes_in_bf16_train_weights_in_f32() {
    let base = tempfile::tempdir().unwrap();
    common::tiny_model().save(base.path(), None).unwrap();
    let model = DiffusionModel::load(base.path(), &LoadOptions::new(Device::Cpu, Kind::BFloat16)).unwrap();
    for (method, lines) in [("spo", "ema_decay = 0.5"), ("seppo", "gradient_checkpointing = true")] {
        let folder = tempfile::tempdir().unwrap();
        let config = full(folder.path(), method, lines);
        let run = train(&model, &config);
        let updates = updates(&run);
        assert_eq!((updates[0].ratio_mean, updates[0].kl_to_reference), (1.0, 0.0), "{method}");
        assert!(updates.iter().all(|m| m.loss.is_finite() && m.grad_norm > 0.0), "{method}");
        for place in ["unet", "checkpoint-6/unet", "unet_ema", "reference_history/00000002"] {
            let path = run.path().join(place).join("diffusion_pytorch_model.safetensors");
            if place.starts_with("unet_ema") != (method == "spo") && !place.ends_with("unet") {
                continue;
            }
            let kind = if place.starts_with("reference") { Kind::BFloat16 } else { Kind::Float };
            let file = seedpo_tensor::WeightFile::open(&path).unwrap();
            assert!(file.names().all(|name| file.kind(name) == Some(kind)), "{method} {place}");
        }
    }
}

/// Gradient checkpointing and micro-batches change nothing but rounding.
#[test]
fn economies_only_change_rounding_for_whole_weights() {
    let model = common::tiny_model();
    let norms = |lines: &str| {
        let folder = tempfile::tempdir().unwrap();
        let config = full(folder.path(), "spo", &format!("learning_rate = 1e-5\nvalidation_steps = 0\n{lines}"));
        updates(&train(&model, &config)).iter().map(|m| m.grad_norm).collect::<Vec<_>>()
    };
    let plain = norms("");
    for lines in ["gradient_checkpointing = true", "train_micro_batch_size = 1"] {
        let other = norms(lines);
        let difference = plain.iter().zip(&other).map(|(a, b)| ((a - b) / a).abs()).fold(0.0, f64::max);
        assert!(difference < 1e-3, "{lines}: {plain:?} {other:?}");
    }
}

/// Gradients of whole weights stay while pictures are drawn and judged: what is measured there has them in memory.
#[test]
fn the_forecast_measures_with_gradients_in_memory() {
    /// Whether all parameters had gradients at each call.
    struct Looking(Mutex<Vec<Tensor>>, Mutex<Vec<bool>>);
    impl Judge for Looking {
        fn name(&self) -> &str {
            "looking"
        }
        fn unit(&self) -> &str {
            "1"
        }
        fn judge(&self, images: &ImageBatch, prompts: &[&str]) -> seedpo_judge::Result<Vec<f64>> {
            let all = self.0.lock().unwrap().iter().all(|parameter| parameter.grad().defined());
            self.1.lock().unwrap().push(all);
            Colourfulness.judge(images, prompts)
        }
    }
    let model = common::tiny_model();
    let folder = tempfile::tempdir().unwrap();
    let judge = Looking(Mutex::default(), Mutex::default());
    let mut trainer = start(&model, &full(folder.path(), "spo", ""), &judge);
    *judge.0.lock().unwrap() = trainer.weights().trainable().into_iter().map(|(_, tensor)| tensor).collect();
    trainer.forecast(true).unwrap();
    let seen = judge.1.lock().unwrap();
    assert!(!seen.is_empty() && seen.iter().all(|all| *all), "{seen:?}");
}

#[test]
fn f16_passes_are_refused_for_whole_weights() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |lines: &str| full(folder.path(), "spo", lines).validate().unwrap_err().to_string();
    assert!(refused("dtype = 'f16'").contains("underflow"));
    assert!(refused("finetuning_type = 'dora'").contains("one of lora, full"));
}
