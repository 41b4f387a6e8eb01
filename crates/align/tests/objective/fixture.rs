//! The fixtures of python/fixtures/loss.py: a tiny U-Net of diffusers, two adapters, and cases.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use seedpo_align::objective::{PairBatch, PairLatents};
use seedpo_model::{Adapter, Conditioning, DiffusionModel, UNet2DConditionModel, UNetConfig};
use seedpo_tensor::{Params, WeightFile};
use tch::{Device, Kind, Tensor};

use crate::common::tiny_model;

pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/loss").join(name)
}

/// A model with the fixture's U-Net; its other parts take no part.
pub fn model() -> DiffusionModel {
    tch::set_num_threads(1);
    let file = WeightFile::open(&path("unet.safetensors")).unwrap();
    let config = UNetConfig::from_json(&file.metadata()["config"], Path::new("config.json")).unwrap();
    let unet = UNet2DConditionModel::new(config, Params::from_file(file, Device::Cpu, Kind::Float)).unwrap();
    DiffusionModel { unet, ..tiny_model() }
}

pub fn adapter(name: &str, model: &DiffusionModel) -> Adapter {
    Adapter::load(&path(name), &model.unet).unwrap()
}

/// The tensors of a method's file, and its metadata.
pub fn cases(method: &str) -> (BTreeMap<String, Tensor>, BTreeMap<String, String>) {
    let file = WeightFile::open(&path(&format!("{method}.safetensors"))).unwrap();
    (file.tensors().unwrap(), file.metadata())
}

/// The inputs of a method's cases as training sees them.
pub fn batch(method: &str) -> (PairBatch, Conditioning) {
    batch_of(method, &cases(method).0)
}

/// The same of tensors that are given, by their names in a method's file.
pub fn batch_of(method: &str, data: &BTreeMap<String, Tensor>) -> (PairBatch, Conditioning) {
    let at = |key: &str| data[key].shallow_clone();
    let timesteps = Vec::<i64>::try_from(at("timestep")).unwrap();
    let latents = match method {
        "spo" => PairLatents::Shared {
            latents: at("latents"),
            next_latents_w: at("next_latents_w"),
            next_latents_l: at("next_latents_l"),
        },
        "d3po" => PairLatents::Separate {
            latents_w: at("latents_w"),
            next_latents_w: at("next_latents_w"),
            latents_l: at("latents_l"),
            next_latents_l: at("next_latents_l"),
        },
        _ => {
            let schedule = &tiny_model().schedule;
            let winners = PairLatents::winners(schedule, &at("latents_w"), at("noise"), &timesteps).unwrap();
            match method {
                "sft" => winners,
                // What dataset pairs are, and what sampled losers become of winners: the same.
                "diffusion-dpo" => {
                    PairLatents::noised(schedule, &at("latents_w"), &at("latents_l"), at("noise"), &timesteps).unwrap()
                }
                _ => winners.against(schedule, &at("latents_ref"), &timesteps).unwrap(),
            }
        }
    };
    let rows = timesteps.len();
    let batch =
        PairBatch { latents, timesteps, prompts: (0..rows).collect(), decided: vec![true; rows], weights: None };
    let conditioning = Conditioning {
        prompt_embeds: at("prompt_embeds"),
        negative_prompt_embeds: at("negative_prompt_embeds"),
        added: None,
    };
    (batch, conditioning)
}

/// The norm of the difference relative to the norm of what is expected; the bare norm where that is 0.
pub fn off(found: &Tensor, expected: &Tensor) -> f64 {
    let norm = |t: &Tensor| t.to_kind(Kind::Double).norm().double_value(&[]);
    let scale = norm(expected);
    let apart = norm(&(found.to_kind(Kind::Double) - expected.to_kind(Kind::Double)));
    if scale == 0.0 { apart } else { apart / scale }
}
