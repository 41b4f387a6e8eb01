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

#[cfg(target_os = "linux")]
#[test]
fn a_failed_allocation_ends_with_advice() {
    let room = Room::new();
    let seedpo = env!("CARGO_BIN_EXE_seedpo");
    // 4 GiB of addresses: enough for the libraries, the model and the forecast, not for 4,096 prompts at once.
    let many =
        "--dtype f32 --resolution 96 --prompts-per-iteration 4096 --rollout-batch-size 4096 --validation-steps 0";
    let limited = format!("ulimit -v 4194304; exec '{seedpo}' {} {many}", TRAIN.join(" "));
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &limited]).current_dir(room.path("")).env("OMP_NUM_THREADS", "1");
    let ended = shell.output().unwrap();
    let text = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(2), "{text}");
    for needle in ["out of memory", "What was saved before is intact", "--rollout-batch-size 1"] {
        assert!(text.contains(needle), "{needle}: {text}");
    }
    assert!(!text.contains("frame #") && !text.contains("a bug in seedpo"), "{text}");
}
