//! Configurations: the public folders' own are accepted, what is not supported is named.

use std::path::Path;

use seedpo_model::{Pipeline, SchedulerConfig, TextConfig, UNetConfig, VaeConfig};
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

pub const UNET_SDXL: &str = r#"{
  "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.19.0.dev0", "act_fn": "silu",
  "addition_embed_type": "text_time", "addition_embed_type_num_heads": 64, "addition_time_embed_dim": 256,
  "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280], "center_input_sample": false,
  "class_embed_type": null, "class_embeddings_concat": false, "conv_in_kernel": 3, "conv_out_kernel": 3,
  "cross_attention_dim": 2048, "cross_attention_norm": null,
  "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], "downsample_padding": 1,
  "dual_cross_attention": false, "encoder_hid_dim": null, "encoder_hid_dim_type": null, "flip_sin_to_cos": true,
  "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_only_cross_attention": null,
  "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_eps": 1e-05, "norm_num_groups": 32,
  "num_attention_heads": null, "num_class_embeds": null, "only_cross_attention": false, "out_channels": 4,
  "projection_class_embeddings_input_dim": 2816, "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": false,
  "resnet_time_scale_shift": "default", "sample_size": 128, "time_cond_proj_dim": null,
  "time_embedding_act_fn": null, "time_embedding_dim": null, "time_embedding_type": "positional",
  "timestep_post_act": null, "transformer_layers_per_block": [1, 2, 10],
  "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "upcast_attention": null,
  "use_linear_projection": true}"#;

pub const VAE_SDXL: &str = r#"{
  "_class_name": "AutoencoderKL", "_diffusers_version": "0.20.0.dev0", "_name_or_path": "../sdxl-vae/", "act_fn": "silu",
  "block_out_channels": [128, 256, 512, 512],
  "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
  "force_upcast": true, "in_channels": 3, "latent_channels": 4, "latents_mean": null, "latents_std": null,
  "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 1024, "scaling_factor": 0.13025,
  "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]}"#;

pub const TEXT2_SDXL: &str = r#"{
  "architectures": ["CLIPTextModelWithProjection"], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0,
  "eos_token_id": 2, "hidden_act": "gelu", "hidden_size": 1280, "initializer_factor": 1.0, "initializer_range": 0.02,
  "intermediate_size": 5120, "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "model_type": "clip_text_model",
  "num_attention_heads": 20, "num_hidden_layers": 32, "pad_token_id": 1, "projection_dim": 1280,
  "torch_dtype": "float16", "transformers_version": "4.32.0.dev0", "vocab_size": 49408}"#;

const SCHEDULER_SDXL: &str = r#"{
  "_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0", "beta_end": 0.012,
  "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": false, "interpolation_type": "linear",
  "num_train_timesteps": 1000, "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": false,
  "skip_prk_steps": true, "steps_offset": 1, "timestep_spacing": "leading", "trained_betas": null,
  "use_karras_sigmas": false}"#;

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
    unets.extend([UNET_SD15, UNET_SD21, UNET_SDXL].map(str::to_owned));
    for text in unets {
        let config = UNetConfig::from_json(&text, path).unwrap();
        assert_eq!(UNetConfig::from_json(&config.to_json().to_string(), path).unwrap(), config);
    }
    for text in [VAE_SD15, VAE_SDXL] {
        let vae = VaeConfig::from_json(text, path).unwrap();
        assert_eq!(VaeConfig::from_json(&vae.to_json().to_string(), path).unwrap(), vae);
    }
    for text in [TEXT_SD21, TEXT2_SDXL] {
        let config = TextConfig::from_json(text, path).unwrap();
        assert_eq!(TextConfig::from_json(&config.to_json().to_string(), path).unwrap(), config);
    }
    let scheduler = SchedulerConfig::from_json(SCHEDULER_SD15, path).unwrap();
    assert_eq!(
        scheduler,
        SchedulerConfig {
            class_name: "PNDMScheduler".into(),
            timestep_spacing: None,
            sampler_options: scheduler.sampler_options.clone(),
            ..SchedulerConfig::stable_diffusion()
        }
    );
}

#[test]
fn sdxl_s_configurations_say_what_is_new() {
    let path = Path::new("config.json");
    let unet = UNetConfig::from_json(UNET_SDXL, path).unwrap();
    assert_eq!((unet.attention_head_dim, unet.transformer_layers_per_block), (vec![5, 10, 20], vec![1, 2, 10]));
    assert_eq!(unet.text_time.map(|text_time| text_time.pooled_width()), Some(1280));
    let vae = VaeConfig::from_json(VAE_SDXL, path).unwrap();
    assert_eq!((vae.scaling_factor, vae.force_upcast), (0.13025, true));
    assert!(TextConfig::from_json(TEXT2_SDXL, path).unwrap().with_projection);
    // Its sampler is Euler; the schedule below it is Stable Diffusion's own.
    let scheduler = SchedulerConfig::from_json(SCHEDULER_SDXL, path).unwrap();
    let expected = SchedulerConfig {
        class_name: "EulerDiscreteScheduler".into(),
        sampler_options: scheduler.sampler_options.clone(),
        ..SchedulerConfig::stable_diffusion()
    };
    assert_eq!(scheduler, expected);
    for (key, value, named) in [
        ("addition_time_embed_dim", Value::Null, "addition_time_embed_dim"),
        ("projection_class_embeddings_input_dim", json!(1536), "projection_class_embeddings_input_dim"),
        ("addition_embed_type", Value::Null, "addition_time_embed_dim"),
    ] {
        let text = with(UNET_SDXL, key, value);
        let message = UNetConfig::from_json(&text, path).unwrap_err().to_string();
        assert!(message.contains(&format!("key `{named}`")), "{key}: {message}");
    }
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
    let flow = with(SCHEDULER_SD15, "prediction_type", json!("flow_prediction"));
    let scheduler = SchedulerConfig::from_json(&flow, Path::new("scheduler_config.json"));
    assert!(message(scheduler.unwrap_err()).contains("`prediction_type`: expected epsilon, v_prediction or sample"));
}

#[test]
fn latents_may_be_higher_than_wide() {
    let read =
        |value: Value| UNetConfig::from_json(&with(UNET_SD15, "sample_size", value), Path::new("unet/config.json"));
    assert_eq!(read(json!(64)).unwrap().sample_size, Some([64, 64]));
    let pair = read(json!([64, 96])).unwrap();
    assert_eq!((pair.sample_size, &pair.to_json()["sample_size"]), (Some([64, 96]), &json!([64, 96])));
    for value in [json!(0), json!([64]), json!([64, 96, 1]), json!([64, -1]), json!("64"), json!(6.5)] {
        let message = read(value.clone()).unwrap_err().to_string();
        assert!(
            message.contains("`sample_size`: expected a positive integer, or two: height and width"),
            "{value}: {message}"
        );
    }
}

#[test]
fn options_of_other_samplers_are_kept_aside() {
    let path = Path::new("scheduler_config.json");
    // diffusers 0.38 writes Python's infinity, which is no JSON.
    let dpm = r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity, "solver_order": 3,
        "algorithm_type": "Infinity \" -Infinity", "beta_start": 0.0005}"#;
    let config = SchedulerConfig::from_json(dpm, path).unwrap();
    assert_eq!(config.beta_start, 0.0005);
    assert_eq!(config.sampler_options["algorithm_type"], json!("Infinity \" -Infinity"));
    assert!(config.sampler_options["lambda_min_clipped"].as_f64().unwrap() < -1e300);
    assert_eq!((&config.sampler_options["solver_order"], config.to_json().get("solver_order")), (&json!(3), None));
    let infinite = SchedulerConfig::from_json(r#"{"beta_end": Infinity}"#, path).unwrap_err().to_string();
    assert!(infinite.contains("`beta_end`: expected between 0 and 1"), "{infinite}");
    assert!(SchedulerConfig::from_json(r#"{"beta_end": NaN}"#, path).unwrap_err().to_string().contains("JSON"));
    for class in ["LCMScheduler", "TCDScheduler"] {
        let json = json!({"_class_name": class, "original_inference_steps": 50, "timestep_scaling": 10.0}).to_string();
        assert_eq!(SchedulerConfig::from_json(&json, path).unwrap().class_name, class);
    }
}

#[test]
fn pipelines_with_parts_that_are_absent_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model_index.json");
    let sdxl = Pipeline::StableDiffusionXl { force_zeros_for_empty_prompt: true };
    let read = |changes: &[(&str, Value)]| {
        let mut index = sdxl.to_json();
        for (key, value) in changes {
            index[*key] = value.clone();
        }
        std::fs::write(&path, index.to_string()).unwrap();
        Pipeline::from_file(&path).map_err(|e| e.to_string())
    };
    let class = ("_class_name", json!("StableDiffusionXLImg2ImgPipeline"));
    let img2img = [class.clone(), ("requires_aesthetics_score", json!(false))];
    assert_eq!(read(&img2img), Ok(sdxl));
    assert_eq!(read(&[("controlnet", json!([null, null])), ("new_part", Value::Null)]), Ok(sdxl));
    for (changes, parts) in [
        (vec![class, ("requires_aesthetics_score", json!(true))], ["`requires_aesthetics_score`", "refiner"]),
        (
            vec![("image_encoder", json!(["transformers", "CLIPVisionModelWithProjection"]))],
            ["`image_encoder`", "null"],
        ),
        (vec![("controlnet", json!(["diffusers", "ControlNetModel"]))], ["`controlnet`", "ControlNetModel"]),
        (vec![("unet", json!([null, null]))], ["`unet`", "UNet2DConditionModel"]),
    ] {
        let message = read(&changes).unwrap_err();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
}
