//! What the commands do when all is well, with the real binary on a tiny random model.

#[path = "commands/adapters.rs"]
mod adapters;
mod common;
#[path = "commands/dtypes.rs"]
mod dtypes;
#[path = "commands/ensembles.rs"]
mod ensembles;
#[path = "commands/full.rs"]
mod full;
#[path = "commands/judge_files.rs"]
mod judge_files;
#[path = "commands/judge_training.rs"]
mod judge_training;
#[path = "commands/judging.rs"]
mod judging;
#[path = "commands/memory.rs"]
mod memory;
#[path = "commands/odd_folders.rs"]
mod odd_folders;
#[path = "commands/pairs.rs"]
mod pairs;
#[path = "commands/probing.rs"]
mod probing;
#[path = "commands/scripts.rs"]
mod scripts;
#[path = "commands/sdxl.rs"]
mod sdxl;

use std::collections::BTreeMap;

use common::{EMBED, LATENT, Room, SIDE};
use seedpo_evaluate::png::read_png;
use seedpo_model::{Adapter, AddedConditioning, DiffusionModel, LoadOptions, Policy, adapter::LoraConfig};
use seedpo_tensor::{Kind, NoiseKey, Tensor, WeightFile};

/// One short update on the tiny model.
const TRAIN: [&str; 18] = [
    "train",
    "--model",
    "model",
    "--device",
    "cpu",
    "--prompt",
    "a",
    "--judge",
    "colourfulness",
    "--steps",
    "3",
    "--divert-start-step",
    "1",
    "--max-train-steps",
    "1",
    "--threshold=0",
    "--guidance-scale",
    "2",
];

/// Runs the command, which must succeed, and gives its standard output.
fn done(room: &Room, arguments: &[&str]) -> String {
    let output = room.seedpo(arguments).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "seedpo {}\n{message}", arguments.join(" "));
    String::from_utf8(output.stdout).unwrap()
}

fn model(room: &Room) -> DiffusionModel {
    DiffusionModel::load(&room.path("model"), &LoadOptions::default()).unwrap()
}

fn noise(shape: &[i64]) -> Tensor {
    NoiseKey::new(2, "commands").normal(shape)
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[])
}

#[test]
fn help_teaches() {
    let room = Room::new();
    let overview = done(&room, &["--help"]);
    for needle in ["sample", "score", "train", "probe", "doctor", "pretrain", "report", "Exit codes", "Start here"] {
        assert!(overview.contains(needle), "{needle:?} in\n{overview}");
    }
    let train = done(&room, &["train", "--help"]);
    for key in seedpo_align::config::keys() {
        let flag = format!("--{}", key.name.replace(['_', '.'], "-"));
        assert!(train.contains(&flag), "{flag} in `seedpo train --help`");
    }
    for needle in
        ["--pretrained-model-name-or-path", "--beta-dpo", "--resume-from-checkpoint", "6e-5 for spo", "see-spo-sd15"]
    {
        assert!(train.contains(needle), "{needle} in\n{train}");
    }
    assert!(done(&room, &["--version"]).starts_with("seedpo 0."));
}

#[test]
fn samples_do_not_depend_on_the_batch_size_or_the_other_prompts() {
    let room = Room::new();
    let base = ["--quiet", "sample", "--model", "model", "--steps", "3", "--eta", "1", "--seed", "5"];
    let with = |more: &[&str]| done(&room, &[&base[..], more].concat());
    let text = with(&["--prompt", "red apple", "--prompt", "b", "-n", "3", "--batch", "1", "--grid", "--out", "one"]);
    assert!(text.contains("6 picture(s) and grid.png"), "{text}");
    with(&["--prompt", "red apple", "--prompt", "b", "-n", "3", "--batch", "8", "--out", "eight"]);
    with(&["--prompt", "red apple", "-n", "2", "--batch", "2", "--out", "alone"]);
    let read = |path: &str| read_png(&room.path(path)).unwrap();
    let name = "0000-red-apple-1.png";
    let (one, eight, alone) =
        (read(&format!("one/{name}")), read(&format!("eight/{name}")), read(&format!("alone/{name}")));
    assert_eq!(one.image.size(), [SIDE, SIDE, 3]);
    // Kernels may round differently for other batch sizes: one level of 255.
    assert!(largest_difference(&one.image, &eight.image) <= 1.0 && largest_difference(&one.image, &alone.image) <= 1.0);
    let other = read("one/0000-red-apple-0.png");
    assert!(largest_difference(&one.image, &other.image) > 1.0, "two numbers of one prompt are two pictures");
    let texts: BTreeMap<String, String> = one.texts.into_iter().collect();
    assert_eq!((texts["prompt"].as_str(), texts["seed"].as_str()), ("red apple", "5"));
    let settings: serde_json::Value = serde_json::from_str(&texts["settings"]).unwrap();
    assert_eq!((settings["steps"].as_i64(), settings["number"].as_i64()), (Some(3), Some(1)));
    assert!(texts["parameters"].starts_with("red apple\nSteps: 3, Sampler: DDIM, CFG scale: 5, Seed: 5, Size: 16x16"));
    assert!(read("one/grid.png").image.size()[0] > SIDE && !room.path("alone/grid.png").exists());
}

#[test]
fn every_sampler_and_size_draws() {
    let room = Room::new();
    let base = ["-q", "sample", "--model", "model", "--prompt", "a", "--prompt", "a", "--steps", "4"];
    let mut pictures: Vec<Tensor> = Vec::new();
    for name in ["ddim", "euler", "euler-karras", "euler-a", "dpmpp-2m", "dpmpp-2m-karras"] {
        let size = ["--resolution", "24", "--width", "18", "--sampler", name, "--out", name];
        done(&room, &[&base[..], &size].concat());
        let read = |file: &str| read_png(&room.path(name).join(file)).unwrap();
        let first = read("0000-a-0.png");
        assert_eq!(first.image.size(), [24, 18, 3], "{name}");
        assert_eq!(first.image, read("0001-a-0.png").image, "{name}: equal prompts, equal pictures");
        assert!(pictures.iter().all(|other| *other != first.image), "{name}");
        pictures.push(first.image);
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_sampling_exits_with_130() {
    let room = Room::new();
    let base = ["sample", "--model", "model", "--dtype", "f32", "--prompt", "a"];
    let arguments = [&base[..], &["-n", "5000", "--batch", "1", "--steps", "5"]].concat();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_seedpo"))
        .args(arguments)
        .current_dir(room.path("."))
        .env("OMP_NUM_THREADS", "1")
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while !room.path("pictures/0000-a-0.png").exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let whole = |path: &std::path::PathBuf| read_png(path).is_ok();
    assert!(std::fs::read_dir(room.path("pictures")).unwrap().all(|entry| whole(&entry.unwrap().path())));
}

#[test]
fn an_adapter_changes_the_picture_and_a_zero_one_does_not() {
    let room = Room::new();
    let unet = model(&room).unet;
    let fresh = Adapter::lora(&unet, &LoraConfig::default(), 3).unwrap();
    fresh.save(&room.path("zero.safetensors")).unwrap();
    trained(&fresh, 0.2);
    std::fs::create_dir(room.path("run")).unwrap();
    fresh.save(&room.path("run/pytorch_lora_weights.safetensors")).unwrap();
    let base = ["-q", "sample", "--model", "model", "--prompt", "a", "--steps", "4"];
    done(&room, &[&base[..], &["--out", "base"]].concat());
    done(&room, &[&base[..], &["--adapter", "zero.safetensors", "--out", "zero"]].concat());
    done(&room, &[&base[..], &["--adapter", "run", "--out", "trained"]].concat());
    let picture = |folder: &str| read_png(&room.path(folder).join("0000-a-0.png")).unwrap().image;
    done(
        &room,
        &[
            &base[..],
            &["--adapter", "run:0.5", "--adapter", "zero.safetensors", "--adapter", "run:0.5", "--out", "halves"],
        ]
        .concat(),
    );
    assert_eq!(picture("base"), picture("zero"));
    let apart = largest_difference(&picture("halves"), &picture("trained"));
    assert!(apart <= 1.0, "two halves are one whole: {apart}");
    assert!(largest_difference(&picture("base"), &picture("trained")) > 0.0);
}

/// Gives every B of an adapter values, as training would.
fn trained(adapter: &Adapter, size: f64) {
    let _no_grad = tch::no_grad_guard();
    for (index, (_, mut tensor)) in adapter.trainable().into_iter().enumerate() {
        let values = NoiseKey::new(9, "adapter").prompt(index as u64).normal(&tensor.size()) * size;
        tensor.copy_(&values);
    }
}

#[test]
fn scores_are_the_judges_own() {
    let room = Room::new();
    let pixels = (noise(&[8, 8, 3]) * 60 + 128).clamp(0.0, 255.0).to_kind(Kind::Uint8);
    seedpo_evaluate::png::write_png(
        &room.path("pictures/a.png").tap_parent(),
        &pixels,
        &[("prompt", "a \"red\", cat")],
    )
    .unwrap();
    let expected = seedpo_judge::load("colourfulness", &[], &Default::default())
        .unwrap()
        .score(&pixels.unsqueeze(0), &[""])
        .unwrap()[0];
    let arguments = ["score", "--images", "pictures", "--judge", "colourfulness,jpeg_compressibility"];
    let text = done(&room, &[&arguments[..], &["--csv", "s.csv", "--jsonl", "s.jsonl"]].concat());
    assert!(text.contains(&format!("{expected:.4}")) && text.contains("mean of 1") && text.contains("kB]"), "{text}");
    let csv = std::fs::read_to_string(room.path("s.csv")).unwrap();
    let wanted =
        format!("image,prompt,colourfulness,jpeg-compressibility\npictures/a.png,\"a \"\"red\"\", cat\",{expected},");
    assert!(csv.starts_with(&wanted), "{csv}");
    let line: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(room.path("s.jsonl")).unwrap()).unwrap();
    assert_eq!(
        (line["scores"]["colourfulness"].as_f64(), line["prompt"].as_str()),
        (Some(expected), Some("a \"red\", cat"))
    );
    let gate = room.seedpo(&[&arguments[..], &["--at-least", "1e6"]].concat()).output().unwrap();
    assert_eq!(gate.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&gate.stderr).contains("gate failed"));
}

trait TapParent {
    fn tap_parent(self) -> Self;
}

impl TapParent for std::path::PathBuf {
    /// Makes the folder that this file lies in.
    fn tap_parent(self) -> Self {
        std::fs::create_dir_all(self.parent().unwrap()).unwrap();
        self
    }
}

#[test]
fn the_doctor_checks_the_model() {
    let room = Room::new();
    let text = done(&room, &["doctor", "--model", "model"]);
    for needle in ["libtorch", "cpu", "memory", "GFLOP/s", "16×16 images"] {
        assert!(text.contains(needle), "{needle} in\n{text}");
    }
    assert!(text.lines().all(|line| line.starts_with("ok  ") || line.starts_with("warn")), "{text}");
}

#[test]
fn settings_have_their_precedence() {
    let room = Room::new();
    room.write("run.toml", "beta = 3.0\nrank = 7\nentropy = { gamma = 2.0 }\n");
    let arguments =
        ["train", "--model", "model", "--prompt", "a, b", "--preset", "see-spo-sd15", "--config", "run.toml"];
    let more = ["--rank", "5", "--output_dir=o_d", "--dtype", "bfloat16", "--max_train_steps", "3", "--print-config"];
    let text = done(&room, &[&arguments[..], &more].concat());
    let config = seedpo_align::config::TrainConfig::from_toml(&text, "printed").unwrap();
    assert_eq!((config.beta, config.rank, config.entropy.gamma), (3.0, 5, 2.0), "flag over file over preset");
    assert_eq!((config.learning_rate, config.max_train_steps), (6e-5, 3), "preset, and flag over preset");
    assert_eq!((config.output_dir.as_str(), config.dtype.as_str()), ("o_d", "bf16"));
    assert_eq!(config.prompts, ["a, b"]);
    assert!(!room.path("o_d").exists());
}

#[test]
fn a_run_leaves_everything_in_its_folder_and_runs_can_be_compared() {
    let room = Room::new();
    let base = ["-q", "train", "--model", "model", "--prompt", "a cat", "--prompt", "b", "--max-train-steps", "2"];
    let small = [
        "--steps",
        "4",
        "--divert-start-step",
        "1",
        "--prompts-per-iteration",
        "2",
        "--threshold",
        "0",
        "--judge-scale",
        "100",
    ];
    let more =
        ["--judge", "colourfulness", "--heldout-judge", "jpeg-compressibility", "--validation-images-per-prompt", "2"];
    let train = |own: &[&str]| done(&room, &[&base[..], &small, &more, own].concat());
    train(&["--gamma", "1"]);
    train(&["--method", "d3po", "--beta", "0.1", "--train-batch-size", "1"]);
    let run = room.path("runs/see-spo");
    let has = |name: &str| run.join(name).exists();
    for name in [
        "config.toml",
        "metrics.jsonl",
        "pytorch_lora_weights.safetensors",
        "pytorch_lora_weights_kohya.safetensors",
        "report.html",
        "checkpoint-2",
    ] {
        assert!(has(name), "{name} in {:?}", room.listing().keys());
    }
    assert!(has("samples/step-000000.png") && has("samples/step-000002.png"));
    let events = seedpo_evaluate::tensorboard::event_files(&run).unwrap();
    let logged = seedpo_evaluate::tensorboard::read_events(&events[0]).unwrap();
    let tags: Vec<&str> = logged.iter().flat_map(|event| event.values.iter().map(|(tag, _)| tag.as_str())).collect();
    for tag in [
        "settings",
        "train/loss",
        "policy/kl_to_reference",
        "reward/mean",
        "preview/heldout_mean",
        "diversity/rmse",
        "previews",
    ] {
        assert!(tags.contains(&tag), "{tag} in {tags:?}");
    }
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().filter(|line| line.contains(r#""kind":"update""#)).count(), 2);
    let outside: Vec<_> = room.listing().into_keys().filter(|p| !p.starts_with(room.path("model"))).collect();
    assert!(outside.iter().all(|path| path.starts_with(room.path("runs"))), "{outside:?}");
    done(&room, &["report", "runs/see-spo", "--compare", "runs/d3po", "--out", "both.html"]);
    let html = std::fs::read_to_string(room.path("both.html")).unwrap();
    for needle in ["SEE-SPO, γ = 1", "After D3PO, γ = 0", "Win rate", "a cat", "load_lora_weights", "colourfulness"] {
        assert!(html.contains(needle), "{needle} in both.html");
    }
    let table = done(&room, &["runs", "compare", "runs/see-spo", "runs/d3po"]);
    assert!(table.contains("spo, γ = 1") && table.contains("2/2") && table.contains("compare.html"), "{table}");
    let html = std::fs::read_to_string(room.path("compare.html")).unwrap();
    assert!(html.contains("What differs: SEE-SPO, γ = 1") && html.contains("After D3PO, γ = 0"));
    let list = done(&room, &["runs", "list"]);
    assert!(list.lines().count() == 3 && list.contains("runs/d3po") && list.contains("colourfulness"), "{list}");
    let csv = done(&room, &["runs", "export", "runs/see-spo"]);
    assert!(csv.starts_with("step,") && csv.lines().next().unwrap().contains("preview.measured.e1"), "{csv}");
    assert_eq!(csv.lines().count(), 4, "a heading, updates 0 to 2: {csv}");
    let none = room.seedpo(&["runs", "list", "model"]).output().unwrap();
    assert!(!none.status.success() && String::from_utf8_lossy(&none.stderr).contains("config.toml"));
    let sampled =
        ["-q", "sample", "--model", "model", "--adapter", "runs/see-spo", "--prompt", "a cat", "--steps", "2"];
    done(&room, &sampled);
}
