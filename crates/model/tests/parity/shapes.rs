//! Names, shapes and counts of the published models; strict loading; folders written and read back.

use std::collections::BTreeMap;
use std::path::Path;

use seedpo_model::tokenizer::ClipTokenizer;
use seedpo_model::{
    AutoencoderKl, ClipTextModel, DiffusionModel, LoadOptions, SchedulerConfig, TextConfig, UNet2DConditionModel,
    UNetConfig, VaeConfig,
};
use seedpo_tensor::{Device, Kind, Params, Tensor};

use super::configs::{TEXT_SD15, TEXT_SD21, TEXT2_SDXL, UNET_SD15, UNET_SD21, UNET_SDXL, VAE_SD15};
use super::weights::Fixture;

fn count(shapes: &BTreeMap<String, Vec<i64>>) -> i64 {
    shapes.values().map(|shape| shape.iter().product::<i64>()).sum()
}

#[test]
fn published_models_have_their_published_sizes() {
    let unet = |json| UNet2DConditionModel::parameter_shapes(&UNetConfig::from_json(json, Path::new("")).unwrap());
    let text = |json| ClipTextModel::parameter_shapes(&TextConfig::from_json(json, Path::new("")).unwrap());
    let sd15 = unet(UNET_SD15).unwrap();
    assert_eq!((count(&sd15), sd15.len()), (859_520_964, 686));
    let expected = [
        ("conv_in.weight", &[320, 4, 3, 3][..]),
        ("time_embedding.linear_2.weight", &[1280, 1280]),
        ("down_blocks.0.attentions.0.proj_in.weight", &[320, 320, 1, 1]),
        ("down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k.weight", &[640, 768]),
        ("mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight", &[10240, 1280]),
        ("up_blocks.1.resnets.2.conv_shortcut.weight", &[1280, 1920, 1, 1]),
        ("up_blocks.3.resnets.0.conv1.weight", &[320, 960, 3, 3]),
        ("up_blocks.3.attentions.2.transformer_blocks.0.attn1.to_out.0.bias", &[320]),
    ];
    for (name, shape) in expected {
        assert_eq!(sd15[name], shape, "{name}");
    }
    let sd21 = unet(UNET_SD21).unwrap();
    assert_eq!(count(&sd21), 865_910_724);
    assert_eq!(sd21["down_blocks.0.attentions.0.proj_in.weight"], [320, 320]);
    let sdxl = unet(UNET_SDXL).unwrap();
    assert_eq!((count(&sdxl), sdxl.len()), (2_567_463_684, 1680));
    assert_eq!(sdxl["add_embedding.linear_1.weight"], [1280, 2816]);
    assert_eq!(sdxl["mid_block.attentions.0.transformer_blocks.9.attn2.to_v.weight"], [1280, 2048]);
    let vae = AutoencoderKl::parameter_shapes(&VaeConfig::from_json(VAE_SD15, Path::new("")).unwrap()).unwrap();
    assert_eq!((count(&vae), vae.len()), (83_653_863, 248));
    assert_eq!(vae["encoder.mid_block.attentions.0.to_out.0.weight"], [512, 512]);
    let clip = text(TEXT_SD15).unwrap();
    assert_eq!((count(&clip), clip.len()), (123_060_480, 196));
    assert_eq!(count(&text(TEXT_SD21).unwrap()), 340_387_840);
    let second = text(TEXT2_SDXL).unwrap();
    assert_eq!((count(&second), second.len()), (694_659_840, 517));
    assert_eq!(second["text_projection.weight"], [1280, 1280]);
}

#[test]
fn sd15_has_192_layers_for_adapters() {
    let unet = UNetConfig { block_out_channels: vec![32, 64, 64, 64], norm_num_groups: 8, ..UNetConfig::default() };
    let unet = UNet2DConditionModel::new(unet, Params::init(1, Device::Cpu)).unwrap();
    // 16 transformers: 8 attention projections, 2 feed-forward layers, proj_in and proj_out.
    assert_eq!(unet.projections().len(), 192);
    assert_eq!(unet.projections().iter().filter(|layer| layer.path.contains(".attn")).count(), 128);
    for projection in unet.projections() {
        let shape = projection.shape(projection.out_features, projection.in_features);
        assert_eq!(unet.weight(&projection.path).unwrap().size(), shape, "{}", projection.path);
    }
    assert!(unet.weight("mid_block.nothing").unwrap_err().to_string().contains("mid_block.nothing"));
}

#[test]
fn every_misfit_of_a_network_is_named() {
    let unet = Fixture::open("unet", "heads-int");
    let mut weights = unet.weights();
    drop(weights.remove("mid_block.resnets.0.norm1.bias").unwrap());
    weights.insert("surplus.weight".into(), Tensor::zeros([1], (Kind::Float, Device::Cpu)));
    weights.insert("conv_in.weight".into(), Tensor::zeros([16, 5, 3, 3], (Kind::Float, Device::Cpu)));
    let config = UNetConfig::from_json(unet.config(), Path::new("unet/config.json")).unwrap();
    let params = Params::from_tensors("unet/weights.safetensors", weights, Device::Cpu, Kind::Float);
    let message = UNet2DConditionModel::new(config, params).unwrap_err().to_string();
    for part in [
        "unet/weights.safetensors",
        "missing `mid_block.resnets.0.norm1.bias`: expected shape [32]",
        "surplus `surplus.weight`",
        "`conv_in.weight`: expected shape [16, 4, 3, 3], found [16, 5, 3, 3]",
    ] {
        assert!(message.contains(part), "{part} not in {message}");
    }
}

#[test]
fn text_encoders_load_with_and_without_prefix() {
    let fixture = Fixture::open("text", "gelu-first-eos");
    let config = TextConfig::from_json(fixture.config(), Path::new("config.json")).unwrap();
    let run = |weights: BTreeMap<String, Tensor>| {
        let params = Params::from_tensors("model.safetensors", weights, Device::Cpu, Kind::Float);
        let text = ClipTextModel::new(config.clone(), params).unwrap();
        text.forward(fixture.get("input_ids")).unwrap().pooled
    };
    let mut old: BTreeMap<String, Tensor> =
        fixture.weights().into_iter().map(|(name, tensor)| (format!("text_model.{name}"), tensor)).collect();
    old.insert(
        "text_model.embeddings.position_ids".into(),
        Tensor::arange(12, (Kind::Int64, Device::Cpu)).unsqueeze(0),
    );
    assert_eq!(run(fixture.weights()), run(old));
}

#[test]
fn vae_attention_loads_under_its_old_names() {
    let fixture = Fixture::open("vae", "two-levels");
    let config = VaeConfig::from_json(fixture.config(), Path::new("config.json")).unwrap();
    let old_name = |name: &str| {
        let pairs = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
        let attention = name.contains("attentions.0.to_");
        let renamed = pairs.iter().fold(name.to_owned(), |n, (new, old)| n.replace(new, old));
        if attention { renamed } else { name.to_owned() }
    };
    for as_convolution in [false, true] {
        let old = fixture.weights().into_iter().map(|(name, tensor)| {
            let linear = name.contains("attentions.0.to_") && name.ends_with("weight");
            let tensor = if linear && as_convolution { tensor.unsqueeze(-1).unsqueeze(-1) } else { tensor };
            (old_name(&name), tensor)
        });
        let old: BTreeMap<String, Tensor> = old.collect();
        assert!(old.contains_key("decoder.mid_block.attentions.0.proj_attn.bias"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vae.safetensors");
        seedpo_tensor::write_weights(&path, &old, &BTreeMap::new()).unwrap();
        let file = seedpo_model::vae::modern_names(seedpo_tensor::WeightFile::open(&path).unwrap()).unwrap();
        let params = Params::from_file(file, Device::Cpu, Kind::Float);
        let vae = AutoencoderKl::new(config.clone(), params).unwrap();
        fixture.check("decoded", &vae.decode_latents(fixture.get("latents")).unwrap(), super::FORWARD);
    }
}

/// A small fresh model over the tokenizer fixture, whose files are in the folder returned beside it.
fn small_model() -> (DiffusionModel, tempfile::TempDir) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer");
    let folder = tempfile::tempdir().unwrap();
    for file in ["vocab.json", "merges.txt", "sd1/tokenizer_config.json"] {
        let name = Path::new(file).file_name().unwrap();
        std::fs::copy(source.join(file), folder.path().join(name)).unwrap();
    }
    let tokenizer = ClipTokenizer::from_folder(folder.path()).unwrap();
    let vocab_size = tokenizer.eos_token_id() + 1;
    let text = TextConfig {
        vocab_size,
        hidden_size: 24,
        intermediate_size: 32,
        num_hidden_layers: 1,
        eos_token_id: tokenizer.eos_token_id(),
        ..TextConfig::default()
    };
    let fixture = |folder, name| Fixture::open(folder, name);
    let unet = UNetConfig::from_json(fixture("unet", "heads-int").config(), Path::new("")).unwrap();
    let vae = VaeConfig::from_json(fixture("vae", "two-levels").config(), Path::new("")).unwrap();
    let scheduler = SchedulerConfig::stable_diffusion();
    (DiffusionModel::init(tokenizer, text, unet, vae, scheduler, 3, Device::Cpu).unwrap(), folder)
}

#[test]
fn a_folder_written_is_the_folder_read() {
    let (model, _tokenizer) = small_model();
    let folder = tempfile::tempdir().unwrap();
    model.save(folder.path(), None).unwrap();
    let again = DiffusionModel::load(folder.path(), &LoadOptions::default()).unwrap();
    assert_eq!(model.unet.parameters(), again.unet.parameters());
    assert_eq!(model.vae.parameters(), again.vae.parameters());
    assert_eq!(model.text_encoder.parameters(), again.text_encoder.parameters());
    assert_eq!((model.unet.config(), model.vae.config()), (again.unet.config(), again.vae.config()));
    assert_eq!(model.text_encoder.config(), again.text_encoder.config());
    assert_eq!((&model.scheduler, &model.schedule), (&again.scheduler, &again.schedule));
    let prompts = ["a red apple", ""];
    assert_eq!(model.encode_prompts(&prompts).unwrap(), again.encode_prompts(&prompts).unwrap());

    model.save(folder.path(), Some(Kind::Half)).unwrap();
    let half = DiffusionModel::load(folder.path(), &LoadOptions::new(Device::Cpu, Kind::BFloat16)).unwrap();
    assert_eq!((half.unet.kind(), half.vae.kind()), (Kind::BFloat16, Kind::Float));
    let rounded = model.vae.parameters()["decoder.conv_in.weight"].to_kind(Kind::Half).to_kind(Kind::Float);
    assert_eq!(half.vae.parameters()["decoder.conv_in.weight"], rounded);
}

#[test]
fn faults_of_a_folder_are_named() {
    let (model, _tokenizer) = small_model();
    let broken = |file: &str, change: &dyn Fn(&Path)| {
        let folder = tempfile::tempdir().unwrap();
        model.save(folder.path(), Some(Kind::Half)).unwrap();
        change(&folder.path().join(file));
        DiffusionModel::load(folder.path(), &LoadOptions::default()).unwrap_err().to_string()
    };
    let edit = |from: &'static str, to: &'static str| {
        move |path: &Path| {
            let text = std::fs::read_to_string(path).unwrap();
            assert!(text.contains(from), "{from} not in {text}");
            std::fs::write(path, text.replace(from, to)).unwrap();
        }
    };
    let remove = |path: &Path| std::fs::remove_file(path).unwrap();
    let weights = "diffusion_pytorch_model.safetensors";
    let truncate = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    };
    type Case<'a> = (&'a str, &'a dyn Fn(&Path), &'a str);
    let cases: [Case; 10] = [
        ("model_index.json", &remove, "model_index.json"),
        ("model_index.json", &edit("StableDiffusionPipeline", "FluxPipeline"), "found \"FluxPipeline\""),
        ("model_index.json", &edit("CLIPTextModel", "T5EncoderModel"), "`text_encoder`: expected a CLIPTextModel"),
        ("unet/config.json", &edit("{", "{\"mystery\": 1,"), "key `mystery`: expected no such key"),
        ("unet/config.json", &edit("\"cross_attention_dim\": 24", "\"cross_attention_dim\": 25"), "hidden_size"),
        ("vae/config.json", &edit("\"latent_channels\": 4", "\"latent_channels\": 5"), "latent_channels"),
        (&format!("unet/{weights}"), &remove, "no such file"),
        (&format!("vae/{weights}"), &truncate, weights),
        ("text_encoder/config.json", &|path| std::fs::write(path, "{not json").unwrap(), "expected JSON"),
        ("scheduler/scheduler_config.json", &edit("\"scaled_linear\"", "\"cubic\""), "found \"cubic\""),
    ];
    for (file, change, expected) in cases {
        let message = broken(file, change);
        assert!(message.contains(expected), "{file}: `{expected}` not in: {message}");
    }
}
