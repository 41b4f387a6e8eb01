//! Methods as combinations of axes: which run, which policy they are compared with, and what that costs.

use super::*;

fn run(config: &TrainConfig, model: &DiffusionModel) -> Vec<UpdateMetrics> {
    start(model, config, &Colourfulness).run(&mut Silent, &STOP).unwrap();
    updates(&RunDir::open(&Path::new(&config.output_dir).join("run")).unwrap())
}

/// `config` of a method with lines of settings on top.
pub fn with(folder: &Path, method: &str, lines: &str) -> TrainConfig {
    let mut table = toml::Table::try_from(config(folder, method)).unwrap();
    seedpo_align::config::layer(&mut table, lines.parse().unwrap());
    TrainConfig::from_table(table, "test").unwrap()
}

#[test]
fn sensible_combinations_run() {
    let model = common::tiny_model();
    for (method, lines, flips) in [
        ("spo", "likelihood = 'denoising-error'\nguidance_scale = 1.0\nbeta = 100.0", false),
        ("spo", "reference = 'latest'\nreference_save_steps = 2", false),
        ("d3po", "likelihood = 'denoising-error'\nflipper = 'sign'\nbeta = 100.0\nreference = 'random-history'", true),
        ("d3po", "reference = 'ema'\nreference_ema_decay = 0.5\nentropy = { gamma = 0.5 }", false),
        ("diffusion-dpo", "reference = 'random-history'\nflipper = 'indicator'", true),
        ("seppo", "entropy = { gamma = 0.5 }\nflipper = 'off'\nreference = 'ema'", false),
        ("seppo", "pairs = 'images'", true),
        ("sft", "guidance_scale = 2.0", false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let lines = format!("{lines}\nmax_train_steps = 4\nvalidation_steps = 0");
        let updates = run(&with(folder.path(), method, &lines), &model);
        assert!(updates.iter().all(|m| m.loss.is_finite() && m.grad_norm > 0.0), "{method} {lines}");
        assert!(method == "sft" || updates[3].ratio_mean != 1.0, "{method} {lines}");
        assert_eq!(updates[0].flip_mean.is_some(), flips, "{method} {lines}");
    }
}

#[test]
fn each_reference_is_the_policy_it_says() {
    let model = common::tiny_model();
    let steps = |method: &str, lines: &str| {
        let folder = tempfile::tempdir().unwrap();
        let lines = format!("{lines}\nmax_train_steps = 9\nvalidation_steps = 0");
        let metrics = run(&with(folder.path(), method, &lines), &model);
        metrics.iter().map(|m| m.reference_step).collect::<Vec<_>>()
    };
    assert_eq!(steps("diffusion-dpo", ""), [Some(0); 9]);
    assert_eq!(steps("sft", ""), [None; 9]);
    let latest = [0, 0, 2, 2, 4, 4, 6, 6, 8].map(Some);
    assert_eq!(steps("spin", ""), latest);
    let drawn = steps("seppo", "");
    // Uniform over the base and the snapshots so far, which update n finds at 2, 4, .., below n.
    assert!(
        drawn.iter().zip(&latest).all(|(one, newest)| one <= newest && one.unwrap().is_multiple_of(2)),
        "{drawn:?}"
    );
    let mut distinct = drawn.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert!(distinct.len() >= 3 && drawn != latest, "{drawn:?}");
    assert_eq!(drawn, steps("seppo", ""), "keyed by the seed");
    assert_ne!(drawn, steps("seppo", "seed = 1"));
}

/// Policy and reference see each row once; the flipper, which compares the same predictions, costs nothing.
#[test]
fn nothing_is_computed_twice() {
    let model = common::tiny_model();
    let evaluations = |method: &str, lines: &str| {
        let folder = tempfile::tempdir().unwrap();
        let lines = format!("{lines}\nmax_train_steps = 1\nvalidation_steps = 0");
        run(&with(folder.path(), method, &lines), &model)[0].unet_evaluations
    };
    // One pair or winner per update; 4 steps of sampling under guidance are 8 evaluations.
    assert_eq!(evaluations("sft", ""), 1);
    assert_eq!(evaluations("diffusion-dpo", ""), 4);
    assert_eq!(evaluations("diffusion-dpo", "flipper = 'sign'"), 4);
    assert_eq!(evaluations("spin", ""), 8 + 4);
    assert_eq!(evaluations("seppo", ""), 8 + 4);
}

/// How many are sampled at once changes no sample.
#[test]
fn the_reference_s_samples_do_not_depend_on_the_batch() {
    let model = common::tiny_model();
    let losses = |lines: &str| {
        let folder = tempfile::tempdir().unwrap();
        let lines = format!("{lines}\ntrain_batch_size = 2\nvalidation_steps = 0\nlearning_rate = 1e-3");
        run(&with(folder.path(), "seppo", &lines), &model).iter().map(|m| m.grad_norm).collect::<Vec<_>>()
    };
    let (together, apart) = (losses("rollout_batch_size = 2"), losses("rollout_batch_size = 1"));
    let off = together.iter().zip(&apart).map(|(a, b)| ((a - b) / a).abs()).fold(0.0, f64::max);
    assert!(off < 1e-2, "{together:?} {apart:?}");
}

#[test]
fn a_checkpoint_keeps_the_history_and_a_missing_snapshot_is_named() {
    let model = common::tiny_model();
    let folder = tempfile::tempdir().unwrap();
    let config = with(folder.path(), "seppo", "validation_steps = 0\nmax_train_steps = 4");
    run(&config, &model);
    let (run, checkpoint) = RunDir::resolve("latest", folder.path(), "").unwrap();
    let checkpoint = checkpoint.unwrap();
    let history = checkpoint.folder.join("reference_history");
    let mut files: Vec<String> =
        std::fs::read_dir(&history).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    assert_eq!(files, ["00000002.safetensors", "00000004.safetensors"]);
    std::fs::remove_file(history.join(&files[0])).unwrap();
    let prompts = ["a", "b", "c"].map(String::from).to_vec();
    let image_pairs = dataset(&config);
    let parts = Parts {
        config,
        prompts,
        image_pairs,
        store: None,
        model: &model,
        judge: &Colourfulness,
        heldout: Vec::new(),
        run,
    };
    let message = Trainer::new(parts, Some(checkpoint)).map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("00000002.safetensors") && message.contains("snapshot"), "{message}");
}
