//! What a judge needs besides pictures: prompts, and files from several places.

use std::path::Path;

use super::judging::reference::cases::{Case, cases, relative_error, write};
use super::*;
use crate::common::judges::judge_folder;
use seedpo_evaluate::png::write_png;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn picture(room: &Room, name: &str, texts: &[(&str, &str)]) {
    let pixels = (noise(&[9, 12, 3]) * 60 + 128).clamp(0.0, 255.0).to_kind(Kind::Uint8);
    write_png(&room.path(name), &pixels, texts).unwrap();
}

fn refusal(room: &Room, arguments: &[&str]) -> String {
    let output = room.seedpo(arguments).assert().code(2).get_output().clone();
    String::from_utf8(output.stderr).unwrap()
}

/// The first judge's score of each picture, by command line.
fn scores(room: &Room, arguments: &[&str]) -> Vec<f64> {
    done(room, &[&["score", "--csv", "s.csv"], arguments].concat());
    let text = std::fs::read_to_string(room.path("s.csv")).unwrap();
    text.lines().skip(1).map(|line| line.rsplit(',').next().unwrap().parse().unwrap()).collect()
}

#[test]
fn a_judge_that_reads_prompts_is_given_one_for_each_picture() {
    let room = Room::new();
    judge_folder(&room, "pick", 8, false);
    let settings =
        "a red apple\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 8x8";
    picture(&room, "a.png", &[("prompt", "a red apple")]);
    picture(&room, "b.png", &[("parameters", settings)]);
    picture(&room, "c.png", &[("prompt", "")]);
    picture(&room, "d.png", &[]);
    let found = scores(&room, &["--judge", "pickscore=pick", "a.png", "b.png", "c.png"]);
    assert!(found[0] == found[1] && found[0] != found[2], "{found:?}");
    for judge in ["pickscore=pick", "path:pick", "colourfulness,worst(chroma, pickscore=pick)"] {
        for order in [["d.png", "a.png"], ["a.png", "d.png"]] {
            let text = refusal(&room, &[&["score", "--judge", judge], &order[..]].concat());
            assert!(
                ["d.png", "pick", "reads the prompt", "--prompts"].iter().all(|part| text.contains(part)),
                "{text}"
            );
        }
    }
    // Said before weights are looked for.
    let text = refusal(&room, &["score", "--judge", "hpsv2.1=nowhere/none", "d.png"]);
    assert!(text.contains("reads the prompt"), "{text}");
    room.write("prompts.txt", "a red apple\ntwo cats\n");
    let told = scores(&room, &["--judge", "pickscore=pick", "d.png", "a.png", "--prompts", "prompts.txt"]);
    assert!(told[0] == found[0] && told[1] != found[0], "{told:?} {found:?}");
    scores(&room, &["--judge", "colourfulness", "d.png"]);
}

#[test]
fn probe_wants_the_prompts_that_a_judge_reads() {
    let room = Room::new();
    judge_folder(&room, "pick", 8, false);
    room.case(
        "case.safetensors",
        "score",
        r#"{"judge": "pickscore", "judge_path": "pick"}"#,
        &[("images", Tensor::zeros([1, 4, 4, 3], (Kind::Uint8, seedpo_tensor::Device::Cpu)))],
    );
    let text = refusal(&room, &["probe", "--model", "model", "--case", "case.safetensors", "--out", "out.safetensors"]);
    assert!(text.contains("`prompts`") && text.contains("pickscore=") && text.contains("reads the prompt"), "{text}");
}

/// Puts files into the hub's cache, as a download would have.
fn cache(room: &Room, id: &str, files: &[(&Path, &str)]) {
    let repo = format!("hf/hub/models--{}", id.replace('/', "--"));
    room.write(&format!("{repo}/refs/main"), COMMIT);
    for (from, name) in files {
        room.write(&format!("{repo}/snapshots/{COMMIT}/{name}"), std::fs::read(from).unwrap());
    }
}

fn written(room: &Room, judge: &str) -> Case {
    let case = cases().into_iter().find(|case| case.judge == judge).unwrap();
    std::fs::create_dir_all(room.path(judge)).unwrap();
    write(&case, &room.path(judge));
    for (at, pixels) in case.pictures.iter().enumerate() {
        write_png(&room.path(&format!("{at}.png")), &pixels.squeeze_dim(0), &[("prompt", &case.prompts[at])]).unwrap();
    }
    case
}

/// Scores with the cache alone as the hub.
fn offline(room: &Room, judge: &str, case: &Case) -> Result<(), String> {
    let pictures: Vec<String> = (0..case.pictures.len()).map(|at| format!("{at}.png")).collect();
    let pictures: Vec<&str> = pictures.iter().map(String::as_str).collect();
    let mut command = room.seedpo(&[&["score", "--csv", "s.csv", "--judge", judge], &pictures[..]].concat());
    command.env_remove("HF_HUB_CACHE").env("HF_HOME", room.path("hf")).env("HF_HUB_OFFLINE", "1");
    let output = command.output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8(output.stderr).unwrap());
    }
    let text = std::fs::read_to_string(room.path("s.csv")).unwrap();
    let found: Vec<f64> = text.lines().skip(1).map(|line| line.rsplit(',').next().unwrap().parse().unwrap()).collect();
    assert!(relative_error(&found, &case.scores) < 1e-4, "{judge}: {found:?} {:?}", case.scores);
    Ok(())
}

#[test]
fn image_reward_from_elsewhere_takes_its_vocabulary_where_that_is_published() {
    let room = Room::new();
    let case = written(&room, "imagereward");
    let file = |name: &str| room.path("imagereward").join(name);
    let (weights, config) = (file("ImageReward.pt"), file("med_config.json"));
    cache(&room, "me/copy", &[(&weights, "ImageReward.pt"), (&config, "med_config.json")]);
    room.write("alone/ImageReward.pt", std::fs::read(&weights).unwrap());
    room.write("alone/med_config.json", std::fs::read(&config).unwrap());
    let judges = [
        "imagereward=me/copy",
        "imagereward=me/copy/ImageReward.pt",
        "imagereward=alone",
        "imagereward=alone/ImageReward.pt",
    ];
    for judge in judges {
        let text = offline(&room, judge, &case).unwrap_err();
        let place = judge.split_once('=').unwrap().1;
        let parts = [place, "google-bert/bert-base-uncased", "vocab.txt", "HF_HUB_OFFLINE"];
        assert!(parts.iter().all(|part| text.contains(part)), "{judge}: {text}");
    }
    cache(&room, "google-bert/bert-base-uncased", &[(&file("vocab.txt"), "vocab.txt")]);
    judges.iter().for_each(|judge| offline(&room, judge, &case).unwrap());
    // A copy that has it all needs nothing else.
    std::fs::remove_dir_all(room.path("hf/hub/models--google-bert--bert-base-uncased")).unwrap();
    cache(&room, "me/copy", &[(&file("vocab.txt"), "vocab.txt")]);
    offline(&room, "imagereward=me/copy", &case).unwrap();
}

#[test]
fn the_aesthetic_head_alone_takes_clip_where_that_is_published() {
    let room = Room::new();
    let case = written(&room, "aesthetic");
    let file = |name: &str| room.path("aesthetic").join(name);
    let head = file("sac+logos+ava1-l14-linearMSE.pth");
    cache(&room, "me/head", &[(&head, "aesthetic-model.pth")]);
    room.write("head.pth", std::fs::read(&head).unwrap());
    let judges = ["aesthetic=head.pth", "aesthetic=me/head", "aesthetic=me/head/aesthetic-model.pth"];
    for judge in judges {
        let text = offline(&room, judge, &case).unwrap_err();
        assert!(text.contains("openai/clip-vit-large-patch14") && text.contains("head"), "{judge}: {text}");
    }
    let clip = [file("config.json"), file("model.safetensors")];
    cache(&room, "openai/clip-vit-large-patch14", &[(&clip[0], "config.json"), (&clip[1], "model.safetensors")]);
    judges.iter().for_each(|judge| offline(&room, judge, &case).unwrap());
}
