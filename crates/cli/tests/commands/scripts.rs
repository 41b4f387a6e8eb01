//! What the repository's scripts say of the commands.

use std::path::Path;

use super::*;

/// The names in a tuple of a Python file: `NAME = ("a", "b")`.
fn tuple(text: &str, name: &str) -> Vec<String> {
    let line = text.lines().find(|line| line.starts_with(&format!("{name} = ("))).unwrap();
    line.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_gpu_check_and_the_benchmark_update_with_every_method() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../python/benchmark/methods.py");
    let text = std::fs::read_to_string(script).unwrap();
    let mut covered = [tuple(&text, "ONLINE"), tuple(&text, "OFFLINE")].concat();
    covered.sort();
    let methods: Vec<&str> = seedpo_align::METHODS.iter().map(|method| method.name).collect();
    assert_eq!(covered, methods);
    let files: Vec<&str> = seedpo_align::METHODS.iter().filter(|m| m.pairs.from_files()).map(|m| m.name).collect();
    let mut offline = tuple(&text, "OFFLINE");
    offline.sort();
    assert_eq!(offline, files, "those that are given pairs of pictures");
}

/// Eighty emoji with the six pictures of the fixture: enough for both halves to hold some out.
fn write_emoji(room: &Room) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pretrain/tests/fixtures/emoji");
    common::copy(&fixture.join("img"), &room.path("emoji/img"));
    let text = std::fs::read_to_string(fixture.join("emoji.json")).unwrap();
    let six: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let named = six.iter().cycle().take(80).enumerate().map(|(at, entry)| {
        let mut entry = entry.clone();
        entry["name"] = format!("emoji {at}").into();
        entry
    });
    room.write("emoji/emoji.json", serde_json::Value::from_iter(named).to_string());
}

#[test]
fn the_built_in_judges_are_made_and_made_again() {
    let room = Room::new();
    write_emoji(&room);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/train_judges.sh");
    let make = || {
        let mut command = std::process::Command::new("bash");
        command.arg(&script).arg(room.path("judges")).env("SEEDPO", assert_cmd::cargo::cargo_bin("seedpo"));
        command.env("EMOJI", room.path("emoji")).env("STEPS", "1").env("HELDOUT_LIMIT", "2");
        command.env("XDG_CACHE_HOME", room.path(".cache")).env("OMP_NUM_THREADS", "1");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let weights = |folder: &str| std::fs::read(room.path(folder).join("model/model.safetensors")).unwrap();
    make();
    let names = ["clip", "preference", "step-aware", "heldout"];
    let first = names.map(|name| (weights(&format!("judges/{name}")), weights(&format!("judges/f16/{name}"))));
    for (name, (whole, half)) in names.iter().zip(&first) {
        assert!(half.len() * 10 < whole.len() * 6, "{name}: {} bytes of f16, {} of f32", half.len(), whole.len());
    }
    // As a run that was stopped before it came to this one.
    std::fs::remove_dir_all(room.path("judges/f16/preference")).unwrap();
    let said = make();
    assert!(said.contains("judges/f16/clip/model is there already"), "{said}");
    assert!(first == names.map(|name| (weights(&format!("judges/{name}")), weights(&format!("judges/f16/{name}")))));
    room.write("prompts.txt", "emoji 0");
    let judge = "path:judges/f16/heldout/model";
    done(&room, &["score", "--judge", judge, "--prompts", "prompts.txt", "judges/pairs/images/0000-0.png"]);
}
