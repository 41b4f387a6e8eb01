//! Bad input to the real binary: each case exits with code 2 and one clear message, and leaves no file behind.

mod common;
#[path = "bad_input/judge_training.rs"]
mod judge_training;
#[path = "bad_input/model_folder.rs"]
mod model_folder;
#[path = "bad_input/probing.rs"]
mod probing;
#[path = "bad_input/single_file.rs"]
mod single_file;
#[path = "bad_input/training.rs"]
mod training;

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
        ("--resolution", "33", "multiple of 2"),
        ("--sampler", "pndm", "dpmpp-2m-karras"),
        ("--adapter", "none.safetensors:0.5", "none.safetensors: no such file"),
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
    refuses(&room, &with(&TRAIN, &["--use_8bit_adam"]), &["--use-8bit-adam"]);
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
    refuses(&room, &with(&TRAIN, &["--judge", "pikscore"]), &["`pikscore`", "`pickscore`"]);
}

#[test]
fn judges_that_cannot_be_told_or_read() {
    let room = Room::new();
    picture(&room, "a.png");
    for (judge, needles) in [
        ("hub:xswu/HPSv2", &["hpsv2=xswu/HPSv2", "hpsv2.1=xswu/HPSv2"][..]),
        ("hub:openai/clip-vit-large-patch14", &["only a part", "`aesthetic`", "NAME=openai/clip-vit-large-patch14"]),
        ("exec:python 'my scorer.py", &["never closed", "my scorer.py"]),
        ("worst(2*chroma, colourfulness)", &["2*chroma", "weighted(..)"]),
        ("worst(normalised(chroma, 1, 0), colourfulness)", &["above 0", "MEAN, SPREAD"]),
    ] {
        refuses(&room, &["score", "--judge", judge, "a.png"], needles);
        refuses(&room, &with(&TRAIN, &["--judge", judge]), needles);
    }
    room.write("run.toml", "judge = { worst = [\"chroma\", { name = \"clipscore\", mean = 1 }] }");
    refuses(&room, &with(&TRAIN, &["--config", "run.toml"]), &["run.toml", "`judge`", "spread"]);
}

#[test]
fn a_bound_on_a_mean_that_says_nothing() {
    let room = Room::new();
    picture(&room, "a.png");
    let majority = "majority(chroma, colourfulness)";
    for judge in [majority, &format!("weighted(2*{majority}, pareto(chroma, colourfulness))")] {
        let refused = ["score", "--judge", judge, "a.png", "--at-least", "0.1", "--csv", "s.csv"];
        refuses(&room, &refused, &["--at-least", judge, "only compares"]);
    }
}

#[test]
fn a_judge_twice_in_a_list() {
    let room = Room::new();
    picture(&room, "a.png");
    let (line, needles) = ("chroma, colourfulness, Chroma", ["--judge", "`chroma`", "found it twice"]);
    refuses(&room, &["score", "--judge", line, "a.png", "--jsonl", "s.jsonl"], &needles);
    room.write("pairs.jsonl", r#"{"prompt": "x", "winner": "a.png", "loser": "a.png"}"#);
    refuses(&room, &["pairs", "relabel", "pairs.jsonl", "judged.jsonl", "--judge", line], &needles);
}

#[cfg(unix)]
#[test]
fn a_process_that_is_late() {
    let room = Room::new();
    picture(&room, "a.png");
    let smaller = Tensor::zeros([4, 4, 3], (Kind::Uint8, Device::Cpu));
    seedpo_evaluate::png::write_png(&room.path("b.png"), &smaller, &[]).unwrap();
    // One answer, then silence; the next process does not even begin.
    let script = "[ -e began ] && exit 3; touch began; read -r job; echo '{\"scores\": [1]}'; sleep 60";
    room.write("scorer.sh", script);
    let arguments = ["score", "--judge", "exec:sh scorer.sh", "a.png", "b.png", "--judge-timeout", "1"];
    let output = room.seedpo(&arguments).timeout(std::time::Duration::from_secs(60)).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("exit status: 3") && text.contains("no answer within 1 s"), "{text}");
    refuses(&room, &with(&arguments[..5], &["--judge-timeout", "0"]), &["--judge-timeout", "1..=86400"]);
    refuses(&room, &with(&TRAIN, &["--judge-timeout", "0"]), &["judge_timeout", "1 to 86400"]);
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
