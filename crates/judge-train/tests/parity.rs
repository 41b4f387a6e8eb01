//! Losses, gradients and noised pictures against PyTorch; fixture by `python/fixtures/judge_train.py`.

#[path = "../../judge/tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{fixture, picture, weight};
use seedpo_judge::step_aware_training;
use seedpo_judge_train::objective::{contrastive, preference, prompt_weights};
use seedpo_judge_train::{Draws, Noising};
use seedpo_model::{ClipConfig, ClipModel, DiffusionModel, LoadOptions};
use seedpo_tensor::{Device, Kind, Params, Tensor, read_text, tch};
use serde_json::Value;

fn expected() -> Value {
    serde_json::from_str(&read_text(&fixture("judge_train.json")).unwrap()).unwrap()
}

fn numbers<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The network with the fixture's weights, and its parameters, which record gradients.
fn network(fixture: &Value, shapes: &str) -> (ClipModel, BTreeMap<String, Tensor>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, fixture["config"].to_string()).unwrap();
    let time_conditioned = shapes == "step_shapes";
    let config = ClipConfig { time_conditioned, ..ClipConfig::from_file(&path).unwrap() };
    let own =
        |(name, shape): (&String, &Value)| (name.clone(), weight(name, &numbers::<i64>(shape)).set_requires_grad(true));
    let parameters: BTreeMap<String, Tensor> = fixture[shapes].as_object().unwrap().iter().map(own).collect();
    let shared = parameters.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
    let params = Params::from_tensors("fixture", shared, Device::Cpu, Kind::Float);
    (ClipModel::new(config, params).unwrap(), parameters)
}

/// Loss within 1e-4; every gradient's norm within 1e-4 of its own size, or of a fiftieth of the largest gradient's where that is
/// more, and so its product with a known tensor.
fn agrees(loss: &Tensor, parameters: &BTreeMap<String, Tensor>, wanted: &Value) {
    let value = wanted["loss"].as_f64().unwrap();
    assert!((loss.double_value(&[]) - value).abs() < 1e-4 * value.abs(), "{} {value}", loss.double_value(&[]));
    let leaves: Vec<&Tensor> = parameters.values().collect();
    let gradients = Tensor::run_backward(&[loss], &leaves, false, false);
    let largest = wanted["gradients"].as_object().unwrap().values().map(|g| g[0].as_f64().unwrap()).fold(0.0, f64::max);
    for ((name, parameter), gradient) in parameters.iter().zip(gradients) {
        let [norm, product, probe] = numbers::<f64>(&wanted["gradients"][name])[..] else { panic!("{name}") };
        let gradient = gradient.to_kind(Kind::Double);
        let found = gradient.norm().double_value(&[]);
        let projected = (gradient * weight(&format!("probe.{name}"), &parameter.size())).sum(Kind::Double);
        // Of what nearly cancels (a key's bias, the logit scale) rounding is all there is, and that depends on the kernels: with
        // one thread 1e-2 is enough, with two the bias of the last layer norm, 0.007, is 1.0e-6 off.
        let size = norm.max(2e-2 * largest);
        assert!((found - norm).abs() <= 1e-4 * size, "{name}: {found} {norm}");
        let apart = (projected.double_value(&[]) - product).abs();
        assert!(apart <= 1e-4 * size * probe, "{name}: {apart} of {product}");
    }
}

fn ids(fixture: &Value) -> Tensor {
    let rows: Vec<Vec<i64>> = numbers(&fixture["input_ids"]);
    Tensor::from_slice(&rows.concat()).view([rows.len() as i64, -1])
}

fn sides() -> [Tensor; 2] {
    [0, 1].map(|side| weight(&format!("pixels.{side}"), &[5, 3, 28, 28]))
}

#[test]
fn the_contrastive_loss_is_transformers() {
    let fixture = expected();
    let (model, parameters) = network(&fixture, "shapes");
    let images = model.image_features(&sides()[0], None).unwrap();
    let texts = model.text_features(&ids(&fixture)).unwrap();
    agrees(&contrastive(&images, &texts, model.logit_scale()), &parameters, &fixture["contrastive"]);
}

#[test]
fn the_preference_loss_is_pickscores() {
    let fixture = expected();
    let labels = Tensor::from_slice(&numbers::<f32>(&fixture["labels"]));
    let weights = Tensor::from_slice(&prompt_weights(&numbers::<u32>(&fixture["examples"])));
    let timesteps = Tensor::from_slice(&numbers::<i64>(&fixture["timesteps"]));
    for (shapes, case) in [("shapes", "preference"), ("step_shapes", "step_aware")] {
        let (model, parameters) = network(&fixture, shapes);
        let timesteps = (shapes == "step_shapes").then_some(&timesteps);
        let [first, second] = sides().map(|side| model.image_features(&side, timesteps).unwrap());
        let texts = model.text_features(&ids(&fixture)).unwrap();
        let loss = preference([&first, &second], &texts, model.logit_scale(), &labels, &weights);
        agrees(&loss, &parameters, &fixture[case]);
    }
}

#[test]
fn ties_ask_for_equal_scores() {
    let row = |values: &[f32]| Tensor::from_slice(values).view([1, -1]);
    let one = |label: f32, second: &[f32]| {
        let (label, weight) = (Tensor::from_slice(&[label]), Tensor::from_slice(&[1f32]));
        let (text, scale) = (row(&[1.0, 0.0]), Tensor::from(2f32));
        preference([&row(&[1.0, 1.0]), &row(second)], &text, &scale, &label, &weight).double_value(&[])
    };
    assert!(one(0.5, &[2.0, 2.0]).abs() < 1e-6 && one(0.5, &[1.0, 0.0]) > 0.1);
    assert!((one(1.0, &[2.0, 2.0]) - 2f64.ln()).abs() < 1e-6 && one(0.0, &[1.0, 0.0]) < one(1.0, &[1.0, 0.0]));
    assert_eq!(prompt_weights(&[1, 2, 2]), [0.5, 0.25, 0.25]);
}

/// Two pairs through the built-in model. Pixels are some 100 in norm, and a one-step prediction at timestep 951 divides by
/// √ᾱ = 0.1: 1e-3 of the norm.
#[test]
fn what_a_step_aware_judge_sees_is_diffusers() {
    let fixture = expected();
    let wanted = &fixture["predicted"];
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/emoji-sd");
    let model = DiffusionModel::load(&assets, &LoadOptions::default()).unwrap();
    let noising = Noising::new(model, 5.0, 64).unwrap();
    let shape = noising.latent_shape();
    assert_eq!(shape.to_vec(), numbers::<i64>(&wanted["latent_shape"]));
    let (prompts, timesteps): (Vec<String>, Vec<i64>) = (numbers(&wanted["prompts"]), numbers(&wanted["timesteps"]));
    let rows: Vec<Tensor> = (0..4).map(|seed| picture(64, 64, seed).to_kind(Kind::Float) / 127.5 - 1.0).collect();
    let pictures = Tensor::cat(&rows, 0).permute([0, 3, 1, 2]).contiguous();
    let [c, h, w] = shape;
    let draws = Draws { posterior: weight("posterior", &[4, c, h, w]), noise: weight("noise", &[2, c, h, w]) };
    let images = tch::no_grad(|| noising.predicted(&pictures, &prompts, &timesteps, &draws).unwrap());
    let prepared = step_aware_training(&images, 48).unwrap();
    let (norms, products) = (numbers::<f64>(&wanted["norms"]), numbers::<f64>(&wanted["products"]));
    for row in 0..4 {
        let one = prepared.get(row as i64).to_kind(Kind::Double);
        let found = one.norm().double_value(&[]);
        assert!((found - norms[row]).abs() < 1e-3 * norms[row], "{row}: {found} {}", norms[row]);
        let product = (one * weight("probe.pixels", &[3, 48, 48])).sum(Kind::Double).double_value(&[]);
        assert!((product - products[row]).abs() < 1e-3 * norms[row], "{row}: {product} {}", products[row]);
    }
}
