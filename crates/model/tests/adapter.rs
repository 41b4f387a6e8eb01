//! Adapters against peft and diffusers: files in every layout, predictions, gradients, merging; and strict errors.
//!
//! Fixture: python/fixtures/adapter.py. Tolerances: 2e-5 of the largest value forward, 1e-4 for gradients, f32.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use seedpo_model::adapter::{Adapter, Delta, Lora, LoraConfig, LoraInit, LoraModule};
use seedpo_model::config::UNetConfig;
use seedpo_model::unet::UNet2DConditionModel;
use seedpo_tensor::{Params, WeightFile, write_weights};
use tch::{Device, Kind, Tensor};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/adapter")
}

fn unet_of_kind(kind: Kind) -> UNet2DConditionModel {
    let file = WeightFile::open(&fixtures().join("unet.safetensors")).unwrap();
    let config = UNetConfig::from_json(&file.metadata()["config"], Path::new("config.json")).unwrap();
    UNet2DConditionModel::new(config, Params::from_file(file, Device::Cpu, kind)).unwrap()
}

fn unet() -> UNet2DConditionModel {
    unet_of_kind(Kind::Float)
}

fn expected() -> BTreeMap<String, Tensor> {
    WeightFile::open(&fixtures().join("expected.safetensors")).unwrap().tensors().unwrap()
}

fn forward(unet: &UNet2DConditionModel, e: &BTreeMap<String, Tensor>, adapter: Option<&Adapter>) -> Tensor {
    unet.forward(&e["latents"], &e["timestep"], &e["prompt_embeds"], None, adapter).unwrap()
}

/// The largest difference relative to the largest value.
fn off(found: &Tensor, expected: &Tensor) -> f64 {
    ((found - expected).abs().max() / expected.abs().max()).double_value(&[])
}

fn values(adapter: &Adapter) -> BTreeMap<String, Tensor> {
    adapter.tensors().into_iter().collect()
}

#[test]
fn every_layout_predicts_what_diffusers_and_peft_predict() {
    let (unet, e) = (unet(), expected());
    assert!(off(&forward(&unet, &e, None), &e["base"]) < 2e-5);
    for (name, file) in [
        ("peft", "peft.safetensors"),
        ("diffusers", "diffusers.safetensors"),
        ("old", "old.safetensors"),
        ("native", "native/adapter_model.safetensors"),
        ("native", "native"),
        ("network", "network.safetensors"),
    ] {
        let adapter = Adapter::load(&fixtures().join(file), &unet).unwrap();
        let error = off(&forward(&unet, &e, Some(&adapter)), &e[name]);
        assert!(error < 2e-5, "{file}: {error}");
    }
}

#[test]
fn gradients_equal_those_of_peft() {
    let (unet, e) = (unet(), expected());
    let adapter = Adapter::load(&fixtures().join("peft.safetensors"), &unet).unwrap();
    (forward(&unet, &e, Some(&adapter)) * &e["weight"]).sum(Kind::Float).backward();
    let trainable = adapter.trainable();
    assert_eq!(trainable.len(), e.keys().filter(|key| key.starts_with("grad.")).count());
    assert!(trainable.is_sorted_by(|a, b| a.0 < b.0));
    for (key, tensor) in trainable {
        let error = off(&tensor.grad(), &e[&format!("grad.{key}")]);
        assert!(error < 1e-4, "{key}: {error}");
    }
}

#[test]
fn merged_weights_equal_those_that_diffusers_fuses() {
    let (unet, e) = (unet(), expected());
    let adapter = Adapter::load(&fixtures().join("peft.safetensors"), &unet).unwrap();
    let before = unet.weight("mid_block.attentions.0.transformer_blocks.0.attn1.to_k").unwrap().copy();
    let merged = adapter.merge(&unet).unwrap();
    let mut seen = 0;
    for (key, fused) in e.iter().filter_map(|(key, t)| Some((key.strip_prefix("fused.")?, t))) {
        let Some(Delta::Weight(weight)) = merged.delta(key) else { panic!("{key} is not merged") };
        assert!(off(weight, fused) < 1e-6, "{key}");
        seen += 1;
    }
    assert!(seen >= 3);
    assert!(off(&forward(&unet, &e, Some(&merged)), &e["peft"]) < 2e-5);
    assert!(merged.trainable().is_empty() && !forward(&unet, &e, Some(&merged)).requires_grad());
    assert_eq!(*unet.weight("mid_block.attentions.0.transformer_blocks.0.attn1.to_k").unwrap(), before);
}

/// A bf16 base keeps its dtype; the low-rank part stays f32. bf16 has 8 bits: 2 % through this network.
#[test]
fn a_bf16_base_keeps_f32_lora_weights() {
    let (unet, e) = (unet_of_kind(Kind::BFloat16), expected());
    let adapter = Adapter::load(&fixtures().join("peft.safetensors"), &unet).unwrap();
    assert!(adapter.tensors().iter().all(|(_, tensor)| tensor.kind() == Kind::Float));
    let found = forward(&unet, &e, Some(&adapter));
    assert_eq!(found.kind(), Kind::BFloat16);
    assert!(off(&found.to_kind(Kind::Float), &e["peft"]) < 2e-2);
    let merged = adapter.merge(&unet).unwrap();
    assert!(merged.tensors().iter().all(|(_, tensor)| tensor.kind() == Kind::BFloat16));
}

#[test]
fn a_fresh_lora_is_the_base_and_its_draws_are_keyed() {
    let (unet, e) = (unet(), expected());
    let config = LoraConfig { rank: 2, alpha: 4.0, ..LoraConfig::default() };
    let adapter = Adapter::lora(&unet, &config, 9).unwrap();
    assert_eq!(forward(&unet, &e, Some(&adapter)), forward(&unet, &e, None));
    let attention = unet.projections().iter().filter(|p| p.path.contains(".attn")).count();
    assert_eq!(adapter.paths().count(), attention);
    assert!(adapter.trainable().iter().all(|(_, t)| t.requires_grad() && t.is_leaf() && t.kind() == Kind::Float));

    // One projection's values depend on seed and path alone, not on which others are adapted.
    let fewer = LoraConfig { targets: vec!["attn2.to_v".into()], ..config.clone() };
    let fewer = Adapter::lora(&unet, &fewer, 9).unwrap();
    let all = values(&adapter);
    assert!(fewer.paths().count() >= 3 && fewer.paths().all(|path| path.ends_with("attn2.to_v")));
    for (key, tensor) in fewer.tensors() {
        assert_eq!(tensor, all[&key], "{key}");
    }
    assert_ne!(values(&Adapter::lora(&unet, &config, 10).unwrap()).values().next(), all.values().next());
}

/// A's spread: standard deviation 1/r (Gaussian), 1/√(3·in) within ±1/√in (Kaiming-uniform), as peft's.
#[test]
fn initial_values_have_the_spread_of_pefts() {
    let unet = unet();
    let all_a = |init| {
        let config = LoraConfig { rank: 8, alpha: 8.0, init, ..LoraConfig::default() };
        let adapter = Adapter::lora(&unet, &config, 1).unwrap();
        assert!(
            adapter.tensors().iter().all(|(k, t)| k.ends_with("A.weight") || t.abs().max().double_value(&[]) == 0.0)
        );
        let of_width = |t: &Tensor| t.size() == [8, 8];
        let a = adapter.tensors().into_iter().filter(|(k, t)| k.ends_with("A.weight") && of_width(t));
        Tensor::cat(&a.map(|(_, t)| t.detach()).collect::<Vec<_>>(), 0)
    };
    let (gaussian, uniform) = (all_a(LoraInit::Gaussian), all_a(LoraInit::KaimingUniform));
    let std = |t: &Tensor| t.std(true).double_value(&[]);
    let count = gaussian.numel() as f64;
    let bound = 1.0 / 8f64.sqrt();
    // Four standard errors of a standard deviation.
    assert!((std(&gaussian) * 8.0 - 1.0).abs() < 4.0 / (2.0 * count).sqrt(), "{}", std(&gaussian));
    assert!((std(&uniform) / (bound / 3f64.sqrt()) - 1.0).abs() < 4.0 / (2.0 * count).sqrt(), "{}", std(&uniform));
    assert!(uniform.abs().max().double_value(&[]) <= bound + 1e-6);
}

#[test]
fn saving_and_loading_keep_values_scales_and_bytes() {
    let (unet, e) = (unet(), expected());
    let folder = tempfile::tempdir().unwrap();
    for name in ["peft.safetensors", "diffusers.safetensors", "native"] {
        let first = Adapter::load(&fixtures().join(name), &unet).unwrap();
        let (path, again) = (folder.path().join("pytorch_lora_weights.safetensors"), folder.path().join("again"));
        first.save(&path).unwrap();
        let second = Adapter::load(folder.path(), &unet).unwrap();
        second.save(&again).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&again).unwrap(), "{name}");
        assert_eq!(values(&first), values(&second));
        let (a, b) = (forward(&unet, &e, Some(&first)), forward(&unet, &e, Some(&second)));
        assert!(off(&a, &b) < 1e-6, "{name}");
    }
}

#[test]
fn the_file_has_the_keys_and_metadata_of_diffusers() {
    let unet = unet();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_lora_weights.safetensors");
    Adapter::load(&fixtures().join("peft.safetensors"), &unet).unwrap().save(&path).unwrap();
    let (ours, theirs) =
        (WeightFile::open(&path).unwrap(), WeightFile::open(&fixtures().join("peft.safetensors")).unwrap());
    assert!(ours.names().eq(theirs.names()));
    let json = |file: &WeightFile| -> serde_json::Value {
        serde_json::from_str(&file.metadata()["lora_adapter_metadata"]).unwrap()
    };
    assert_eq!(ours.metadata()["format"], "pt");
    let (ours, theirs) = (json(&ours), json(&theirs));
    for (key, value) in ours.as_object().unwrap() {
        // Targets are spelled out path by path in ours; all other fields are peft's own.
        if key != "unet.target_modules" {
            assert_eq!(value, &theirs[key], "{key}");
        }
    }
    let attention = unet.projections().iter().filter(|p| p.path.contains(".attn")).count();
    assert_eq!(ours["unet.target_modules"].as_array().unwrap().len(), attention);
}

#[test]
fn a_snapshot_stays_and_a_shallow_copy_follows() {
    let unet = unet();
    let adapter = Adapter::lora(&unet, &LoraConfig::default(), 3).unwrap();
    let (snapshot, shallow) = (adapter.detached(), adapter.shallow());
    tch::no_grad(|| adapter.trainable().into_iter().for_each(|(_, mut tensor)| drop(tensor.fill_(0.5))));
    assert_ne!(values(&adapter), values(&snapshot));
    assert_eq!(values(&adapter), values(&shallow));
    assert!(snapshot.trainable().is_empty());
}

#[test]
fn settings_that_no_projection_fits_are_refused() {
    let unet = unet();
    let good = LoraConfig::default();
    for (config, parts) in [
        (LoraConfig { rank: 0, ..good.clone() }, ["rank", "0"]),
        (LoraConfig { rank: 500, ..good.clone() }, ["rank", "500"]),
        (LoraConfig { alpha: f64::NAN, ..good.clone() }, ["alpha", "NaN"]),
        (LoraConfig { targets: vec!["to_q".into(), "to_x".into()], ..good.clone() }, ["target", "to_x"]),
        (LoraConfig { targets: Vec::new(), ..good.clone() }, ["targets", "none"]),
        (
            LoraConfig { targets: vec!["attention".into(), "fc1".into()], ..good.clone() },
            ["fc1 (the text encoders", "all-linear"],
        ),
        (
            LoraConfig { targets: vec!["resnets.0.conv1".into()], ..good.clone() },
            ["conv1 (convolutions", "sample --adapter"],
        ),
        (LoraConfig { targets: vec!["linear_1".into()], ..good.clone() }, ["the time embedding", "proj_in"]),
    ] {
        let message = Adapter::lora(&unet, &config, 0).unwrap_err().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
}

/// Files that do not fit are refused; every problem is named with the key, what was expected and what was found.
#[test]
fn files_that_do_not_fit_are_refused_by_name() {
    const Q: &str = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
    let unet = unet();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.safetensors");
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let (a, b) = (format!("{Q}.lora_A.weight"), format!("{Q}.lora_B.weight"));
    let check = |tensors: &[(&str, Tensor)], metadata: Option<&str>, parts: &[&str]| {
        let tensors = tensors.iter().map(|(name, t)| (name.to_string(), t.shallow_clone())).collect();
        let metadata = metadata.map(|json| ("lora_adapter_metadata".to_owned(), json.to_owned())).into_iter().collect();
        write_weights(&path, &tensors, &metadata).unwrap();
        let message = Adapter::load(&path, &unet).unwrap_err().to_string();
        for part in parts.iter().chain([&"adapter.safetensors"]) {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
    };
    let pair = || [(a.as_str(), zeros(&[2, 16])), (b.as_str(), zeros(&[16, 2]))];
    check(&[], None, &["found none"]);
    check(&[(&a, zeros(&[2, 16]))], None, &["lora_B", "missing", &a]);
    check(&[(&b, zeros(&[16, 2]))], None, &["lora_A", "missing", &b]);
    let path_of_q = Q.strip_prefix("unet.").unwrap();
    check(&[(&a, zeros(&[2, 15])), (&b, zeros(&[16, 2]))], None, &[path_of_q, "A: expected shape [2, 16]", "[2, 15]"]);
    check(&[(&a, zeros(&[2, 16])), (&b, zeros(&[17, 2]))], None, &[path_of_q, "B: expected shape [16, 2]", "[17, 2]"]);
    check(&[(&a, zeros(&[2, 16])), (&b, zeros(&[16, 3]))], None, &[&b, "[out, 2]", "[16, 3]"]);
    check(&[(&a, zeros(&[2])), (&b, zeros(&[16, 2]))], None, &["[rank, in]", "[2]"]);
    check(&[(&a, zeros(&[0, 16])), (&b, zeros(&[16, 0]))], None, &["[rank, in]", "[0, 16]"]);
    check(&[(&a, zeros(&[2, 16]).to_kind(Kind::Int64)), (&b, zeros(&[16, 2]))], None, &["floating-point", "Int64"]);
    check(
        &[("unet.foo.lora_A.weight", zeros(&[1, 1]))],
        None,
        &["unet.foo", "Stable Diffusion does not have", "--ignore-unsupported"],
    );
    check(&[("unet.conv_in.weight", zeros(&[1]))], None, &["unet.conv_in.weight", "lora_A", "--ignore-unsupported"]);
    let ends = [("conv_in.weight", zeros(&[1])), ("conv_out.weight", zeros(&[1]))];
    check(&ends, None, &["a whole U-Net, not an adapter", "seedpo sample --unet"]);
    check(&ends[..1], None, &["keys of no layout", "conv_in.weight"]);
    check(&[("model.diffusion_model.out.2.bias", zeros(&[1]))], None, &["a whole model, not an adapter", "--model"]);
    for (a, b) in [
        (
            "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
            "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
        ),
        ("unet.mid_block.resnets.0.conv1.lora_A.weight", "unet.mid_block.resnets.0.conv1.lora_B.weight"),
    ] {
        let parts = &["1 other layer(s)", "sample --adapter", "adapter merge --model"];
        check(&[(a, zeros(&[1, 4])), (b, zeros(&[4, 1]))], None, parts);
    }
    check(&[("lora_unet_mid_block.lora_down.weight", zeros(&[1]))], None, &["lora_unet_mid_block", "does not have"]);
    check(
        &[(&format!("{Q}.lora_magnitude_vector.weight"), zeros(&[1]))],
        None,
        &["DoRA", "merge the file into its model"],
    );
    let other = "unet.down_blocks.7.attentions.0.transformer_blocks.0.attn1.to_q";
    let (down, up) = (format!("{other}.lora_A.weight"), format!("{other}.lora_B.weight"));
    check(&[(&down, zeros(&[2, 16])), (&up, zeros(&[16, 2]))], None, &["of this U-Net", "down_blocks.7"]);
    let [first, second] = pair();
    let other = format!("{Q}.lora.down.weight");
    check(&[first, second, (&other, zeros(&[2, 16]))], None, &["another spelling", &other]);
    for (json, parts) in [
        ("{", ["lora_adapter_metadata", "JSON"]),
        (r#"{"unet.r": "four"}"#, ["unet.r", "four"]),
        (r#"{"unet.lora_alpha": [1]}"#, ["unet.lora_alpha", "[1]"]),
        (r#"{"unet.r": 3, "unet.lora_alpha": 3}"#, ["rank 3", "found 2"]),
        (r#"{"unet.use_dora": true}"#, ["unet.use_dora", "true"]),
        (r#"{"unet.rank_pattern": {".*to_q": 8}}"#, ["unet.rank_pattern", "to_q"]),
        (r#"{"unet.peft_type": "LOHA"}"#, ["unet.peft_type", "LOHA"]),
        (r#"{"unet.use_rslora": "yes"}"#, ["unet.use_rslora", "true or false"]),
        (r#"{"unet.init_lora_weights": "pissa_niter_4"}"#, ["the model as it is", "pissa_niter_4"]),
        (r#"{"r": 2, "lora_alpha": 2, "init_lora_weights": "OLoRA"}"#, ["init_lora_weights", "OLoRA"]),
        (r#"{"r": 3, "lora_alpha": 3}"#, ["rank 3", "found 2"]),
        (r#"{"transformer.r": 2, "transformer.lora_alpha": 8}"#, ["unet.r", "transformer.r"]),
    ] {
        check(&pair(), Some(json), &parts);
    }
}

#[test]
fn bytes_that_are_no_adapter_are_refused_and_a_failed_save_leaves_nothing() {
    let unet = unet();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_lora_weights.safetensors");
    assert!(Adapter::load(folder.path(), &unet).unwrap_err().to_string().contains("pytorch_lora_weights.safetensors"));
    let whole = std::fs::read(fixtures().join("peft.safetensors")).unwrap();
    for bytes in [&b""[..], b"not a safetensors file", &whole[..whole.len() / 2], &whole[..4]] {
        std::fs::write(&path, bytes).unwrap();
        let message = Adapter::load(&path, &unet).unwrap_err().to_string();
        assert!(message.contains("pytorch_lora_weights.safetensors"), "{message}");
    }
    let adapter = Adapter::lora(&unet, &LoraConfig::default(), 0).unwrap();
    assert!(adapter.save(&folder.path().join("missing/adapter.safetensors")).is_err());
    let merged = adapter.merge(&unet).unwrap().save(&folder.path().join("merged.safetensors")).unwrap_err().to_string();
    assert!(merged.contains("merged.safetensors") && merged.contains("merged weight"), "{merged}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn combined_adapters_add_up_exactly() {
    let unet = unet();
    let lora = |rank, alpha, seed| {
        let targets = vec!["all-linear".to_owned()];
        let config = LoraConfig { rank, alpha, targets, ..LoraConfig::default() };
        let adapter = Adapter::lora(&unet, &config, seed).unwrap();
        tch::no_grad(|| adapter.trainable().iter_mut().for_each(|(_, tensor)| drop(tensor.normal_(0.0, 0.1))));
        adapter.to_lora().unwrap()
    };
    let parts = [(lora(2, 4.0, 1), 0.7), (lora(3, 3.0, 2), -1.5)];
    let combined = Lora::combined(&parts).unwrap();
    assert_eq!(combined.names().collect::<Vec<_>>(), parts[0].0.names().collect::<Vec<_>>());
    let merged = Lora::combined(&parts).unwrap().into_adapter(&unet).unwrap().merge(&unet).unwrap();
    for name in combined.names() {
        let change = |lora: &Lora| {
            let LoraModule { a, b, scale, .. } = lora.module(name).unwrap();
            let double = |t: &Tensor| t.flatten(1, -1).to_kind(Kind::Double);
            double(b).mm(&double(a)) * *scale
        };
        let expected = change(&parts[0].0) * 0.7 - change(&parts[1].0) * 1.5;
        assert!(off(&change(&combined), &expected) < 1e-6, "{name}");
        let path = name.strip_prefix("unet.").unwrap();
        let Some(Delta::Weight(weight)) = merged.delta(path) else { panic!("not merged") };
        assert!(off(&(weight - unet.weight(path).unwrap()).flatten(1, -1), &expected) < 1e-4, "{name}");
    }
    assert!(merged.to_lora().unwrap_err().to_string().contains("merged"));
    assert!(Lora::combined(&[(lora(1, 1.0, 3), f64::NAN)]).unwrap_err().to_string().contains("finite"));
}
