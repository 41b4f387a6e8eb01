//! What the commands do when all is well, with the real binary on a tiny random model.

mod common;

use std::collections::BTreeMap;

use common::{EMBED, LATENT, Room, SIDE};
use seedpo_evaluate::png::read_png;
use seedpo_model::{Adapter, DiffusionModel, LoadOptions, Policy, adapter::LoraConfig};
use seedpo_tensor::{Kind, NoiseKey, Tensor, WeightFile};

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
        ["--pretrained-model-name-or-path", "--beta-dpo", "--resume-from-checkpoint", "[default: 6e-5]", "see-spo-sd15"]
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
    let text = with(&["--prompt", "red apple", "--prompt", "b", "-n", "3", "--batch", "1", "--out", "one"]);
    assert!(text.contains("6 picture(s)"), "{text}");
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
    assert!(read("one/grid.png").image.size()[0] > SIDE);
}

#[cfg(unix)]
#[test]
fn an_interrupted_sampling_exits_with_130() {
    let room = Room::new();
    let arguments = ["sample", "--model", "model", "--prompt", "a", "-n", "5000", "--batch", "1", "--steps", "5"];
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
    trained(&fresh, 1.0);
    std::fs::create_dir(room.path("run")).unwrap();
    fresh.save(&room.path("run/pytorch_lora_weights.safetensors")).unwrap();
    let base = ["-q", "sample", "--model", "model", "--prompt", "a", "--steps", "4"];
    done(&room, &[&base[..], &["--out", "base"]].concat());
    done(&room, &[&base[..], &["--adapter", "zero.safetensors", "--out", "zero"]].concat());
    done(&room, &[&base[..], &["--adapter", "run", "--out", "trained"]].concat());
    let picture = |folder: &str| read_png(&room.path(folder).join("0000-a-0.png")).unwrap().image;
    assert_eq!(picture("base"), picture("zero"));
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
    let expected = seedpo_judge::by_name("colourfulness").unwrap().score(&pixels.unsqueeze(0), &[""]).unwrap()[0];
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
    for name in ["config.toml", "metrics.jsonl", "pytorch_lora_weights.safetensors", "report.html", "checkpoint-2"] {
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
    let sampled =
        ["-q", "sample", "--model", "model", "--adapter", "runs/see-spo", "--prompt", "a cat", "--steps", "2"];
    done(&room, &sampled);
}

/// Runs `seedpo probe` on a case and gives its results.
fn probe(room: &Room, what: &str, settings: &str, tensors: &[(&str, Tensor)]) -> BTreeMap<String, Tensor> {
    room.case("case.safetensors", what, settings, tensors);
    done(room, &["probe", "--model", "model", "--case", "case.safetensors", "--out", "out.safetensors"]);
    let file = WeightFile::open(&room.path("out.safetensors")).unwrap();
    assert_eq!(file.metadata()["what"], what);
    file.tensors().unwrap()
}

fn latents(rows: i64) -> Tensor {
    noise(&[rows, LATENT[0], LATENT[1], LATENT[2]])
}

fn embeds(rows: i64) -> Tensor {
    noise(&[rows, EMBED[0], EMBED[1]])
}

#[test]
fn probe_tokens_and_text() {
    let room = Room::new();
    let model = model(&room);
    let out = probe(&room, "tokenize", r#"{"prompts": ["a red apple", ""]}"#, &[]);
    assert_eq!(out["input_ids"], model.tokenizer.encode(&["a red apple", ""]).unwrap());
    assert_eq!(out["input_ids"].kind(), Kind::Int64);
    let text = probe(&room, "text", "{}", &[("input_ids", out["input_ids"].shallow_clone())]);
    let expected = model.text_encoder.forward(&out["input_ids"]).unwrap();
    assert!(largest_difference(&text["prompt_embeds"], &expected.prompt_embeds) < 1e-6);
    assert_eq!(text["pooled"].size(), [2, EMBED[1]]);
}

#[test]
fn probe_unet_with_and_without_adapter() {
    let room = Room::new();
    let model = model(&room);
    let adapter = Adapter::lora(&model.unet, &LoraConfig::default(), 3).unwrap();
    trained(&adapter, 0.3);
    adapter.save(&room.path("lora.safetensors")).unwrap();
    let t = Tensor::from_slice(&[1i64, 981]);
    let inputs = [("latents", latents(2)), ("timestep", t.shallow_clone()), ("prompt_embeds", embeds(2))];
    let base = &probe(&room, "unet", "{}", &inputs)["noise_pred"];
    let with = &probe(&room, "unet", r#"{"adapter": "lora.safetensors"}"#, &inputs)["noise_pred"];
    let expected = |adapter| model.unet.forward(&latents(2), &t, &embeds(2), adapter).unwrap();
    assert!(
        largest_difference(base, &expected(None)) < 1e-5 && largest_difference(with, &expected(Some(&adapter))) < 1e-5
    );
    assert!(largest_difference(base, with) > 1e-3);
}

#[test]
fn probe_encode_and_decode() {
    let room = Room::new();
    let model = model(&room);
    let images = noise(&[2, 3, SIDE, SIDE]);
    let out = probe(&room, "encode", "{}", &[("images", images.shallow_clone())]);
    let (mean, logvar) = model.vae.encode(&images).unwrap();
    assert!(largest_difference(&out["mean"], &mean) < 1e-5 && largest_difference(&out["logvar"], &logvar) < 1e-5);
    let out = probe(&room, "decode", "{}", &[("latents", latents(1))]);
    let expected = model.vae.decode(&(latents(1) / model.vae.scaling_factor())).unwrap();
    assert!(largest_difference(&out["images"], &expected) < 1e-5);
}

#[test]
fn probe_a_ddim_step_against_the_closed_form() {
    let room = Room::new();
    let t = Tensor::from_slice(&[951i64, 1]);
    let (x, eps, next) = (latents(2), noise(&[2, 4, 8, 8]) * 0.5, noise(&[2, 4, 8, 8]) * 2.0);
    let inputs = [
        ("latents", x.shallow_clone()),
        ("noise_pred", eps.shallow_clone()),
        ("next_latents", next.shallow_clone()),
        ("timestep", t),
    ];
    let out = probe(&room, "ddim", r#"{"steps": 20, "eta": 1.0}"#, &inputs);
    let alphas = model(&room).schedule.alphas_cumprod;
    for (row, (now, before)) in [(alphas[951], alphas[901]), (alphas[1], alphas[0])].into_iter().enumerate() {
        let row = row as i64;
        let variance = (1.0 - before) / (1.0 - now) * (1.0 - now / before);
        let [x, eps, next] = [&x, &eps, &next].map(|tensor| tensor.get(row).to_kind(Kind::Double));
        let clean = (x - &eps * (1.0 - now).sqrt()) / now.sqrt();
        let mean = clean * before.sqrt() + eps * (1.0 - before - variance).sqrt();
        let squares = (next - &mean).square().mean(Kind::Double).double_value(&[]);
        let log_prob = -squares / (2.0 * variance) - 0.5 * (2.0 * std::f64::consts::PI * variance).ln();
        assert!((out["std"].double_value(&[row]) - variance.sqrt()).abs() < 1e-6);
        assert!(largest_difference(&out["mean"].get(row), &mean) < 1e-4);
        let found = out["log_prob"].double_value(&[row]);
        assert!((found - log_prob).abs() < 1e-4 * log_prob.abs(), "row {row}: {found} for {log_prob}");
    }
}

#[test]
fn probe_sampling_equals_the_plain_loop() {
    let room = Room::new();
    let model = model(&room);
    let inputs = [("latents", latents(2)), ("prompt_embeds", embeds(2)), ("negative_prompt_embeds", embeds(1))];
    let settings = r#"{"steps": 4, "eta": 0, "guidance_scale": 3, "sampler": "ddim"}"#;
    let out = probe(&room, "sample", settings, &inputs);
    let conditioning = seedpo_model::Conditioning { prompt_embeds: embeds(2), negative_prompt_embeds: embeds(1) };
    let policy = Policy::new(&model, None);
    let mut x = latents(2);
    for (t, before) in [(751i64, 501i64), (501, 251), (251, 1), (1, 0)] {
        let steps = Tensor::from_slice(&[t, t]);
        let eps = policy.predict_noise(&x, &steps, &conditioning, 3.0).unwrap();
        let alphas = &model.schedule.alphas_cumprod;
        let (now, before) = (alphas[t as usize], alphas[before as usize]);
        let clean = (&x - &eps * (1.0 - now).sqrt()) / now.sqrt();
        x = clean * before.sqrt() + eps * (1.0 - before).sqrt();
    }
    assert!(largest_difference(&out["latents"], &x) < 1e-4);
}

#[test]
fn probe_the_loss_of_both_methods() {
    let room = Room::new();
    let model = model(&room);
    let adapter = Adapter::lora(&model.unet, &LoraConfig::default(), 3).unwrap();
    adapter.save(&room.path("lora.safetensors")).unwrap();
    let t = Tensor::from_slice(&[951i64, 501]);
    let shared = [("prompt_embeds", embeds(2)), ("negative_prompt_embeds", embeds(1)), ("timestep", t)];
    let next = |factor: f64| noise(&[2, 4, 8, 8]) * factor;
    let spo = [("latents", latents(2)), ("next_latents_w", next(0.9)), ("next_latents_l", next(1.1))];
    let d3po = [
        ("latents_w", latents(2)),
        ("next_latents_w", next(0.9)),
        ("latents_l", latents(2)),
        ("next_latents_l", next(1.1)),
    ];
    for (method, pair) in [("spo", &spo[..]), ("d3po", &d3po[..])] {
        let settings = format!(
            r#"{{"method": "{method}", "beta": 2, "gamma": 0, "clip": 0.1, "guidance_scale": 3, "steps": 20, "adapter": "lora.safetensors"}}"#
        );
        let tensors: Vec<(&str, Tensor)> = shared.iter().chain(pair).map(|(n, t)| (*n, t.shallow_clone())).collect();
        let out = probe(&room, "loss", &settings, &tensors);
        // A fresh adapter is the reference: margin 0, loss ln 2, and a gradient for B only, since B is 0.
        assert_eq!(out["loss"].size(), [1]);
        assert!((out["loss"].double_value(&[0]) - 2f64.ln()).abs() < 1e-6);
        assert_eq!(out["margin"].size(), [2]);
        assert!(out["margin"].abs().max().double_value(&[]) < 1e-6);
        let mut keys: Vec<String> = adapter.tensors().into_iter().map(|(key, _)| format!("grad.{key}")).collect();
        keys.extend(["loss".to_owned(), "margin".to_owned()]);
        keys.sort();
        assert_eq!(out.keys().cloned().collect::<Vec<_>>(), keys);
        let largest = |half: &str| {
            let of = out.iter().filter(|(key, _)| key.ends_with(half)).map(|(_, g)| g.abs().max().double_value(&[]));
            of.fold(0.0, f64::max)
        };
        assert!(largest("lora_B.weight") > 0.0 && largest("lora_A.weight") == 0.0);
    }
}

#[test]
fn gradients_are_keyed_as_the_adapter_file_spells_its_keys() {
    let room = Room::new();
    let adapter = Adapter::lora(&model(&room).unet, &LoraConfig::default(), 3).unwrap();
    let old = |key: String| key.replace("lora_A", "lora.down").replace("lora_B", "lora.up");
    let tensors: BTreeMap<String, Tensor> = adapter.tensors().into_iter().map(|(key, t)| (old(key), t)).collect();
    seedpo_tensor::write_weights(&room.path("old.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    let next = |factor: f64| noise(&[1, 4, 8, 8]) * factor;
    let inputs = [
        ("prompt_embeds", embeds(1)),
        ("negative_prompt_embeds", embeds(1)),
        ("timestep", Tensor::from_slice(&[501i64])),
        ("latents", latents(1)),
        ("next_latents_w", next(0.9)),
        ("next_latents_l", next(1.1)),
    ];
    let settings = r#"{"method": "spo", "beta": 10, "guidance_scale": 1, "steps": 20, "adapter": "old.safetensors", "clip": null}"#;
    let out = probe(&room, "loss", settings, &inputs);
    assert!(tensors.keys().all(|key| out.contains_key(&format!("grad.{key}"))), "{:?}", out.keys());
    assert_eq!(out.len(), tensors.len() + 2);
}

#[test]
fn probe_scores() {
    let room = Room::new();
    let images = (noise(&[2, 8, 8, 3]) * 60 + 128).clamp(0.0, 255.0).to_kind(Kind::Uint8);
    let settings = r#"{"judge": "jpeg-incompressibility", "prompts": ["a", "b"], "judge_path": null}"#;
    let out = probe(&room, "score", settings, &[("images", images.shallow_clone())]);
    let expected = seedpo_judge::by_name("jpeg-incompressibility").unwrap().score(&images, &["a", "b"]).unwrap();
    assert!(largest_difference(&out["scores"], &Tensor::from_slice(&expected)) < 1e-5);
    assert_eq!(out["scores"].kind(), Kind::Float);
}
