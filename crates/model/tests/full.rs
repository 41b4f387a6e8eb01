//! Whole U-Nets as policies: gradients of every parameter, mixed precision, files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use seedpo_model::adapter::LoraConfig;
use seedpo_model::{
    Beginning, DiffusionModel, FinetuningType, LoadOptions, Policy, PolicyWeights, UNet2DConditionModel, UNetConfig,
};
use seedpo_model::{ClipTokenizer, Conditioning, SchedulerConfig, TextConfig, VaeConfig};
use seedpo_tensor::{NoiseKey, Params, WeightFile};
use tch::{Device, Kind, Tensor};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The U-Net of the adapters' fixture in a model whose other parts take no part.
fn model() -> DiffusionModel {
    tch::set_num_threads(1);
    let place = Path::new("config.json");
    let text = r#"{"vocab_size": 1000, "hidden_size": 12, "intermediate_size": 12, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 77, "eos_token_id": 839}"#;
    let vae = r#"{"block_out_channels": [8], "norm_num_groups": 4, "layers_per_block": 1,
        "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]}"#;
    let file = WeightFile::open(&fixtures().join("adapter/unet.safetensors")).unwrap();
    let unet = UNetConfig::from_json(&file.metadata()["config"], place).unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("full-tokenizer");
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["vocab.json", "merges.txt", "sd1/tokenizer_config.json"] {
        let from = fixtures().join("tokenizer").join(name);
        let bytes = std::fs::read(&from).unwrap();
        seedpo_tensor::write_atomic(&folder.join(from.file_name().unwrap()), &bytes).unwrap();
    }
    let mut model = DiffusionModel::init(
        ClipTokenizer::from_folder(&folder).unwrap(),
        TextConfig::from_json(text, place).unwrap(),
        unet.clone(),
        VaeConfig::from_json(vae, place).unwrap(),
        SchedulerConfig::stable_diffusion(),
        0,
        Device::Cpu,
    )
    .unwrap();
    model.unet = UNet2DConditionModel::new(unet, Params::from_file(file, Device::Cpu, Kind::Float)).unwrap();
    model
}

fn inputs(model: &DiffusionModel) -> (Tensor, Tensor, Conditioning) {
    let draw = |purpose, shape: &[i64]| NoiseKey::new(3, purpose).normal(shape);
    let width = model.unet.config().cross_attention_dim[0];
    let conditioning = Conditioning {
        prompt_embeds: draw("c", &[2, 6, width]),
        negative_prompt_embeds: draw("n", &[1, 6, width]),
        added: None,
    };
    (draw("x", &[2, 4, 8, 8]), Tensor::from_slice(&[801i64, 101]), conditioning)
}

/// Takes the gradients of all weights away, by name.
fn gradients(weights: &PolicyWeights) -> BTreeMap<String, Tensor> {
    let take = |(name, tensor): (String, Tensor)| {
        let gradient = tensor.grad();
        assert!(gradient.defined(), "{name} has no gradient");
        assert_eq!((gradient.kind(), gradient.size()), (Kind::Float, tensor.size()), "{name}");
        let copy = gradient.copy();
        tensor.shallow_clone().zero_grad();
        (name, copy)
    };
    weights.trainable().into_iter().map(take).collect()
}

fn off(found: &Tensor, expected: &Tensor) -> f64 {
    let expected = expected.to_kind(Kind::Double);
    ((found - &expected).norm() / expected.norm().clamp_min(1e-12)).double_value(&[])
}

/// Gradient checkpointing gives every parameter, the time embedding's too, the gradient of one graph.
#[test]
fn every_parameter_gets_the_same_gradient_from_one_graph_and_stage_by_stage() {
    let model = model();
    let (latents, timesteps, conditioning) = inputs(&model);
    let direction = NoiseKey::new(3, "direction").normal(&[2, 4, 8, 8]);
    for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 0.05)] {
        let weights = PolicyWeights::Full(Box::new(model.unet.trainable_copy(kind).unwrap()));
        let policy = Policy::of(&model, Some(&weights));
        let noise = policy.predict_noise(&latents, &timesteps, &conditioning, 3.0).unwrap();
        (&noise * &direction).sum(Kind::Float).backward();
        let whole = gradients(&weights);
        assert_eq!(whole.len(), model.unet.parameters().len());
        let (recorded, recording) = policy.predict_noise_recorded(&latents, &timesteps, &conditioning, 3.0).unwrap();
        assert!(off(&recorded, &noise.detach()) < tolerance);
        policy.backward(recording, &direction).unwrap();
        for (name, gradient) in gradients(&weights) {
            // A bias before a group norm of one channel each has no gradient but rounding.
            let size = whole[&name].norm().double_value(&[]);
            assert!(
                off(&gradient, &whole[&name]) < tolerance || size < 1e-3,
                "{kind:?} {name}: {size}, {}",
                off(&gradient, &whole[&name])
            );
        }
    }
}

#[test]
fn f32_weights_computing_in_bf16_predict_what_bf16_weights_do() {
    let model = model();
    let (latents, timesteps, conditioning) = inputs(&model);
    let trained = PolicyWeights::Full(Box::new(model.unet.trainable_copy(Kind::BFloat16).unwrap()));
    let predict = |weights: &PolicyWeights| {
        let policy = Policy::of(&model, Some(weights));
        policy.predict_noise(&latents, &timesteps, &conditioning, 3.0).unwrap().detach()
    };
    let expected = predict(&trained);
    let (snapshot, merged) = (trained.snapshot().unwrap(), trained.merged(&model).unwrap());
    for other in [&snapshot, &merged] {
        assert_eq!(predict(other), expected);
        assert!(other.trainable().is_empty() && other.tensors()[0].1.kind() == Kind::BFloat16);
    }
    let average = trained.detached().unwrap();
    assert_eq!(predict(&average), expected);
    assert_eq!(average.tensors()[0].1.kind(), Kind::Float);
    // In-place changes to what is trained reach no copy.
    tch::no_grad(|| trained.tensors().into_iter().for_each(|(_, mut t)| drop(t.g_mul_scalar_(1.5))));
    assert_eq!((predict(&snapshot), predict(&average)), (expected.shallow_clone(), expected.shallow_clone()));
    assert_ne!(predict(&trained), expected);
}

#[test]
fn whole_weights_are_written_and_read_back_bit_for_bit() {
    let model = model();
    let folder = tempfile::tempdir().unwrap();
    let trained = Beginning::Full(LoadOptions::default()).make(&model).unwrap();
    tch::no_grad(|| trained.tensors().into_iter().for_each(|(_, mut t)| drop(t.g_mul_scalar_(1.25))));
    let place = folder.path().join("unet");
    trained.save(&place).unwrap();
    let again = PolicyWeights::load_trained(&place, &model, FinetuningType::Full).unwrap();
    assert_eq!(again.trainable(), trained.trainable());
    assert!(PolicyWeights::load_frozen(&place, &model, FinetuningType::Full).unwrap().trainable().is_empty());
    // In a model, by the folder or by what holds it.
    let base = folder.path().join("base");
    model.save(&base, None).unwrap();
    for path in [place.as_path(), folder.path()] {
        let options = LoadOptions { unet: Some(path.to_path_buf()), ..LoadOptions::default() };
        let found = DiffusionModel::load(&base, &options).unwrap();
        assert_eq!(found.unet.parameters()["conv_in.weight"], trained.tensors()[1].1.detach());
        assert_ne!(found.unet.parameters()["conv_in.weight"], model.unet.parameters()["conv_in.weight"]);
    }
    let options = LoadOptions { unet: Some(base.join("vae")), ..LoadOptions::default() };
    let message = DiffusionModel::load(&base, &options).unwrap_err().to_string();
    assert!(message.contains("vae/config.json"), "{message}");
}

/// f32 weights come from the model's file, whatever the base is held in, and also where its U-Net was not read.
#[test]
fn masters_lose_no_digit_of_the_file() {
    let model = model();
    let folder = tempfile::tempdir().unwrap();
    model.save(folder.path(), None).unwrap();
    for unet_weights in [true, false] {
        let options = LoadOptions { unet_weights, ..LoadOptions::new(Device::Cpu, Kind::BFloat16) };
        let base = DiffusionModel::load(folder.path(), &options).unwrap();
        assert_eq!((base.unet.kind(), base.unet.parameters().is_empty()), (Kind::BFloat16, !unet_weights));
        let beginning = Beginning::Full(options);
        let weights = beginning.make(&base).unwrap();
        let PolicyWeights::Full(unet) = &weights else { panic!("not whole") };
        assert_eq!((unet.kind(), unet.is_trained()), (Kind::BFloat16, true));
        let unchanged = || unet.parameters().iter().all(|(name, t)| t.detach() == model.unet.parameters()[name]);
        assert!(unchanged());
        tch::no_grad(|| weights.tensors().into_iter().for_each(|(_, mut t)| drop(t.g_mul_scalar_(1.25))));
        assert!(!unchanged());
        beginning.restore_into(&weights, &base).unwrap();
        assert!(unchanged());
    }
}

#[test]
fn weights_begin_again_only_as_what_they_are() {
    let model = model();
    let beginnings =
        [Beginning::Lora { config: LoraConfig::default(), seed: 3 }, Beginning::Full(LoadOptions::default())];
    for (beginning, other) in [(&beginnings[0], &beginnings[1]), (&beginnings[1], &beginnings[0])] {
        let (weights, fresh) = (beginning.make(&model).unwrap(), beginning.make(&model).unwrap());
        tch::no_grad(|| weights.tensors().into_iter().for_each(|(_, mut t)| drop(t.g_add_scalar_(1.0))));
        let message = other.restore_into(&weights, &model).unwrap_err().to_string();
        assert!(message.contains("a whole U-Net") && message.contains("an adapter"), "{message}");
        assert_ne!(weights.tensors(), fresh.tensors());
        beginning.restore_into(&weights, &model).unwrap();
        assert_eq!(weights.tensors(), fresh.tensors());
    }
}

/// Another network's values are refused by name, also where libtorch would broadcast them, and nothing is taken over.
#[test]
fn values_of_another_network_are_not_copied() {
    let unet = model().unet;
    let copy = unet.frozen_copy(Kind::Float).unwrap();
    let narrow = UNetConfig { out_channels: 1, ..unet.config().clone() };
    let narrow = UNet2DConditionModel::new(narrow, Params::init(1, Device::Cpu)).unwrap();
    let message = copy.copy_from(&narrow).unwrap_err().to_string();
    assert!(message.contains("conv_out") && message.contains("[1]"), "{message}");
    assert_eq!(copy.parameters(), unet.parameters());
    let other = unet.with_tensors(|_, tensor| Ok(tensor.zeros_like().to_kind(Kind::BFloat16))).unwrap();
    copy.copy_from(&other).unwrap();
    assert!(copy.parameters().values().all(|t| t.kind() == Kind::Float && t.count_nonzero(None).int64_value(&[]) == 0));
}
