//! Outputs and gradients against the Python libraries.

use std::path::Path;

use seedpo_model::{
    AddedConditioning, AutoencoderKl, ClipTextModel, TextConfig, UNet2DConditionModel, UNetConfig, VaeConfig,
};
use seedpo_tensor::{Device, Kind, Tensor};

use super::weights::{Fixture, adapted, lora, relative};
use super::{FORWARD, GRADIENT};

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

fn unet(fixture: &Fixture, kind: Kind) -> UNet2DConditionModel {
    let config = UNetConfig::from_json(fixture.config(), Path::new("unet/config.json")).unwrap();
    UNet2DConditionModel::new(config, fixture.params(kind)).unwrap()
}

/// What SDXL's cases add.
fn added(fixture: &Fixture) -> Option<AddedConditioning> {
    let get = |name: &str| fixture.tensors.get(name).map(Tensor::shallow_clone);
    Some(AddedConditioning { pooled: get("pooled")?, time_ids: get("time_ids")? })
}

/// Back-propagates the fixture's cotangent.
fn backward(output: &Tensor, fixture: &Fixture, cotangent: &str) {
    (output * fixture.get(cotangent)).sum(Kind::Float).backward();
}

#[test]
fn unet_equals_diffusers_forward_and_backward() {
    let cases = Fixture::all("unet");
    assert!(cases.len() >= 8);
    for (_, fixture) in cases {
        let unet = unet(&fixture, Kind::Float);
        let names: Vec<&str> = fixture.tensors.keys().filter_map(|k| k.strip_prefix("grad.weight.")).collect();
        for name in &names {
            let _ = unet.parameters()[*name].set_requires_grad(true);
        }
        let (latents, prompts) = (fixture.input("latents"), fixture.input("prompt_embeds"));
        let output = unet.forward(&latents, fixture.get("timestep"), &prompts, added(&fixture).as_ref(), None).unwrap();
        fixture.check("noise_pred", &output, FORWARD);
        backward(&output, &fixture, "cotangent");
        fixture.check("grad.latents", &latents.grad(), GRADIENT);
        if fixture.tensors.contains_key("grad.prompt_embeds") {
            fixture.check("grad.prompt_embeds", &prompts.grad(), GRADIENT);
        }
        for name in names {
            fixture.check(&format!("grad.weight.{name}"), &unet.parameters()[name].grad(), GRADIENT);
        }
    }
}

#[test]
fn unet_with_lora_equals_peft_forward_and_backward() {
    for (_, fixture) in Fixture::all("unet") {
        let unet = unet(&fixture, Kind::Float);
        if unet.projections().is_empty() {
            continue;
        }
        let adapter = lora(&fixture, &unet);
        let (latents, prompts) = (fixture.input("latents"), fixture.input("prompt_embeds"));
        let output = unet
            .forward(&latents, fixture.get("timestep"), &prompts, added(&fixture).as_ref(), Some(&adapter))
            .unwrap();
        fixture.check("adapted.noise_pred", &output, FORWARD);
        backward(&output, &fixture, "cotangent");
        fixture.check("adapted.grad.latents", &latents.grad(), GRADIENT);
        fixture.check("adapted.grad.prompt_embeds", &prompts.grad(), GRADIENT);
        let trainable = adapter.trainable();
        assert_eq!(trainable.len(), 2 * adapted(&unet).count());
        for (key, tensor) in trainable {
            fixture.check(&format!("adapted.grad.{key}"), &tensor.grad(), GRADIENT);
        }
    }
}

#[test]
fn no_grad_with_in_place_steps_changes_nothing() {
    for (name, fixture) in Fixture::all("unet") {
        let unet = unet(&fixture, Kind::Float);
        let (latents, prompts) = (fixture.get("latents"), fixture.get("prompt_embeds"));
        let before = (latents.copy(), prompts.copy());
        let (time, added) = (fixture.get("timestep"), added(&fixture));
        let run = || tch::no_grad(|| unet.forward(latents, time, prompts, added.as_ref(), None)).unwrap();
        fixture.check("noise_pred", &run(), FORWARD);
        assert_eq!(run(), run(), "{name}");
        assert_eq!(before, (latents.copy(), prompts.copy()), "{name}: an input was overwritten");
    }
}

#[test]
fn half_precision_stays_near_float() {
    let fixture = Fixture::open("unet", "heads-list-linear");
    // Three significant digits in bf16 and four in f16, through some thirty layers.
    for (kind, tolerance) in [(Kind::BFloat16, 5e-2), (Kind::Half, 1e-2)] {
        let unet = unet(&fixture, kind);
        let adapter = lora(&fixture, &unet);
        let (latents, prompts) = (fixture.get("latents"), fixture.get("prompt_embeds"));
        for (adapter, name) in [(None, "noise_pred"), (Some(&adapter), "adapted.noise_pred")] {
            let output = unet.forward(latents, fixture.get("timestep"), prompts, None, adapter).unwrap();
            assert_eq!(output.kind(), kind);
            let off = relative(&output, fixture.get(name));
            assert!(off < tolerance, "{kind:?} {name}: {off:.1e}");
        }
    }
}

#[test]
fn vae_equals_diffusers_forward_and_backward() {
    let cases = Fixture::all("vae");
    assert!(cases.len() >= 3);
    for (_, fixture) in cases {
        let config = VaeConfig::from_json(fixture.config(), Path::new("vae/config.json")).unwrap();
        let vae = AutoencoderKl::new(config, fixture.params(Kind::Float)).unwrap();
        let images = fixture.input("images");
        let (mean, logvar) = vae.encode(&images).unwrap();
        fixture.check("mean", &mean, FORWARD);
        fixture.check("logvar", &logvar, FORWARD);
        backward(&(mean + logvar), &fixture, "cotangent");
        fixture.check("grad.images", &images.grad(), GRADIENT);

        let latents = fixture.input("latents");
        let decoded = vae.decode_latents(&latents).unwrap();
        fixture.check("decoded", &decoded, FORWARD);
        backward(&decoded, &fixture, "decoded_cotangent");
        fixture.check("grad.latents", &latents.grad(), GRADIENT);
        let again = tch::no_grad(|| vae.decode_latents(fixture.get("latents"))).unwrap();
        fixture.check("decoded", &again, FORWARD);
    }
}

#[test]
fn text_encoder_equals_transformers_forward_and_backward() {
    let cases = Fixture::all("text");
    assert!(cases.len() >= 5);
    for (_, fixture) in cases {
        let config = TextConfig::from_json(fixture.config(), Path::new("text_encoder/config.json")).unwrap();
        let text = ClipTextModel::new(config, fixture.params(Kind::Float)).unwrap();
        let names: Vec<&str> = fixture.tensors.keys().filter_map(|k| k.strip_prefix("grad.weight.")).collect();
        for name in &names {
            let _ = text.parameters()[*name].set_requires_grad(true);
        }
        let output = text.forward(fixture.get("input_ids")).unwrap();
        fixture.check("prompt_embeds", &output.prompt_embeds, FORWARD);
        match &output.text_embeds {
            None => fixture.check("pooled", &output.pooled, FORWARD),
            Some(text_embeds) => {
                fixture.check("text_embeds", text_embeds, FORWARD);
                fixture.check("penultimate", &output.penultimate, FORWARD);
            }
        }
        backward(&output.prompt_embeds, &fixture, "cotangent");
        assert!(!names.is_empty());
        for name in names {
            fixture.check(&format!("grad.weight.{name}"), &text.parameters()[name].grad(), GRADIENT);
        }
    }
}

#[test]
fn wrong_inputs_are_named() {
    let fixture = Fixture::open("unet", "heads-int");
    let unet = unet(&fixture, Kind::Float);
    let (latents, prompts, time) = (fixture.get("latents"), fixture.get("prompt_embeds"), fixture.get("timestep"));
    let three = Tensor::cat(&[latents, latents], 1);
    let message = |result: seedpo_model::Result<Tensor>| result.unwrap_err().to_string();
    assert!(message(unet.forward(&three, time, prompts, None, None)).contains("latents: expected shape [B, 4, h, w]"));
    assert!(
        message(unet.forward(latents, &time.repeat([2]), prompts, None, None))
            .contains("timesteps: expected shape [2]")
    );
    let narrow = prompts.narrow(2, 0, 5);
    assert!(
        message(unet.forward(latents, time, &narrow, None, None)).contains("prompt_embeds: expected shape [2, L, 24]")
    );
    let added = AddedConditioning { pooled: Tensor::zeros([2, 20], F32), time_ids: Tensor::zeros([2, 6], F32) };
    assert!(
        message(unet.forward(latents, time, prompts, Some(&added), None)).contains("added conditioning: expected none")
    );
}

#[test]
fn what_an_sdxl_unet_lacks_is_named() {
    let fixture = Fixture::open("unet", "text-time");
    let unet = unet(&fixture, Kind::Float);
    let (latents, prompts, time) = (fixture.get("latents"), fixture.get("prompt_embeds"), fixture.get("timestep"));
    let message = |added: Option<(i64, i64)>| {
        let added = added.map(|(pooled, ids)| AddedConditioning {
            pooled: Tensor::zeros([2, pooled], F32),
            time_ids: Tensor::zeros([2, ids], F32),
        });
        unet.forward(latents, time, prompts, added.as_ref(), None).unwrap_err().to_string()
    };
    assert!(message(None).contains("added conditioning: expected pooled [2, 20] and time_ids [2, 6]"));
    assert!(message(Some((21, 6))).contains("pooled: expected shape [2, 20], found shape [2, 21]"));
    assert!(message(Some((20, 5))).contains("time_ids: expected shape [2, 6], found shape [2, 5]"));
}
