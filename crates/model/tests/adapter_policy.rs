//! A policy's noise prediction against diffusers: guidance, v-prediction, the batched pass. Fixture: adapter.py.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use seedpo_model::config::{PredictionType, SchedulerConfig, TextConfig, UNetConfig, VaeConfig};
use seedpo_model::{Adapter, ClipTokenizer, Conditioning, DiffusionModel, Policy, UNet2DConditionModel};
use seedpo_tensor::{Params, WeightFile};
use tch::{Device, Kind, Tensor};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The fixture's U-Net in a model whose other parts take no part.
fn model(prediction_type: PredictionType) -> DiffusionModel {
    let place = Path::new("config.json");
    let text = r#"{"vocab_size": 1000, "hidden_size": 12, "intermediate_size": 12, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 77, "eos_token_id": 839}"#;
    let vae = r#"{"block_out_channels": [8], "norm_num_groups": 4, "layers_per_block": 1,
        "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]}"#;
    let file = WeightFile::open(&fixtures().join("adapter/unet.safetensors")).unwrap();
    let unet = UNetConfig::from_json(&file.metadata()["config"], place).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for name in ["vocab.json", "merges.txt", "sd1/tokenizer_config.json"] {
        let from = fixtures().join("tokenizer").join(name);
        std::fs::copy(&from, folder.path().join(from.file_name().unwrap())).unwrap();
    }
    let mut model = DiffusionModel::init(
        ClipTokenizer::from_folder(folder.path()).unwrap(),
        TextConfig::from_json(text, place).unwrap(),
        unet.clone(),
        VaeConfig::from_json(vae, place).unwrap(),
        SchedulerConfig { prediction_type, ..SchedulerConfig::stable_diffusion() },
        0,
        Device::Cpu,
    )
    .unwrap();
    model.unet = UNet2DConditionModel::new(unet, Params::from_file(file, Device::Cpu, Kind::Float)).unwrap();
    model
}

fn expected() -> BTreeMap<String, Tensor> {
    WeightFile::open(&fixtures().join("adapter/expected.safetensors")).unwrap().tensors().unwrap()
}

fn conditioning(e: &BTreeMap<String, Tensor>) -> Conditioning {
    Conditioning {
        prompt_embeds: e["prompt_embeds"].shallow_clone(),
        negative_prompt_embeds: e["negative_prompt_embeds"].shallow_clone(),
        added: None,
    }
}

/// The largest difference relative to the largest value.
fn off(found: &Tensor, expected: &Tensor) -> f64 {
    ((found - expected).abs().max() / expected.abs().max()).double_value(&[])
}

/// f32, two passes weighted by 5 and 4: 5e-5 of the largest value.
#[test]
fn guided_predictions_equal_those_of_diffusers() {
    let e = expected();
    for (kind, name) in [(PredictionType::Epsilon, "guided"), (PredictionType::VPrediction, "guided_v")] {
        let model = model(kind);
        let adapter = Adapter::load(&fixtures().join("adapter/peft.safetensors"), &model.unet).unwrap();
        let policy = Policy::new(&model, Some(&adapter));
        let found = policy.predict_noise(&e["latents"], &e["timestep"], &conditioning(&e), 5.0).unwrap();
        assert!(off(&found, &e[name]) < 5e-5, "{name}: {}", off(&found, &e[name]));
        assert!(found.requires_grad());
        let merged = adapter.merge(&model.unet).unwrap();
        let policy = Policy::new(&model, Some(&merged));
        let merged = policy.predict_noise(&e["latents"], &e["timestep"], &conditioning(&e), 5.0).unwrap();
        assert!(off(&merged, &e[name]) < 5e-5 && !merged.requires_grad(), "{name}");
    }
}

#[test]
fn scale_1_is_the_conditional_prediction_and_no_adapter_is_the_base() {
    let (e, model) = (expected(), model(PredictionType::Epsilon));
    let adapter = Adapter::load(&fixtures().join("adapter/peft.safetensors"), &model.unet).unwrap();
    let predict = |adapter| {
        let policy = Policy::new(&model, adapter);
        policy.predict_noise(&e["latents"], &e["timestep"], &conditioning(&e), 1.0).unwrap()
    };
    assert!(off(&predict(Some(&adapter)), &e["peft"]) < 2e-5);
    assert!(off(&predict(None), &e["base"]) < 2e-5);
}

#[test]
fn one_timestep_serves_all_rows_and_rows_can_be_repeated() {
    let (e, model) = (expected(), model(PredictionType::VPrediction));
    let policy = Policy::new(&model, None);
    let (one, two) = (Tensor::from_slice(&[801i64]), Tensor::from_slice(&[801i64, 801]));
    let all = conditioning(&e);
    let a = policy.predict_noise(&e["latents"], &one, &all, 5.0).unwrap();
    let b = policy.predict_noise(&e["latents"], &two, &all, 5.0).unwrap();
    assert_eq!(a, b);
    // Row 1 twice, as SPO's candidates use it. 1e-5: kernels may round differently at another batch size.
    let twice = all.rows(&[1, 1]).unwrap();
    assert_eq!(twice.batch(), 2);
    let latents = e["latents"].index_select(0, &Tensor::from_slice(&[1i64, 1]));
    let c = policy.predict_noise(&latents, &one, &twice, 5.0).unwrap();
    assert!(off(&c.get(0), &a.get(1)) < 1e-5 && off(&c.get(1), &a.get(1)) < 1e-5);
    assert!(all.rows(&[2]).is_err());
}

#[test]
fn inputs_that_do_not_fit_are_refused_by_name() {
    let (e, model) = (expected(), model(PredictionType::Epsilon));
    let policy = Policy::new(&model, None);
    let (latents, t) = (&e["latents"], &e["timestep"]);
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let check = |latents: &Tensor, t: &Tensor, positive: &[i64], negative: &[i64], parts: &[&str]| {
        let c = Conditioning { prompt_embeds: zeros(positive), negative_prompt_embeds: zeros(negative), added: None };
        let message = policy.predict_noise(latents, t, &c, 5.0).unwrap_err().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    };
    check(latents, &Tensor::from_slice(&[1i64, 2, 3]), &[2, 5, 12], &[1, 5, 12], &["timesteps", "2", "3"]);
    check(latents, t, &[2, 5, 12], &[1, 4, 12], &["negative_prompt_embeds", "[2, 5, 12]", "[1, 4, 12]"]);
    check(latents, t, &[2, 5, 12], &[3, 5, 12], &["negative_prompt_embeds", "[3, 5, 12]"]);
    check(latents, t, &[3, 5, 12], &[1, 5, 12], &["prompt_embeds"]);
    check(&zeros(&[2, 3, 8, 8]), t, &[2, 5, 12], &[1, 5, 12], &["latents", "[4, 3, 8, 8]"]);
}
