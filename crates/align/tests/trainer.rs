//! The training loop on a tiny random model: identities, resume, stopping, and what happens when something goes wrong.

#[path = "trainer/axes.rs"]
mod axes;
#[path = "trainer/checkpoints.rs"]
mod checkpoints;
mod common;
#[path = "trainer/failing.rs"]
mod failing;
#[path = "trainer/full.rs"]
mod full;
#[path = "trainer/guard.rs"]
mod guard;
#[path = "trainer/optimizing.rs"]
mod optimizing;
#[path = "trainer/replay.rs"]
mod replay;
#[path = "trainer/roll_back.rs"]
mod roll_back;
#[path = "trainer/samples.rs"]
mod samples;
#[path = "trainer/streaming.rs"]
mod streaming;

use seedpo_align::metrics::UpdateMetrics;
use seedpo_align::{
    Checkpoint, Error, Finished, Likelihood, METHODS, Method, Observer, ObserverError, PairsFrom, Parts, Phase,
    Preview, Record, RunDir, Silent, TrainConfig, Trainer,
};
use seedpo_data::{Options, Pairs};
use seedpo_judge::{Colourfulness, ImageBatch, Judge};
use seedpo_model::{DiffusionModel, LoadOptions};
use seedpo_tensor::{Device, Kind};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Asks to stop after an update.
struct StopAt<'a>(u64, &'a AtomicBool);
impl Observer for StopAt<'_> {
    fn on_update(&mut self, metrics: &UpdateMetrics) -> Result<(), ObserverError> {
        self.1.store(metrics.step == self.0, Ordering::SeqCst);
        Ok(())
    }
}

static STOP: AtomicBool = AtomicBool::new(false);

/// Three pairs of pictures, bright ones preferred.
fn write_pairs(folder: &Path) -> String {
    let mut lines = String::new();
    for (i, prompt) in ["a", "b", "c"].iter().enumerate() {
        for (name, value) in [("w", 230), ("l", 30)] {
            let picture =
                image::RgbImage::from_fn(40, 32, |x, y| image::Rgb([value, (x * 6) as u8, (y * 5 + i as u32) as u8]));
            picture.save(folder.join(format!("{i}{name}.png"))).unwrap();
        }
        lines += &format!("{{\"prompt\": \"{prompt}\", \"winner\": \"{i}w.png\", \"loser\": \"{i}l.png\"}}\n");
    }
    let file = folder.join("pairs.jsonl");
    std::fs::write(&file, lines).unwrap();
    file.display().to_string()
}

fn config(folder: &Path, method: &str) -> TrainConfig {
    if Method::by_name(method).unwrap().pairs.from_files() {
        let pairs_file = write_pairs(folder);
        let config = TrainConfig { method: method.into(), prompts: Vec::new(), pairs_file, ..config(folder, "spo") };
        let guidance = TrainConfig { guidance_scale: 1.0, sampling_guidance_scale: 2.0, ..config };
        return TrainConfig { beta: 100.0, clip: 0.0, train_batch_size: 1, reference_save_steps: 2, ..guidance };
    }
    let spo = method == "spo";
    TrainConfig {
        model: "tiny".into(),
        output_dir: folder.display().to_string(),
        name: "run".into(),
        method: method.into(),
        prompts: ["a", "b", "c"].map(String::from).to_vec(),
        judge: "colourfulness".into(),
        steps: 4,
        divert_start_step: 1,
        candidates: 2,
        reward_history: 3,
        reward_history_min: 2,
        threshold: 0.0,
        prompts_per_iteration: 2,
        rollout_batch_size: 2,
        train_batch_size: if spo { 2 } else { 1 },
        beta: if spo { 10.0 } else { 0.1 },
        guidance_scale: 2.0,
        learning_rate: 1e-2,
        max_train_steps: 6,
        checkpointing_steps: 2,
        validation_steps: 3,
        validation_images_per_prompt: 1,
        ..TrainConfig::default()
    }
}

fn start<'a>(model: &'a DiffusionModel, config: &TrainConfig, judge: &'a dyn Judge) -> Trainer<'a> {
    let run = RunDir::create(config, &BTreeMap::new(), &BTreeMap::new()).unwrap();
    open(model, config, judge, run, None)
}

fn dataset(config: &TrainConfig) -> Option<Arc<Pairs>> {
    let winners_only = config.resolved_method().unwrap().pairs != PairsFrom::Images;
    let options = Options { winners_only, ..Options::default() };
    Some(Arc::new(Pairs::open(Path::new(&config.pairs_file), &options).unwrap()))
}

fn open<'a>(
    model: &'a DiffusionModel,
    config: &TrainConfig,
    judge: &'a dyn Judge,
    run: RunDir,
    checkpoint: Option<Checkpoint>,
) -> Trainer<'a> {
    let (mut prompts, mut image_pairs) = (config.prompts.clone(), None);
    if !config.pairs_file.is_empty() {
        image_pairs = dataset(config);
        prompts = image_pairs.iter().flat_map(|pairs| pairs.prompts()).map(str::to_owned).collect();
    }
    Trainer::new(
        Parts { config: config.clone(), prompts, image_pairs, store: None, model, judge, heldout: vec![judge], run },
        checkpoint,
    )
    .unwrap()
}

fn updates(run: &RunDir) -> Vec<UpdateMetrics> {
    let of = |record| if let Record::Update(metrics) = record { Some(metrics) } else { None };
    run.records().unwrap().into_iter().filter_map(of).collect()
}

fn adapter(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("pytorch_lora_weights.safetensors")).unwrap()
}

#[test]
fn every_method_starts_on_policy_and_moves() {
    let model = common::tiny_model();
    // Single samples have no pairs: trainer/samples.rs.
    let paired = METHODS.iter().filter(|method| method.pairs != PairsFrom::Samples);
    for method in paired.map(|method| method.name) {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path(), method);
        assert_eq!(start(&model, &config, &Colourfulness).run(&mut Silent, &STOP).unwrap(), Finished::Completed);
        let run = RunDir::open(&folder.path().join("run")).unwrap();
        let updates = updates(&run);
        assert_eq!(updates.iter().map(|m| m.step).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6], "{method}");
        let first = &updates[0];
        // The adapter starts at 0: policy and reference are the same, to the bit.
        assert_eq!((first.ratio_mean, first.clip_fraction, first.kl_to_reference), (1.0, 0.0, 0.0), "{method}");
        // Supervision has no pairs: its loss is the denoising error, and nothing is compared.
        let supervised = method == "sft";
        assert!(((first.loss - 2f64.ln()).abs() < 1e-6) != supervised && first.grad_norm > 0.0, "{method} {first:?}");
        // The KL is that of a sampler's step, which images do not have.
        let steps = Method::by_name(method).unwrap().likelihood == Likelihood::Transition;
        assert!(
            (updates[3].kl_to_reference > 0.0) == steps && (updates[3].ratio_mean != 1.0) != supervised,
            "{method}"
        );
        assert_eq!(Checkpoint::list(run.path()).unwrap(), [2, 4, 6]);
        let previews = run.records().unwrap().iter().filter(|r| matches!(r, Record::Preview(_))).count();
        assert_eq!(previews, 3, "before, at update 3 and at the end");
    }
}

/// Merged and unmerged adapters round differently in a half-precision base; the check must allow for that and no more.
#[test]
fn half_precision_bases_are_on_policy_within_their_tolerance() {
    let folder = tempfile::tempdir().unwrap();
    common::tiny_model().save(folder.path(), None).unwrap();
    for kind in [Kind::BFloat16, Kind::Half] {
        let model = DiffusionModel::load(folder.path(), &LoadOptions::new(Device::Cpu, kind)).unwrap();
        let out = tempfile::tempdir().unwrap();
        let config = TrainConfig { max_train_steps: 4, ..config(out.path(), "spo") };
        start(&model, &config, &Colourfulness).run(&mut Silent, &STOP).unwrap();
        // Again from a trained adapter, whose B is not 0.
        let (run, checkpoint) = RunDir::resolve("latest", out.path(), "").unwrap();
        let config = TrainConfig { max_train_steps: 8, ..config };
        let mut more = open(&model, &config, &Colourfulness, run.clone(), checkpoint);
        assert_eq!(more.run(&mut Silent, &STOP).unwrap(), Finished::Completed);
        assert!(updates(&run).iter().all(|m| m.loss.is_finite() && m.grad_norm > 0.0));
    }
}

/// γ = 0 must be the plain method bit for bit, whatever the form says; γ > 0 must differ.
#[test]
fn gamma_zero_is_the_plain_method_bit_for_bit() {
    let model = common::tiny_model();
    let train = |method: &str, entropy: &str| {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path(), method);
        (config.max_train_steps, config.validation_steps) = (3, 0);
        config.entropy = toml::from_str(entropy).unwrap();
        start(&model, &config, &Colourfulness).run(&mut Silent, &STOP).unwrap();
        adapter(&folder.path().join("run"))
    };
    for method in METHODS.iter().map(|method| method.name).filter(|name| !["sft", "ddpo", "dpok"].contains(name)) {
        let plain = train(method, "");
        assert_eq!(plain, train(method, "gamma = 0.0\nform = 'literal-power'"), "{method}");
        assert_ne!(plain, train(method, "gamma = 2.0"), "{method}");
    }
}

/// Stopping after any number of updates and going on gives the same adapter, also within an iteration.
#[test]
fn a_stopped_run_continues_bit_for_bit() {
    let model = common::tiny_model();
    // SePPO's references are drawn from the snapshots of updates 2 and 4, and the base.
    let plain = ["spo", "d3po", "diffusion-dpo", "seppo", "spin"].map(|method| (method, ""));
    let more = [("d3po", "reference = 'ema'"), ("spo", "lora_targets = ['all-linear']")];
    for (method, lines) in plain.into_iter().chain(more) {
        let folder = tempfile::tempdir().unwrap();
        let config = axes::with(folder.path(), method, lines);
        start(&model, &config, &Colourfulness).run(&mut Silent, &STOP).unwrap();
        let whole = adapter(&folder.path().join("run"));
        let mut within = false;
        for step in 1..6 {
            let stop = AtomicBool::new(false);
            let mut first = start(&model, &config, &Colourfulness);
            assert_eq!(first.run(&mut StopAt(step, &stop), &stop).unwrap(), Finished::Interrupted);
            let path = folder.path().join(format!("run-{}", step + 1));
            let (run, checkpoint) = RunDir::resolve(path.to_str().unwrap(), folder.path(), "").unwrap();
            let position = checkpoint.as_ref().unwrap().position;
            assert_eq!(position.step, step);
            within |= position.updates_done > 0;
            run.rewind(Some(step)).unwrap();
            open(&model, &config, &Colourfulness, run, checkpoint).run(&mut Silent, &STOP).unwrap();
            assert_eq!(adapter(&path), whole, "{method} stopped after update {step}");
        }
        assert!(within, "{method}: no stop fell within an iteration");
    }
}

/// A stop while previews are drawn loses neither the update before them nor, after going on, the previews.
#[test]
fn a_stop_during_previews_draws_them_after_going_on() {
    struct StopInPreview<'a>(u64, &'a AtomicBool);
    impl Observer for StopInPreview<'_> {
        fn on_update(&mut self, metrics: &UpdateMetrics) -> Result<(), ObserverError> {
            self.0 = metrics.step;
            Ok(())
        }
        fn on_phase(&mut self, phase: Phase, _: usize, _: usize) {
            self.1.store(self.0 == 3 && phase == Phase::Preview, Ordering::SeqCst);
        }
    }
    let model = common::tiny_model();
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "d3po");
    let stop = AtomicBool::new(false);
    let mut first = start(&model, &config, &Colourfulness);
    assert_eq!(first.run(&mut StopInPreview(0, &stop), &stop).unwrap(), Finished::Interrupted);
    let (run, checkpoint) = RunDir::resolve("latest", folder.path(), "").unwrap();
    run.rewind(Some(3)).unwrap();
    open(&model, &config, &Colourfulness, run.clone(), checkpoint).run(&mut Silent, &STOP).unwrap();
    let previewed = |record: &Record| if let Record::Preview(m) = record { Some(m.step) } else { None };
    assert_eq!(run.records().unwrap().iter().filter_map(previewed).collect::<Vec<_>>(), [0, 3, 6]);
    assert_eq!(updates(&run).len(), 6);
}

/// The number of prompts sampled at once changes no pair, and the number trained on at once no gradient (but rounding).
#[test]
fn batch_sizes_only_change_rounding() {
    let model = common::tiny_model();
    let losses = |method: &str, targets: &str, rollout: u64, micro: u64| {
        let folder = tempfile::tempdir().unwrap();
        let mut config = TrainConfig { lora_targets: vec![targets.into()], ..config(folder.path(), method) };
        (config.rollout_batch_size, config.train_micro_batch_size) = (rollout, micro);
        config.learning_rate = 1e-3;
        start(&model, &config, &Colourfulness).run(&mut Silent, &STOP).unwrap();
        let run = RunDir::open(&folder.path().join("run")).unwrap();
        updates(&run).iter().map(|m| m.grad_norm).collect::<Vec<_>>()
    };
    // A micro-batch of 6 joins steps of a D3PO trajectory.
    for (method, targets, others) in [
        ("spo", "attention", [(1, 2), (2, 1)]),
        ("d3po", "attention", [(1, 2), (2, 6)]),
        ("spo", "all-linear", [(1, 2), (2, 1)]),
    ] {
        let base = losses(method, targets, 2, 2);
        for (rollout, micro) in others {
            let other = losses(method, targets, rollout, micro);
            assert_eq!(base.len(), other.len());
            let difference = base.iter().zip(&other).map(|(a, b)| ((a - b) / a).abs()).fold(0.0, f64::max);
            assert!(difference < 1e-3, "{method} {targets}: {base:?} {other:?}");
        }
    }
}

/// A judge that gives NaN, or always the same score, from the given call on.
struct Spoilt {
    calls: AtomicUsize,
    from: usize,
    value: Option<f64>,
}

impl Judge for Spoilt {
    fn name(&self) -> &str {
        "spoilt"
    }
    fn unit(&self) -> &str {
        "1"
    }
    fn judge(&self, images: &ImageBatch, prompts: &[&str]) -> seedpo_judge::Result<Vec<f64>> {
        match self.value {
            Some(value) if self.calls.fetch_add(1, Ordering::SeqCst) >= self.from => Ok(vec![value; images.len()]),
            _ => Colourfulness.judge(images, prompts),
        }
    }
}

#[test]
fn a_judge_that_sees_no_difference_stops_with_advice() {
    let model = common::tiny_model();
    for method in ["spo", "d3po"] {
        let folder = tempfile::tempdir().unwrap();
        let judge = Spoilt { calls: AtomicUsize::new(0), from: 0, value: Some(1.0) };
        let config = TrainConfig { steps: 2, ..config(folder.path(), method) };
        let message = start(&model, &config, &judge).run(&mut Silent, &STOP).unwrap_err().to_string();
        assert!(message.contains("no difference") && message.contains("judge_scale"), "{method}: {message}");
    }
}

#[test]
fn previews_use_the_same_noise_every_time() {
    #[derive(Default)]
    struct Keep(Vec<(u64, Vec<u8>, usize)>);
    impl Observer for Keep {
        fn on_preview(&mut self, preview: &Preview) -> Result<BTreeMap<String, f64>, ObserverError> {
            let bytes = Vec::<u8>::try_from(preview.images.flatten(0, -1))?;
            self.0.push((preview.step, bytes, preview.scores.len()));
            Ok(BTreeMap::from([("diversity/rmse".to_string(), 0.5)]))
        }
    }
    let model = common::tiny_model();
    let previews = |rollout_batch_size, learning_rate| {
        let folder = tempfile::tempdir().unwrap();
        let config =
            TrainConfig { rollout_batch_size, learning_rate, max_train_steps: 3, ..config(folder.path(), "d3po") };
        let mut keep = Keep::default();
        start(&model, &config, &Colourfulness).run(&mut keep, &STOP).unwrap();
        let run = RunDir::open(&folder.path().join("run")).unwrap();
        let measured = |record: &Record| matches!(record, Record::Preview(m) if m.measured["diversity/rmse"] == 0.5);
        assert_eq!(run.records().unwrap().iter().filter(|r| measured(r)).count(), 2);
        keep.0
    };
    let still = previews(2, 1e-12);
    assert_eq!(still.iter().map(|(step, _, scores)| (*step, *scores)).collect::<Vec<_>>(), [(0, 3), (3, 3)]);
    assert_eq!(still[0].1, still[1].1);
    let moved = previews(2, 1.0);
    assert_eq!(moved[0].1, still[0].1);
    assert_ne!(moved[1].1, still[1].1);
}

#[test]
fn settings_that_do_not_fit_the_model_are_refused_before_anything_is_written() {
    let model = common::tiny_model();
    let folder = tempfile::tempdir().unwrap();
    let good = config(folder.path(), "spo");
    let refused =
        |config: TrainConfig| seedpo_align::trainer::check(&config, &config.prompts, &model).unwrap_err().to_string();
    assert!(refused(TrainConfig { resolution: 15, ..good.clone() }).contains("multiple of 2"));
    assert!(refused(TrainConfig { lora_targets: vec!["to_x".into()], ..good.clone() }).contains("to_x"));
    assert!(
        refused(TrainConfig { prompts: vec![], prompts_file: "x.txt".into(), ..good }).contains("at least one prompt")
    );
}
