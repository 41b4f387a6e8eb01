//! External scorers that behave, and all the ways in which they do not.
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use seedpo_judge::{ExecJudge, Judge, Result};
use tch::{Device, Kind, Tensor};

struct Room(tempfile::TempDir);

impl Room {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A judge that is this shell script.
    fn judge(&self, script: &str, timeout: Duration) -> ExecJudge {
        let path = self.path("scorer.sh");
        std::fs::write(&path, script.replace("ROOM", &self.0.path().display().to_string())).unwrap();
        ExecJudge::new(&format!("sh {}", path.display()), timeout).unwrap()
    }
}

const SOON: Duration = Duration::from_millis(120);
const LONG: Duration = Duration::from_secs(30);

fn score(judge: &ExecJudge) -> Result<Vec<f64>> {
    let images = Tensor::arange(2 * 3 * 4 * 3, (Kind::Uint8, Device::Cpu)).view([2, 3, 4, 3]);
    judge.score(&images, &["a \"red\" apple", "zwei Äpfel"])
}

fn message(judge: &ExecJudge) -> String {
    score(judge).unwrap_err().to_string()
}

#[test]
fn one_process_is_asked_again_and_again_and_reads_true_pictures() {
    let room = Room::new();
    let script = r#"echo start >> ROOM/starts
        while read -r job; do echo "$job" >> ROOM/jobs; cp $(echo "$job" | sed 's/.*"images":\["\([^"]*\)".*/\1/') ROOM/seen.png
        echo '{"scores": [1.5, -2]}'; done; echo end >> ROOM/starts"#;
    let judge = room.judge(script, LONG);
    for _ in 0..3 {
        assert_eq!(score(&judge).unwrap(), [1.5, -2.0]);
    }
    drop(judge);
    assert_eq!(std::fs::read_to_string(room.path("starts")).unwrap(), "start\nend\n");
    let jobs = std::fs::read_to_string(room.path("jobs")).unwrap();
    let job: serde_json::Value = serde_json::from_str(jobs.lines().next().unwrap()).unwrap();
    assert_eq!(job["prompts"], serde_json::json!(["a \"red\" apple", "zwei Äpfel"]));
    assert!(!Path::new(job["images"][0].as_str().unwrap()).exists(), "the picture was left behind");
    let seen = image::open(room.path("seen.png")).unwrap().to_rgb8();
    assert_eq!((seen.dimensions(), seen.as_raw()[..4].to_vec()), ((4, 3), vec![0, 1, 2, 3]));
}

#[test]
fn wrong_answers_are_named_and_shown() {
    let room = Room::new();
    for (answer, part) in [
        (r#"{"scores": [1]}"#, "expected 2 scores, one for each picture, found 1"),
        (r#"{"scores": [1, NaN]}"#, "NaN"),
        (r#"{"scores": [1, null]}"#, "found null"),
        (r#"{"scores": [1, 1e999]}"#, "found no JSON"),
        (r#"{"score": 3}"#, r#"{"scores": [..]}"#),
        ("Loading checkpoint shards: 100%", "Loading checkpoint"),
        (r#"{"error": "no such picture"}"#, "no such picture"),
        ("", "found no JSON"),
    ] {
        let judge = room.judge(&format!("while read -r job; do echo '{answer}'; done"), LONG);
        let text = message(&judge);
        assert!(text.contains(part) && text.contains("exec:sh"), "{answer}: {text}");
    }
}

#[test]
fn a_crash_is_survived_once() {
    let room = Room::new();
    // The first process dies over its second job; the next one lives.
    let script =
        "n=0; while read -r job; do n=$((n+1)); if [ $n = 2 ] && [ ! -e ROOM/died ]; then touch ROOM/died; exit 3; fi
        echo '{\"scores\": [0, 1]}'; done";
    let judge = room.judge(script, LONG);
    for _ in 0..3 {
        assert_eq!(score(&judge).unwrap(), [0.0, 1.0]);
    }
    assert!(room.path("died").exists());
    let text = message(&room.judge("read -r job; echo 'CUDA out of memory' >&2; exit 7", LONG));
    for part in ["ended without an answer", "exit status: 7", "CUDA out of memory", "started anew"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_hang_ends_in_time() {
    let room = Room::new();
    let began = Instant::now();
    let text = message(&room.judge("while :; do sleep 0.05; done", SOON));
    // Five times as long for the first answer.
    assert!(text.contains("no answer within 0.6 s"), "{text}");
    // A process that answers once and then hangs is replaced each time.
    let once = room.judge("read -r job; echo '{\"scores\": [0, 1]}'; sleep 60", SOON);
    for _ in 0..3 {
        assert_eq!(score(&once).unwrap(), [0.0, 1.0]);
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    // A job larger than the pipe, to one that reads nothing.
    let judge = room.judge("sleep 60", SOON);
    let images = Tensor::zeros([1, 1, 1, 3], (Kind::Uint8, Device::Cpu));
    let prompt = "x".repeat(1 << 20);
    assert!(judge.score(&images, &[&prompt]).unwrap_err().to_string().contains("no answer within"));
}

/// Whether a process runs; one that was killed may still be there until whoever adopted it notices.
#[cfg(target_os = "linux")]
fn runs(pid: &str) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

/// Whether it is gone soon: a signal takes its time.
#[cfg(target_os = "linux")]
fn ends(pid: &str) -> bool {
    let asked = Instant::now();
    while runs(pid) && asked.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(10));
    }
    !runs(pid)
}

#[cfg(target_os = "linux")]
#[test]
fn what_a_scorer_has_started_ends_with_it() {
    let room = Room::new();
    let pid = || std::fs::read_to_string(room.path("pid")).unwrap().trim().to_owned();
    let started = "sleep 300 & echo $! > ROOM/pid;";
    // A process that never answers is killed, and one that ends when told to leaves nothing behind either.
    message(&room.judge(&format!("{started} while :; do sleep 0.05; done"), SOON));
    assert!(ends(&pid()), "after a late answer");
    let judge = room.judge(&format!("{started} while read -r job; do echo '{{\"scores\": [0, 1]}}'; done"), LONG);
    assert_eq!(score(&judge).unwrap(), [0.0, 1.0]);
    assert!(runs(&pid()), "it should still run");
    drop(judge);
    assert!(ends(&pid()), "after the judge was dropped");
}

#[test]
fn standard_error_may_hold_anything() {
    let room = Room::new();
    // A byte that is no UTF-8, a progress bar of some megabytes without a line's end, and then more: a scorer whose
    // standard error is no longer read is killed by its next message.
    let script = r"read -r job; printf 'caf\351\n' >&2; sleep 0.2; printf 'at work\n' >&2
        head -c 3000000 /dev/zero | tr '\0' '\r' >&2; printf '10 %%\r20 %%\r' >&2; echo again >&2";
    let answer = r#"; echo '{"scores": [0, 1]}'; read -r job; exit 7"#;
    assert_eq!(score(&room.judge(&format!("{script}{answer}"), LONG)).unwrap(), [0.0, 1.0]);
    let text = message(&room.judge("printf 'caf\\351\\n10 %%\\r20 %%\\n' >&2; exit 7", LONG));
    assert!(text.contains("caf\u{fffd}\n  20 %") && !text.contains("10 %"), "{text}");
}

#[test]
fn a_command_is_split_as_a_shell_does() {
    let room = Room::new();
    let script = r#"[ $# = 3 ] && [ "$1" = "two words" ] && [ "$2" = "it's, \$HOME" ] && [ "$3" = "" ] &&
        while read -r job; do echo '{"scores": [3, 4]}'; done"#;
    std::fs::create_dir(room.path("my scorers")).unwrap();
    std::fs::write(room.path("my scorers/a.sh"), script).unwrap();
    let place = room.path("my scorers");
    let command = format!(r#"sh '{}'/a.sh two\ words "it's, \$HOME" ''"#, place.display());
    assert_eq!(score(&ExecJudge::new(&command, LONG).unwrap()).unwrap(), [3.0, 4.0]);
    let text = ExecJudge::new("sh 'a.sh", LONG).unwrap_err().to_string();
    assert!(text.contains("never closed"), "{text}");
}

#[test]
fn lines_that_no_job_asked_for_never_become_scores() {
    let room = Room::new();
    let judge =
        room.judge("while read -r job; do echo '{\"scores\": [0, 1]}'; echo '{\"scores\": [5, 5]}'; done", LONG);
    assert_eq!(score(&judge).unwrap(), [0.0, 1.0]);
    std::thread::sleep(Duration::from_millis(300));
    let text = message(&judge);
    assert!(text.contains("no job asked for") && text.contains("[5, 5]"), "{text}");
}

#[test]
fn a_process_that_only_closes_its_output_does_not_hang_us() {
    let room = Room::new();
    let began = Instant::now();
    let text = message(&room.judge("exec 1>&-; sleep 60", LONG));
    assert!(text.contains("closed its standard output"), "{text}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn endless_answers_cost_no_memory_and_a_missing_program_is_named() {
    let room = Room::new();
    let text = message(&room.judge("read -r job; head -c 40000000 /dev/zero | tr '\\0' x", LONG));
    assert!(text.contains("found no JSON") && text.len() < 2000, "{}", text.len());
    let missing = ExecJudge::new("./no/such/scorer --fast", LONG).unwrap();
    assert!(message(&missing).contains("`./no/such/scorer` could not be started"));
    assert!(ExecJudge::new("  ", LONG).is_err());
}
