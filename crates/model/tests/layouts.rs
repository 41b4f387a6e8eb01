//! One model in every layout of a diffusers folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use seedpo_model::config::PredictionType;
use seedpo_model::{ClipTokenizer, DiffusionModel, LoadOptions, SchedulerConfig, TextConfig, UNetConfig, VaeConfig};
use seedpo_tensor::{Device, Kind, Tensor, WeightFile, write_weights};

const PARTS: [(&str, &str); 3] =
    [("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")];

/// A tiny fresh model, saved as a folder.
fn saved(folder: &Path) -> DiffusionModel {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer");
    let tokens = folder.join("tokenizer");
    fs::create_dir_all(&tokens).unwrap();
    for file in ["vocab.json", "merges.txt", "sd1/tokenizer_config.json"] {
        fs::copy(source.join(file), tokens.join(Path::new(file).file_name().unwrap())).unwrap();
    }
    let tokenizer = ClipTokenizer::from_folder(&tokens).unwrap();
    let text = TextConfig {
        vocab_size: tokenizer.eos_token_id() + 1,
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        eos_token_id: tokenizer.eos_token_id(),
        ..TextConfig::default()
    };
    let unet = UNetConfig {
        block_out_channels: vec![8, 8, 8, 8],
        cross_attention_dim: vec![16],
        attention_head_dim: vec![2],
        layers_per_block: vec![1],
        norm_num_groups: 4,
        ..UNetConfig::default()
    };
    let vae = VaeConfig { block_out_channels: vec![8, 8], norm_num_groups: 4, ..VaeConfig::default() };
    let scheduler = SchedulerConfig::stable_diffusion();
    let model = DiffusionModel::init(tokenizer, text, unet, vae, scheduler, 3, Device::Cpu).unwrap();
    model.save(folder, None).unwrap();
    model
}

fn assert_same(found: &DiffusionModel, expected: &DiffusionModel) {
    assert_eq!(found.unet.parameters(), expected.unet.parameters());
    assert_eq!(found.vae.parameters(), expected.vae.parameters());
    assert_eq!(found.text_encoder.parameters(), expected.text_encoder.parameters());
}

fn load(folder: &Path, variant: Option<&str>) -> seedpo_model::Result<DiffusionModel> {
    DiffusionModel::load(folder, &LoadOptions { variant: variant.map(str::to_owned), ..LoadOptions::default() })
}

/// Puts a part's weights into two shards with an index of this name.
fn shard(folder: &Path, stem: &str, index: &str) {
    let whole = folder.join(format!("{stem}.safetensors"));
    let tensors = WeightFile::open(&whole).unwrap().tensors().unwrap();
    let mut shards = [BTreeMap::new(), BTreeMap::new()];
    let mut map = BTreeMap::new();
    for (at, (name, tensor)) in tensors.into_iter().enumerate() {
        map.insert(name.clone(), format!("{stem}-{:05}-of-00002.safetensors", at % 2 + 1));
        shards[at % 2].insert(name, tensor);
    }
    for (at, tensors) in shards.iter().enumerate() {
        let path = folder.join(format!("{stem}-{:05}-of-00002.safetensors", at + 1));
        write_weights(&path, tensors, &BTreeMap::new()).unwrap();
    }
    let text = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
    fs::write(folder.join(index), text).unwrap();
    fs::remove_file(whole).unwrap();
}

#[test]
fn shards_load_as_one_file_does() {
    for (suffix, variant) in [
        ("safetensors.index.json", None),
        ("safetensors.index.fp16.json", Some("fp16")),
        ("fp16.safetensors.index.json", Some("fp16")),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let model = saved(folder.path());
        for (part, stem) in PARTS {
            shard(&folder.path().join(part), stem, &format!("{stem}.{suffix}"));
        }
        assert_same(&load(folder.path(), variant).unwrap(), &model);
        let files = seedpo_model::weight_files(folder.path(), variant);
        assert_eq!(files.len(), 9, "{files:?}");
        fs::remove_file(folder.path().join("vae/diffusion_pytorch_model-00002-of-00002.safetensors")).unwrap();
        let message = load(folder.path(), variant).unwrap_err().to_string();
        assert!(message.contains("vae/diffusion_pytorch_model-00002") && message.contains("no such file"), "{message}");
    }
}

#[test]
fn a_variant_is_read_where_it_is_named_or_alone() {
    let folder = tempfile::tempdir().unwrap();
    let model = saved(folder.path());
    let doubled: BTreeMap<String, Tensor> =
        model.unet.parameters().iter().map(|(n, t)| (n.clone(), (t * 2.0).to_kind(Kind::Half))).collect();
    write_weights(&folder.path().join("unet/diffusion_pytorch_model.fp16.safetensors"), &doubled, &BTreeMap::new())
        .unwrap();
    assert_same(&load(folder.path(), None).unwrap(), &model);
    let variant = load(folder.path(), Some("fp16")).unwrap();
    let name = "conv_in.weight";
    assert_eq!(variant.unet.parameters()[name], doubled[name].to_kind(Kind::Float));
    assert_eq!(variant.vae.parameters(), model.vae.parameters());
    fs::remove_file(folder.path().join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    assert_eq!(load(folder.path(), None).unwrap().unet.parameters(), variant.unet.parameters());
    let message = load(folder.path(), Some("bf16")).unwrap_err().to_string();
    assert!(message.contains("expected fp16, found bf16"), "{message}");
}

#[test]
fn prediction_type_and_tokenizer_can_be_named() {
    let folder = tempfile::tempdir().unwrap();
    saved(folder.path());
    let elsewhere = tempfile::tempdir().unwrap();
    fs::rename(folder.path().join("tokenizer"), elsewhere.path().join("tokens")).unwrap();
    let options = LoadOptions {
        prediction_type: Some(PredictionType::VPrediction),
        tokenizer: Some(elsewhere.path().join("tokens")),
        ..LoadOptions::default()
    };
    let model = DiffusionModel::load(folder.path(), &options).unwrap();
    assert_eq!(model.scheduler.prediction_type, PredictionType::VPrediction);
    assert!(load(folder.path(), None).is_err());
}
