//! `seedpo judge train` and `seedpo judge synthetic`.

use crate::common::Room;
use crate::{refuses, with};

const CLIP: [&str; 8] = ["judge", "train", "clip", "--data", "pictures", "--tokenizer", "model/tokenizer", "--out"];
const PREFERENCE: [&str; 7] = ["judge", "train", "preference", "--init", "judge", "--data", "pairs.jsonl"];

/// A folder with two captioned pictures, and pairs of them.
fn room() -> Room {
    let room = Room::new();
    let picture = image::RgbImage::from_pixel(8, 8, image::Rgb([9, 99, 200]));
    std::fs::create_dir(room.path("pictures")).unwrap();
    for name in ["a", "b"] {
        picture.save(room.path(&format!("pictures/{name}.png"))).unwrap();
    }
    let captions = r#"{"file_name": "a.png", "text": "x"}
{"file_name": "b.png", "text": "y"}
"#;
    room.write("pictures/metadata.jsonl", captions);
    room.write("pairs.jsonl", r#"{"prompt": "x", "winner": "pictures/a.png", "loser": "pictures/b.png"}"#);
    room
}

#[test]
fn settings_of_judges() {
    let room = room();
    let bare = |more: &[&'static str]| with(&with(&CLIP, &["run"]), more);
    let clip = |more: &[&'static str]| with(&bare(&["--heldout-share", "0"]), more);
    refuses(&room, &clip(&["--preset", "pickscore-v1"]), &["--preset", "small-clip", "pickscore-v1"]);
    refuses(&room, &clip(&["--lr", "2"]), &["`lr`", "below 1", "2"]);
    refuses(&room, &clip(&["--batch", "1"]), &["`batch`", "2 or more"]);
    refuses(&room, &clip(&["--schedule", "cosin"]), &["cosin", "polynomial"]);
    refuses(&room, &clip(&["--crop-area", "0"]), &["--crop-area"]);
    refuses(&room, &clip(&["--vision", "64,2"]), &["--vision", "128,4,4"]);
    refuses(&room, &clip(&["--vision", "65,2,4"]), &["num_attention_heads", "65"]);
    refuses(&room, &clip(&["--save-dtype", "f8"]), &["--save-dtype", "f8"]);
    refuses(&room, &bare(&["--heldout-share", "1e-9"]), &["heldout-share"]);
    refuses(&room, &clip(&["--part", "3/2"]), &["--part", "1/2"]);
    refuses(&room, &clip(&["--resume"]), &["run", "--resume"]);
}

#[test]
fn data_and_weights_of_judges() {
    let room = room();
    refuses(&room, &with(&PREFERENCE, &["--out", "run"]), &["--init", "judge"]);
    std::fs::create_dir(room.path("judge")).unwrap();
    refuses(&room, &with(&PREFERENCE, &["--out", "run"]), &["--init", "no weight file"]);
    room.write("judge/model.safetensors", "nothing");
    refuses(&room, &with(&PREFERENCE, &["--out", "run"]), &["model.safetensors"]);
    let emoji = ["judge", "train", "clip", "--data", "emoji", "--emoji", "pictures", "--out", "run"];
    refuses(&room, &emoji, &["make emoji"]);
    let missing = ["judge", "train", "clip", "--data", "none", "--out", "run"];
    refuses(&room, &missing, &["--data", "none"]);
    refuses(&room, &["judge", "synthetic", "pairs", "--emoji", "pictures"], &["--emoji", "make emoji"]);
}

/// What costs nothing to see is refused before gigabytes of weights are looked for.
#[test]
fn folders_and_data_of_judges_come_first() {
    let room = room();
    let train = |more: &[&'static str]| with(&PREFERENCE, &with(&["--out", "run"], more));
    let data = ["judge", "train", "step-aware", "--init", "judge", "--data", "none", "--out", "run"];
    refuses(&room, &data, &["--data", "none"]);
    room.write("run/checkpoint.safetensors", "nothing");
    refuses(&room, &train(&[]), &["run", "holds a run already"]);
    refuses(&room, &train(&["--resume"]), &["checkpoint.safetensors"]);
    let lock = room.path("run/run.lock");
    let _held = seedpo_tensor::files::lock(&lock).unwrap().unwrap();
    refuses(&room, &train(&["--resume"]), &["run", "another process"]);
}
