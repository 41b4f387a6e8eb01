//! The commands on an SDXL folder, made by python/fixtures/sdxl.py.

use std::path::PathBuf;

use super::*;

/// The folder, put where a room's commands expect the model.
fn room() -> Room {
    let room = Room::new();
    std::fs::remove_dir_all(room.path("model")).unwrap();
    common::copy(&fixture(), &room.path("model"));
    room
}

fn fixture() -> PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/sdxl")
}

fn expected(name: &str) -> Tensor {
    WeightFile::open(&fixture().join("expected.safetensors")).unwrap().tensor(name).unwrap()
}

fn relative(found: &Tensor, expected: &Tensor) -> f64 {
    largest_difference(found, expected) / expected.abs().max().double_value(&[])
}

type Tensors = Vec<(&'static str, Tensor)>;

fn try_probe(room: &Room, what: &str, settings: &str, tensors: &Tensors) -> Result<BTreeMap<String, Tensor>, String> {
    room.case("case.safetensors", what, settings, tensors);
    let arguments = ["probe", "--model", "model", "--case", "case.safetensors", "--out", "out.safetensors"];
    let output = room.seedpo(&arguments).output().unwrap();
    match output.status.success() {
        true => Ok(WeightFile::open(&room.path("out.safetensors")).unwrap().tensors().unwrap()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

/// The conditioning of the fixture's first two prompts, pictures of 16 x 24 pixels.
fn conditioning() -> Tensors {
    let time_ids = Tensor::from_slice(&[16f32, 24.0, 0.0, 0.0, 16.0, 24.0]).repeat([2, 1]);
    vec![
        ("prompt_embeds", expected("prompt_embeds").narrow(0, 0, 2)),
        ("pooled", expected("pooled").narrow(0, 0, 2)),
        ("time_ids", time_ids),
        ("negative_prompt_embeds", expected("negative_prompt_embeds")),
        ("negative_pooled", expected("negative_pooled")),
    ]
}

/// Each of `needed` left out in turn must be named.
fn names_what_is_missing(room: &Room, what: &str, settings: &str, tensors: &Tensors, needed: &[&str]) {
    for missing in needed {
        let rest = tensors.iter().filter(|(name, _)| name != missing).map(|(n, t)| (*n, t.shallow_clone())).collect();
        let message = try_probe(room, what, settings, &rest).unwrap_err();
        assert!(message.contains(&format!("tensor `{missing}`")) && message.contains("found none"), "{message}");
    }
}

#[test]
fn probe_text_with_both_encoders() {
    let room = room();
    let prompts = r#"{"prompts": ["a red fox in the city", "a golden robot, 4k 😀", ""]}"#;
    let ids = try_probe(&room, "tokenize", prompts, &vec![]).unwrap();
    assert_ne!(ids["input_ids"], ids["input_ids_2"]);
    let inputs = ["input_ids", "input_ids_2"].map(|name| (name, ids[name].shallow_clone())).into();
    let out = try_probe(&room, "text", "{}", &inputs).unwrap();
    assert!(relative(&out["prompt_embeds"], &expected("prompt_embeds")) < 2e-5);
    assert!(relative(&out["pooled"], &expected("pooled")) < 2e-5);
    let out = try_probe(&room, "text", "{}", &inputs.into_iter().take(1).collect()).unwrap();
    assert_eq!(out["prompt_embeds"].size(), [3, 77, 40]);
    assert!(relative(&out["pooled"], &expected("pooled")) < 2e-5, "padding is behind the pooled state");
}

#[test]
fn probe_draws_the_pipeline_s_picture() {
    let room = room();
    let mut inputs = conditioning();
    inputs.push(("latents", expected("latents")));
    let settings = r#"{"steps": 8, "guidance_scale": 5}"#;
    let out = try_probe(&room, "sample", settings, &inputs).unwrap();
    assert!(relative(&out["latents"], &expected("sampled_negative")) < 2e-4);
    names_what_is_missing(&room, "sample", settings, &inputs, &["pooled", "time_ids", "negative_pooled"]);
    // Other time ids for the negative prompt give another picture.
    inputs.push(("negative_time_ids", inputs[2].1.flip([1])));
    let other = try_probe(&room, "sample", settings, &inputs).unwrap();
    assert!(relative(&other["latents"], &out["latents"]) > 1e-3);
}

#[test]
fn probe_unet_with_what_is_added() {
    let room = room();
    let model = model(&room);
    let timestep = Tensor::from_slice(&[1i64, 981]);
    let mut inputs = conditioning();
    inputs.truncate(3);
    inputs.extend([("latents", expected("latents")), ("timestep", timestep.shallow_clone())]);
    let out = try_probe(&room, "unet", "{}", &inputs).unwrap();
    let added = AddedConditioning { pooled: inputs[1].1.shallow_clone(), time_ids: inputs[2].1.shallow_clone() };
    let direct = model.unet.forward(&inputs[3].1, &timestep, &inputs[0].1, Some(&added), None).unwrap();
    assert!(relative(&out["noise_pred"], &direct) < 1e-5);
    names_what_is_missing(&room, "unet", "{}", &inputs, &["pooled", "time_ids"]);
}

#[test]
fn probe_the_loss() {
    let room = room();
    Adapter::lora(&model(&room).unet, &LoraConfig::default(), 3).unwrap().save(&room.path("lora.safetensors")).unwrap();
    let latents = || expected("latents");
    let mut inputs = conditioning();
    inputs.extend([
        ("timestep", Tensor::from_slice(&[951i64, 501])),
        ("latents", latents()),
        ("next_latents_w", latents() * 0.9),
        ("next_latents_l", latents() * 1.1),
    ]);
    let settings = |scale: f64| {
        format!(
            r#"{{"method": "spo", "beta": 2, "clip": 0.1, "guidance_scale": {scale}, "steps": 20, "adapter": "lora.safetensors"}}"#
        )
    };
    let guided = try_probe(&room, "loss", &settings(3.0), &inputs).unwrap();
    assert!((guided["loss"].double_value(&[0]) - 2f64.ln()).abs() < 1e-6);
    let gradient = |out: &BTreeMap<String, Tensor>| {
        let of = out.iter().filter(|(key, _)| key.ends_with("lora_B.weight"));
        of.map(|(_, g)| g.abs().max().double_value(&[])).fold(0.0, f64::max)
    };
    assert!(gradient(&guided) > 0.0);
    let alone = try_probe(&room, "loss", &settings(1.0), &inputs).unwrap();
    assert!(gradient(&alone) > 0.0 && gradient(&alone) != gradient(&guided));
    names_what_is_missing(&room, "loss", &settings(3.0), &inputs, &["pooled", "time_ids", "negative_pooled"]);
    // Without guidance nothing that is negative is read; pixels may be integers.
    inputs.retain(|(name, _)| !name.starts_with("negative"));
    let without = try_probe(&room, "loss", &settings(1.0), &inputs).unwrap();
    assert_eq!(without, alone);
    for kind in [Kind::Int64, Kind::Int, Kind::Uint8] {
        let mut inputs: Tensors = inputs.iter().map(|(name, t)| (*name, t.shallow_clone())).collect();
        inputs.push(("negative_time_ids", inputs[2].1.to_kind(kind)));
        inputs[2].1 = inputs[2].1.to_kind(kind);
        assert_eq!(try_probe(&room, "loss", &settings(1.0), &inputs).unwrap(), alone, "{kind:?}");
    }
    inputs[2].1 = inputs[2].1.to_kind(Kind::Bool);
    let message = try_probe(&room, "loss", &settings(1.0), &inputs).unwrap_err();
    assert!(message.contains("tensor `time_ids`: expected a float or integer dtype"), "{message}");
}

#[test]
fn an_adapter_is_trained_and_drawn_with() {
    let room = room();
    let train = "--quiet train --model model --output-dir . --name run --method spo --judge colourfulness --threshold 0 \
                 --prompts fox,robot --prompts-per-iteration 2 --steps 4 --divert-start-step 1 --train-batch-size 2 \
                 --learning-rate 0.01 --max-train-steps 2 --validation-steps 0 --device cpu";
    done(&room, &train.split_whitespace().collect::<Vec<_>>());
    let unet = model(&room).unet;
    let adapter = Adapter::load(&room.path("run/pytorch_lora_weights.safetensors"), &unet).unwrap();
    assert!(
        adapter
            .tensors()
            .iter()
            .any(|(key, t)| key.ends_with("lora_B.weight") && t.abs().max().double_value(&[]) > 0.0)
    );
    let base = "-q sample --model model --prompt fox --steps 3 --height 24 --width 16 --device cpu";
    let draw = |more: &str| {
        done(&room, &base.split_whitespace().chain(more.split_whitespace()).collect::<Vec<_>>());
    };
    draw("--out base");
    draw("--out trained --adapter run");
    draw("--out negative --negative-prompt house");
    let picture = |folder: &str| read_png(&room.path(folder).join("0000-fox-0.png")).unwrap().image;
    assert_eq!(picture("base").size(), [24, 16, 3]);
    assert!(largest_difference(&picture("base"), &picture("trained")) > 0.0);
    assert!(largest_difference(&picture("base"), &picture("negative")) > 0.0);
}
