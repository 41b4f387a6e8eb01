//! Memory: the dry run, and what happens where there is not enough.

use super::{TRAIN, done};
use crate::common::Room;

#[test]
fn a_dry_run_prints_its_table_and_writes_nothing() {
    for method in [&["--method", "spo"][..], &["--method", "d3po", "--gradient-checkpointing"]] {
        let room = Room::new();
        let before = room.listing();
        let text = done(&room, &[&TRAIN[..], method, &["--dry-run"]].concat());
        let lines =
            ["sampling: one step", "decoding and judging", "training: one micro-batch", "one update", "peak memory"];
        assert!(lines.iter().all(|line| text.contains(line)), "{text}");
        assert_eq!(room.listing(), before);
    }
}

#[test]
fn a_run_says_beforehand_what_it_will_take() {
    let room = Room::new();
    let ran = room.seedpo(&TRAIN).output().unwrap();
    let text = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.success() && text.contains("time expected") && text.contains("GiB at most (in"), "{text}");
    assert!(text.contains("per update") && text.contains("peak memory:"), "{text}");
}

/// What a command says on standard error that ends for want of memory: with 4 GiB of addresses, enough for the libraries,
/// the model and a forecast, not for 4,096 prompts at once.
#[cfg(target_os = "linux")]
fn ends_without_memory(room: &Room, arguments: &str) -> String {
    let limited = format!("ulimit -v 4194304; exec '{}' {arguments}", env!("CARGO_BIN_EXE_seedpo"));
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &limited]).current_dir(room.path("")).env("OMP_NUM_THREADS", "1");
    let ended = shell.output().unwrap();
    let text = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(2), "{text}");
    assert!(text.contains("out of memory: ") && !text.contains("frame #") && !text.contains("a bug in"), "{text}");
    text
}

#[cfg(target_os = "linux")]
#[test]
fn a_failed_allocation_ends_with_what_was_measured() {
    let room = Room::new();
    let many =
        "--dtype f32 --resolution 96 --prompts-per-iteration 4096 --rollout-batch-size 4096 --validation-steps 0";
    let text = ends_without_memory(&room, &format!("{} {many}", TRAIN.join(" ")));
    // Of the end, not of the warning at the start, which has the same figures.
    let end = text.split("out of memory: ").nth(1).unwrap();
    for needle in
        ["What was saved before is intact", "--resume", "--rollout-batch-size 1: sampling", " GiB instead of "]
    {
        assert!(end.contains(needle), "{needle}: {text}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn other_commands_advise_flags_of_their_own_and_what_half_a_batch_saves() {
    let room = Room::new();
    let sample = "-q sample --model model --dtype f32 --resolution 96 --steps 2 --prompt a -n 4096 --batch 4096";
    room.write("prompts.txt", "a\n".repeat(4096));
    let rollout = "rollout --store store --model model --prompts-file prompts.txt --judge colourfulness --dtype f32 --steps 3 \
                   --divert-start-step 1 --resolution 96 --prompts-per-iteration 4096 --rollout-batch-size 4096";
    let images = rollout.replace("--store store", "--images drawn --method d3po");
    let store = "whole files are intact";
    for (arguments, flag, kept) in [
        (sample, "--batch", "pictures written before"),
        (rollout, "--rollout-batch-size", store),
        (&images, "--rollout-batch-size", "--images was not made"),
    ] {
        let text = ends_without_memory(&room, arguments);
        assert!(text.contains(kept) && (kept == store || !text.contains(store)), "{text}");
        let (_, line) =
            text.split_once(&format!("{flag} 2048 instead of 4096: about ")).unwrap_or_else(|| panic!("{text}"));
        let saved: f64 = line.split_once(" GiB less").unwrap().0.parse().unwrap();
        assert!(saved > 0.2, "{text}");
        assert!(text.contains("--vae-slicing") && !text.contains("--gradient-checkpointing"), "{text}");
    }
}
