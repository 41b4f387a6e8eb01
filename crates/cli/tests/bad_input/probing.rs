//! Cases that `seedpo probe` refuses.

use super::*;

const PROBE: [&str; 7] = ["probe", "--model", "model", "--case", "case.safetensors", "--out", "out.safetensors"];

fn latents(rows: i64) -> Tensor {
    noise(&[rows, LATENT[0], LATENT[1], LATENT[2]])
}

fn embeds(rows: i64) -> Tensor {
    noise(&[rows, EMBED[0], EMBED[1]])
}

#[test]
fn a_case_of_unknown_kind() {
    let room = Room::new();
    room.case("case.safetensors", "unett", "{}", &[]);
    refuses(&room, &PROBE, &["case.safetensors", "`what`", "`unett`", "unet"]);
    write_weights(&room.path("case.safetensors"), &BTreeMap::new(), &BTreeMap::new()).unwrap();
    refuses(&room, &PROBE, &["case.safetensors", "`what`", "found none"]);
    refuses(&room, &with(&PROBE[..3], &["--case", "none.safetensors", "--out", "o"]), &["none.safetensors"]);
    room.write("case.safetensors", "garbage");
    refuses(&room, &PROBE, &["case.safetensors", "safetensors"]);
}

#[test]
fn a_case_with_wrong_settings() {
    let room = Room::new();
    for (settings, needles) in [
        (r#"{"prompt": ["a"]}"#, ["unknown setting `prompt`", "`prompts`"]),
        (r#"{"prompts": "a"}"#, ["`prompts`", "list of strings"]),
        (r#"{"prompts": []}"#, ["`prompts`", "at least one"]),
        ("{}", ["`prompts`", "nothing"]),
        ("prompts", ["`settings`", "JSON object"]),
    ] {
        room.case("case.safetensors", "tokenize", settings, &[]);
        refuses(&room, &PROBE, &needles);
    }
}

#[test]
fn a_case_with_wrong_tensors() {
    let room = Room::new();
    let unet = |tensors: &[(&str, Tensor)], needles: &[&str]| {
        room.case("case.safetensors", "unet", "{}", tensors);
        refuses(&room, &PROBE, needles);
    };
    unet(&[("latents", latents(2)), ("prompt_embeds", embeds(2))], &["`timestep`", "found none"]);
    let with_steps = |t: Tensor| [("latents", latents(2)), ("timestep", t), ("prompt_embeds", embeds(2))];
    unet(&with_steps(timesteps(&[1, 2, 3])), &["`timestep`", "B = 2", "[3]"]);
    unet(&with_steps(timesteps(&[1, 1000])), &["`timestep`", "0 to 999", "1000"]);
    unet(&with_steps(noise(&[2])), &["`timestep`", "i64", "Float"]);
    let three = noise(&[2, 3, 8, 8]);
    unet(
        &[("latents", three), ("timestep", timesteps(&[1, 2])), ("prompt_embeds", embeds(2))],
        &["`latents`", "C = 4", "[2, 3, 8, 8]"],
    );
    let wide = noise(&[2, 16, 24]);
    unet(
        &[("latents", latents(2)), ("timestep", timesteps(&[1, 2])), ("prompt_embeds", wide)],
        &["`prompt_embeds`", "D = 16"],
    );
    let nan = Tensor::full([2, LATENT[0], LATENT[1], LATENT[2]], f64::NAN, (Kind::Float, Device::Cpu));
    unet(&[("latents", nan), ("timestep", timesteps(&[1, 2])), ("prompt_embeds", embeds(2))], &["`noise_pred`", "NaN"]);
}

#[test]
fn tokens_outside_the_vocabulary() {
    let room = Room::new();
    room.case("case.safetensors", "text", "{}", &[("input_ids", timesteps(&[1, 9999]).reshape([1, 2]))]);
    refuses(&room, &PROBE, &["`input_ids`", "9999", "513"]);
}

#[test]
fn a_loss_of_another_method() {
    let room = Room::new();
    for (method, needle) in [("dpo", "`dpo`"), ("ppo", "`ppo`")] {
        let settings = format!(r#"{{"method": "{method}", "beta": 1, "guidance_scale": 1, "steps": 20}}"#);
        room.case("case.safetensors", "loss", &settings, &[]);
        refuses(&room, &PROBE, &["`method`", needle]);
    }
}

#[test]
fn results_that_cannot_be_written() {
    let room = Room::new();
    room.case("case.safetensors", "tokenize", r#"{"prompts": ["a"]}"#, &[]);
    refuses(&room, &with(&PROBE[..5], &["--out", "case.safetensors/out"]), &["case.safetensors/out"]);
    refuses(&room, &with(&PROBE[..5], &["--out", "none/out.safetensors"]), &["none/out.safetensors"]);
}
