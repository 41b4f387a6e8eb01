//! `seedpo judge train`: each kind from the one before, and what comes out as a judge.

use super::*;

const FEW: [&str; 14] = [
    "--steps",
    "2",
    "--batch",
    "2",
    "--accumulation",
    "1",
    "--warmup",
    "0",
    "--heldout-share",
    "0",
    "--device",
    "cpu",
    "--lr",
    "1e-3",
];

/// Four captioned pictures, and pairs of them with a tie.
fn write_data(room: &Room) {
    std::fs::create_dir(room.path("pictures")).unwrap();
    let mut captions = String::new();
    for (at, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
        let picture =
            image::RgbImage::from_fn(9, 12, |x, y| image::Rgb([(x * 20) as u8, (y * 15) as u8, at as u8 * 60]));
        picture.save(room.path(&format!("pictures/{name}.png"))).unwrap();
        captions += &format!("{{\"file_name\": \"{name}.png\", \"text\": \"a {name}\"}}\n");
    }
    room.write("pictures/metadata.jsonl", captions);
    room.write("prompts.txt", "a a\na b\na c\na d\n");
    let pair = |first: &str, second: &str, label: f64| {
        let (first, second) = (format!("pictures/{first}.png"), format!("pictures/{second}.png"));
        format!(
            "{{\"prompt\": \"a cat\", \"image_0\": \"{first}\", \"image_1\": \"{second}\", \"label_0\": {label}}}\n"
        )
    };
    room.write("pairs.jsonl", [pair("a", "b", 1.0), pair("c", "b", 0.5), pair("d", "a", 0.0)].concat());
}

#[test]
fn each_kind_is_trained_and_judges() {
    let room = Room::new();
    write_data(&room);
    let train = |arguments: &[&str]| {
        let arguments = [&["judge", "train"], arguments, &FEW].concat();
        let output = room.seedpo(&arguments).assert().success().get_output().clone();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let sizes =
        ["--image-size", "16", "--patch-size", "8", "--vision", "16,1,2", "--text", "16,1,2", "--projection", "8"];
    let clip = ["clip", "--data", "pictures", "--tokenizer", "model/tokenizer", "--out", "clip"];
    assert_eq!(train(&[&clip[..], &sizes].concat()), "clip/model");
    let pairs = ["--data", "pairs.jsonl", "--init"];
    train(&[&["preference", "--out", "preference"], &pairs[..], &["clip/model", "--save-dtype", "bf16"]].concat());
    let aware = ["step-aware", "--out", "step-aware", "--model", "model"];
    train(&[&aware[..], &pairs, &["preference/model"]].concat());
    for judge in ["pickscore=clip/model", "path:preference/model", "spm=step-aware/model", "path:step-aware"] {
        room.seedpo(&["score", "--judge", judge, "pictures", "--prompts", "prompts.txt"]).assert().success();
    }
    let lines = std::fs::read_to_string(room.path("step-aware/metrics.jsonl")).unwrap();
    assert_eq!(lines.matches("\"stage\":\"step-aware\"").count(), 2);
}

/// Pick-a-Pic's own layouts, with the pictures in the table.
#[test]
fn pick_a_pic_is_learned_from() {
    let room = Room::new();
    write_data(&room);
    let pickapic = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tests/fixtures/pairs");
    let sizes =
        ["--image-size", "16", "--patch-size", "8", "--vision", "16,1,2", "--text", "16,1,2", "--projection", "8"];
    let clip = ["judge", "train", "clip", "--data", "pictures", "--tokenizer", "model/tokenizer", "--out", "clip"];
    room.seedpo(&[&clip[..], &sizes, &FEW].concat()).assert().success();
    for layout in ["pickapic_v1", "pickapic_v2/data"] {
        let (data, out) = (pickapic.join(layout), layout.replace('/', "-"));
        let train = ["judge", "train", "preference", "--init", "clip/model", "--out", &out, "--data"];
        // Three of the second one's rows are bad.
        let data = [data.to_str().unwrap(), "--bad-rows-limit", "0.3"];
        room.seedpo(&[&train[..], &data, &FEW].concat()).assert().success();
        let judge = format!("path:{out}/model");
        room.seedpo(&["score", "--judge", &judge, "pictures", "--prompts", "prompts.txt"]).assert().success();
    }
}
