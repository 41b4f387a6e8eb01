//! Bad input to the real binary: each case exits with code 2 and one clear message, and leaves no file behind.

mod common;

use std::collections::BTreeMap;

use common::{EMBED, LATENT, Room};
use seedpo_tensor::{Device, Kind, NoiseKey, Tensor, WeightFile, write_weights};

const UNET: &str = "model/unet/diffusion_pytorch_model.safetensors";
const CONV: &str = "conv_in.weight";

/// Runs the command and checks that it refuses: exit code 2, every needle in the message, no panic, nothing written.
fn refuses(room: &Room, arguments: &[&str], needles: &[&str]) {
    refused(room, room.seedpo(arguments), arguments, needles);
}

fn refused(room: &Room, mut command: assert_cmd::Command, arguments: &[&str], needles: &[&str]) {
    let before = room.listing();
    let output = command.timeout(std::time::Duration::from_secs(60)).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    let shown = format!("seedpo {}\n{message}", arguments.join(" "));
    assert_eq!(output.status.code(), Some(2), "{shown}");
    for needle in needles {
        assert!(message.contains(needle), "expected {needle:?} in the message of {shown}");
    }
    for mark in ["panicked", "a bug in seedpo", "RUST_BACKTRACE", "frame #"] {
        assert!(!message.contains(mark), "{shown}");
    }
    assert_eq!(message.matches("error: ").count(), 1, "one block: {shown}");
    assert_eq!(before, room.listing(), "files were left behind by {shown}");
}

fn noise(shape: &[i64]) -> Tensor {
    NoiseKey::new(1, "bad-input").normal(shape)
}

fn timesteps(values: &[i64]) -> Tensor {
    Tensor::from_slice(values)
}

/// Changes the tensors of a weight file.
fn spoil(room: &Room, file: &str, change: impl Fn(&mut BTreeMap<String, Tensor>)) {
    let path = room.path(file);
    let weights = WeightFile::open(&path).unwrap();
    let (mut tensors, metadata) = (weights.tensors().unwrap(), weights.metadata());
    change(&mut tensors);
    write_weights(&path, &tensors, &metadata).unwrap();
}

const SAMPLE: [&str; 9] = ["sample", "--model", "model", "--prompt", "a cat", "--steps", "2", "--out", "pictures"];
const TRAIN: [&str; 9] =
    ["train", "--model", "model", "--prompts", "a cat", "--max_train_steps", "1", "--output-dir", "runs"];

fn with<'a>(base: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [base, more].concat()
}

// The model folder.

#[test]
fn a_missing_model_folder() {
    let room = Room::new();
    refuses(&room, &["sample", "--model", "nowhere", "--prompt", "a"], &["nowhere", "no such folder"]);
}

#[test]
fn a_model_that_is_a_file_or_an_empty_folder() {
    let room = Room::new();
    room.write("file", "x").write("empty/readme", "x");
    refuses(&room, &["sample", "--model", "file", "--prompt", "a"], &["file", "found a file"]);
    refuses(&room, &["sample", "--model", "empty", "--prompt", "a"], &["empty", "model_index.json"]);
}

#[test]
fn truncated_weights() {
    let room = Room::new();
    let bytes = std::fs::read(room.path(UNET)).unwrap();
    room.write(UNET, &bytes[..bytes.len() / 2]);
    refuses(&room, &SAMPLE, &["unet/diffusion_pytorch_model.safetensors", "whole safetensors file"]);
}

#[test]
fn garbage_weights() {
    let room = Room::new();
    room.write("model/vae/diffusion_pytorch_model.safetensors", [0xabu8; 3000]);
    refuses(&room, &SAMPLE, &["vae/diffusion_pytorch_model.safetensors", "whole safetensors file"]);
    room.write("model/vae/diffusion_pytorch_model.safetensors", "");
    refuses(&room, &SAMPLE, &["vae/diffusion_pytorch_model.safetensors"]);
}

#[test]
fn a_missing_a_surplus_and_a_misshaped_tensor_are_all_named() {
    let room = Room::new();
    spoil(&room, UNET, |tensors| {
        tensors.remove("conv_out.bias");
        tensors.insert("conv_extra.weight".to_owned(), Tensor::zeros([2], (Kind::Float, Device::Cpu)));
        tensors.insert(CONV.to_owned(), Tensor::zeros([16, 3, 3, 3], (Kind::Float, Device::Cpu)));
    });
    let needles =
        ["unet/", "missing `conv_out.bias`", "surplus `conv_extra.weight`", CONV, "[16, 4, 3, 3]", "[16, 3, 3, 3]"];
    refuses(&room, &SAMPLE, &needles);
}

#[test]
fn a_missing_weight_file() {
    let room = Room::new();
    std::fs::remove_file(room.path("model/text_encoder/model.safetensors")).unwrap();
    refuses(&room, &SAMPLE, &["text_encoder"]);
}

#[test]
fn an_option_that_is_not_implemented() {
    let room = Room::new();
    room.edit("model/unet/config.json", |text| text.replacen('{', "{\"class_embed_type\": \"timestep\",", 1));
    refuses(&room, &SAMPLE, &["unet/config.json", "class_embed_type", "timestep"]);
}

#[test]
fn an_unknown_key_in_a_model_config() {
    let room = Room::new();
    room.edit("model/vae/config.json", |text| text.replacen('{', "{\"frobnicate\": 3,", 1));
    refuses(&room, &SAMPLE, &["vae/config.json", "frobnicate"]);
}

#[test]
fn a_model_config_that_is_not_json() {
    let room = Room::new();
    room.edit("model/unet/config.json", |text| text[..text.len() / 2].to_owned());
    refuses(&room, &SAMPLE, &["unet/config.json", "JSON"]);
}

#[test]
fn a_tokenizer_without_vocabulary() {
    let room = Room::new();
    std::fs::remove_file(room.path("model/tokenizer/vocab.json")).unwrap();
    refuses(&room, &SAMPLE, &["vocab.json"]);
}

#[test]
fn an_unknown_prediction_type() {
    let room = Room::new();
    room.edit("model/scheduler/scheduler_config.json", |text| text.replace("\"epsilon\"", "\"sample\""));
    refuses(&room, &SAMPLE, &["scheduler_config.json", "prediction_type", "sample"]);
}

#[test]
fn another_kind_of_pipeline() {
    let room = Room::new();
    room.edit("model/model_index.json", |text| text.replace("StableDiffusionPipeline", "StableDiffusionXLPipeline"));
    refuses(&room, &SAMPLE, &["model_index.json", "StableDiffusionXLPipeline"]);
}

#[test]
fn weights_of_nan_give_no_picture() {
    let room = Room::new();
    spoil(&room, UNET, |tensors| {
        drop(tensors.insert("conv_out.bias".to_owned(), Tensor::full([4], f64::NAN, (Kind::Float, Device::Cpu))))
    });
    refuses(&room, &SAMPLE, &["NaN"]);
}

// `seedpo sample`.

#[test]
fn no_prompt() {
    let room = Room::new();
    refuses(&room, &["sample", "--model", "model"], &["at least one prompt", "--prompt"]);
    room.write("prompts.txt", "\n  \n");
    refuses(
        &room,
        &["sample", "--model", "model", "--prompts", "prompts.txt"],
        &["prompts.txt", "at least one prompt"],
    );
    refuses(&room, &["sample", "--model", "model", "--prompts", "none.txt"], &["none.txt"]);
}

#[test]
fn prompts_that_are_not_utf8() {
    let room = Room::new();
    room.write("prompts.txt", b"a cat\n\xff\xfe\n");
    let needles = ["prompts.txt", "UTF-8", "0xff", "offset 6"];
    refuses(&room, &["sample", "--model", "model", "--prompts", "prompts.txt"], &needles);
    refuses(&room, &["train", "--model", "model", "--prompts-file", "prompts.txt", "--updates", "1"], &needles[..2]);
}

#[test]
fn prompts_that_are_no_list() {
    let room = Room::new();
    room.write("prompts.json", r#"["a", 3]"#);
    refuses(
        &room,
        &["sample", "--model", "model", "--prompts", "prompts.json"],
        &["prompts.json", "entry 1", "found 3"],
    );
}

#[test]
fn sampler_settings_out_of_range() {
    let room = Room::new();
    for (flag, value, needle) in [
        ("--guidance-scale", "NaN", "NaN"),
        ("--guidance-scale", "-1", "-1"),
        ("--steps", "0", "1 to 1000"),
        ("--steps", "5000", "1 to 1000"),
        ("--eta", "1.5", "1.5"),
        ("--height", "15", "multiple of 2"),
        ("--width", "0", "multiple of 2"),
        ("--batch", "0", "1 or more"),
        ("-n", "0", "1 or more"),
        ("--device", "gpu", "`gpu`"),
        ("--dtype", "f8", "`f8`"),
        ("--threads", "0", "1 to 1024"),
    ] {
        let base: Vec<&str> = if flag == "--steps" { SAMPLE[..5].to_vec() } else { SAMPLE.to_vec() };
        refuses(
            &room,
            &with(&base, &[flag, value]),
            &[needle, flag.trim_start_matches('-').split('-').next().unwrap_or(flag)],
        );
    }
}

#[test]
fn an_unknown_flag() {
    let room = Room::new();
    refuses(&room, &with(&SAMPLE, &["--gradient_checkpointing"]), &["--gradient-checkpointing"]);
    refuses(&room, &with(&TRAIN, &["--gradient_checkpointing"]), &["--gradient-checkpointing"]);
    refuses(&room, &with(&TRAIN, &["--report_to", "wandb"]), &["--report-to", "wandb", "tensorboard"]);
}

#[test]
fn adapters_that_do_not_fit() {
    let room = Room::new();
    let to_q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
    let adapter = |name: &str, path: &str, width: i64| {
        let a = (format!("unet.{path}.lora_A.weight"), noise(&[2, width]));
        let b = (format!("unet.{path}.lora_B.weight"), noise(&[16, 2]));
        write_weights(&room.path(name), &BTreeMap::from([a, b]), &BTreeMap::new()).unwrap();
    };
    adapter("shape.safetensors", to_q, 24);
    adapter("module.safetensors", "down_blocks.7.attn1.to_q", 16);
    room.write("garbage.safetensors", "nothing of the kind");
    refuses(&room, &with(&SAMPLE, &["--adapter", "shape.safetensors"]), &["shape.safetensors", to_q, "24"]);
    refuses(&room, &with(&SAMPLE, &["--adapter", "module.safetensors"]), &["module.safetensors", "down_blocks.7"]);
    refuses(&room, &with(&SAMPLE, &["--adapter", "garbage.safetensors"]), &["garbage.safetensors"]);
    refuses(&room, &with(&SAMPLE, &["--adapter", "none.safetensors"]), &["none.safetensors", "no such file"]);
}

#[test]
fn pictures_that_would_overwrite_others() {
    let room = Room::new();
    room.write("pictures/0000-a-cat-0.png", "mine");
    refuses(&room, &SAMPLE, &["0000-a-cat-0.png", "overwritten"]);
    room.write("file", "x");
    refuses(&room, &with(&SAMPLE[..7], &["--out", "file/pictures"]), &["file/pictures"]);
}

// `seedpo score`.

#[test]
fn an_unreadable_picture() {
    let room = Room::new();
    room.write("a/bad.png", "no picture").write("empty/notes.txt", "x");
    refuses(&room, &["score", "--images", "a", "--csv", "scores.csv"], &["bad.png", "PNG"]);
    refuses(&room, &["score", "--images", "empty"], &["empty", "found none"]);
    refuses(&room, &["score", "--images", "nowhere"], &["nowhere", "no such file"]);
}

fn picture(room: &Room, name: &str) {
    let pixels = Tensor::arange(8 * 8 * 3, (Kind::Uint8, Device::Cpu)).reshape([8, 8, 3]);
    seedpo_evaluate::png::write_png(&room.path(name), &pixels, &[]).unwrap();
}

#[test]
fn a_truncated_picture() {
    let room = Room::new();
    picture(&room, "a.png");
    let bytes = std::fs::read(room.path("a.png")).unwrap();
    room.write("a.png", &bytes[..bytes.len() - 30]);
    refuses(&room, &["score", "--images", "a.png", "--jsonl", "scores.jsonl"], &["a.png"]);
}

#[test]
fn an_unknown_judge() {
    let room = Room::new();
    picture(&room, "a.png");
    refuses(&room, &["score", "--judge", "colourfulnes", "--images", "a.png"], &["`colourfulnes`", "`colourfulness`"]);
    refuses(&room, &with(&TRAIN, &["--judge", "pickscore"]), &["`pickscore`", "jpeg-compressibility"]);
}

#[test]
fn more_prompts_than_pictures() {
    let room = Room::new();
    picture(&room, "a.png");
    room.write("prompts.txt", "one\ntwo\n");
    refuses(&room, &["score", "--images", "a.png", "--prompts", "prompts.txt"], &["prompts.txt", "(1)", "found 2"]);
}

#[test]
fn scores_that_cannot_be_written() {
    let room = Room::new();
    picture(&room, "a.png");
    refuses(&room, &["score", "--images", "a.png", "--csv", "a.png/scores.csv"], &["a.png/scores.csv"]);
    refuses(&room, &["score", "--images", "a.png", "--jsonl", "none/scores.jsonl"], &["none/scores.jsonl"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_standard_output() {
    let room = Room::new();
    picture(&room, "a.png");
    let arguments = ["-c", &format!("exec {} score --images a.png > /dev/full", env!("CARGO_BIN_EXE_seedpo"))];
    let mut command = assert_cmd::Command::new("sh");
    command.current_dir(room.path(".")).args(arguments);
    refused(&room, command, &arguments, &["standard output", "No space left"]);
}

/// The command under a limit on the size of any file it writes: what a full disk does to a write.
#[cfg(target_os = "linux")]
fn under_file_limit(room: &Room, blocks: u32, arguments: &[&str]) -> assert_cmd::Command {
    // SIGXFSZ ignored, so that the write fails instead of killing the process; the shell counts 512 bytes a block.
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
    let mut command = assert_cmd::Command::new("sh");
    command.current_dir(room.path(".")).env("OMP_NUM_THREADS", "1");
    command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_seedpo")]).args(arguments);
    command
}

#[cfg(target_os = "linux")]
#[test]
fn no_space_left() {
    let room = Room::new();
    picture(&room, "a.png");
    let big = with(&SAMPLE, &["--height", "64", "--width", "64"]);
    refused(&room, under_file_limit(&room, 2, &big), &big, &["0000-a-cat-0.png", "no space left"]);
    room.case("case.safetensors", "tokenize", &format!("{{\"prompts\": {:?}}}", vec!["a"; 100]), &[]);
    let probe = ["probe", "--model", "model", "--case", "case.safetensors", "--out", "out.safetensors"];
    refused(&room, under_file_limit(&room, 2, &probe), &probe, &["out.safetensors", "no space left"]);
}

// Settings.

#[test]
fn an_unknown_key_in_the_settings_file() {
    let room = Room::new();
    room.write("run.toml", "beta = 10.0\nlearning_rat = 1e-4\n");
    let needles = ["run.toml", "line 2", "`learning_rat`", "`learning_rate`"];
    refuses(&room, &with(&TRAIN, &["--config", "run.toml"]), &needles);
}

#[test]
fn settings_that_are_not_toml() {
    let room = Room::new();
    room.write("run.toml", "beta = 10.0\nsteps = = 3\n");
    refuses(&room, &with(&TRAIN, &["--config", "run.toml"]), &["run.toml", "line 2"]);
    room.write("run.toml", b"beta = 10.0 # \xff\n");
    refuses(&room, &with(&TRAIN, &["--config", "run.toml"]), &["run.toml", "UTF-8"]);
    refuses(&room, &with(&TRAIN, &["--config", "none.toml"]), &["none.toml"]);
}

#[test]
fn a_setting_of_the_wrong_type() {
    let room = Room::new();
    room.write("run.toml", "steps = \"twenty\"\n");
    refuses(&room, &with(&TRAIN, &["--config", "run.toml"]), &["run.toml", "`steps`", "whole number", "twenty"]);
    refuses(&room, &with(&TRAIN, &["--beta", "many"]), &["beta", "a number", "many"]);
}

#[test]
fn training_settings_out_of_range() {
    let room = Room::new();
    for (flag, value, needles) in [
        ("--gamma", "-1", ["entropy.gamma", "above -1"]),
        ("--gamma", "NaN", ["entropy.gamma", "NaN"]),
        ("--method", "seppo", ["`seppo`", "d3po, spo"]),
        ("--steps", "0", ["`steps`", "1 to 1000"]),
        ("--clip", "1.5", ["`clip`", "1.5"]),
        ("--beta_dpo", "-3", ["`beta`", "above 0"]),
        ("--guidance_scale", "nan", ["`guidance_scale`", "NaN"]),
        ("--learning_rate", "0", ["`learning_rate`", "above 0"]),
        ("--resolution", "15", ["resolution", "15"]),
        ("--rank", "0", ["`rank`", "1 to 1024"]),
        ("--lora-targets", "to_z", ["to_z", "attention"]),
        ("--form", "sideways", ["form", "sideways"]),
        ("--preset", "sdxl", ["sdxl", "see-spo-sd15"]),
        ("--entropy-gama", "1", ["--entropy-gama", "--entropy-gamma"]),
    ] {
        refuses(&room, &with(&TRAIN, &[flag, value]), &needles);
    }
}

#[test]
fn training_without_prompts() {
    let room = Room::new();
    room.write("prompts.txt", "\n");
    let base = ["train", "--model", "model", "--updates", "1", "--output-dir", "runs"];
    refuses(&room, &base, &["prompts"]);
    refuses(&room, &with(&base, &["--prompts-file", "prompts.txt"]), &["prompts.txt"]);
}

#[test]
fn a_run_folder_that_cannot_be_made_or_found() {
    let room = Room::new();
    room.write("file", "x");
    refuses(&room, &with(&TRAIN[..7], &["--output-dir", "file/runs"]), &["file/runs"]);
    refuses(&room, &with(&TRAIN, &["--resume", "nowhere"]), &["nowhere", "run folder"]);
    refuses(&room, &["report", "nowhere"], &["nowhere", "run folder"]);
}

/// Runs a training that must fail while it runs, and checks what it leaves: its run folder without an adapter, a
/// checkpoint or anything half-written.
fn training_fails(room: &Room, mut command: assert_cmd::Command, needles: &[&str]) {
    let output = command.timeout(std::time::Duration::from_secs(120)).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{message}");
    for needle in needles {
        assert!(message.contains(needle), "expected {needle:?} in\n{message}");
    }
    assert!(!message.contains("panicked") && !message.contains("a bug in seedpo"), "{message}");
    for path in room.listing().into_keys().filter(|path| !path.starts_with(room.path("model"))) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let bad = name.starts_with("checkpoint") || name.starts_with("pytorch_lora") || name.ends_with(".tmp");
        assert!(!bad, "{path:?} was left behind");
    }
}

const SMALL: [&str; 10] = [
    "--steps",
    "4",
    "--divert-start-step",
    "1",
    "--threshold",
    "0",
    "--judge-scale",
    "100",
    "--judge",
    "colourfulness",
];

#[test]
fn training_on_weights_of_nan() {
    let room = Room::new();
    let nan = || Tensor::full([4], f64::NAN, (Kind::Float, Device::Cpu));
    spoil(&room, UNET, |tensors| drop(tensors.insert("conv_out.bias".to_owned(), nan())));
    let arguments = with(&with(&TRAIN, &SMALL), &["--validation-steps", "0"]);
    training_fails(&room, room.seedpo(&arguments), &["NaN", "seed 42"]);
}

#[cfg(target_os = "linux")]
#[test]
fn training_on_a_full_disk() {
    let room = Room::new();
    // 16 KiB a file: enough for settings and metrics, not for the adapter.
    let arguments = with(&with(&TRAIN, &SMALL), &["--validation-steps", "0", "--rank", "8"]);
    training_fails(&room, under_file_limit(&room, 32, &arguments), &["no space left", ".safetensors"]);
}

// `seedpo probe`.

const PROBE: [&str; 7] = ["probe", "--model", "model", "--case", "case.safetensors", "--out", "out.safetensors"];

fn latents(rows: i64) -> Tensor {
    noise(&[rows, LATENT[0], LATENT[1], LATENT[2]])
}

fn embeds(rows: i64) -> Tensor {
    noise(&[rows, EMBED[0], EMBED[1]])
}

#[test]
fn a_case_of_unknown_kind() {
    let room = Room::new();
    room.case("case.safetensors", "unett", "{}", &[]);
    refuses(&room, &PROBE, &["case.safetensors", "`what`", "`unett`", "unet"]);
    write_weights(&room.path("case.safetensors"), &BTreeMap::new(), &BTreeMap::new()).unwrap();
    refuses(&room, &PROBE, &["case.safetensors", "`what`", "found none"]);
    refuses(&room, &with(&PROBE[..3], &["--case", "none.safetensors", "--out", "o"]), &["none.safetensors"]);
    room.write("case.safetensors", "garbage");
    refuses(&room, &PROBE, &["case.safetensors", "safetensors"]);
}

#[test]
fn a_case_with_wrong_settings() {
    let room = Room::new();
    for (settings, needles) in [
        (r#"{"prompt": ["a"]}"#, ["unknown setting `prompt`", "`prompts`"]),
        (r#"{"prompts": "a"}"#, ["`prompts`", "list of strings"]),
        (r#"{"prompts": []}"#, ["`prompts`", "at least one"]),
        ("{}", ["`prompts`", "nothing"]),
        ("prompts", ["`settings`", "JSON object"]),
    ] {
        room.case("case.safetensors", "tokenize", settings, &[]);
        refuses(&room, &PROBE, &needles);
    }
}

#[test]
fn a_case_with_wrong_tensors() {
    let room = Room::new();
    let unet = |tensors: &[(&str, Tensor)], needles: &[&str]| {
        room.case("case.safetensors", "unet", "{}", tensors);
        refuses(&room, &PROBE, needles);
    };
    unet(&[("latents", latents(2)), ("prompt_embeds", embeds(2))], &["`timestep`", "found none"]);
    let with_steps = |t: Tensor| [("latents", latents(2)), ("timestep", t), ("prompt_embeds", embeds(2))];
    unet(&with_steps(timesteps(&[1, 2, 3])), &["`timestep`", "B = 2", "[3]"]);
    unet(&with_steps(timesteps(&[1, 1000])), &["`timestep`", "0 to 999", "1000"]);
    unet(&with_steps(noise(&[2])), &["`timestep`", "i64", "Float"]);
    let three = noise(&[2, 3, 8, 8]);
    unet(
        &[("latents", three), ("timestep", timesteps(&[1, 2])), ("prompt_embeds", embeds(2))],
        &["`latents`", "C = 4", "[2, 3, 8, 8]"],
    );
    let wide = noise(&[2, 16, 24]);
    unet(
        &[("latents", latents(2)), ("timestep", timesteps(&[1, 2])), ("prompt_embeds", wide)],
        &["`prompt_embeds`", "D = 16"],
    );
    let nan = Tensor::full([2, LATENT[0], LATENT[1], LATENT[2]], f64::NAN, (Kind::Float, Device::Cpu));
    unet(&[("latents", nan), ("timestep", timesteps(&[1, 2])), ("prompt_embeds", embeds(2))], &["`noise_pred`", "NaN"]);
}

#[test]
fn tokens_outside_the_vocabulary() {
    let room = Room::new();
    room.case("case.safetensors", "text", "{}", &[("input_ids", timesteps(&[1, 9999]).reshape([1, 2]))]);
    refuses(&room, &PROBE, &["`input_ids`", "9999", "513"]);
}

#[test]
fn a_loss_of_another_method() {
    let room = Room::new();
    for (method, needle) in [("seppo", "not in this version"), ("ppo", "`ppo`")] {
        let settings = format!(r#"{{"method": "{method}", "beta": 1, "guidance_scale": 1, "steps": 20}}"#);
        room.case("case.safetensors", "loss", &settings, &[]);
        refuses(&room, &PROBE, &["`method`", needle]);
    }
}

#[test]
fn results_that_cannot_be_written() {
    let room = Room::new();
    room.case("case.safetensors", "tokenize", r#"{"prompts": ["a"]}"#, &[]);
    refuses(&room, &with(&PROBE[..5], &["--out", "case.safetensors/out"]), &["case.safetensors/out"]);
    refuses(&room, &with(&PROBE[..5], &["--out", "none/out.safetensors"]), &["none/out.safetensors"]);
}
