//! Several judges as one: what their rules compare, what they are normalised by, what a run records of them.

use super::judging::near;
use super::*;
use crate::common::judges::{SCORER, judge_folder};
use seedpo_judge::{JudgeOptions, info, load};
use serde_json::Value;

/// Twenty pictures of two sizes, of more and less colour; the even ones are of one prompt, the odd ones of another.
fn two_prompts(room: &Room) -> Vec<Tensor> {
    let picture = |at: i64| {
        let side = if at % 5 == 4 { 12 } else { 8 };
        let strength = ((at * 7) % 20 * 5 + 10) as f64;
        let noise = NoiseKey::new(at as u64, "ensembles").normal(&[side, side, 3]);
        (noise * strength + 128).clamp(0.0, 255.0).to_kind(Kind::Uint8)
    };
    let pictures: Vec<Tensor> = (0..20).map(picture).collect();
    std::fs::create_dir(room.path("pictures")).unwrap();
    for (at, picture) in pictures.iter().enumerate() {
        let prompt = [("prompt", prompt_of(at))];
        seedpo_evaluate::png::write_png(&room.path(&format!("pictures/{at:02}.png")), picture, &prompt).unwrap();
    }
    pictures
}

fn prompt_of(at: usize) -> &'static str {
    ["a red apple", "two cats"][at % 2]
}

fn by(judge: &str, pictures: &[Tensor]) -> Vec<f64> {
    let judge = load(judge, &[], &JudgeOptions::default()).unwrap();
    pictures.iter().map(|picture| judge.score(&picture.unsqueeze(0), &[""]).unwrap()[0]).collect()
}

/// The columns of scores in a file that `seedpo score` wrote.
fn columns(room: &Room, jsonl: &str, names: &[&str]) -> Vec<Vec<f64>> {
    let text = std::fs::read_to_string(room.path(jsonl)).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    names.iter().map(|name| lines.iter().map(|line| line["scores"][name].as_f64().unwrap()).collect()).collect()
}

#[test]
fn rules_that_compare_see_all_pictures_of_a_prompt() {
    let room = Room::new();
    let pictures = two_prompts(&room);
    let names = ["majority(chroma, jpeg-incompressibility, colourfulness)", "pareto(chroma, jpeg-incompressibility)"];
    let judges = format!("{}, chroma, {}", names[0], names[1]);
    done(&room, &["score", "--judge", &judges, "pictures", "--jsonl", "s.jsonl"]);
    let found = columns(&room, "s.jsonl", &names);
    let raw = ["chroma", "jpeg-incompressibility", "colourfulness"].map(|judge| by(judge, &pictures));
    // In favour of the one picture, less in favour of the other, by so many of the judges.
    let votes = |judges: usize, one: usize, other: usize| -> (i32, i32) {
        let of = |better: fn(&f64, &f64) -> bool| raw[..judges].iter().filter(|s| better(&s[one], &s[other])).count();
        (of(|a, b| a > b) as i32, of(|a, b| a < b) as i32)
    };
    let majority = |one, other| {
        let (better, worse) = votes(3, one, other);
        (better - worse).signum()
    };
    let pareto = |one, other| match votes(2, one, other) {
        (1.., 0) => 1,
        (0, 1..) => -1,
        _ => 0,
    };
    // Nine others of its prompt, in this batch and the next, of its size and the other.
    let shares = |rule: &dyn Fn(usize, usize) -> i32| -> Vec<f64> {
        let others = |at: usize| (0..20).filter(move |other| *other != at && other % 2 == at % 2);
        (0..20).map(|at| f64::from(others(at).map(|other| rule(at, other)).sum::<i32>()) / 9.0).collect()
    };
    near(&found[0], &shares(&majority));
    near(&found[1], &shares(&pareto));
    assert!(found.iter().all(|scores| scores.iter().any(|score| score.abs() > 0.5)), "{found:?}");
}

#[test]
fn weights_of_ones_own_are_normalised_as_what_they_are_or_as_told() {
    let room = Room::new();
    let pictures = two_prompts(&room);
    judge_folder(&room, "pick", 8, false);
    room.write("scorer.sh", SCORER);
    let options = JudgeOptions::default();
    let pick = load("pickscore", &[room.path("pick")], &options).unwrap();
    let raw: Vec<f64> = pictures
        .iter()
        .enumerate()
        .map(|(at, picture)| pick.score(&picture.unsqueeze(0), &[prompt_of(at)]).unwrap()[0])
        .collect();
    let chroma = by("chroma", &pictures);
    let names = [
        "weighted(2*path:pick, 0.5*chroma)",
        "weighted(2*pickscore=pick, 0.5*chroma)",
        "weighted(2*normalised(path:pick, 3, 0.5), 0.5*chroma)",
    ];
    done(&room, &["score", "--judge", &names.join(","), "pictures", "--jsonl", "s.jsonl"]);
    // All three have the same judges, so the whole lines name them.
    let found = columns(&room, "s.jsonl", &names);
    let z = |score: f64, (mean, spread): (f64, f64)| (score - mean) / spread;
    let typical = |name: &str| info(name).unwrap().typical;
    for at in 0..20 {
        let expected = [typical("pickscore"), typical("pickscore"), (3.0, 0.5)]
            .map(|of| 2.0 * z(raw[at], of) + 0.5 * z(chroma[at], typical("chroma")));
        for (column, expected) in found.iter().zip(expected) {
            assert!((column[at] - expected).abs() < 1e-4 * expected.abs().max(1.0), "{at}: {} {expected}", column[at]);
        }
    }
}

/// The lines of a run's metrics of this kind.
fn metrics(room: &Room, run: &str, kind: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(room.path(&format!("runs/{run}/metrics.jsonl"))).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let found: Vec<Value> = lines.filter(|line| line["kind"] == kind).collect();
    assert!(!found.is_empty(), "{text}");
    found
}

#[test]
fn a_run_records_each_judge_of_an_ensemble() {
    let room = Room::new();
    let judge = "weighted(2*normalised(colourfulness, 30, 10), jpeg-compressibility)";
    let train = |name: &str, more: &[&str]| {
        let base = ["train", "--model", "model", "--device", "cpu", "--prompt", "a", "--prompt", "b", "--steps", "3"];
        let rest = ["--max-train-steps", "1", "--guidance-scale", "2", "--judge", judge, "--name", name];
        done(&room, &[&base[..], &rest, more].concat());
    };
    train("pairs", &["--method", "d3po"]);
    train("background", &["--method", "d3po", "--judge-background", "on"]);
    train("steps", &["--divert-start-step", "1", "--threshold=0"]);
    let (mean, spread) = info("jpeg-compressibility").unwrap().typical;
    let consistent = |line: &Value| {
        let of = |judge: &str| line["judges"][judge]["mean"].as_f64().unwrap();
        let expected = 2.0 * (of("colourfulness") - 30.0) / 10.0 + (of("jpeg-compressibility") - mean) / spread;
        let found = line["reward_mean"].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-9 * expected.abs().max(1.0), "{line}: {expected}");
        assert!(line["judges"]["colourfulness"]["std"].as_f64().unwrap() > 0.0, "{line}");
    };
    // A mean of weighted sums is the weighted sum of means: the same pictures were counted, and no others.
    for run in ["pairs", "background", "steps"] {
        metrics(&room, run, "preview").iter().for_each(consistent);
    }
    metrics(&room, "pairs", "update").iter().for_each(consistent);
    let judges = |run: &str, kind: &str| -> Vec<Value> {
        metrics(&room, run, kind).iter().map(|line| line["judges"].clone()).collect()
    };
    for kind in ["update", "preview"] {
        assert_eq!(judges("pairs", kind), judges("background", kind), "{kind}");
    }
    // Candidates are counted with the finished pictures.
    let steps = &judges("steps", "update")[0];
    assert!(steps["jpeg-compressibility"]["mean"].as_f64().unwrap() < 0.0, "{steps}");
    let events = std::fs::read_dir(room.path("runs/pairs")).unwrap().map(|entry| entry.unwrap().path());
    let events = events.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("events"));
    let bytes: Vec<u8> = events.flat_map(|path| std::fs::read(path).unwrap()).collect();
    for tag in ["reward/judge/colourfulness", "preview/judge/jpeg-compressibility"] {
        assert!(bytes.windows(tag.len()).any(|window| window == tag.as_bytes()), "{tag}");
    }
    // A judge that is one has no such line.
    done(&room, &[&TRAIN[..], &["--name", "one"]].concat());
    assert!(metrics(&room, "one", "update")[0].get("judges").is_none());
}

/// [`TRAIN`] without its judge.
fn train_by_others() -> Vec<&'static str> {
    TRAIN.iter().copied().filter(|a| !["--judge", "colourfulness"].contains(a)).collect()
}

#[test]
fn a_judge_may_have_a_thread_a_device_and_a_number_type_of_its_own() {
    let room = Room::new();
    let rewards = |name: &str, more: &[&str]| -> Vec<f64> {
        let judge = ["--judge", "emoji-step-aware", "--name", name];
        done(&room, &[&train_by_others()[..], &judge, more].concat());
        metrics(&room, name, "preview").iter().map(|line| line["reward_mean"].as_f64().unwrap()).collect()
    };
    let here = rewards("here", &[]);
    assert_eq!(here, rewards("elsewhere", &["--judge-background", "on", "--judge-device", "cpu"]));
    let half = rewards("half", &["--judge-dtype", "bf16"]);
    assert_ne!(here, half);
    for (f32, bf16) in here.iter().zip(&half) {
        assert!((f32 - bf16).abs() < 0.05 * f32.abs().max(1.0), "{f32} {bf16}");
    }
    let wrong = [&train_by_others()[..], &["--judge", "emoji-clip", "--judge-device", "gpu"]].concat();
    let refused = room.seedpo(&wrong).assert().failure().get_output().clone();
    let words = String::from_utf8(refused.stderr).unwrap();
    assert!(words.contains("judge_device") && words.contains("gpu"), "{words}");
}

#[test]
fn the_judges_that_are_built_in_score_and_train_by_name() {
    let room = Room::new();
    two_prompts(&room);
    let names = ["emoji-step-aware", "emoji-heldout", "emoji-preference", "emoji-clip"];
    done(&room, &["score", "--judge", &names.join(","), "pictures", "--jsonl", "s.jsonl"]);
    let found = columns(&room, "s.jsonl", &names);
    assert!(found.iter().all(|scores| scores.iter().any(|score| *score != scores[0])), "{found:?}");
    let direct = |name: &str| {
        let asset =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets").join(info(name).unwrap().asset);
        load(name, &[asset], &JudgeOptions::default()).unwrap()
    };
    let first = read_png(&room.path("pictures/00.png")).unwrap().image.unsqueeze(0);
    for (name, scores) in names.iter().zip(&found) {
        let expected = direct(name).score(&first, &[prompt_of(0)]).unwrap()[0];
        assert!((scores[0] - expected).abs() < 1e-4 * expected.abs().max(1.0), "{name}: {} {expected}", scores[0]);
    }
    let judges = ["--judge", "emoji-step-aware", "--heldout-judge", "emoji-heldout,chroma", "--gamma", "1"];
    done(&room, &[&train_by_others()[..], &judges, &["--name", "see-spo"]].concat());
    let preview = &metrics(&room, "see-spo", "preview")[0];
    assert!(preview["heldout"]["emoji-heldout"]["mean"].as_f64().unwrap().is_finite(), "{preview}");
    assert!(metrics(&room, "see-spo", "update")[0]["pairs_kept"].as_u64().unwrap() > 0);
}
