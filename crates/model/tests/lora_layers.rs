//! LoRAs of all kinds of layers against peft: feed-forward layers, `proj_in` and `proj_out` as policies run and train
//! them; convolutions, time embeddings and text encoders as they are merged.
//!
//! Fixture: python/fixtures/lora_layers.py. Tolerances: 2e-5 of the largest value forward, 1e-4 for gradients, f32.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use seedpo_model::adapter::{Layout, Lora, LoraConfig, LoraFile, Network};
use seedpo_model::config::{SchedulerConfig, TextConfig, UNetConfig, VaeConfig};
use seedpo_model::{Adapter, ClipTextModel, ClipTokenizer, DiffusionModel, SecondTextEncoder, UNet2DConditionModel};
use seedpo_tensor::{Params, WeightFile, write_weights};
use tch::{Device, Kind, Tensor};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn layers(name: &str) -> PathBuf {
    fixtures().join("lora_layers").join(name)
}

fn unet() -> UNet2DConditionModel {
    let file = WeightFile::open(&fixtures().join("adapter/unet.safetensors")).unwrap();
    let config = UNetConfig::from_json(&file.metadata()["config"], Path::new("config.json")).unwrap();
    UNet2DConditionModel::new(config, Params::from_file(file, Device::Cpu, Kind::Float)).unwrap()
}

fn expected() -> BTreeMap<String, Tensor> {
    WeightFile::open(&layers("expected.safetensors")).unwrap().tensors().unwrap()
}

fn text_config(width: i64, projection: &str) -> TextConfig {
    let json = format!(
        r#"{{"vocab_size": 1000, "hidden_size": {width}, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 77, "eos_token_id": 839, "projection_dim": 8{projection}}}"#
    );
    TextConfig::from_json(&json, Path::new("config.json")).unwrap()
}

/// The fixture's U-Net beside two text encoders with random weights.
fn model() -> DiffusionModel {
    let vae = r#"{"block_out_channels": [8], "norm_num_groups": 4, "layers_per_block": 1,
        "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]}"#;
    let folder = tempfile::tempdir().unwrap();
    for name in ["vocab.json", "merges.txt", "sd1/tokenizer_config.json"] {
        let from = fixtures().join("tokenizer").join(name);
        std::fs::copy(&from, folder.path().join(from.file_name().unwrap())).unwrap();
    }
    let tokenizer = || ClipTokenizer::from_folder(folder.path()).unwrap();
    let (unet, scheduler) = (unet(), SchedulerConfig::stable_diffusion());
    let vae = VaeConfig::from_json(vae, Path::new("config.json")).unwrap();
    let (text, config) = (text_config(12, ""), unet.config().clone());
    let mut model = DiffusionModel::init(tokenizer(), text, config, vae, scheduler, 0, Device::Cpu).unwrap();
    model.unet = unet;
    let second = text_config(16, r#", "architectures": ["CLIPTextModelWithProjection"]"#);
    model.text_encoder_2 = Some(SecondTextEncoder {
        tokenizer: tokenizer(),
        text_encoder: ClipTextModel::new(second, Params::init(1, Device::Cpu)).unwrap(),
        force_zeros_for_empty_prompt: false,
    });
    model
}

/// All weights under the names that files have.
fn weights(model: &DiffusionModel) -> BTreeMap<String, Tensor> {
    let second = model.text_encoder_2.as_ref().unwrap();
    let networks = [model.unet.parameters(), model.text_encoder.parameters(), second.text_encoder.parameters()];
    let named = networks.iter().zip(Network::ALL).flat_map(|(parameters, network)| {
        parameters.iter().map(move |(name, tensor)| (format!("{}.{name}", network.prefix()), tensor.copy()))
    });
    named.collect()
}

fn forward(unet: &UNet2DConditionModel, e: &BTreeMap<String, Tensor>, adapter: Option<&Adapter>) -> Tensor {
    unet.forward(&e["latents"], &e["timestep"], &e["prompt_embeds"], None, adapter).unwrap()
}

/// The largest difference relative to the largest value.
fn off(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    ((found - expected).abs().max() / expected.abs().max()).double_value(&[])
}

#[test]
fn every_layer_of_the_transformers_predicts_and_trains_as_with_peft() {
    let (unet, e) = (unet(), expected());
    let adapter = Adapter::load(&layers("all-linear.safetensors"), &unet).unwrap();
    assert_eq!(adapter.paths().count(), unet.projections().len());
    let found = forward(&unet, &e, Some(&adapter));
    assert!(off(&found, &e["all-linear"]) < 2e-5, "{}", off(&found, &e["all-linear"]));
    (found * &e["weight"]).sum(Kind::Float).backward();
    let whole: BTreeMap<String, Tensor> = adapter.trainable().into_iter().map(|(key, t)| (key, t.grad())).collect();
    assert_eq!(whole.len(), e.keys().filter(|key| key.starts_with("grad.")).count());
    for (key, gradient) in &whole {
        let error = off(gradient, &e[&format!("grad.{key}")]);
        // Of sums that nearly cancel, the rounding of f32 kernels is this much.
        assert!(error < 2e-4, "{key}: {error}");
    }
    // One stage at a time, the same sums.
    let again = Adapter::load(&layers("all-linear.safetensors"), &unet).unwrap();
    let (latents, t, embeds) = (&e["latents"], &e["timestep"], &e["prompt_embeds"]);
    let (_, recording) = unet.forward_recorded(latents, t, embeds, None, Some(&again)).unwrap();
    unet.backward(recording, &e["weight"], Some(&again)).unwrap();
    for (key, tensor) in again.trainable() {
        assert!(off(&tensor.grad(), &whole[&key]) < 1e-5, "{key}");
    }
    // Merged, as rollouts run it.
    let merged = adapter.merge(&unet).unwrap();
    assert!(off(&forward(&unet, &e, Some(&merged)), &e["all-linear"]) < 2e-5);
}

#[test]
fn fresh_adapters_have_pefts_shapes_and_keep_their_files() {
    let (unet, e) = (unet(), expected());
    let config = |target: &str| LoraConfig { targets: vec![target.to_owned()], ..LoraConfig::default() };
    let all = Adapter::lora(&unet, &config("all-linear"), 4).unwrap();
    assert_eq!(forward(&unet, &e, Some(&all)), forward(&unet, &e, None));
    let theirs = WeightFile::open(&layers("all-linear.safetensors")).unwrap();
    for (key, tensor) in all.tensors() {
        let shape: Vec<i64> = theirs.shape(&key).unwrap().iter().map(|n| if *n == 3 { 4 } else { *n }).collect();
        assert_eq!(tensor.size(), shape, "{key}");
    }
    // What is drawn does not depend on what else is adapted.
    let (default, attention) = (
        Adapter::lora(&unet, &LoraConfig::default(), 4).unwrap(),
        Adapter::lora(&unet, &config("attention"), 4).unwrap(),
    );
    let drawn: BTreeMap<String, Tensor> = all.tensors().into_iter().collect();
    assert!(default.tensors().into_iter().eq(attention.tensors()));
    assert!(default.tensors().iter().all(|(key, tensor)| *tensor == drawn[key]));
    for (target, count) in
        [("ff.net.2", 4), ("proj_in", 4), ("ff.net.0.proj", 4), ("mid_block.attentions.0.proj_out", 1)]
    {
        assert_eq!(Adapter::lora(&unet, &config(target), 4).unwrap().paths().count(), count, "{target}");
    }

    let folder = tempfile::tempdir().unwrap();
    let trained = Adapter::load(&layers("all-linear.safetensors"), &unet).unwrap();
    let (ours, kohya) = (folder.path().join("ours.safetensors"), folder.path().join("kohya.safetensors"));
    trained.save(&ours).unwrap();
    trained.save_kohya(&kohya).unwrap();
    assert!(WeightFile::open(&ours).unwrap().names().eq(theirs.names()));
    for path in [&ours, &kohya] {
        assert_eq!(Adapter::load(path, &unet).unwrap().tensors(), trained.tensors());
    }
}

/// f32 weights of size 1 and changes of size 1: 1e-6 of the largest weight or change.
#[test]
fn merging_adds_what_peft_adds_to_every_layer_of_every_network() {
    let e = expected();
    let (base, deltas) = (weights(&model()), |name: &str| e.get(&format!("delta.{}", name.strip_suffix(".weight")?)));
    for (name, layout) in [("whole.safetensors", Layout::Diffusers), ("whole-original.safetensors", Layout::Kohya)] {
        let model = model();
        let pointers: Vec<_> = model.unet.parameters().values().map(|t| t.data_ptr()).collect();
        let lora = Lora::load(&layers(name), &model).unwrap();
        assert_eq!(lora.names().count(), e.keys().filter(|key| key.starts_with("delta.")).count());
        assert!(!lora.runs_unmerged(&model.unet));
        let merged = model.merged(&lora).unwrap();
        assert!(merged.unet.parameters().values().map(|t| t.data_ptr()).eq(pointers), "a copy was made");
        for (key, found) in weights(&merged) {
            let Some(delta) = deltas(&key) else {
                assert_eq!(found, base[&key], "{key}");
                continue;
            };
            let error = (found - &base[&key] - delta).abs().max().double_value(&[]);
            assert!(error < 1e-6 * delta.abs().max().double_value(&[]).max(1.0), "{name}, {key}: {error}");
        }
        assert!(off(&forward(&merged.unet, &e, None), &e["whole"]) < 2e-5);
        assert_eq!(LoraFile::open(&layers(name)).unwrap().layouts.first(), Some(&layout));
    }
}

#[test]
fn whole_files_pass_through_both_layouts_and_are_summed_up() {
    let folder = tempfile::tempdir().unwrap();
    let (kohya, back) = (folder.path().join("k.safetensors"), folder.path().join("b.safetensors"));
    LoraFile::open(&layers("whole.safetensors")).unwrap().into_lora(false).unwrap().save_kohya(&kohya, None).unwrap();
    let file = LoraFile::open(&kohya).unwrap();
    let summary = file.summary();
    let count = |target: &str| summary.targets.get(target).copied().unwrap_or_default();
    assert_eq!((count("mlp.fc1"), count("proj_in"), count("conv1"), count("linear_1")), (4, 4, 8, 0), "{summary:?}");
    assert_eq!((count("time_embedding.linear_1"), count("downsamplers.0.conv")), (1, 1));
    assert_eq!((summary.blocks["text_encoder"].modules, summary.blocks["text_encoder_2"].modules), (12, 13));
    assert_eq!(summary.ranks.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
    file.into_lora(false).unwrap().save(&back).unwrap();
    let theirs = WeightFile::open(&layers("whole.safetensors")).unwrap();
    assert_eq!(WeightFile::open(&back).unwrap().tensors().unwrap(), theirs.tensors().unwrap());
    let json = |text: &str| -> serde_json::Value { serde_json::from_str(text).unwrap() };
    let ours = json(&WeightFile::open(&back).unwrap().metadata()["lora_adapter_metadata"]);
    for network in Network::ALL.map(Network::prefix) {
        assert_eq!((&ours[format!("{network}.r")], &ours[format!("{network}.lora_alpha")]), (&2.into(), &3.into()));
        assert_eq!(ours[format!("{network}.rank_pattern")].as_object().unwrap().len(), 2, "{network}");
    }
}

#[test]
fn layers_that_a_model_lacks_and_pairs_that_do_not_fit_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.safetensors");
    let check = |pairs: &[(&str, &[i64], &[i64])], parts: &[&str]| {
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        let tensors = pairs.iter().flat_map(|(name, a, b)| {
            [(format!("{name}.lora_A.weight"), zeros(a)), (format!("{name}.lora_B.weight"), zeros(b))]
        });
        write_weights(&path, &tensors.collect(), &BTreeMap::new()).unwrap();
        let message = Lora::load(&path, &model()).unwrap_err().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    };
    let conv = "unet.mid_block.resnets.0.conv1";
    check(&[(conv, &[2, 16, 1, 1], &[16, 2, 1, 1])], &[conv, "A: expected shape [2, 16, 3, 3]", "[2, 16, 1, 1]"]);
    check(&[(conv, &[2, 16, 3, 3], &[16, 2, 3, 3])], &[conv, "[out, 2, 1, 1]", "[16, 2, 3, 3]"]);
    check(&[(conv, &[2, 16, 3, 3], &[8, 2, 1, 1])], &["B: expected shape [16, 2]"]);
    check(&[("unet.mid_block.resnets.0.norm1", &[2, 16], &[16, 2])], &["norm1", "none of this name"]);
    let fc1 = "text_encoder.text_model.encoder.layers.7.mlp.fc1";
    check(&[(fc1, &[1, 12], &[24, 1])], &["text_encoder.encoder.layers.7.mlp.fc1", "none of this name"]);
    let mut single = model();
    single.text_encoder_2 = None;
    let message = Lora::load(&layers("whole.safetensors"), &single).unwrap_err().to_string();
    assert!(message.contains("text_encoder_2.encoder") && message.contains("more of this kind"), "{message}");
    let whole = Lora::load(&layers("whole.safetensors"), &model()).unwrap();
    assert!(single.merged(&whole).unwrap_err().to_string().contains("text_encoder_2"));
    assert!(whole.into_adapter(&unet()).unwrap_err().to_string().contains("transformers"));
}
