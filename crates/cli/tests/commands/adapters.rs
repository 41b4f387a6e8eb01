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

/// Convolutions, feed-forward layers and the text encoder: applied at once, or merged into a folder first.
#[test]
fn a_lora_of_every_network_draws_as_the_model_it_is_merged_into() {
    let room = Room::new();
    let base = model(&room);
    let layers = [
        ("lora_unet_conv_in", "unet", "conv_in"),
        ("lora_unet_mid_block_attentions_0_proj_in", "unet", "mid_block.attentions.0.proj_in"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", "text", "encoder.layers.0.mlp.fc1"),
    ];
    let mut tensors = BTreeMap::new();
    for (index, (stem, network, path)) in layers.into_iter().enumerate() {
        let parameters = if network == "unet" { base.unet.parameters() } else { base.text_encoder.parameters() };
        let find = |(name, _): &(&String, &Tensor)| {
            **name == format!("{path}.weight") || name.ends_with(&format!(".{path}.weight"))
        };
        let shape = parameters.iter().find(find).unwrap().1.size();
        let ones = vec![1; shape.len() - 2];
        let draw = |purpose, shape: &[i64]| NoiseKey::new(index as u64, purpose).normal(shape);
        tensors.insert(format!("{stem}.lora_down.weight"), draw("down", &[&[2], &shape[1..]].concat()));
        tensors.insert(format!("{stem}.lora_up.weight"), draw("up", &[&[shape[0], 2], &ones[..]].concat()));
        tensors.insert(format!("{stem}.alpha"), Tensor::from(1f32));
    }
    seedpo_tensor::write_weights(&room.path("whole.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    let draw = |model: &str, more: &[&str]| {
        let out = format!("of-{model}-{}", more.len());
        let command = ["-q", "sample", "--model", model, "--prompt", "a", "--steps", "3", "--out", &out];
        done(&room, &[&command[..], more].concat());
        read_png(&room.path(&out).join("0000-a-0.png")).unwrap().image
    };
    done(&room, &["adapter", "merge", "--model", "model", "whole.safetensors:0.5", "merged"]);
    let (at_once, merged) = (draw("model", &["--adapter", "whole.safetensors:0.5"]), draw("merged", &[]));
    assert_eq!(at_once, merged);
    assert!(largest_difference(&draw("model", &[]), &merged) > 1.0);
    let text = done(&room, &["adapter", "inspect", "whole.safetensors"]);
    assert!(text.contains("text_encoder") && text.contains("conv_in") && text.contains("proj_in"), "{text}");
}

/// Of a text encoder alone nothing shows which kohya's name it has.
#[test]
fn the_family_of_a_text_encoders_lora_is_asked_for() {
    let room = Room::new();
    let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, seedpo_tensor::Device::Cpu));
    let stem = "text_encoder.text_model.encoder.layers.0.mlp.fc1";
    let tensors =
        [(format!("{stem}.lora_A.weight"), ones(&[1, 8])), (format!("{stem}.lora_B.weight"), ones(&[8, 1]))].into();
    seedpo_tensor::write_weights(&room.path("text.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    let convert = |out: &str, more: &[&str]| {
        room.seedpo(&[&["adapter", "convert", "text.safetensors", out, "--to", "kohya"], more].concat())
            .output()
            .unwrap()
    };
    let refused = convert("no.safetensors", &[]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && said.contains("--family"), "{said}");
    for (family, prefix) in [("sd", "lora_te_"), ("sdxl", "lora_te1_")] {
        assert!(convert(&format!("{family}.safetensors"), &["--family", family]).status.success());
        let file = WeightFile::open(&room.path(&format!("{family}.safetensors"))).unwrap();
        assert!(file.names().all(|name| name.starts_with(prefix)), "{family}");
    }
}
