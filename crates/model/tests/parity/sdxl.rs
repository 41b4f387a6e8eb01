//! A whole SDXL folder at reduced width, made by python/fixtures/sdxl.py, against `StableDiffusionXLPipeline`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use seedpo_model::{AddedConditioning, Conditioning, DiffusionModel, LoadOptions, Pipeline};
use seedpo_tensor::{Device, Kind, Tensor, WeightFile};
use serde_json::{Value, json};

use super::FORWARD;
use super::weights::relative;

const PROMPTS: [&str; 3] = ["a red fox in the city", "a golden robot, 4k 😀", ""];
const NEGATIVE: &str = "blurry house";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sdxl")
}

fn load() -> DiffusionModel {
    DiffusionModel::load(&folder(), &LoadOptions::default()).unwrap()
}

fn expected() -> BTreeMap<String, Tensor> {
    WeightFile::open(&folder().join("expected.safetensors")).unwrap().tensors().unwrap()
}

#[test]
fn prompts_are_encoded_as_by_the_pipeline() {
    let (model, e) = (load(), expected());
    assert_eq!(model.pipeline(), Pipeline::StableDiffusionXl { force_zeros_for_empty_prompt: true });
    let found = model.encode_prompts(&PROMPTS).unwrap();
    assert!(relative(&found.prompt_embeds, &e["prompt_embeds"]) < FORWARD);
    assert!(relative(&found.pooled.unwrap(), &e["pooled"]) < FORWARD);
    let found = model.encode_negative_prompt(NEGATIVE).unwrap();
    assert!(relative(&found.prompt_embeds, &e["negative_prompt_embeds"]) < FORWARD);
    assert!(relative(&found.pooled.unwrap(), &e["negative_pooled"]) < FORWARD);
}

#[test]
fn without_a_negative_prompt_guidance_points_away_from_zeros() {
    let mut model = load();
    let zeros = model.encode_negative_prompt("").unwrap();
    assert_eq!(zeros.prompt_embeds.abs().max().double_value(&[]), 0.0);
    assert_eq!(zeros.pooled.unwrap().abs().max().double_value(&[]), 0.0);
    model.text_encoder_2.as_mut().unwrap().force_zeros_for_empty_prompt = false;
    let encoded = model.encode_negative_prompt("").unwrap();
    assert!(relative(&encoded.prompt_embeds, &expected()["prompt_embeds"].narrow(0, 2, 1)) < FORWARD);
}

#[test]
fn the_second_encoder_reads_its_own_padding() {
    let model = load();
    let second = model.text_encoder_2.as_ref().unwrap();
    let (first, own) = (model.tokenizer.encode(&PROMPTS).unwrap(), second.tokenizer.encode(&PROMPTS).unwrap());
    assert_eq!((own.int64_value(&[0, 76]), first.int64_value(&[0, 76])), (0, model.tokenizer.eos_token_id()));
    let both = model.encode_tokens(&first, Some(&own)).unwrap();
    assert_eq!(both, model.encode_prompts(&PROMPTS).unwrap());
    let shared = model.encode_tokens(&first, None).unwrap();
    // The pooled state is before the padding, and attention looks back only.
    assert_eq!(shared.pooled, both.pooled);
    assert_ne!(shared.prompt_embeds, both.prompt_embeds);
    let message = model.encode_tokens(&first, Some(&own.narrow(1, 0, 5))).unwrap_err().to_string();
    assert!(message.contains("input_ids_2: expected the shape of input_ids, [3, 77], found shape [3, 5]"), "{message}");
}

#[test]
fn time_ids_are_height_and_width_first() {
    let model = load();
    let (prompts, negative) = (model.encode_prompts(&PROMPTS).unwrap(), model.encode_negative_prompt("").unwrap());
    let added = Conditioning::new(&prompts, &negative, (16, 24)).added.unwrap();
    let row = Tensor::from_slice(&[16f32, 24.0, 0.0, 0.0, 16.0, 24.0]).unsqueeze(0);
    assert_eq!(added.prompt.time_ids, row.repeat([3, 1]));
    assert_eq!(added.negative.time_ids, row);
    let AddedConditioning { pooled, .. } = added.prompt;
    assert_eq!(pooled.size(), [3, 20]);
}

#[test]
fn released_text_encoders_hold_nothing_and_refuse() {
    let mut model = load();
    model.release_text_encoders();
    assert!(model.text_encoder.parameters().is_empty());
    assert!(model.text_encoder_2.as_ref().unwrap().text_encoder.parameters().is_empty());
    let refused = model.encode_prompts(&PROMPTS).unwrap_err().to_string();
    assert!(refused.contains("released"), "{refused}");
}

#[test]
fn an_sdxl_folder_written_is_the_folder_read() {
    let model = load();
    let place = tempfile::tempdir().unwrap();
    model.save(place.path(), None).unwrap();
    let again = DiffusionModel::load(place.path(), &LoadOptions::default()).unwrap();
    assert_eq!(again.pipeline(), model.pipeline());
    assert_eq!(again.unet.parameters(), model.unet.parameters());
    assert_eq!(again.unet.config(), model.unet.config());
    assert_eq!(again.encode_prompts(&PROMPTS).unwrap(), model.encode_prompts(&PROMPTS).unwrap());
    let index: Value =
        serde_json::from_str(&fs::read_to_string(place.path().join("model_index.json")).unwrap()).unwrap();
    assert_eq!(index["text_encoder_2"], json!(["transformers", "CLIPTextModelWithProjection"]));
    assert_eq!(index["force_zeros_for_empty_prompt"], json!(true));
}

#[test]
fn the_autoencoder_is_never_in_f16() {
    let half = LoadOptions { vae_kind: Kind::Half, ..LoadOptions::new(Device::Cpu, Kind::Half) };
    let model = DiffusionModel::load(&folder(), &half).unwrap();
    assert_eq!((model.unet.kind(), model.vae.kind()), (Kind::Half, Kind::Float));
    let bf16 = LoadOptions { vae_kind: Kind::BFloat16, ..LoadOptions::default() };
    assert_eq!(DiffusionModel::load(&folder(), &bf16).unwrap().vae.kind(), Kind::BFloat16);
}

#[test]
fn parts_that_do_not_fit_are_named() {
    let model = load();
    let broken = |file: &str, key: &str, value: Value| {
        let place = tempfile::tempdir().unwrap();
        model.save(place.path(), None).unwrap();
        let path = place.path().join(file);
        let mut json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        json[key] = value;
        fs::write(&path, json.to_string()).unwrap();
        DiffusionModel::load(place.path(), &LoadOptions::default()).unwrap_err().to_string()
    };
    let unet = "unet/config.json";
    let cases = [
        ("model_index.json", "text_encoder_2", Value::Null, "`text_encoder_2`: expected a CLIPTextModelWithProjection"),
        ("model_index.json", "_class_name", json!("StableDiffusionPipeline"), "_2`: expected no such key"),
        (unet, "cross_attention_dim", json!(24), "expected 40 (hidden_size of text_encoder plus text_encoder_2)"),
        (unet, "projection_class_embeddings_input_dim", json!(69), "expected 68 (projection_dim of text_encoder_2 20"),
        ("tokenizer_2/tokenizer_config.json", "model_max_length", json!(32), "expected 77, as in tokenizer/"),
        ("text_encoder_2/config.json", "projection_dim", json!(21), "projection_class_embeddings_input_dim"),
    ];
    for (file, key, value, part) in cases {
        let message = broken(file, key, value);
        assert!(message.contains(part), "{file} {key}: `{part}` not in: {message}");
    }
}
