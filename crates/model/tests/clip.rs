//! Whole CLIPs: dialects of the tokenizer (fixture by `python/fixtures/judges.py`), gradients, the timestep's start.

use std::path::Path;

use seedpo_model::{Activation, ClipConfig, ClipDialect, ClipModel, ClipTokenizer, TextConfig, VisionConfig};
use seedpo_tensor::{Params, read_text};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

#[test]
fn each_dialect_gives_its_references_tokens() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/clip_dialects.json");
    let fixture: Value = serde_json::from_str(&read_text(&path).unwrap()).unwrap();
    let dialects = [
        ("transformers", ClipDialect::Transformers),
        ("openai", ClipDialect::OpenAi),
        ("open_clip", ClipDialect::OpenClip),
    ];
    for (name, dialect) in dialects {
        let tokenizer = ClipTokenizer::built_in(dialect).unwrap();
        for (text, expected) in fixture["texts"].as_array().unwrap().iter().zip(fixture[name].as_array().unwrap()) {
            let text = text.as_str().unwrap();
            let ids = Vec::<i64>::try_from(tokenizer.encode(&[text]).unwrap().view(-1)).unwrap();
            let expected: Vec<i64> = expected.as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
            assert_eq!(ids[..expected.len()], expected, "{name}: {text:?}");
            assert!(ids[expected.len()..].iter().all(|id| *id == tokenizer.pad_token_id()), "{name}: {text:?}");
        }
    }
}

fn config() -> ClipConfig {
    let act = Activation::Gelu;
    let text = TextConfig {
        vocab_size: 50,
        hidden_size: 16,
        intermediate_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        max_position_embeddings: 9,
        hidden_act: act,
        projection_dim: 12,
        with_projection: true,
        eos_token_id: 49,
        ..TextConfig::default()
    };
    let vision = VisionConfig {
        hidden_size: 24,
        intermediate_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 3,
        image_size: 16,
        patch_size: 4,
        hidden_act: act,
        ..VisionConfig::default()
    };
    ClipConfig { text, vision, projection_dim: 12, time_conditioned: false }
}

fn pixels() -> Tensor {
    seedpo_tensor::NoiseKey::new(1, "pixels").normal(&[3, 3, 16, 16])
}

#[test]
fn every_parameter_gets_a_gradient() {
    let clip = ClipModel::new(config(), Params::init(3, Device::Cpu)).unwrap();
    for parameter in clip.parameters().values() {
        let _ = parameter.set_requires_grad(true);
    }
    let ids = Tensor::from_slice(&[48i64, 3, 7, 49, 49, 48, 9, 49, 49, 49, 48, 1, 2, 3, 49]).view([3, 5]);
    let unit = |x: Tensor| &x / x.norm_scalaropt_dim(2, [-1], true);
    let (images, texts) =
        (unit(clip.image_features(&pixels(), None).unwrap()), unit(clip.text_features(&ids).unwrap()));
    let logits = images.matmul(&texts.tr()) * clip.logit_scale().exp();
    logits.cross_entropy_for_logits(&Tensor::arange(3, (Kind::Int64, Device::Cpu))).backward();
    for (name, parameter) in clip.parameters() {
        let grad = parameter.grad();
        assert!(grad.defined() && grad.abs().sum(Kind::Float).double_value(&[]) > 0.0, "{name}");
    }
}

#[test]
fn a_fresh_timestep_conditioning_changes_nothing_yet() {
    let clip = ClipModel::new(config(), Params::init(3, Device::Cpu)).unwrap();
    let added = ClipModel::fresh_time_conditioning(clip.config(), 5).unwrap();
    // Per layer weight and bias, the last modulation's, and two layers of the embedding.
    assert_eq!(added.len(), 2 * 2 + 2 + 4);
    let mut tensors: std::collections::BTreeMap<_, _> =
        clip.parameters().iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
    tensors.extend(added);
    let conditioned = ClipConfig { time_conditioned: true, ..config() };
    let timed = ClipModel::new(conditioned, Params::from_tensors("fresh", tensors, Device::Cpu, Kind::Float)).unwrap();
    let steps = Tensor::from_slice(&[0i64, 501, 999]);
    let (plain, at) =
        (clip.image_features(&pixels(), None).unwrap(), timed.image_features(&pixels(), Some(&steps)).unwrap());
    assert!((plain - at).abs().max().double_value(&[]) < 1e-6);
    assert!(timed.image_features(&pixels(), None).is_err() && clip.image_features(&pixels(), Some(&steps)).is_err());
}
