//! `seedpo probe`: every stage against the libraries or a closed form.

use std::path::Path;

use super::*;

/// Runs `seedpo probe` on a case and gives its results.
fn probe(room: &Room, what: &str, settings: &str, tensors: &[(&str, Tensor)]) -> BTreeMap<String, Tensor> {
    room.case("case.safetensors", what, settings, tensors);
    done(room, &["probe", "--model", "model", "--case", "case.safetensors", "--out", "out.safetensors"]);
    let file = WeightFile::open(&room.path("out.safetensors")).unwrap();
    assert_eq!(file.metadata()["what"], what);
    file.tensors().unwrap()
}

fn latents(rows: i64) -> Tensor {
    noise(&[rows, LATENT[0], LATENT[1], LATENT[2]])
}

fn embeds(rows: i64) -> Tensor {
    noise(&[rows, EMBED[0], EMBED[1]])
}

#[test]
fn probe_tokens_and_text() {
    let room = Room::new();
    let model = model(&room);
    let out = probe(&room, "tokenize", r#"{"prompts": ["a red apple", ""]}"#, &[]);
    assert_eq!(out["input_ids"], model.tokenizer.encode(&["a red apple", ""]).unwrap());
    assert_eq!(out["input_ids"].kind(), Kind::Int64);
    let text = probe(&room, "text", "{}", &[("input_ids", out["input_ids"].shallow_clone())]);
    let expected = model.text_encoder.forward(&out["input_ids"]).unwrap();
    assert!(largest_difference(&text["prompt_embeds"], &expected.prompt_embeds) < 1e-6);
    assert_eq!(text["pooled"].size(), [2, EMBED[1]]);
}

#[test]
fn probe_unet_with_and_without_adapter() {
    let room = Room::new();
    let model = model(&room);
    let adapter = Adapter::lora(&model.unet, &LoraConfig::default(), 3).unwrap();
    trained(&adapter, 0.3);
    adapter.save(&room.path("lora.safetensors")).unwrap();
    let t = Tensor::from_slice(&[1i64, 981]);
    let inputs = [("latents", latents(2)), ("timestep", t.shallow_clone()), ("prompt_embeds", embeds(2))];
    let base = &probe(&room, "unet", "{}", &inputs)["noise_pred"];
    let with = &probe(&room, "unet", r#"{"adapter": "lora.safetensors"}"#, &inputs)["noise_pred"];
    let expected = |adapter| model.unet.forward(&latents(2), &t, &embeds(2), None, adapter).unwrap();
    assert!(
        largest_difference(base, &expected(None)) < 1e-5 && largest_difference(with, &expected(Some(&adapter))) < 1e-5
    );
    assert!(largest_difference(base, with) > 1e-3);
}

#[test]
fn probe_encode_and_decode() {
    let room = Room::new();
    let model = model(&room);
    let images = noise(&[2, 3, SIDE, SIDE]);
    let out = probe(&room, "encode", "{}", &[("images", images.shallow_clone())]);
    let (mean, logvar) = model.vae.encode(&images).unwrap();
    assert!(largest_difference(&out["mean"], &mean) < 1e-5 && largest_difference(&out["logvar"], &logvar) < 1e-5);
    let out = probe(&room, "decode", "{}", &[("latents", latents(1))]);
    let expected = model.vae.decode(&(latents(1) / model.vae.scaling_factor())).unwrap();
    assert!(largest_difference(&out["images"], &expected) < 1e-5);
}

#[test]
fn probe_a_ddim_step_against_the_closed_form() {
    let room = Room::new();
    let t = Tensor::from_slice(&[951i64, 1]);
    let (x, eps, next) = (latents(2), noise(&[2, 4, 8, 8]) * 0.5, noise(&[2, 4, 8, 8]) * 2.0);
    let inputs = [
        ("latents", x.shallow_clone()),
        ("noise_pred", eps.shallow_clone()),
        ("next_latents", next.shallow_clone()),
        ("timestep", t),
    ];
    let out = probe(&room, "ddim", r#"{"steps": 20, "eta": 1.0}"#, &inputs);
    let alphas = model(&room).schedule.alphas_cumprod;
    for (row, (now, before)) in [(alphas[951], alphas[901]), (alphas[1], alphas[0])].into_iter().enumerate() {
        let row = row as i64;
        let variance = (1.0 - before) / (1.0 - now) * (1.0 - now / before);
        let [x, eps, next] = [&x, &eps, &next].map(|tensor| tensor.get(row).to_kind(Kind::Double));
        let clean = (x - &eps * (1.0 - now).sqrt()) / now.sqrt();
        let mean = clean * before.sqrt() + eps * (1.0 - before - variance).sqrt();
        let squares = (next - &mean).square().mean(Kind::Double).double_value(&[]);
        let log_prob = -squares / (2.0 * variance) - 0.5 * (2.0 * std::f64::consts::PI * variance).ln();
        assert!((out["std"].double_value(&[row]) - variance.sqrt()).abs() < 1e-6);
        assert!(largest_difference(&out["mean"].get(row), &mean) < 1e-4);
        let found = out["log_prob"].double_value(&[row]);
        assert!((found - log_prob).abs() < 1e-4 * log_prob.abs(), "row {row}: {found} for {log_prob}");
    }
}

#[test]
fn probe_sampling_equals_the_plain_loop() {
    let room = Room::new();
    let model = model(&room);
    let inputs = [("latents", latents(2)), ("prompt_embeds", embeds(2)), ("negative_prompt_embeds", embeds(1))];
    let settings = r#"{"steps": 4, "eta": 0, "guidance_scale": 3, "sampler": "ddim"}"#;
    let out = probe(&room, "sample", settings, &inputs);
    let conditioning =
        seedpo_model::Conditioning { prompt_embeds: embeds(2), negative_prompt_embeds: embeds(1), added: None };
    let policy = Policy::new(&model, None);
    let mut x = latents(2);
    for (t, before) in [(751i64, 501i64), (501, 251), (251, 1), (1, 0)] {
        let steps = Tensor::from_slice(&[t, t]);
        let eps = policy.predict_noise(&x, &steps, &conditioning, 3.0).unwrap();
        let alphas = &model.schedule.alphas_cumprod;
        let (now, before) = (alphas[t as usize], alphas[before as usize]);
        let clean = (&x - &eps * (1.0 - now).sqrt()) / now.sqrt();
        x = clean * before.sqrt() + eps * (1.0 - before).sqrt();
    }
    assert!(largest_difference(&out["latents"], &x) < 1e-4);
}

#[test]
fn probe_every_sampler() {
    let room = Room::new();
    model(&room);
    let mut inputs = vec![("latents", latents(2)), ("prompt_embeds", embeds(2)), ("negative_prompt_embeds", embeds(1))];
    let settings = |name: &str| format!(r#"{{"steps": 4, "guidance_scale": 3, "sampler": "{name}"}}"#);
    let run = |name: &str| probe(&room, "sample", &settings(name), &inputs).remove("latents").unwrap();
    let names = ["euler", "euler-karras", "dpmpp-2m", "dpmpp-2m-karras"];
    let drawn = names.map(&run);
    for (i, latents) in drawn.iter().enumerate() {
        assert_eq!(latents.size(), [2, 4, 8, 8]);
        assert!(drawn[..i].iter().all(|other| largest_difference(other, latents) > 1e-3), "{}", names[i]);
    }
    assert_eq!(largest_difference(&run("DPMSolverMultistepScheduler"), &drawn[2]), 0.0);
    inputs.push(("noise", noise(&[4, 2, 4, 8, 8])));
    let ancestral = probe(&room, "sample", &settings("euler-a"), &inputs);
    assert!(largest_difference(&ancestral["latents"], &drawn[0]) > 1e-3);
}

#[test]
fn probe_the_loss_of_both_methods() {
    let room = Room::new();
    let model = model(&room);
    let adapter = Adapter::lora(&model.unet, &LoraConfig::default(), 3).unwrap();
    adapter.save(&room.path("lora.safetensors")).unwrap();
    let t = Tensor::from_slice(&[951i64, 501]);
    let shared = [("prompt_embeds", embeds(2)), ("negative_prompt_embeds", embeds(1)), ("timestep", t)];
    let next = |factor: f64| noise(&[2, 4, 8, 8]) * factor;
    let spo = [("latents", latents(2)), ("next_latents_w", next(0.9)), ("next_latents_l", next(1.1))];
    let d3po = [
        ("latents_w", latents(2)),
        ("next_latents_w", next(0.9)),
        ("latents_l", latents(2)),
        ("next_latents_l", next(1.1)),
    ];
    for (method, pair) in [("spo", &spo[..]), ("d3po", &d3po[..])] {
        let settings = format!(
            r#"{{"method": "{method}", "beta": 2, "gamma": 0, "clip": 0.1, "guidance_scale": 3, "steps": 20, "adapter": "lora.safetensors"}}"#
        );
        let tensors: Vec<(&str, Tensor)> = shared.iter().chain(pair).map(|(n, t)| (*n, t.shallow_clone())).collect();
        let out = probe(&room, "loss", &settings, &tensors);
        // A fresh adapter is the reference: margin 0, loss ln 2, and a gradient for B only, since B is 0.
        assert_eq!(out["loss"].size(), [1]);
        assert!((out["loss"].double_value(&[0]) - 2f64.ln()).abs() < 1e-6);
        assert_eq!(out["margin"].size(), [2]);
        assert!(out["margin"].abs().max().double_value(&[]) < 1e-6);
        let mut keys: Vec<String> = adapter.tensors().into_iter().map(|(key, _)| format!("grad.{key}")).collect();
        keys.extend(["loss".to_owned(), "margin".to_owned()]);
        keys.sort();
        assert_eq!(out.keys().cloned().collect::<Vec<_>>(), keys);
        let largest = |half: &str| {
            let of = out.iter().filter(|(key, _)| key.ends_with(half)).map(|(_, g)| g.abs().max().double_value(&[]));
            of.fold(0.0, f64::max)
        };
        assert!(largest("lora_B.weight") > 0.0 && largest("lora_A.weight") == 0.0);
    }
}

#[test]
fn gradients_are_keyed_as_the_adapter_file_spells_its_keys() {
    let room = Room::new();
    let adapter = Adapter::lora(&model(&room).unet, &LoraConfig::default(), 3).unwrap();
    let old = |key: String| key.replace("lora_A", "lora.down").replace("lora_B", "lora.up");
    let tensors: BTreeMap<String, Tensor> = adapter.tensors().into_iter().map(|(key, t)| (old(key), t)).collect();
    seedpo_tensor::write_weights(&room.path("old.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    let next = |factor: f64| noise(&[1, 4, 8, 8]) * factor;
    let inputs = [
        ("prompt_embeds", embeds(1)),
        ("negative_prompt_embeds", embeds(1)),
        ("timestep", Tensor::from_slice(&[501i64])),
        ("latents", latents(1)),
        ("next_latents_w", next(0.9)),
        ("next_latents_l", next(1.1)),
    ];
    let settings = r#"{"method": "spo", "beta": 10, "guidance_scale": 1, "steps": 20, "adapter": "old.safetensors", "clip": null}"#;
    let out = probe(&room, "loss", settings, &inputs);
    assert!(tensors.keys().all(|key| out.contains_key(&format!("grad.{key}"))), "{:?}", out.keys());
    assert_eq!(out.len(), tensors.len() + 2);
}

#[test]
fn probe_scores() {
    let room = Room::new();
    let images = (noise(&[2, 8, 8, 3]) * 60 + 128).clamp(0.0, 255.0).to_kind(Kind::Uint8);
    let settings = r#"{"judge": "jpeg-incompressibility", "prompts": ["a", "b"], "judge_path": null}"#;
    let out = probe(&room, "score", settings, &[("images", images.shallow_clone())]);
    let expected = seedpo_judge::load("jpeg-incompressibility", &[], &Default::default())
        .unwrap()
        .score(&images, &["a", "b"])
        .unwrap();
    assert!(largest_difference(&out["scores"], &Tensor::from_slice(&expected)) < 1e-5);
    assert_eq!(out["scores"].kind(), Kind::Float);
}

#[test]
fn the_page_has_every_stage_and_tensor_of_the_help() {
    let room = Room::new();
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/probe.md");
    let page = std::fs::read_to_string(page).unwrap();
    let help = done(&room, &["probe", "--help"]);
    let (_, table) = help.split_once("what      inputs").unwrap();
    let (table, _) = table.split_once("Defaults of settings").unwrap();
    room.case("case.safetensors", "nothing", "{}", &[("x", embeds(1))]);
    let wrong =
        room.seedpo(&["probe", "--model", "model", "--case", "case.safetensors", "--out", "o"]).output().unwrap();
    let error = String::from_utf8(wrong.stderr).unwrap();
    let (stages, _) = error.split_once("expected one of ").unwrap().1.split_once("; found").unwrap();
    assert!(stages.contains("score"), "{error}");
    for name in stages.split(", ") {
        assert!(page.contains(&format!("\n| `{name}` |")), "stage {name}");
    }
    let words = table.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.contains('_'));
    for word in words.chain(["beta", "gamma", "clip", "shaping", "form", "steps", "eta", "sampler", "judge", "prompts"])
    {
        assert!(page.contains(&format!("`{word}`")), "{word}");
    }
}
