//! Folders whose schedulers ask for what training does not do: what has a meaning still runs, and is said.

use super::*;

const SCHEDULER: &str = "model/scheduler/scheduler_config.json";
const PROBE: [&str; 7] = ["probe", "--model", "model", "--case", "case.safetensors", "--out", "out.safetensors"];

/// A room whose model's scheduler says `more`.
fn room(more: &str) -> Room {
    let room = Room::new();
    room.edit(SCHEDULER, |text| {
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        let more: serde_json::Value = serde_json::from_str(more).unwrap();
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config.to_string()
    });
    room
}

/// What `seedpo probe` writes, and what it says meanwhile.
fn probe(room: &Room, what: &str, settings: &str, tensors: &[(&str, Tensor)]) -> (BTreeMap<String, Tensor>, String) {
    room.case("case.safetensors", what, settings, tensors);
    let output = room.seedpo(&PROBE).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    (WeightFile::open(&room.path("out.safetensors")).unwrap().tensors().unwrap(), said)
}

fn refused(room: &Room, what: &str, settings: &str, tensors: &[(&str, Tensor)]) -> String {
    room.case("case.safetensors", what, settings, tensors);
    String::from_utf8(room.seedpo(&PROBE).assert().code(2).get_output().stderr.clone()).unwrap()
}

fn latents(rows: i64) -> Tensor {
    noise(&[rows, LATENT[0], LATENT[1], LATENT[2]])
}

fn embeds(rows: i64) -> Tensor {
    noise(&[rows, EMBED[0], EMBED[1]])
}

fn step(timesteps: &[i64]) -> Vec<(&'static str, Tensor)> {
    let rows = timesteps.len() as i64;
    let (next, timestep) = (latents(rows) * 0.9, Tensor::from_slice(timesteps));
    vec![
        ("latents", latents(rows)),
        ("noise_pred", latents(rows) * 0.5),
        ("next_latents", next),
        ("timestep", timestep),
    ]
}

/// The pair of `method`, with an adapter that changes nothing yet.
fn pair(room: &Room, method: &str, lora: &LoraConfig) -> Vec<(&'static str, Tensor)> {
    Adapter::lora(&model(room).unet, lora, 3).unwrap().save(&room.path("lora.safetensors")).unwrap();
    let names: &[&str] = match method {
        "spo" => &["latents", "next_latents_w", "next_latents_l"],
        "diffusion-dpo" => &["latents_w", "latents_l", "noise"],
        _ => &["latents_w", "latents_ref", "noise"],
    };
    let tensors = names.iter().zip([1.0, 0.9, 1.1]).map(|(name, factor)| (*name, latents(2) * factor));
    tensors.chain([("prompt_embeds", embeds(2)), ("timestep", Tensor::from_slice(&[801i64, 301]))]).collect()
}

fn loss(method: &str, more: &str) -> String {
    format!(r#"{{"method": "{method}", "beta": 2, "guidance_scale": 1, "adapter": "lora.safetensors"{more}}}"#)
}

#[test]
fn another_spacing_is_counted_leading_and_said() {
    let plain = room("{\"clip_sample\": true}");
    let (expected, said) = probe(&plain, "ddim", r#"{"steps": 20}"#, &step(&[951, 501]));
    assert!(!said.contains("timestep_spacing"), "{said}");
    for spacing in ["trailing", "linspace"] {
        let room = room(&format!(r#"{{"timestep_spacing": "{spacing}", "steps_offset": 0}}"#));
        let (found, said) = probe(&room, "ddim", r#"{"steps": 20}"#, &step(&[951, 501]));
        assert_eq!(found, expected);
        assert!(
            said.contains(&format!("`timestep_spacing` {spacing}")) && said.contains("leading with offset 1"),
            "{said}"
        );
        let (_, said) =
            probe(&room, "loss", &loss("spo", r#", "steps": 20"#), &pair(&room, "spo", &LoraConfig::default()));
        assert!(said.contains(&format!("`timestep_spacing` {spacing}")), "{said}");
        let output = room.seedpo(&TRAIN).args(["--output-dir", "runs"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.contains(&format!("`timestep_spacing` {spacing}")), "{said}");
    }
}

/// What other samplers' defaults leave: the last step has no noise. A run draws previews, trains and is told; the log-probabilities
/// of `probe` are those of the usual folder.
#[test]
fn a_last_step_without_noise_is_taken_as_published() {
    let usual = room("{}");
    let lora = LoraConfig { init: seedpo_model::adapter::LoraInit::Gaussian, ..LoraConfig::default() };
    let losses = |room: &Room| {
        let mut pair = pair(room, "spo", &lora);
        pair.iter_mut()
            .filter(|(name, _)| *name == "timestep")
            .for_each(|(_, t)| *t = Tensor::from_slice(&[901i64, 1]));
        let (found, said) = probe(room, "loss", &loss("spo", r#", "steps": 10"#), &pair);
        (found["loss"].shallow_clone(), said)
    };
    let (expected, said) = losses(&usual);
    assert!(!said.contains("set_alpha_to_one"), "{said}");
    let room = room(r#"{"set_alpha_to_one": true, "steps_offset": 0}"#);
    let (found, said) = losses(&room);
    assert_eq!(found, expected);
    assert!(said.contains("`set_alpha_to_one` true and `steps_offset` 0"), "{said}");
    // With 10 steps previews measure the last one too.
    let train = ["train", "--model", "model", "--method", "spo", "--judge", "colourfulness", "--steps", "10"];
    let rest = ["--candidates", "2", "--divert-start-step", "8", "--threshold", "0", "--prompt", "a"];
    let end = ["--max-train-steps", "1", "--validation-steps", "1", "--name", "run"];
    let output = room.seedpo(&[&train[..], &rest, &end].concat()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("`set_alpha_to_one` true"), "{said}");
}

/// The denoising error has no steps: none that are impossible for a sampler stop it, and nothing is said of them.
#[test]
fn noised_methods_have_no_steps() {
    let room = room(r#"{"timestep_spacing": "trailing"}"#);
    for method in ["diffusion-dpo", "seppo"] {
        let tensors = pair(&room, method, &LoraConfig::default());
        let (out, said) = probe(&room, "loss", &loss(method, r#", "steps": 1000, "eta": 0"#), &tensors);
        assert!((out["loss"].double_value(&[0]) - 2f64.ln()).abs() < 1e-6);
        assert!(!said.contains("timestep_spacing"), "{said}");
        assert_eq!(out, probe(&room, "loss", &loss(method, ""), &tensors).0);
    }
    let message =
        refused(&room, "loss", &loss("spo", r#", "steps": 1000"#), &pair(&room, "spo", &LoraConfig::default()));
    assert!(message.contains("`steps`"), "{message}");
}

#[test]
fn betas_of_zero_terminal_snr_stop_only_what_needs_more_than_noise() {
    let room =
        room(r#"{"rescale_betas_zero_snr": true, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}"#);
    let ids = probe(&room, "tokenize", r#"{"prompts": ["a"]}"#, &[]).0.remove("input_ids").unwrap();
    probe(&room, "text", "{}", &[("input_ids", ids)]);
    probe(&room, "decode", "{}", &[("latents", latents(1))]);
    let inputs = [("latents", latents(1)), ("prompt_embeds", embeds(1))];
    for sampler in ["ddim", "euler", "DPM++ 2M"] {
        let settings = format!(r#"{{"steps": 3, "guidance_scale": 1, "sampler": "{sampler}"}}"#);
        assert!(probe(&room, "sample", &settings, &inputs).0["latents"].isfinite().all().int64_value(&[]) == 1);
    }
    probe(&room, "ddim", r#"{"steps": 20}"#, &step(&[951]));
    let message = refused(&room, "ddim", r#"{"steps": 20}"#, &step(&[951, 999]));
    assert!(message.contains("`timestep`: expected at most 998") && message.contains("found 999"), "{message}");
    let flag = ["--prediction-type", "epsilon"];
    room.case("case.safetensors", "sample", r#"{"steps": 3, "guidance_scale": 1}"#, &inputs);
    let message = room.seedpo(&[&PROBE[..], &flag[..]].concat()).assert().code(2).get_output().stderr.clone();
    let message = String::from_utf8(message).unwrap();
    assert!(message.contains("`prediction_type`") && message.contains("rescale_betas_zero_snr"), "{message}");
}

#[test]
fn clean_latents_as_output_are_the_same_picture() {
    let room = room(r#"{"prediction_type": "sample"}"#);
    let inputs = [("latents", latents(1)), ("prompt_embeds", embeds(1))];
    // One step of DDIM from t to t': x' = √ᾱ' x̂0 + √(1−ᾱ') (x − √ᾱ x̂0) / √(1−ᾱ).
    let (out, _) = probe(&room, "sample", r#"{"steps": 1, "guidance_scale": 1}"#, &inputs);
    let x = latents(1);
    let [latents, embeds] = inputs;
    let raw = probe(&room, "unet", "{}", &[latents, embeds, ("timestep", Tensor::from_slice(&[1i64]))]).0;
    let alphas = model(&room).schedule.alphas_cumprod;
    let (now, before) = (alphas[1], alphas[0]);
    let clean = &raw["noise_pred"];
    let expected = clean * before.sqrt() + (x - clean * now.sqrt()) * ((1.0 - before) / (1.0 - now)).sqrt();
    assert!(largest_difference(&out["latents"], &expected) < 1e-5);
}

#[test]
fn a_row_without_noise_does_not_lose_the_others() {
    let room = room(r#"{"set_alpha_to_one": true}"#);
    let (out, said) = probe(&room, "ddim", r#"{"steps": 20}"#, &step(&[501, 1]));
    let (alone, _) = probe(&room, "ddim", r#"{"steps": 20}"#, &step(&[501]));
    assert!((out["log_prob"].double_value(&[0]) - alone["log_prob"].double_value(&[0])).abs() < 1e-5);
    assert!(out["log_prob"].double_value(&[1]).is_nan() && out["std"].double_value(&[1]) == 0.0);
    assert!(said.contains("row 1 (timestep 1)") && said.contains("no density") && !said.contains("row 0"), "{said}");
    let (none, _) = probe(&room, "ddim", r#"{"steps": 20, "eta": 0}"#, &step(&[501, 1]));
    assert_eq!(none["std"].abs().max().double_value(&[]), 0.0);
    assert!(
        none["log_prob"].isnan().all().int64_value(&[]) == 1 && none["mean"].isfinite().all().int64_value(&[]) == 1
    );
    let mut bad = step(&[501, 1]);
    bad[2].1 = &bad[2].1 * f64::INFINITY;
    let message = refused(&room, "ddim", r#"{"steps": 20}"#, &bad);
    assert!(message.contains("`log_prob`: row 0"), "{message}");
}

/// 1×1 convolutions (`proj_in`) have four axes in our files and two in others; gradients have the file's.
#[test]
fn gradients_have_the_shapes_of_the_adapter_file() {
    let room = Room::new();
    let config = LoraConfig { targets: vec!["proj_in".into()], ..LoraConfig::default() };
    let tensors = pair(&room, "spo", &config);
    let settings = loss("spo", r#", "steps": 20"#);
    let (expected, _) = probe(&room, "loss", &settings, &tensors);
    let path = room.path("lora.safetensors");
    let file = WeightFile::open(&path).unwrap();
    let flat: BTreeMap<String, Tensor> =
        file.tensors().unwrap().into_iter().map(|(key, t)| (key, t.flatten(1, -1))).collect();
    seedpo_tensor::write_weights(&path, &flat, &file.metadata()).unwrap();
    let (found, _) = probe(&room, "loss", &settings, &tensors);
    assert!(expected.iter().any(|(_, tensor)| tensor.dim() == 4));
    for (key, tensor) in &flat {
        let key = format!("grad.{key}");
        assert_eq!((found[&key].size(), expected[&key].dim()), (tensor.size(), 4), "{key}");
        assert_eq!(found[&key], expected[&key].flatten(1, -1));
    }
}

#[test]
fn options_of_the_folders_sampler_that_are_passed_over_are_said() {
    let room = room(r#"{"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": true, "solver_order": 3}"#);
    let inputs = [("latents", latents(1)), ("prompt_embeds", embeds(1))];
    let said = |sampler: &str| {
        probe(&room, "sample", &format!(r#"{{"steps": 3, "guidance_scale": 1, "sampler": "{sampler}"}}"#), &inputs).1
    };
    let plain = said("DPMSolverMultistepScheduler");
    assert!(plain.contains("solver_order 3, use_karras_sigmas true; `dpmpp-2m-karras`"), "{plain}");
    assert!(said("dpmpp_2m_karras").contains("solver_order 3") && !said("ddim").contains("passes over"));
    let base =
        "sample --model model --prompt a --steps 2 --resolution 16 --device cpu --sampler dpmpp-2m --out pictures";
    let output = room.seedpo(&base.split_whitespace().collect::<Vec<_>>()).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("solver_order 3"), "{output:?}");
}

#[test]
fn a_model_that_is_higher_than_wide_draws_such_pictures() {
    let room = Room::new();
    room.edit("model/unet/config.json", |text| text.replace("\"sample_size\": 8", "\"sample_size\": [8, 4]"));
    done(
        &room,
        &["-q", "sample", "--model", "model", "--prompt", "a", "--steps", "1", "--device", "cpu", "--out", "pictures"],
    );
    let picture = read_png(&room.path("pictures").join("0000-a-0.png")).unwrap().image;
    assert_eq!(picture.size(), [SIDE, SIDE / 2, 3]);
}
