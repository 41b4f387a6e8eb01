//! What cannot be had, and what people are told.

use std::fs;

use seedpo_hub::{Error, Hub, RepoId, Select};

use crate::stand_in::Fault;
use crate::{Notes, Room, plain};

#[test]
fn wrong_bytes_are_never_kept() {
    let room = Room::new();
    room.server.fault("GET", "/cdn/", Fault::WrongByte, 9);
    let error = room.pipeline(None).unwrap_err();
    assert!(matches!(error, Error::Checksum { .. }), "{error}");
    assert_eq!(room.left(".incomplete"), 0);
    let room = Room::new();
    room.server.fault("GET", "unet/config.json", Fault::WrongByte, 9);
    assert!(room.error(&plain()).contains("unet/config.json: wrong bytes"), "git's checksum of small files");
    assert!(!room.cache.path().join("models--tiny--model/refs").exists());
}

#[test]
fn refusals_say_what_to_do() {
    for (status, code, needles) in [
        (403, "GatedRepo", ["accept its terms", "HF_TOKEN", "tiny/model"]),
        (401, "GatedRepo", ["accept its terms", "hf auth login", "127.0.0.1"]),
        (401, "RepoNotFound", ["no such repository", "spelling", "private"]),
        (404, "RepoNotFound", ["no such repository", "HF_TOKEN", "tiny/model"]),
        (403, "", ["403", "refuses access", "HF_TOKEN"]),
    ] {
        let room = Room::new();
        room.server.fault("GET", "/api/", Fault::Status(status, code), 1);
        let error = room.error(&plain());
        assert!(needles.iter().all(|needle| error.contains(needle)), "{status} {code}: {error}");
        assert_eq!(room.server.requests().len(), 1, "asking again would not help");
        assert!(!room.cache.path().join("models--tiny--model").exists());
    }
    let room = Room::new().with_token();
    room.server.fault("HEAD", "unet/", Fault::Status(403, "GatedRepo"), 1);
    assert!(room.error(&plain()).contains("the token from HF_TOKEN is valid"));
}

#[test]
fn unknown_repositories_revisions_and_variants() {
    let room = Room::new();
    let hub = Hub::new(room.config.clone());
    let ask = |id: &str, revision: &str| {
        let id = RepoId::parse(id).unwrap();
        hub.snapshot(&id, revision, &plain(), &mut Notes::default()).unwrap_err().to_string()
    };
    assert!(ask("tiny/none", "main").contains("tiny/none: no such repository"));
    assert!(ask("tiny/model", "dev").contains("no revision `dev`"));
    assert!(room.pipeline(Some("bf16")).unwrap_err().to_string().contains("found the variants fp16"));
    assert!(room.error(&Select::Adapter).contains("expected a LoRA adapter"));
}

#[test]
fn errors_that_stay() {
    let room = Room::new();
    room.server.fault("GET", "/api/", Fault::Status(500, ""), 99);
    let error = room.error(&plain());
    assert!(error.contains("status 500") && error.contains("try again later"), "{error}");
    assert_eq!(room.server.requests().len(), 3);
    let mut room = Room::new();
    room.config.endpoint = "http://127.0.0.1:9".to_owned();
    let error = room.error(&plain());
    assert!(error.contains("127.0.0.1:9") && error.contains("HF_ENDPOINT"), "{error}");
}

#[test]
fn offline_and_not_cached() {
    let room = Room::new().offline();
    let error = room.error(&plain());
    for needle in ["the revision `main`", "HF_HUB_OFFLINE", "unset it", &room.cache.path().display().to_string()] {
        assert!(error.contains(needle), "{needle} in {error}");
    }
    let mut room = Room::new();
    let folder = room.pipeline(None).unwrap();
    fs::remove_file(folder.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    room.config.offline = true;
    assert!(room.error(&plain()).contains("the part `unet` is not in the cache"));
    assert!(room.error(&Select::Adapter).contains("a LoRA adapter is not in the cache"));
    assert!(room.server.requests().len() < 20);
}

#[test]
fn a_disk_that_is_too_small() {
    let room = Room::new();
    room.server.fault("HEAD", "unet/diffusion", Fault::Size(1 << 60), 1);
    let error = room.error(&plain());
    assert!(error.contains("free space") && error.contains("HF_HUB_CACHE"), "{error}");
    assert!(!room.server.requests().iter().any(|request| request.path.starts_with("/cdn/")));
}

#[test]
fn a_cache_that_cannot_be_written() {
    let mut room = Room::new();
    let file = room.cache.path().join("file");
    fs::write(&file, "in the way").unwrap();
    room.config.cache = file.join("hub");
    let error = room.error(&plain());
    assert!(error.contains("file/hub") || error.contains("file"), "{error}");
}
