//! Judges with weights, of one's own and several as one, through every command that takes them.

use super::*;
use crate::common::judges::{SCORER, judge_folder};
use reference::cases::{cases, relative_error, write};
use seedpo_judge::{JudgeOptions, load};

#[path = "../../../judge/tests/common/mod.rs"]
pub mod reference;

fn pictures(rows: i64) -> Tensor {
    (noise(&[rows, 9, 12, 3]) * 60 + 128).clamp(0.0, 255.0).to_kind(Kind::Uint8)
}

fn probed(room: &Room, settings: &str, images: &Tensor) -> Vec<f64> {
    room.case("case.safetensors", "score", settings, &[("images", images.shallow_clone())]);
    done(room, &["probe", "--model", "model", "--case", "case.safetensors", "--out", "out.safetensors"]);
    let scores = WeightFile::open(&room.path("out.safetensors")).unwrap().tensor("scores").unwrap();
    Vec::<f64>::try_from(scores.to_kind(Kind::Double)).unwrap()
}

pub fn near(found: &[f64], expected: &[f64]) {
    assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-5 * e.abs().max(1.0)), "{found:?} {expected:?}");
}

#[test]
fn probe_scores_with_a_folder_or_a_file_and_at_a_timestep() {
    let room = Room::new();
    judge_folder(&room, "pick", 8, false);
    judge_folder(&room, "spm", 8, true);
    let (images, prompts) = (pictures(2), ["a red apple", "two cats"]);
    let direct = |name: &str, folder: &str| load(name, &[room.path(folder)], &JudgeOptions::default()).unwrap();
    let expected = direct("pickscore", "pick").score(&images, &prompts).unwrap();
    assert_ne!(expected[0], expected[1]);
    for path in ["pick", "pick/model.safetensors"] {
        let settings =
            format!(r#"{{"judge": "PickScore", "judge_path": "{path}", "prompts": ["a red apple", "two cats"]}}"#);
        near(&probed(&room, &settings, &images), &expected);
    }
    let settings =
        r#"{"judge": "step-aware", "judge_path": "spm", "prompts": ["a red apple", "two cats"], "timestep": 501}"#;
    let floats = images.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 127.5 - 1.0;
    let spm = direct("spm", "spm");
    near(&probed(&room, settings, &images), &spm.score_step(&floats, 501, &prompts).unwrap());
    assert_ne!(spm.score_step(&floats, 501, &prompts).unwrap(), spm.score(&images, &prompts).unwrap());
}

#[test]
fn probe_scores_as_the_references_do() {
    let room = Room::new();
    let all = cases();
    assert_eq!(all.len(), 8);
    for case in &all {
        std::fs::create_dir_all(room.path(&case.judge)).unwrap();
        write(case, &room.path(&case.judge));
        // A tall one and a very wide one.
        let found = [0, 3].map(|at| {
            let step = case.steps.as_ref().map_or(String::new(), |steps| format!(r#", "timestep": {}"#, steps[at]));
            let (judge, prompt) = (&case.judge, serde_json::json!([case.prompts[at]]));
            let settings = format!(r#"{{"judge": "{judge}", "judge_path": "{judge}", "prompts": {prompt}{step}}}"#);
            probed(&room, &settings, &case.pictures[at])[0]
        });
        let error = relative_error(&found, &[case.scores[0], case.scores[3]]);
        assert!(error < 1e-4, "{}: {error:e}: {found:?} {:?}", case.judge, case.scores);
    }
}

#[test]
fn probe_scores_with_judges_that_have_no_weights_and_a_process_of_ones_own() {
    let room = Room::new();
    let images = pictures(3);
    for info in seedpo_judge::names().iter().filter(|info| !info.has_weights()) {
        let expected = load(info.name, &[], &JudgeOptions::default()).unwrap().score(&images, &[""; 3]).unwrap();
        near(&probed(&room, &format!(r#"{{"judge": "{}"}}"#, info.name), &images), &expected);
    }
    room.write("my scorer.sh", SCORER);
    assert_eq!(probed(&room, r#"{"judge": "exec:sh 'my scorer.sh'"}"#, &images), [1.0, 2.0, 3.0]);
    let settings = r#"{"judge": "weighted(2*normalised(exec:sh 'my scorer.sh', 2, 0.5), chroma)"}"#;
    let chroma = load("chroma", &[], &JudgeOptions::default()).unwrap().score(&images, &[""; 3]).unwrap();
    let (mean, spread) = seedpo_judge::info("chroma").unwrap().typical;
    let expected: Vec<f64> =
        chroma.iter().zip([-4.0, 0.0, 4.0]).map(|(chroma, own)| own + (chroma - mean) / spread).collect();
    near(&probed(&room, settings, &images), &expected);
}

#[test]
fn score_takes_several_judges_of_every_kind_and_pictures_of_any_size() {
    let room = Room::new();
    judge_folder(&room, "pick", 8, false);
    room.write("scorer.sh", SCORER);
    for (name, height) in [("a", 8), ("b", 8), ("c", 5)] {
        let path = room.write(&format!("pictures/{name}.png"), "").path(&format!("pictures/{name}.png"));
        let picture = pictures(1).squeeze_dim(0).narrow(0, 0, height).contiguous();
        seedpo_evaluate::png::write_png(&path, &picture, &[("prompt", "a red apple")]).unwrap();
    }
    let judges = "pickscore=pick,exec:sh scorer.sh,worst(colourfulness, exec:sh scorer.sh),path:pick";
    done(&room, &["score", "--judge", judges, "pictures", "--csv", "s.csv"]);
    let text = std::fs::read_to_string(room.path("s.csv")).unwrap();
    let header =
        "image,prompt,pickscore=pick,exec:sh scorer.sh,\"worst(colourfulness, exec:sh scorer.sh)\",path:pick\n";
    assert!(text.starts_with(header), "{text}");
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(lines.len(), 4, "{text}");
    // Two of one size go together, the third alone.
    assert_eq!([lines[1][3], lines[2][3], lines[3][3]], ["1", "2", "1"], "{text}");
    assert!(lines[1..].iter().all(|row| row[2] == row[row.len() - 1]), "{text}");
}

#[test]
fn the_list_names_every_judge_and_where_it_lies() {
    let room = Room::new();
    let text = done(&room, &["judge", "list"]);
    for info in seedpo_judge::names() {
        assert!(
            text.contains(info.name) && info.weights.iter().all(|w| text.contains(w.repo)),
            "{}: {text}",
            info.name
        );
    }
    let lines = done(&room, &["judge", "list", "--json"]);
    assert_eq!(lines.lines().count(), seedpo_judge::names().len());
    assert!(lines.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
}

#[test]
fn training_takes_a_judge_of_ones_own_and_an_ensemble() {
    let room = Room::new();
    judge_folder(&room, "spm", 8, true);
    room.write("run.toml", "judge = { pareto = [\"colourfulness\", \"jpeg-compressibility\"] }\nheldout_judge = { name = \"spm\", path = \"spm\" }");
    let without_judge: Vec<&str> =
        TRAIN.iter().copied().filter(|a| !["--judge", "colourfulness"].contains(a)).collect();
    done(&room, &[&without_judge[..], &["--config", "run.toml", "--name", "several"]].concat());
    let config = std::fs::read_to_string(room.path("runs/several/config.toml")).unwrap();
    assert!(config.contains("judge = \"pareto(colourfulness, jpeg-compressibility)\""), "{config}");
    done(&room, &[&without_judge[..], &["--judge", "spm=spm", "--judge-dtype", "bf16", "--name", "steps"]].concat());
}

/// A scorer is in a process group of its own, which Ctrl-C does not reach: whoever stops at once has to end it.
#[cfg(target_os = "linux")]
#[test]
fn a_second_interrupt_ends_the_scorer_and_what_it_has_started() {
    use std::io::{BufRead, BufReader};
    let room = Room::new();
    room.write("scorer.sh", "sleep 300 & echo $! > pid; read -r job; echo $$ > asked; sleep 300");
    seedpo_evaluate::png::write_png(&room.path("a.png"), &pictures(1).squeeze_dim(0), &[]).unwrap();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_seedpo"))
        .args(["score", "--judge", "exec:sh scorer.sh", "a.png"])
        .current_dir(room.path("."))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let id = child.id().to_string();
    let interrupt = || std::process::Command::new("kill").args(["-INT", &id]).status().unwrap();
    let patience = std::time::Instant::now();
    let soon = |done: &dyn Fn() -> bool| {
        while !done() {
            assert!(patience.elapsed() < std::time::Duration::from_secs(60), "waited for a minute");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    let pid = |file: &str| std::fs::read_to_string(room.path(file)).unwrap_or_default();
    soon(&|| pid("asked").ends_with('\n'));
    assert!(interrupt().success());
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("once more to stop at once")));
    assert!(interrupt().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    // Gone, or dead and not yet noticed by whoever adopted it.
    let ended = |file: &str| {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", pid(file).trim())).unwrap_or_default();
        state.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
    };
    soon(&|| ended("asked") && ended("pid"));
}
