//! Models and adapters by hub id, from a stand-in hub, through the binary.

mod common;
#[path = "../../hub/tests/hub/stand_in.rs"]
mod stand_in;

use std::path::Path;

use assert_cmd::Command;
use common::{Room, judges::judge_folder};
use seedpo_evaluate::png::{read_png, write_png};
use seedpo_model::adapter::LoraConfig;
use seedpo_model::{Adapter, DiffusionModel, LoadOptions};
use seedpo_tensor::{Device, Kind, Tensor};
use stand_in::{COMMIT, Fault, Request, StandIn};

const SAMPLE: [&str; 8] = ["sample", "--prompt", "a", "--steps", "2", "--model", "tiny/model", "--out"];

/// Puts every file below `folder` on the hub, weights as LFS.
fn publish(server: &StandIn, folder: &Path, name: &str) {
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let inside = format!("{name}{}", path.file_name().unwrap().to_string_lossy());
        if path.is_dir() {
            publish(server, &path, &format!("{inside}/"));
        } else {
            server.add(&inside, &std::fs::read(&path).unwrap(), inside.ends_with(".safetensors"));
        }
    }
}

/// A room whose model is on the hub and no longer here.
fn room() -> (Room, StandIn) {
    let (room, server) = (Room::new(), StandIn::new());
    publish(&server, &room.path("model"), "");
    std::fs::rename(room.path("model"), room.path("original")).unwrap();
    (room, server)
}

fn seedpo(room: &Room, server: &StandIn, arguments: &[&str]) -> Command {
    let mut command = room.seedpo(arguments);
    for name in ["HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy"] {
        command.env_remove(name);
    }
    command.env("HF_HOME", room.path("hf")).env("HF_ENDPOINT", &server.endpoint);
    command
}

fn error(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_model_by_its_id_is_downloaded_once_and_draws_the_same() {
    let (room, server) = room();
    server.fault("GET", "/cdn/", Fault::Drop(5000), 1);
    let done = seedpo(&room, &server, &[&SAMPLE[..], &["one"]].concat()).assert().success();
    let text = String::from_utf8(done.get_output().stderr.clone()).unwrap();
    assert!(text.contains("broke off after 5000 bytes") || text.contains("broke off after 5000 of"), "{text}");
    server.requests();
    seedpo(&room, &server, &[&SAMPLE[..], &["two"]].concat()).env("HF_HUB_OFFLINE", "1").assert().success();
    assert!(server.requests().is_empty());
    let local = ["sample", "--prompt", "a", "--steps", "2", "--model", "original", "--out", "three"];
    seedpo(&room, &server, &local).assert().success();
    let picture = |folder: &str| read_png(&room.path(folder).join("0000-a-0.png")).unwrap();
    let (one, two, three) = (picture("one"), picture("two"), picture("three"));
    assert!(one.image == two.image && one.image == three.image);
    assert!(one.texts.iter().any(|(key, text)| key == "parameters" && text.contains("Model: tiny/model")));
    seedpo(&room, &server, &["doctor", "--model", "tiny/model", "--revision", COMMIT]).assert().success();
}

#[test]
fn a_run_records_the_snapshot_it_was_trained_on() {
    let (room, server) = room();
    let train = ["train", "--model", "tiny/model", "--prompts", "a", "--judge", "colourfulness", "--steps", "3"];
    let more = ["--divert-start-step", "1", "--threshold", "0", "--max-train-steps", "1", "--validation-steps", "0"];
    seedpo(&room, &server, &[&train[..], &more].concat()).assert().success();
    let config = std::fs::read_dir(room.path("runs")).unwrap().next().unwrap().unwrap().path().join("config.toml");
    let text = std::fs::read_to_string(config).unwrap();
    assert!(text.contains(&format!("models--tiny--model/snapshots/{COMMIT}")), "{text}");
}

#[test]
fn adapters_by_their_ids() {
    let (room, server) = room();
    let model = DiffusionModel::load(&room.path("original"), &LoadOptions::default()).unwrap();
    let lora = room.path("lora.safetensors");
    Adapter::lora(&model.unet, &LoraConfig::default(), 3).unwrap().save(&lora).unwrap();
    let bytes = std::fs::read(lora).unwrap();
    server.add("pytorch_lora_weights.safetensors", &bytes, true);
    server.add("styles/ink.safetensors", &[&bytes[..], b""].concat(), true);
    let adapters = ["a", "--adapter", "tiny/model:0.5", "--adapter", "tiny/model/styles/ink.safetensors"];
    seedpo(&room, &server, &[&SAMPLE[..], &adapters].concat()).assert().success();
    for command in [
        &["adapter", "inspect", "tiny/model"][..],
        &["adapter", "convert", "tiny/model/styles/ink.safetensors", "k.safetensors", "--to", "kohya"],
        &["adapter", "merge", "tiny/model:0.5", "tiny/model/styles/ink.safetensors", "both.safetensors"],
        &["adapter", "merge", "--model", "tiny/model", "tiny/model:0.5", "merged"],
    ] {
        seedpo(&room, &server, command).assert().success();
    }
    let text = error(seedpo(&room, &server, &["adapter", "inspect", "tiny/model/none.safetensors"]));
    assert!(text.contains("no file `none.safetensors`"), "{text}");
    let text =
        error(seedpo(&room, &server, &[&SAMPLE[..], &["b", "--adapter", "tiny/model/none.safetensors"]].concat()));
    assert!(text.contains("no file `none.safetensors`") && text.contains("styles/ink.safetensors"), "{text}");
}

/// peft keeps alpha beside the weights: with the configuration, and without it, from the hub and from a folder.
#[test]
fn a_peft_adapter_by_its_file_has_its_scale() {
    let (room, server) = (Room::new(), StandIn::new());
    let native = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/adapter/native");
    publish(&server, &native, "whole/");
    server.add(
        "alone/adapter_model.safetensors",
        &std::fs::read(native.join("adapter_model.safetensors")).unwrap(),
        true,
    );
    let inspected = |named: &str| {
        let output = seedpo(&room, &server, &["adapter", "inspect", named]).assert().success().get_output().clone();
        let text = String::from_utf8(output.stdout).unwrap();
        // The first line is the path.
        (text.split_once('\n').unwrap().1.to_owned(), String::from_utf8(output.stderr).unwrap())
    };
    let (expected, _) = inspected(native.to_str().unwrap());
    let (found, told) = inspected("tiny/model/whole/adapter_model.safetensors");
    assert!(found == expected && !told.contains("adapter_config.json"), "{found}\n{expected}\n{told}");
    let (found, told) = inspected("tiny/model/alone/adapter_model.safetensors");
    assert!(
        found.contains("alpha        none") && told.contains("adapter_config.json with its alpha"),
        "{found} {told}"
    );
}

#[test]
fn judges_by_their_ids_are_downloaded_once_and_score_the_same() {
    let (room, server) = (Room::new(), StandIn::new());
    // As wide as one head of 64: a single file without its configuration tells it then.
    judge_folder(&room, "original", 64, false);
    publish(&server, &room.path("original"), "");
    let pixels = Tensor::arange(9 * 12 * 3, (Kind::Uint8, Device::Cpu)).view([9, 12, 3]);
    write_png(&room.path("a.png"), &pixels, &[("prompt", "a red apple")]).unwrap();
    let scored = |judge: &str, offline: &str| -> String {
        let arguments = ["score", "--judge", judge, "a.png", "--csv", "s.csv"];
        seedpo(&room, &server, &arguments).env("HF_HUB_OFFLINE", offline).assert().success();
        let text = std::fs::read_to_string(room.path("s.csv")).unwrap();
        text.lines().nth(1).unwrap().rsplit(',').next().unwrap().to_owned()
    };
    // The file alone first, while its configuration is not in the cache.
    let judges = ["pickscore=tiny/model/model.safetensors", "pickscore=tiny/model"];
    let expected = scored("pickscore=original", "0");
    assert!(server.requests().is_empty());
    let fetched = judges.map(|judge| {
        assert_eq!(scored(judge, "0"), expected, "{judge}");
        let weights = |request: &&Request| request.path.contains("/cdn/") && request.method == "GET";
        server.requests().iter().filter(weights).count()
    });
    assert_eq!(fetched, [1, 0], "the weights are fetched once");
    for judge in judges {
        assert_eq!(scored(judge, "1"), expected, "{judge}");
    }
    assert!(server.requests().is_empty());
    let text = error(seedpo(&room, &server, &["score", "--judge", "pickscore=tiny/model/none.safetensors", "a.png"]));
    assert!(text.contains("no file `none.safetensors`") && text.contains("model.safetensors"), "{text}");
}

#[test]
fn what_cannot_be_had_is_explained() {
    let (room, server) = room();
    let text = error(seedpo(&room, &server, &["sample", "--prompt", "a", "--model", "models/sd15"]));
    for needle in ["--model", "models/sd15: nothing is at this path", "no such repository", "HF_TOKEN"] {
        assert!(text.contains(needle), "{needle} in {text}");
    }
    let text = error(seedpo(&room, &server, &[&SAMPLE[..], &["a", "--variant", "fp16"]].concat()));
    assert!(text.contains("variant `fp16`") && text.contains("leave --variant out"), "{text}");
    let text = error(seedpo(&room, &server, &[&SAMPLE[..], &["a", "--revision", "dev"]].concat()));
    assert!(text.contains("no revision `dev`"), "{text}");
    let mut offline = seedpo(&room, &server, &[&SAMPLE[..], &["a"]].concat());
    offline.env("HF_HUB_OFFLINE", "1");
    assert!(error(offline).contains("offline mode is on"));
    assert!(!room.path("a").exists());
}
