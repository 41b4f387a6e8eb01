//! The `loss` row of `seedpo probe`: loss, margins and gradients of given pairs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use seedpo_model::config::TextTimeConfig;
use seedpo_model::{Adapter, AddedConditioning, AddedPair, Conditioning, DiffusionModel, NoiseSchedule, Policy};
use seedpo_rollout::{Ddim, GuidedPolicy};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{Clip, EntropyForm, Flipper, Objective, PairBatch, PairLatents, SelfEntropy, accumulate_step_pairs};
use crate::method::{Likelihood, Method};
use crate::{Error, Result};

/// The settings of a `loss` case, as its JSON spells them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeLossSettings {
    /// `spo`, `d3po`, `diffusion-dpo`, `seppo`, `spin` or `sft`.
    pub method: String,
    /// β.
    pub beta: f64,
    /// γ; 0 where absent.
    #[serde(default)]
    pub gamma: f64,
    /// `flatten` (the default) or `literal-power`.
    #[serde(default)]
    pub form: EntropyForm,
    /// ε of the ratio clip; absent or null is off.
    #[serde(default)]
    pub clip: Clip,
    /// w; 1 runs the conditional branch alone.
    pub guidance_scale: f64,
    /// DDIM steps; not needed where the likelihood is the denoising error.
    #[serde(default = "training_steps")]
    pub steps: usize,
    /// η; 1 where absent.
    #[serde(default = "one")]
    pub eta: f64,
    /// The policy's adapter file; the caller loads it.
    pub adapter: PathBuf,
    /// The reference's adapter file; absent = the base. The caller loads it.
    #[serde(default)]
    pub reference_adapter: Option<PathBuf>,
    /// `sign`, `indicator` or `off`; for `seppo` (absent: `sign`) and `diffusion-dpo` (absent: `off`) only.
    #[serde(default)]
    pub shaping: Option<Flipper>,
    /// μ of the winner-preserving safeguard; absent or null is off.
    #[serde(default)]
    pub safeguard: Option<f64>,
}

fn training_steps() -> usize {
    20
}

fn one() -> f64 {
    1.0
}

/// What a `loss` case gives.
#[derive(Debug)]
pub struct ProbeLoss {
    /// Mean loss over the batch, `[1]` f32.
    pub loss: Tensor,
    /// m before β, `[B]` f32.
    pub margin: Tensor,
    /// The loss's gradient for every tensor of the adapter, f32, keyed as in the adapter file.
    pub grads: BTreeMap<String, Tensor>,
}

impl ProbeLossSettings {
    /// β, self-entropy and clip. Errors: [`Error::Setting`] for values out of range.
    pub fn objective(&self) -> Result<Objective> {
        let entropy = SelfEntropy::new(self.gamma, self.form)?;
        let usual = if self.method == "seppo" { Flipper::Sign } else { Flipper::Off };
        let flipper = self.shaping.unwrap_or(usual);
        if !["seppo", "diffusion-dpo"].contains(&self.method.as_str()) && flipper != Flipper::Off {
            let expected = format!("off: method `{}` has no flipper", self.method);
            return Err(refused("shaping", &expected, &format!("{flipper:?}").to_lowercase()));
        }
        if self.method == "sft" && (self.gamma != 0.0 || self.clip.0.is_some()) {
            let found = format!("gamma = {}, clip = {:?}", self.gamma, self.clip.0);
            return Err(refused("gamma", "0, and no clip: supervision has no reference", &found));
        }
        let objective =
            Objective { beta: self.beta, entropy, clip: self.clip, flipper, safeguard: self.safeguard, kl_weight: 0.0 };
        objective.check()?;
        Ok(objective)
    }
}

/// Loss, margins and adapter gradients of the pairs in `tensors`.
///
/// Always `prompt_embeds` `[B, L, D]`, `timestep` i64 `[B]`, and `negative_prompt_embeds` `[1, L, D]` unless the guidance
/// scale is 1; `spo`: `latents`, `next_latents_w`, `next_latents_l`; `d3po`: `latents_w`, `next_latents_w`, `latents_l`,
/// `next_latents_l`; `diffusion-dpo`: `latents_w`, `latents_l` (clean, scaled), `noise`; `seppo`: `latents_w`,
/// `latents_ref` (the same), `noise`; `spin`: as `seppo`; `sft`: `latents_w`, `noise`, each `[B, C, h, w]`. SDXL: `pooled` `[B, P]`, `time_ids` `[B, 6]`, and unless the guidance scale is 1
/// `negative_pooled` `[1, P]`, `negative_time_ids` `[B, 6]` (absent: `time_ids`).
///
/// `adapter` is the policy, `reference` another adapter over the same base (`None` = the base alone). Both are used
/// unmerged. Runs the code that training runs. Errors: [`Error::Setting`] for a method or value out of range,
/// [`Error::Input`] naming a missing, surplus or misshaped tensor.
pub fn probe_loss(
    model: &DiffusionModel,
    adapter: &Adapter,
    reference: Option<&Adapter>,
    tensors: &BTreeMap<String, Tensor>,
    settings: &ProbeLossSettings,
) -> Result<ProbeLoss> {
    let objective = settings.objective()?;
    let ddim = match takes_steps(&settings.method) {
        true => Ddim::for_training(&model.schedule, settings.steps, settings.eta)?,
        // The denoising error asks it for nothing: one that every schedule has.
        false => Ddim::new(&model.schedule, 1, 1.0)?,
    };
    let inputs = Inputs::read(tensors, settings, &model.schedule, model.unet.config().text_time)?;
    let policy = Policy::new(model, Some(adapter));
    let policy = GuidedPolicy::new(policy, &inputs.conditioning, settings.guidance_scale);
    let reference = Policy::new(model, reference);
    let reference = GuidedPolicy::new(reference, &inputs.conditioning, settings.guidance_scale);
    let parameters = adapter.trainable();
    for (_, parameter) in &parameters {
        let mut parameter = parameter.shallow_clone().set_requires_grad(true);
        parameter.zero_grad();
    }
    let output = accumulate_step_pairs(&policy, &reference, &ddim, &inputs.batch, &objective, usize::MAX, 1.0)?;
    let gradient = |parameter: &Tensor| {
        let grad = parameter.grad();
        if grad.defined() { grad.to_kind(Kind::Float).copy() } else { parameter.zeros_like().detach() }
    };
    Ok(ProbeLoss {
        loss: output.loss.detach().reshape([1]),
        margin: output.margin,
        grads: parameters.iter().map(|(key, parameter)| (key.clone(), gradient(parameter))).collect(),
    })
}

/// A case's tensors, checked.
struct Inputs {
    conditioning: Conditioning,
    batch: PairBatch,
}

impl Inputs {
    fn read(
        tensors: &BTreeMap<String, Tensor>,
        settings: &ProbeLossSettings,
        schedule: &NoiseSchedule,
        text_time: Option<TextTimeConfig>,
    ) -> Result<Self> {
        let pair_names = pair_tensors(&settings.method)?;
        let added_names: &[&str] = if text_time.is_some() { &ADDED } else { &[] };
        let known = |name: &str| {
            let always = ["prompt_embeds", "negative_prompt_embeds", "timestep"];
            pair_names.contains(&name) || always.contains(&name) || added_names.contains(&name)
        };
        if let Some(surplus) = tensors.keys().find(|name| !known(name)) {
            let expected = format!("only the tensors of method `{}`", settings.method);
            return Err(Error::Input { what: format!("tensor `{surplus}`"), expected, found: "it".into() });
        }
        let prompt_embeds = get(tensors, "prompt_embeds", &[-1, -1, -1])?;
        let (rows, length, width) = prompt_embeds.size3()?;
        let negative_prompt_embeds = match tensors.get("negative_prompt_embeds") {
            None if settings.guidance_scale == 1.0 => prompt_embeds.narrow(0, 0, 1).zeros_like(),
            _ => get(tensors, "negative_prompt_embeds", &[1, length, width])?,
        };
        let timesteps = get(tensors, "timestep", &[rows])?;
        let first = get(tensors, pair_names[0], &[rows, -1, -1, -1])?;
        let rest = pair_names[1..].iter().map(|name| get(tensors, name, &first.size())).collect::<Result<Vec<_>>>()?;
        let timesteps = Vec::<i64>::try_from(timesteps.to_kind(Kind::Int64))?;
        let batch = PairBatch {
            latents: pair_latents(
                &settings.method,
                std::iter::once(first).chain(rest).collect(),
                schedule,
                &timesteps,
            )?,
            timesteps,
            prompts: (0..rows as usize).collect(),
            decided: vec![true; rows as usize],
            weights: None,
        };
        let added = text_time.map(|text_time| added(tensors, rows, text_time, settings.guidance_scale)).transpose()?;
        Ok(Self { conditioning: Conditioning { prompt_embeds, negative_prompt_embeds, added }, batch })
    }
}

/// What SDXL's U-Net reads besides.
const ADDED: [&str; 4] = ["pooled", "time_ids", "negative_pooled", "negative_time_ids"];

fn added(
    tensors: &BTreeMap<String, Tensor>,
    rows: i64,
    text_time: TextTimeConfig,
    guidance_scale: f64,
) -> Result<AddedPair> {
    let (width, ids) = (text_time.pooled_width(), TextTimeConfig::TIME_IDS);
    let pooled = get(tensors, "pooled", &[rows, width])?;
    let time_ids = get(tensors, "time_ids", &[rows, ids])?;
    let negative_pooled = match tensors.get("negative_pooled") {
        None if guidance_scale == 1.0 => pooled.narrow(0, 0, 1).zeros_like(),
        _ => get(tensors, "negative_pooled", &[1, width])?,
    };
    let negative_time_ids = match tensors.get("negative_time_ids") {
        None => time_ids.shallow_clone(),
        Some(_) => get(tensors, "negative_time_ids", &[rows, ids])?,
    };
    Ok(AddedPair {
        prompt: AddedConditioning { pooled, time_ids },
        negative: AddedConditioning { pooled: negative_pooled, time_ids: negative_time_ids },
    })
}

/// Whether a method's likelihood is that of a sampler's step, so that `steps` and `eta` matter.
pub fn takes_steps(method: &str) -> bool {
    Method::by_name(method).is_ok_and(|method| method.likelihood == Likelihood::Transition)
}

/// The tensors of a method's pairs, `[B, C, h, w]` each. Errors: [`Error::Setting`] for an unknown method.
pub fn pair_tensors(method: &str) -> Result<&'static [&'static str]> {
    match method {
        "spo" => Ok(&["latents", "next_latents_w", "next_latents_l"]),
        "d3po" => Ok(&["latents_w", "next_latents_w", "latents_l", "next_latents_l"]),
        "diffusion-dpo" => Ok(&["latents_w", "latents_l", "noise"]),
        "seppo" | "spin" => Ok(&["latents_w", "latents_ref", "noise"]),
        "sft" => Ok(&["latents_w", "noise"]),
        other => {
            let expected = "`spo`, `d3po`, `diffusion-dpo`, `seppo`, `spin` or `sft`";
            Err(refused("method", expected, &format!("`{other}`")))
        }
    }
}

/// The tensors of [`pair_tensors`], in that order, as pairs.
fn pair_latents(
    method: &str,
    tensors: Vec<Tensor>,
    schedule: &NoiseSchedule,
    timesteps: &[i64],
) -> Result<PairLatents> {
    let at = |i: usize| tensors[i].shallow_clone();
    match method {
        "spo" => Ok(PairLatents::Shared { latents: at(0), next_latents_w: at(1), next_latents_l: at(2) }),
        "d3po" => Ok(PairLatents::Separate {
            latents_w: at(0),
            next_latents_w: at(1),
            latents_l: at(2),
            next_latents_l: at(3),
        }),
        "sft" => PairLatents::winners(schedule, &tensors[0], at(1), timesteps),
        _ => PairLatents::noised(schedule, &tensors[0], &tensors[1], at(2), timesteps),
    }
}

/// The tensor called `name`; −1 in `shape` stands for any size.
fn get(tensors: &BTreeMap<String, Tensor>, name: &str, shape: &[i64]) -> Result<Tensor> {
    let wanted = shape.iter().map(|n| if *n < 0 { "any".to_owned() } else { n.to_string() }).collect::<Vec<_>>();
    let expected = format!("shape [{}]", wanted.join(", "));
    let what = format!("tensor `{name}`");
    let Some(tensor) = tensors.get(name) else {
        return Err(Error::Input { what, expected, found: "no such tensor".into() });
    };
    let size = tensor.size();
    let fits = size.len() == shape.len() && size.iter().zip(shape).all(|(have, want)| *want < 0 || have == want);
    if !fits || tensor.numel() == 0 {
        return Err(Error::Input { what, expected, found: format!("shape {size:?}") });
    }
    Ok(tensor.shallow_clone())
}

fn refused(key: &str, expected: &str, found: &str) -> Error {
    Error::Setting { key: key.into(), expected: expected.into(), found: found.into() }
}
