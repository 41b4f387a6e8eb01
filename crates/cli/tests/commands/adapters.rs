//! `seedpo adapter`.

use super::*;
use seedpo_model::Lora;
use seedpo_tensor::tch;

/// A LoRA for the room's model, in diffusers' layout.
fn write_lora(room: &Room, name: &str, seed: u64) -> Adapter {
    let adapter = Adapter::lora(&model(room).unet, &LoraConfig::default(), seed).unwrap();
    tch::no_grad(|| adapter.trainable().iter_mut().for_each(|(_, tensor)| drop(tensor.normal_(0.0, 0.1))));
    adapter.save(&room.path(name)).unwrap();
    adapter
}

#[test]
fn convert_there_and_back_and_inspect() {
    let room = Room::new();
    write_lora(&room, "a.safetensors", 1);
    room.seedpo(&["adapter", "convert", "a.safetensors", "k.safetensors", "--to", "kohya"]).assert().success();
    room.seedpo(&["adapter", "convert", "k.safetensors", "b.safetensors", "--to", "diffusers"]).assert().success();
    assert_eq!(std::fs::read(room.path("a.safetensors")).unwrap(), std::fs::read(room.path("b.safetensors")).unwrap());
    let output = room.seedpo(&["adapter", "inspect", "k.safetensors"]).assert().success().get_output().clone();
    let text = String::from_utf8(output.stdout).unwrap();
    for part in ["kohya", "rank         4", "alpha        4", "not finite   none", "down_blocks."] {
        assert!(text.contains(part), "{part:?} not in {text}");
    }
    let taken =
        room.seedpo(&["adapter", "convert", "a.safetensors", "k.safetensors", "--to", "kohya"]).assert().code(2);
    assert!(String::from_utf8_lossy(&taken.get_output().stderr).contains("is there already"));
    room.seedpo(&["adapter", "inspect", "nowhere"]).assert().code(2);
}

#[test]
fn merged_into_a_model_or_into_one_adapter_the_change_is_the_same() {
    let room = Room::new();
    let parts = [(write_lora(&room, "a.safetensors", 1), 0.5), (write_lora(&room, "b.safetensors", 2), -2.0)];
    let pair = ["a.safetensors:0.5", "b.safetensors:-2"];
    let merge = |extra: &[&str], out: &str| {
        let arguments = [&["adapter", "merge"], extra, &pair, &[out]].concat();
        room.seedpo(&arguments).assert().success();
    };
    merge(&[], "both.safetensors");
    merge(&["--model", "model"], "merged");
    let base = model(&room);
    let parts = parts.map(|(adapter, weight)| (adapter.to_lora().unwrap(), weight));
    let expected = Lora::combined(&parts).unwrap().into_adapter(&base.unet).unwrap().merge(&base.unet).unwrap();
    let one = Adapter::load(&room.path("both.safetensors"), &base.unet).unwrap().merge(&base.unet).unwrap();
    let merged = DiffusionModel::load(&room.path("merged"), &LoadOptions::default()).unwrap();
    for (key, tensor) in expected.tensors() {
        let found = &merged.unet.parameters()[key.strip_prefix("unet.").unwrap()];
        assert!((found - &tensor).abs().max().double_value(&[]) < 1e-6, "{key}");
        assert_ne!(tensor, base.unet.parameters()[key.strip_prefix("unet.").unwrap()], "{key}");
    }
    for ((key, found), (_, tensor)) in one.tensors().iter().zip(expected.tensors()) {
        assert!((found - tensor).abs().max().double_value(&[]) < 1e-6, "{key}");
    }
    assert_eq!(merged.vae.parameters(), base.vae.parameters());
    let left = std::fs::read_dir(room.path(".")).unwrap().flatten().map(|entry| entry.file_name());
    assert!(!left.into_iter().any(|name| name.to_string_lossy().ends_with(".tmp")));
}
