//! Model folders that cannot be used.

use super::*;

#[test]
fn a_missing_model_folder() {
    let room = Room::new();
    refuses(&room, &["sample", "--model", "nowhere", "--prompt", "a"], &["nowhere", "no such folder"]);
}

#[test]
fn a_model_that_is_a_file_or_an_empty_folder() {
    let room = Room::new();
    room.write("file", "x").write("empty/readme", "x");
    refuses(&room, &["sample", "--model", "file", "--prompt", "a"], &["file", "found a file"]);
    refuses(&room, &["sample", "--model", "empty", "--prompt", "a"], &["empty", "model_index.json"]);
}

#[test]
fn truncated_weights() {
    let room = Room::new();
    let bytes = std::fs::read(room.path(UNET)).unwrap();
    room.write(UNET, &bytes[..bytes.len() / 2]);
    refuses(&room, &SAMPLE, &["unet/diffusion_pytorch_model.safetensors", "whole safetensors file"]);
}

#[test]
fn garbage_weights() {
    let room = Room::new();
    room.write("model/vae/diffusion_pytorch_model.safetensors", [0xabu8; 3000]);
    refuses(&room, &SAMPLE, &["vae/diffusion_pytorch_model.safetensors", "whole safetensors file"]);
    room.write("model/vae/diffusion_pytorch_model.safetensors", "");
    refuses(&room, &SAMPLE, &["vae/diffusion_pytorch_model.safetensors"]);
}

#[test]
fn a_missing_a_surplus_and_a_misshaped_tensor_are_all_named() {
    let room = Room::new();
    spoil(&room, UNET, |tensors| {
        tensors.remove("conv_out.bias");
        tensors.insert("conv_extra.weight".to_owned(), Tensor::zeros([2], (Kind::Float, Device::Cpu)));
        tensors.insert(CONV.to_owned(), Tensor::zeros([16, 3, 3, 3], (Kind::Float, Device::Cpu)));
    });
    let needles =
        ["unet/", "missing `conv_out.bias`", "surplus `conv_extra.weight`", CONV, "[16, 4, 3, 3]", "[16, 3, 3, 3]"];
    refuses(&room, &SAMPLE, &needles);
}

#[test]
fn a_missing_weight_file() {
    let room = Room::new();
    std::fs::remove_file(room.path("model/text_encoder/model.safetensors")).unwrap();
    refuses(&room, &SAMPLE, &["text_encoder"]);
}

#[test]
fn an_option_that_is_not_implemented() {
    let room = Room::new();
    room.edit("model/unet/config.json", |text| text.replacen('{', "{\"class_embed_type\": \"timestep\",", 1));
    refuses(&room, &SAMPLE, &["unet/config.json", "class_embed_type", "timestep"]);
}

#[test]
fn an_unknown_key_in_a_model_config() {
    let room = Room::new();
    room.edit("model/vae/config.json", |text| text.replacen('{', "{\"frobnicate\": 3,", 1));
    refuses(&room, &SAMPLE, &["vae/config.json", "frobnicate"]);
}

#[test]
fn a_model_config_that_is_not_json() {
    let room = Room::new();
    room.edit("model/unet/config.json", |text| text[..text.len() / 2].to_owned());
    refuses(&room, &SAMPLE, &["unet/config.json", "JSON"]);
}

#[test]
fn a_tokenizer_without_vocabulary() {
    let room = Room::new();
    std::fs::remove_file(room.path("model/tokenizer/vocab.json")).unwrap();
    refuses(&room, &SAMPLE, &["vocab.json"]);
}

#[test]
fn an_unknown_prediction_type() {
    let room = Room::new();
    room.edit("model/scheduler/scheduler_config.json", |text| text.replace("\"epsilon\"", "\"flow\""));
    refuses(&room, &SAMPLE, &["scheduler_config.json", "prediction_type", "epsilon, v_prediction or sample", "flow"]);
}

#[test]
fn another_kind_of_pipeline() {
    let room = Room::new();
    room.edit("model/model_index.json", |text| text.replace("StableDiffusionPipeline", "StableDiffusion3Pipeline"));
    refuses(&room, &SAMPLE, &["model_index.json", "StableDiffusion3Pipeline"]);
}

#[test]
fn weights_of_nan_give_no_picture() {
    let room = Room::new();
    spoil(&room, UNET, |tensors| {
        drop(tensors.insert("conv_out.bias".to_owned(), Tensor::full([4], f64::NAN, (Kind::Float, Device::Cpu))))
    });
    refuses(&room, &SAMPLE, &["NaN"]);
}
