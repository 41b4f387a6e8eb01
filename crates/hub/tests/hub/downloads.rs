//! Downloads that succeed, at the first try or a later one.

use std::fs;
use std::path::Path;

use seedpo_hub::{Error, Hub, Observer, RepoId, Select};

use crate::stand_in::{COMMIT, Fault, git_sha1, sha256};
use crate::{Notes, Room, plain, unet};

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

#[test]
fn the_cache_is_laid_out_as_the_python_tools_do() {
    let room = Room::new();
    let (folder, notes) = room.get(&plain());
    let folder = folder.unwrap();
    let repo = room.cache.path().join("models--tiny--model");
    assert_eq!(folder, repo.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(fs::read(folder.join(UNET)).unwrap(), unet());
    assert_eq!(fs::read(repo.join("blobs").join(sha256(&unet()))).unwrap(), unet());
    assert!(repo.join("blobs").join(git_sha1(b"{\"a\": 1}")).is_file());
    if cfg!(unix) {
        let target = fs::read_link(folder.join(UNET)).unwrap();
        assert_eq!(target, Path::new("../../../blobs").join(sha256(&unet())));
        assert_eq!(fs::read_link(folder.join("model_index.json")).unwrap().iter().next().unwrap(), "..");
    }
    for absent in ["README.md", "safety_checker", "unet/diffusion_pytorch_model.bin"] {
        assert!(!folder.join(absent).exists(), "{absent}");
    }
    assert_eq!(notes.last.0, notes.last.1);
    assert_eq!((room.left(""), room.left(".incomplete")), (4, 0));
}

#[test]
fn the_second_time_only_the_revision_is_asked_for() {
    let room = Room::new();
    let first = room.pipeline(None).unwrap();
    room.server.requests();
    assert_eq!(room.pipeline(None).unwrap(), first);
    let asked: Vec<String> = room.server.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(asked, ["/api/models/tiny/model/revision/main"]);
    let id = RepoId::parse("tiny/model").unwrap();
    let again = Hub::new(room.config.clone()).snapshot(&id, COMMIT, &plain(), &mut Notes::default()).unwrap();
    assert!(again == first && room.server.requests().is_empty(), "a commit never changes");
}

#[test]
fn a_variant_is_taken_where_it_is() {
    let room = Room::new();
    let folder = room.pipeline(Some("fp16")).unwrap();
    assert!(folder.join("unet/diffusion_pytorch_model.fp16.safetensors").is_file() && !folder.join(UNET).exists());
}

#[test]
fn a_broken_download_goes_on_where_it_was() {
    let room = Room::new();
    room.server.fault("GET", "/cdn/", Fault::Drop(100_000), 2);
    let (folder, notes) = room.get(&plain());
    assert_eq!(fs::read(folder.unwrap().join(UNET)).unwrap(), unet());
    let starts: Vec<usize> =
        room.server.requests().iter().filter(|r| r.path.starts_with("/cdn/")).map(|r| r.start).collect();
    assert_eq!(starts, [0, 100_000, 200_000]);
    assert!(notes.lines.iter().all(|line| line.contains("broke off") && line.contains("trying again")));
}

#[test]
fn a_later_run_takes_up_what_an_earlier_one_left() {
    let room = Room::new();
    room.server.fault("GET", "/cdn/", Fault::Drop(50_000), 1);
    room.server.fault("GET", "/cdn/", Fault::Drop(0), 5);
    let error = room.pipeline(None).unwrap_err();
    assert!(matches!(error, Error::Broken { done: 50_000, total: 600_000, .. }), "{error}");
    assert!(error.to_string().contains("run again"), "{error}");
    assert_eq!(room.left(".incomplete"), 1);
    assert!(!room.cache.path().join("models--tiny--model/refs/main").exists(), "it would look whole");
    let room = Room { server: Room::new().server, ..room };
    let config = seedpo_hub::HubConfig { endpoint: room.server.endpoint.clone(), ..room.config.clone() };
    let room = Room { config, ..room };
    assert_eq!(fs::read(room.pipeline(None).unwrap().join(UNET)).unwrap(), unet());
    let starts =
        room.server.requests().iter().filter(|r| r.path.starts_with("/cdn/")).map(|r| r.start).collect::<Vec<_>>();
    assert_eq!((starts, room.left(".incomplete")), (vec![50_000], 0));
}

#[test]
fn a_cancelled_download_stops_and_keeps_its_part() {
    struct Cancelled;
    impl Observer for Cancelled {
        fn progress(&mut self, _: &str, _: u64, _: u64) {}
        fn note(&mut self, _: &str) {}
        fn cancelled(&self) -> bool {
            true
        }
    }
    let room = Room::new();
    room.pipeline(Some("fp16")).unwrap();
    let id = RepoId::parse("tiny/model").unwrap();
    let stopped = Hub::new(room.config.clone()).snapshot(&id, "main", &plain(), &mut Cancelled);
    assert!(matches!(stopped, Err(Error::Cancelled { .. })), "{stopped:?}");
    assert_eq!(room.left(".incomplete"), 1);
    room.pipeline(None).unwrap();
}

#[test]
fn a_server_without_ranges_starts_over() {
    let room = Room::new();
    room.server.fault("GET", "/cdn/", Fault::Drop(1000), 1);
    room.server.fault("GET", "/cdn/", Fault::WholeFile, 1);
    assert_eq!(fs::read(room.pipeline(None).unwrap().join(UNET)).unwrap(), unet());
}

#[test]
fn a_damaged_beginning_is_thrown_away() {
    let room = Room::new();
    let blobs = room.cache.path().join("models--tiny--model/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let part = blobs.join(format!("{}.incomplete", sha256(&unet())));
    for wrong in [vec![9; 1000], vec![9; 600_000], vec![9; 700_000]] {
        let _ = fs::remove_file(blobs.join(sha256(&unet())));
        fs::write(&part, &wrong).unwrap();
        assert_eq!(fs::read(room.pipeline(None).unwrap().join(UNET)).unwrap(), unet());
    }
}

#[test]
fn errors_of_the_server_pass() {
    let room = Room::new();
    room.server.fault("GET", "/api/", Fault::Status(500, ""), 2);
    room.server.fault("HEAD", UNET, Fault::Status(503, ""), 1);
    room.server.fault("GET", "/cdn/", Fault::Status(502, ""), 1);
    let (folder, notes) = room.get(&plain());
    assert!(folder.unwrap().join(UNET).is_file());
    assert_eq!(notes.lines.len(), 4, "{:?}", notes.lines);
}

#[test]
fn two_processes_fetch_a_file_once() {
    let room = Room::new();
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| room.pipeline(None).unwrap())).collect();
        runs.into_iter().for_each(|run| assert_eq!(fs::read(run.join().unwrap().join(UNET)).unwrap(), unet()));
    });
    assert_eq!(room.server.requests().iter().filter(|r| r.path.starts_with("/cdn/")).count(), 1);
}

#[test]
fn without_a_network_the_cache_serves() {
    let room = Room::new();
    let folder = room.pipeline(None).unwrap();
    room.server.fault("GET", "/api/", Fault::Status(503, ""), 9);
    let (cached, notes) = room.get(&plain());
    assert!(cached.unwrap() == folder && notes.lines[0].contains("using the copy in the cache"), "{:?}", notes.lines);
    room.server.requests();
    let room = room.offline();
    assert_eq!(room.pipeline(None).unwrap(), folder);
    assert!(room.server.requests().is_empty());
}

#[test]
fn the_token_is_for_the_hub_alone() {
    let room = Room::new().with_token();
    room.pipeline(None).unwrap();
    for request in room.server.requests() {
        let expected = (!request.path.starts_with("/cdn/")).then(|| "Bearer secret".to_owned());
        assert_eq!(request.token, expected, "{}", request.path);
    }
}

#[test]
fn adapters_and_single_files() {
    let room = Room::new();
    room.server.add("pytorch_lora_weights.safetensors", b"lora", true);
    room.server.add("styles/ink.safetensors", b"ink", true);
    let (id, hub) = (RepoId::parse("tiny/model").unwrap(), Hub::new(room.config.clone()));
    let read = |select: Select| fs::read(hub.file(&id, "main", &select, &mut Notes::default()).unwrap()).unwrap();
    assert_eq!(read(Select::Adapter), b"lora");
    assert_eq!(read(Select::File("styles/ink.safetensors".to_owned())), b"ink");
    assert!(room.error(&Select::File("ink.safetensors".to_owned())).contains("it has pytorch_lora_weights"));
}

#[test]
fn an_adapter_comes_with_its_configuration() {
    let room = Room::new();
    room.server.add("a/adapter_model.bin", b"weights", true);
    room.server.add("a/adapter_config.json", b"{}", false);
    room.server.add("adapter_model.bin", b"others", true);
    let (id, hub) = (RepoId::parse("tiny/model").unwrap(), Hub::new(room.config.clone()));
    let file = |select: Select| hub.file(&id, "main", &select, &mut Notes::default()).unwrap();
    let named = file(Select::AdapterFile("a/adapter_model.bin".to_owned()));
    assert_eq!(fs::read(&named).unwrap(), b"weights");
    assert_eq!(fs::read(named.with_file_name("adapter_config.json")).unwrap(), b"{}");
    // The usual file, as a pickle where there is no other, and no configuration at the top.
    let usual = file(Select::Adapter);
    assert_eq!(fs::read(&usual).unwrap(), b"others");
    assert!(!usual.with_file_name("adapter_config.json").exists());
    assert!(room.error(&Select::AdapterFile("b.bin".to_owned())).contains("no file `b.bin`"));
    let offline = Hub::new(seedpo_hub::HubConfig { offline: true, ..room.config.clone() });
    let cached =
        offline.file(&id, "main", &Select::AdapterFile("a/adapter_model.bin".to_owned()), &mut Notes::default());
    assert_eq!(cached.unwrap(), named);
}

#[test]
fn a_file_without_a_checksum_is_said_to_be_unverified() {
    let room = Room::new();
    let (_, notes) = room.get(&plain());
    assert!(notes.lines.is_empty(), "{:?}", notes.lines);
    let room = Room::new();
    room.server.fault("HEAD", UNET, Fault::Etag("no-checksum_1"), 1);
    let (folder, notes) = room.get(&plain());
    assert_eq!(fs::read(folder.unwrap().join(UNET)).unwrap(), unet());
    let [line] = &notes.lines[..] else { panic!("{:?}", notes.lines) };
    assert!(line.contains(UNET) && line.contains("not verified") && line.contains("`no-checksum_1`"), "{line}");
}
