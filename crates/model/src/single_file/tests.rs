//! Checkpoints in the original key layout, whose keys and diffusers equivalents `python/fixtures/single_file.py` lists.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use seedpo_tensor::{Device, Kind, Tensor, write_weights};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::*;
use crate::{DiffusionModel, TextConfig};

fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/single_file/{name}.json"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

static TOKENIZER: OnceLock<tempfile::TempDir> = OnceLock::new();

fn options() -> LoadOptions {
    let folder = TOKENIZER.get_or_init(make_tokenizer).path().to_path_buf();
    LoadOptions { tokenizer: Some(folder), ..LoadOptions::default() }
}

fn make_tokenizer() -> tempfile::TempDir {
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer");
    let folder = tempfile::tempdir().unwrap();
    for file in ["vocab.json", "merges.txt", "sd1/tokenizer_config.json"] {
        std::fs::copy(tokenizer.join(file), folder.path().join(Path::new(file).file_name().unwrap())).unwrap();
    }
    folder
}

fn keys(fixture: &Value) -> BTreeMap<String, Vec<i64>> {
    serde_json::from_value(fixture["keys"].clone()).unwrap()
}

/// A safetensors file of zeros that takes no room on the disk.
fn sparse(folder: &Path, keys: &BTreeMap<String, Vec<i64>>) -> PathBuf {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (key, shape) in keys {
        let start = end;
        end += 2 * shape.iter().product::<i64>();
        header.insert(key.clone(), serde_json::json!({"dtype": "F16", "shape": shape, "data_offsets": [start, end]}));
    }
    let text = Value::Object(header).to_string();
    let path = folder.join("model.safetensors");
    let mut file = File::create(&path).unwrap();
    file.write_all(&(text.len() as u64).to_le_bytes()).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.set_len(8 + text.len() as u64 + end as u64).unwrap();
    path
}

#[test]
fn configurations_of_full_size_checkpoints_are_those_of_their_folders() {
    for (family, prediction_type) in
        [("sd1", PredictionType::Epsilon), ("sd2", PredictionType::VPrediction), ("sdxl", PredictionType::Epsilon)]
    {
        let fixture = fixture(family);
        let folder = tempfile::tempdir().unwrap();
        let sources = open(&sparse(folder.path(), &keys(&fixture)), &options()).unwrap();
        let text = |part: &str| fixture["configs"][part].to_string();
        let unet = UNetConfig::from_json(&text("unet"), Path::new("unet")).unwrap();
        let spread =
            |list: &[i64]| if list.len() == 1 { vec![list[0]; unet.block_out_channels.len()] } else { list.to_vec() };
        let unet = UNetConfig {
            layers_per_block: spread(&unet.layers_per_block),
            attention_head_dim: spread(&unet.attention_head_dim),
            transformer_layers_per_block: spread(&unet.transformer_layers_per_block),
            ..unet
        };
        assert_eq!(sources.unet.0, unet, "{family}");
        assert_eq!(sources.vae.0, VaeConfig::from_json(&text("vae"), Path::new("vae")).unwrap(), "{family}");
        let same_text = |found: &TextConfig, part: &str| {
            let expected = TextConfig::from_json(&text(part), Path::new(part)).unwrap();
            let TextConfig { projection_dim, with_projection, bos_token_id, eos_token_id, pad_token_id, .. } =
                found.clone();
            let tokens =
                TextConfig { projection_dim, with_projection, bos_token_id, eos_token_id, pad_token_id, ..expected };
            assert_eq!(*found, tokens, "{family}: {part}");
        };
        same_text(&sources.text.0.config, "text_encoder");
        assert_eq!(sources.second.is_some(), family == "sdxl");
        if let Some((parts, _)) = &sources.second {
            same_text(&parts.config, "text_encoder_2");
            assert_eq!((parts.config.projection_dim, parts.config.with_projection), (1280, true));
        }
        assert_eq!(sources.scheduler, SchedulerConfig { prediction_type, ..SchedulerConfig::stable_diffusion() });
        let pads = [Some(&sources.text.0), sources.second.as_ref().map(|second| &second.0)];
        let pads: Vec<&str> = pads.into_iter().flatten().map(|parts| parts.tokenizer.pad_token()).collect();
        let end = "<|endoftext|>";
        assert_eq!(
            pads,
            if family == "sd1" {
                vec![end]
            } else if family == "sd2" {
                vec!["!"]
            } else {
                vec![end, "!"]
            }
        );
    }
}

/// Of `python/fixtures/single_file.py`: values that depend on the key alone.
fn values(key: &str, shape: &[i64]) -> Tensor {
    let count = shape.iter().product::<i64>();
    let (seed, numbers) = (i64::from(crc32(key.as_bytes())), Tensor::arange(count, (Kind::Int64, Device::Cpu)));
    ((numbers * 7919 + seed).fmod(65536).to_kind(Kind::Float) / 65536.0).reshape(shape)
}

/// CRC-32 (IEEE), bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

fn digest(tensor: &Tensor) -> String {
    let mut bytes = vec![0u8; 4 * tensor.numel()];
    tensor.contiguous().copy_data_u8(&mut bytes, tensor.numel());
    Sha256::digest(&bytes).iter().take(8).map(|b| format!("{b:02x}")).collect()
}

fn tiny(folder: &Path, family: &str, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) -> PathBuf {
    let mut tensors: BTreeMap<String, Tensor> = keys(&fixture(&format!("tiny-{family}")))
        .into_iter()
        .map(|(key, shape)| {
            let t = values(&key, &shape);
            (key, t)
        })
        .collect();
    change(&mut tensors);
    let path = folder.join("model.safetensors");
    write_weights(&path, &tensors, &BTreeMap::new()).unwrap();
    path
}

#[test]
fn every_tensor_is_the_one_that_diffusers_reads() {
    for family in ["sd1", "sd2", "sdxl"] {
        let folder = tempfile::tempdir().unwrap();
        let model = DiffusionModel::load(&tiny(folder.path(), family, |_| {}), &options()).unwrap();
        let expected = &fixture(&format!("tiny-{family}"))["digests"];
        let mut parts = vec![
            ("unet", model.unet.parameters()),
            ("vae", model.vae.parameters()),
            ("text_encoder", model.text_encoder.parameters()),
        ];
        parts.extend(model.text_encoder_2.as_ref().map(|second| ("text_encoder_2", second.text_encoder.parameters())));
        assert_eq!(parts.len(), expected.as_object().unwrap().len());
        for (part, parameters) in parts {
            let found: BTreeMap<String, String> = parameters
                .iter()
                .map(|(name, tensor)| (name.strip_prefix("text_model.").unwrap_or(name).to_owned(), digest(tensor)))
                .collect();
            let expected: BTreeMap<String, String> = serde_json::from_value(expected[part].clone()).unwrap();
            assert_eq!(found, expected, "{family}: {part}");
        }
        // Written as a folder, it is the same model again, tokenizer included.
        model.save(&folder.path().join("again"), None).unwrap();
        let again = DiffusionModel::load(&folder.path().join("again"), &LoadOptions::default()).unwrap();
        assert_eq!(again.unet.parameters(), model.unet.parameters());
        assert_eq!(again.tokenizer.pad_token(), model.tokenizer.pad_token());
        assert_eq!(again.scheduler, model.scheduler);
        let prompts = ["a red fox!", ""];
        assert_eq!(
            again.encode_prompts(&prompts).unwrap().prompt_embeds,
            model.encode_prompts(&prompts).unwrap().prompt_embeds
        );
    }
}

#[test]
fn prediction_types_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let mark = |tensors: &mut BTreeMap<String, Tensor>| {
        tensors.insert("v_pred".to_owned(), Tensor::zeros([0], (Kind::Float, Device::Cpu)));
    };
    let sources = |path: &Path, options: &LoadOptions| open(path, options).unwrap().scheduler.prediction_type;
    assert_eq!(sources(&tiny(folder.path(), "sdxl", mark), &options()), PredictionType::VPrediction);
    let path = tiny(folder.path(), "sd2", |_| {});
    assert_eq!(sources(&path, &options()), PredictionType::VPrediction);
    let epsilon = LoadOptions { prediction_type: Some(PredictionType::Epsilon), ..options() };
    assert_eq!(sources(&path, &epsilon), PredictionType::Epsilon);
}

/// Heads are in no tensor: configurations beside the checkpoint tell them, where they are of such networks.
#[test]
fn heads_are_those_that_a_configuration_beside_the_file_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny(folder.path(), "sd2", |_| {});
    let heads = || {
        let sources = open(&path, &options()).unwrap();
        (sources.unet.0.attention_head_dim, sources.text.0.config.num_attention_heads)
    };
    assert_eq!(heads(), (vec![1, 2], 1), "64 channels each");
    let beside = |part: &str, change: &dyn Fn(&mut Value)| {
        let mut config = fixture("tiny-sd2")["configs"][part].clone();
        change(&mut config);
        std::fs::create_dir_all(folder.path().join(part)).unwrap();
        std::fs::write(folder.path().join(part).join("config.json"), config.to_string()).unwrap();
    };
    beside("unet", &|config| config["attention_head_dim"] = serde_json::json!([2, 4]));
    beside("text_encoder", &|config| config["num_attention_heads"] = 4.into());
    assert_eq!(heads(), (vec![2, 4], 4));
    // Of other networks.
    beside("unet", &|config| {
        config["attention_head_dim"] = 4.into();
        config["block_out_channels"] = serde_json::json!([64, 192]);
    });
    beside("text_encoder", &|config| {
        config["num_attention_heads"] = 2.into();
        config["intermediate_size"] = 64.into();
    });
    assert_eq!(heads(), (vec![1, 2], 1));
}

#[test]
fn a_width_that_tells_no_heads_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = WeightFile::open(&tiny(folder.path(), "sd1", |_| {})).unwrap();
    assert_eq!(text::heads(&file, "text_encoder", 128, 96).unwrap(), 2);
    let message = text::heads(&file, "text_encoder", 32, 96).unwrap_err().to_string();
    for part in ["model.safetensors", "num_attention_heads", "text_encoder/config.json beside the file", "(32)"] {
        assert!(message.contains(part), "{message}");
    }
    std::fs::create_dir(folder.path().join("text_encoder")).unwrap();
    let said = r#"{"hidden_size": 32, "intermediate_size": 96, "num_attention_heads": 4}"#;
    std::fs::write(folder.path().join("text_encoder/config.json"), said).unwrap();
    assert_eq!(text::heads(&file, "text_encoder", 32, 96).unwrap(), 4);
    let path = tiny(folder.path(), "sd2", |tensors| {
        for (key, tensor) in tensors.iter_mut().filter(|(key, _)| key.starts_with(UNET)) {
            let shape: Vec<i64> = tensor.size().iter().map(|n| if n % 64 == 0 { n / 2 } else { *n }).collect();
            *tensor = values(key, &shape);
        }
    });
    let message = open(&path, &options()).err().unwrap().to_string();
    assert!(message.contains("unet/config.json beside the file") && message.contains("(32)"), "{message}");
}

/// ComfyUI's mark for betas rescaled to zero terminal signal-to-noise ratio.
#[test]
fn a_checkpoint_of_zero_terminal_snr_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny(folder.path(), "sdxl", |tensors| {
        for mark in ["ztsnr", "v_pred"] {
            tensors.insert(mark.to_owned(), Tensor::zeros([0], (Kind::Float, Device::Cpu)));
        }
    });
    let model = DiffusionModel::load(&path, &options()).unwrap();
    assert_eq!(model.schedule.alpha_cumprod(999), 0.0);
    assert_eq!(model.schedule.prediction_type, PredictionType::VPrediction);
}

#[test]
fn what_does_not_fit_is_named_as_the_file_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let message = |family: &str, change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let path = tiny(folder.path(), family, change);
        DiffusionModel::load(&path, &options()).unwrap_err().to_string()
    };
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let found = message("sd1", &|tensors| {
        assert!(tensors.remove("model.diffusion_model.output_blocks.1.0.skip_connection.bias").is_some());
        tensors.insert("model.diffusion_model.extra.weight".into(), zeros(&[2]));
        tensors.insert("model.diffusion_model.time_embed.0.bias".into(), zeros(&[3]));
    });
    for part in [
        "missing `model.diffusion_model.output_blocks.1.0.skip_connection.bias`: expected shape",
        "surplus `model.diffusion_model.extra.weight`",
        "`model.diffusion_model.time_embed.0.bias`: expected shape [128], found [3]",
    ] {
        assert!(found.contains(part), "{found}");
    }
    let projection = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight";
    let found = message("sd2", &|tensors| drop(tensors.insert(projection.into(), zeros(&[190, 64]))));
    assert!(found.contains(&format!("`{projection}`: expected shape [192, 64], found [190, 64]")), "{found}");
    let found = message("sd1", &|tensors| {
        tensors.insert("model.diffusion_model.input_blocks.0.0.weight".into(), zeros(&[32, 9, 3, 3]));
    });
    assert!(found.contains("inpainting"), "{found}");
    let without = |prefix: &'static str| {
        move |tensors: &mut BTreeMap<String, Tensor>| tensors.retain(|key, _| !key.starts_with(prefix))
    };
    for (family, prefix, part) in [
        ("sd1", "cond_stage_model", "no text encoder"),
        ("sd1", "first_stage_model", "no autoencoder"),
        ("sd1", "model.diffusion_model", "model.diffusion_model."),
        ("sdxl", "conditioner.embedders.1", "no text encoder"),
    ] {
        let found = message(family, &without(prefix));
        assert!(found.contains(part) && found.contains("model.safetensors"), "{found}");
    }
}

#[test]
fn without_a_tokenizer_the_error_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny(folder.path(), "sd1", |_| {});
    let found = match tokenizer::folder(&path, None) {
        // A machine may have one in its cache.
        Ok(_) => return,
        Err(error) => error.to_string(),
    };
    assert!(found.contains("--tokenizer") && found.contains("merges.txt"), "{found}");
    let beside = folder.path().join("tokenizer");
    std::fs::rename(make_tokenizer().keep(), &beside).unwrap();
    assert_eq!(tokenizer::folder(&path, None).unwrap(), beside);
}
