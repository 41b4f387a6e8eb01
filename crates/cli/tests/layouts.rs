//! One picture of one model from every layout that a model comes in, through the binary.

mod common;
#[path = "../../hub/tests/hub/stand_in.rs"]
mod stand_in;
#[path = "../../tensor/tests/common/torch_zip.rs"]
mod torch_zip;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::Room;
use seedpo_evaluate::png::read_png;
use seedpo_tensor::{Kind, NoiseKey, Tensor, WeightFile, write_weights};
use serde_json::{Value, json};
use stand_in::StandIn;
use torch_zip::torch_file;

const PARTS: [&str; 3] = ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"];

type Tensors = BTreeMap<String, Tensor>;

/// The picture that `seedpo sample` draws in one step; `more` names the model.
fn picture(room: &Room, more: &[&str]) -> Tensor {
    let out = format!("pictures-{}", room.listing().len());
    let base =
        ["-q", "sample", "--prompt", "a", "--steps", "1", "--resolution", "16", "--device", "cpu", "--out", &out];
    room.seedpo(&[&base[..], more].concat()).assert().success();
    read_png(&room.path(&out).join("0000-a-0.png")).unwrap().image
}

fn write(path: &Path, tensors: &Tensors) {
    write_weights(path, tensors, &BTreeMap::new()).unwrap();
}

/// Gives each part's weights to `change`, with the path before `.safetensors`; the plain file is gone then.
fn each_part(room: &Room, change: impl Fn(&Path, Tensors)) {
    for part in PARTS {
        let stem = room.path("model").join(part);
        let plain = stem.with_extension("safetensors");
        let tensors = WeightFile::open(&plain).unwrap().tensors().unwrap();
        fs::remove_file(plain).unwrap();
        change(&stem, tensors);
    }
}

#[test]
fn a_folder_with_bin_files() {
    let room = Room::new();
    let expected = picture(&room, &["--model", "model"]);
    each_part(&room, |stem, tensors| {
        let name = if stem.ends_with("model") { stem.with_file_name("pytorch_model") } else { stem.to_path_buf() };
        fs::write(name.with_extension("bin"), torch_file(&tensors, false)).unwrap();
    });
    assert_eq!(picture(&room, &["--model", "model"]), expected);
}

#[test]
fn a_folder_with_fp16_files_only_and_with_both() {
    let room = Room::new();
    let half = |tensors: &Tensors| -> Tensors {
        tensors.iter().map(|(n, t)| (n.clone(), (t * 1.1).to_kind(Kind::Half))).collect()
    };
    let full = picture(&room, &["--model", "model"]);
    each_part(&room, |stem, tensors| {
        write(&stem.with_extension("fp16.safetensors"), &half(&tensors));
        write(&stem.with_extension("safetensors"), &tensors);
    });
    assert_eq!(picture(&room, &["--model", "model"]), full, "full precision where it is there");
    let named = picture(&room, &["--model", "model", "--variant", "fp16"]);
    assert_ne!(named, full);
    PARTS.iter().for_each(|part| fs::remove_file(room.path("model").join(part).with_extension("safetensors")).unwrap());
    assert_eq!(picture(&room, &["--model", "model"]), named);
}

#[test]
fn a_folder_with_shards() {
    let room = Room::new();
    let expected = picture(&room, &["--model", "model"]);
    each_part(&room, |stem, tensors| {
        let name = stem.file_name().unwrap().to_str().unwrap();
        let half = tensors.len() / 2;
        let (mut map, mut shards) = (serde_json::Map::new(), [Tensors::new(), Tensors::new()]);
        for (at, (key, tensor)) in tensors.into_iter().enumerate() {
            let shard = usize::from(at >= half);
            map.insert(key.clone(), json!(format!("{name}-{:05}-of-00002.safetensors", shard + 1)));
            shards[shard].insert(key, tensor);
        }
        for (at, tensors) in shards.iter().enumerate() {
            write(&stem.with_file_name(format!("{name}-{:05}-of-00002.safetensors", at + 1)), tensors);
        }
        let index = json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
        fs::write(stem.with_extension("safetensors.index.json"), index).unwrap();
    });
    assert_eq!(picture(&room, &["--model", "model"]), expected);
    fs::remove_file(room.path("model/vae/diffusion_pytorch_model-00002-of-00002.safetensors")).unwrap();
    let refused = room.seedpo(&["sample", "--model", "model", "--prompt", "a"]).assert().code(2);
    let text = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    assert!(text.contains("vae/diffusion_pytorch_model-00002-of-00002.safetensors"), "{text}");
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures")
}

/// A checkpoint in the original key layout, of the names and shapes that `python/fixtures/single_file.py` lists; and its
/// tokenizer in `tokens/`.
fn single_file(room: &Room) -> Tensors {
    fs::create_dir(room.path("tokens")).unwrap();
    for file in ["vocab.json", "merges.txt", "sd1/tokenizer_config.json"] {
        let from = fixtures().join("tokenizer").join(file);
        fs::copy(&from, room.path("tokens").join(from.file_name().unwrap())).unwrap();
    }
    let text = fs::read_to_string(fixtures().join("single_file/tiny-sd1.json")).unwrap();
    let fixture: Value = serde_json::from_str(&text).unwrap();
    let keys: BTreeMap<String, Vec<i64>> = serde_json::from_value(fixture["keys"].clone()).unwrap();
    let tensor = |(number, (key, shape)): (usize, (String, Vec<i64>))| {
        let value = NoiseKey::new(4, "single file").prompt(number as u64).normal(&shape) * 0.1;
        (key, value)
    };
    keys.into_iter().enumerate().map(tensor).collect()
}

#[test]
fn single_files_here_and_on_the_hub() {
    let room = Room::new();
    let tensors = single_file(&room);
    write(&room.path("model.safetensors"), &tensors);
    fs::write(room.path("model.ckpt"), torch_file(&tensors, true)).unwrap();
    let draw = |model: &str| picture(&room, &["--model", model, "--tokenizer", "tokens"]);
    let expected = draw("model.safetensors");
    assert_eq!(expected.size(), [16, 16, 3]);
    assert!(expected.to_kind(Kind::Float).std(true).double_value(&[]) > 1.0, "a picture of one colour shows nothing");
    assert_eq!(draw("model.ckpt"), expected);
    // Beside the file the tokenizer needs no flag.
    fs::rename(room.path("tokens"), room.path("tokenizer")).unwrap();
    assert_eq!(picture(&room, &["--model", "model.ckpt"]), expected);

    let server = StandIn::new();
    server.add("old/model.safetensors", &fs::read(room.path("model.safetensors")).unwrap(), true);
    server.add("old/model.ckpt", &fs::read(room.path("model.ckpt")).unwrap(), true);
    server.add("README.md", b"not needed", false);
    let tokens = room.path("tokenizer").display().to_string();
    for (number, file) in ["tiny/model/old/model.safetensors", "tiny/model/old/model.ckpt"].iter().enumerate() {
        let out = format!("hub-{number}");
        let named = ["-q", "sample", "--model", file, "--tokenizer", &tokens, "--prompt", "a", "--steps", "1"];
        let mut command =
            room.seedpo(&[&named[..], &["--resolution", "16", "--device", "cpu", "--out", &out]].concat());
        for name in
            ["HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy"]
        {
            command.env_remove(name);
        }
        command.env("HF_HOME", room.path("hf")).env("HF_ENDPOINT", &server.endpoint).assert().success();
        assert_eq!(read_png(&room.path(&out).join("0000-a-0.png")).unwrap().image, expected, "{file}");
    }
    assert!(server.requests().iter().all(|request| !request.path.contains("README")));
}
