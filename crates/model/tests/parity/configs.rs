//! Configurations: the public folders' own are accepted, what is not implemented is named.

use std::path::Path;

use seedpo_model::{SchedulerConfig, TextConfig, UNetConfig, VaeConfig};
use serde_json::{Value, json};

use super::weights::Fixture;

pub const UNET_SD15: &str = r#"{
  "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
  "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": false, "cross_attention_dim": 768,
  "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
  "downsample_padding": 1, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
  "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
  "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]}"#;

pub const UNET_SD21: &str = r#"{
  "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.10.0.dev0", "act_fn": "silu",
  "attention_head_dim": [5, 10, 20, 20], "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": false,
  "cross_attention_dim": 1024,
  "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
  "downsample_padding": 1, "dual_cross_attention": false, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4,
  "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32,
  "num_class_embeds": null, "only_cross_attention": false, "out_channels": 4, "sample_size": 96,
  "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
  "use_linear_projection": true, "upcast_attention": true}"#;

pub const VAE_SD15: &str = r#"{
  "_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu",
  "block_out_channels": [128, 256, 512, 512],
  "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
  "in_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3,
  "sample_size": 512,
  "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]}"#;

pub const TEXT_SD15: &str = r#"{
  "_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"], "attention_dropout": 0.0,
  "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 768,
  "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
  "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 12, "num_hidden_layers": 12,
  "pad_token_id": 1, "projection_dim": 768, "torch_dtype": "float32", "transformers_version": "4.21.0.dev0",
  "vocab_size": 49408}"#;

pub const TEXT_SD21: &str = r#"{
  "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2,
  "hidden_act": "gelu", "hidden_size": 1024, "initializer_factor": 1.0, "initializer_range": 0.02,
  "intermediate_size": 4096, "layer_norm_eps": 1e-05, "max_position_embeddings": 77,
  "model_type": "clip_text_model", "num_attention_heads": 16, "num_hidden_layers": 23, "pad_token_id": 1,
  "projection_dim": 512, "torch_dtype": "float32", "transformers_version": "4.25.0.dev0", "vocab_size": 49408}"#;

const SCHEDULER_SD15: &str = r#"{
  "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
  "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true,
  "steps_offset": 1, "trained_betas": null, "clip_sample": false}"#;

/// `text` with one key replaced.
fn with(text: &str, key: &str, value: Value) -> String {
    let mut json: Value = serde_json::from_str(text).unwrap();
    json[key] = value;
    json.to_string()
}

#[test]
fn written_configurations_read_back_equal() {
    let path = Path::new("config.json");
    let mut unets: Vec<String> = Fixture::all("unet").into_iter().map(|(_, f)| f.config().to_owned()).collect();
    unets.extend([UNET_SD15.to_owned(), UNET_SD21.to_owned()]);
    for text in unets {
        let config = UNetConfig::from_json(&text, path).unwrap();
        assert_eq!(UNetConfig::from_json(&config.to_json().to_string(), path).unwrap(), config);
    }
    let vae = VaeConfig::from_json(VAE_SD15, path).unwrap();
    assert_eq!(VaeConfig::from_json(&vae.to_json().to_string(), path).unwrap(), vae);
    let text = TextConfig::from_json(TEXT_SD21, path).unwrap();
    assert_eq!(TextConfig::from_json(&text.to_json().to_string(), path).unwrap(), text);
    let scheduler = SchedulerConfig::from_json(SCHEDULER_SD15, path).unwrap();
    assert_eq!(
        scheduler,
        SchedulerConfig {
            class_name: "PNDMScheduler".into(),
            timestep_spacing: None,
            ..SchedulerConfig::stable_diffusion()
        }
    );
}

#[test]
fn both_head_conventions_count_heads() {
    let path = Path::new("config.json");
    let heads = |text: &str| UNetConfig::from_json(text, path).unwrap().attention_head_dim;
    assert_eq!(heads(UNET_SD15), [8]);
    assert_eq!(heads(UNET_SD21), [5, 10, 20, 20]);
    assert_eq!(heads(&with(UNET_SD15, "num_attention_heads", json!(4))), [4]);
}

#[test]
fn options_that_are_not_implemented_are_named() {
    let cases = [
        ("dual_cross_attention", json!(true)),
        ("class_embed_type", json!("timestep")),
        ("addition_embed_type", json!("image")),
        ("down_block_types", json!(["AttnDownBlock2D"])),
        ("mid_block_type", json!("UNetMidBlock2DSimpleCrossAttn")),
        ("resnet_time_scale_shift", json!("spatial")),
        ("time_embedding_type", json!("fourier")),
        ("act_fn", json!("geglu")),
        ("block_out_channels", json!([320, 640, 1280, 1281])),
        ("norm_num_groups", json!("32")),
        ("attention_head_dim", json!([8, 8])),
        ("attention_head_dim", json!(0)),
        ("layers_per_block", json!(-1)),
        ("in_channels", json!(4.5)),
        ("num_hidden_layers", json!(12)),
        ("_class_name", json!("FluxTransformer2DModel")),
    ];
    for (key, value) in cases {
        let key_found = if key == "block_out_channels" { "norm_num_groups" } else { key };
        let text = with(UNET_SD15, key, value.clone());
        let message = UNetConfig::from_json(&text, Path::new("unet/config.json")).unwrap_err().to_string();
        assert!(message.contains("unet/config.json"), "{message}");
        assert!(message.contains(&format!("key `{key_found}`")), "{key}: {message}");
    }
    // Underscored keys, nulls and defaults are let pass.
    for (key, value) in [("_anything", json!(1)), ("new_option", Value::Null), ("dropout", json!(0))] {
        UNetConfig::from_json(&with(UNET_SD15, key, value), Path::new("config.json")).unwrap();
    }
    let message = |e: seedpo_model::Error| e.to_string();
    let vae = VaeConfig::from_json(&with(VAE_SD15, "shift_factor", json!(0.1)), Path::new("vae/config.json"));
    assert!(message(vae.unwrap_err()).contains("`shift_factor`: expected 0.0"));
    let text = TextConfig::from_json(&with(TEXT_SD15, "model_type", json!("t5")), Path::new("text/config.json"));
    assert!(message(text.unwrap_err()).contains("`model_type`: expected clip_text_model, found \"t5\""));
    let sample = with(SCHEDULER_SD15, "prediction_type", json!("sample"));
    let scheduler = SchedulerConfig::from_json(&sample, Path::new("scheduler_config.json"));
    assert!(message(scheduler.unwrap_err()).contains("`prediction_type`: expected epsilon or v_prediction"));
}
