//! Loss, margins and every adapter gradient against an independent PyTorch in float64 (python/reference_losses.py).

use std::collections::BTreeMap;

use seedpo_align::objective::{ProbeLossSettings, probe_loss};
use serde_json::Value;
use tch::Tensor;

use crate::fixture::{adapter, cases, model, off};

/// f32 against float64: PyTorch's own f32 is up to 1.2e-5 off in these cases; 1e-4 is what we promise.
const TOLERANCE: f64 = 1e-4;

fn check(method: &str) {
    let model = model();
    let (policy, other) = (adapter("policy.safetensors", &model), adapter("reference.safetensors", &model));
    let (data, metadata) = cases(method);
    let inputs: BTreeMap<String, Tensor> =
        data.iter().filter(|(key, _)| !key.contains('.')).map(|(key, t)| (key.clone(), t.shallow_clone())).collect();
    let settings: Vec<Value> = serde_json::from_str(&metadata["cases"]).unwrap();
    let keys: Vec<String> = serde_json::from_str(&metadata["keys"]).unwrap();
    let mut worst = [0.0f64; 3];
    for (n, mut case) in settings.into_iter().enumerate() {
        let reference = case.get("reference_adapter").is_some().then_some(&other);
        case["adapter"] = "policy.safetensors".into();
        let settings: ProbeLossSettings = serde_json::from_value(case.clone()).unwrap();
        let ours = probe_loss(&model, &policy, reference, &inputs, &settings).unwrap();
        assert_eq!(ours.grads.keys().collect::<Vec<_>>(), keys.iter().collect::<Vec<_>>());
        let at = |what: &str| data[&format!("{n}.{what}")].shallow_clone();
        let mut start = 0;
        let expected = at("grads");
        for gradient in ours.grads.values() {
            let count = gradient.numel() as i64;
            let part = expected.narrow(0, start, count);
            start += count;
            let apart = off(&gradient.flatten(0, -1), &part);
            assert!(apart < TOLERANCE, "{method} case {n} {case}: a gradient is {apart:.1e} off");
            worst[2] = worst[2].max(apart);
        }
        assert_eq!(start, expected.numel() as i64);
        for (i, (found, what)) in [(&ours.loss, "loss"), (&ours.margin, "margin")].into_iter().enumerate() {
            let apart = off(found, &at(what));
            assert!(apart < TOLERANCE, "{method} case {n} {case}: {what} is {apart:.1e} off");
            worst[i] = worst[i].max(apart);
        }
    }
    println!(
        "{method}: loss {:.1e}, margin {:.1e}, gradients {:.1e} from PyTorch's float64",
        worst[0], worst[1], worst[2]
    );
}

#[test]
fn spo_equals_pytorch() {
    check("spo");
}

#[test]
fn d3po_equals_pytorch() {
    check("d3po");
}

#[test]
fn diffusion_dpo_equals_pytorch() {
    check("diffusion-dpo");
}

#[test]
fn seppo_equals_pytorch() {
    check("seppo");
}

#[test]
fn the_safeguard_equals_the_condition_it_is_derived_from() {
    for method in ["spo", "d3po", "diffusion-dpo", "seppo"] {
        check(&format!("safeguard-{method}"));
    }
}

#[test]
fn spin_equals_pytorch() {
    check("spin");
}

#[test]
fn sft_equals_pytorch() {
    check("sft");
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let model = model();
    let policy = adapter("policy.safetensors", &model);
    let (data, metadata) = cases("spo");
    let inputs = || -> BTreeMap<String, Tensor> {
        data.iter().filter(|(key, _)| !key.contains('.')).map(|(key, t)| (key.clone(), t.shallow_clone())).collect()
    };
    let mut settings: Vec<Value> = serde_json::from_str(&metadata["cases"]).unwrap();
    settings[0]["adapter"] = "policy.safetensors".into();
    let settings: ProbeLossSettings = serde_json::from_value(settings.remove(0)).unwrap();
    let refuse = |inputs: BTreeMap<String, Tensor>, settings: &ProbeLossSettings| {
        probe_loss(&model, &policy, None, &inputs, settings).unwrap_err().to_string()
    };
    let mut missing = inputs();
    missing.remove("next_latents_l");
    assert!(refuse(missing, &settings).contains("`next_latents_l`"));
    let mut misshaped = inputs();
    misshaped.insert("next_latents_w".into(), data["next_latents_w"].narrow(0, 0, 1));
    let message = refuse(misshaped, &settings);
    assert!(message.contains("`next_latents_w`") && message.contains("[4, 4, 8, 8]"), "{message}");
    let mut surplus = inputs();
    surplus.insert("noise".into(), data["latents"].shallow_clone());
    assert!(refuse(surplus, &settings).contains("`noise`"));
    let mut guided = inputs();
    guided.remove("negative_prompt_embeds");
    let settings_at = |change: &dyn Fn(&mut ProbeLossSettings)| {
        let mut changed = settings.clone();
        change(&mut changed);
        changed
    };
    assert!(refuse(guided, &settings_at(&|s| s.guidance_scale = 5.0)).contains("`negative_prompt_embeds`"));
    assert!(refuse(inputs(), &settings_at(&|s| s.method = "seppo".into())).contains("`seppo`"));
    assert!(
        refuse(inputs(), &settings_at(&|s| s.shaping = Some(seedpo_align::objective::Flipper::Sign)))
            .contains("shaping")
    );
    assert!(refuse(inputs(), &settings_at(&|s| s.beta = 0.0)).contains("beta"));
    assert!(refuse(inputs(), &settings_at(&|s| s.eta = 0.0)).contains("standard deviation is 0"));
    assert!(refuse(inputs(), &settings_at(&|s| s.steps = 0)).contains("`steps`"));
}
