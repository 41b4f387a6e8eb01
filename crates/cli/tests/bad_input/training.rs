//! Settings and runs of `seedpo train` that cannot be.

use super::*;

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
        ("--method", "orpo", ["`orpo`", "d3po, ddpo, diffusion-dpo, dpok, seppo, sft, spin, spo"]),
        ("--likelihood", "exact", ["`likelihood`", "transition, denoising-error"]),
        ("--pairs", "images", ["`likelihood`", "only sampled pairs"]),
        ("--flipper", "sign", ["`flipper`", "denoising errors"]),
        ("--steps", "0", ["`steps`", "1 to 1000"]),
        ("--clip", "1.5", ["`clip`", "1.5"]),
        ("--beta_dpo", "-3", ["`beta`", "above 0"]),
        ("--guidance_scale", "nan", ["`guidance_scale`", "NaN"]),
        ("--learning_rate", "0", ["`learning_rate`", "above 0"]),
        ("--resolution", "15", ["resolution", "15"]),
        ("--rank", "0", ["`rank`", "1 to 1024"]),
        ("--lora-targets", "to_z", ["to_z", "all-linear"]),
        ("--lora-targets", "to_q,fc1", ["fc1", "the text encoders are not trained"]),
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
