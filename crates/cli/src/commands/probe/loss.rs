//! The `loss` stage: loss, margins and adapter gradients of given pairs, by the code that training runs.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use seedpo_align::objective::{Flipper, ProbeLossSettings, pair_tensors as tensors_of, probe_loss, takes_steps};
use seedpo_model::AddedPair;
use seedpo_model::adapter::{canonical_key, resolve};
use seedpo_rollout::Ddim;
use seedpo_tensor::{Tensor, WeightFile};
use serde_json::{Value, json};

use super::case::{Case, Sizes};
use super::conditioning::{self, sizes_of};
use super::settings::CaseSettings;
use super::stages::adapter;
use super::{Results, Session};

const KNOWN: [&str; 11] = [
    "method",
    "beta",
    "gamma",
    "form",
    "clip",
    "guidance_scale",
    "steps",
    "eta",
    "adapter",
    "reference_adapter",
    "shaping",
];

/// Loss, margin and gradients of a batch of pairs.
pub fn loss(case: &Case, session: &Session) -> Result<Results> {
    let raw = case.settings(&KNOWN)?;
    let settings = settings(&raw)?;
    let model = session.model()?;
    let policy = adapter(case, &raw, "adapter", &model)?;
    let policy = policy.context("setting `adapter`: expected the path of the policy's adapter file, found nothing")?;
    let reference = adapter(case, &raw, "reference_adapter", &model)?;
    let sizes = sizes_of(&model);
    let mut tensors = pair_tensors(case, &settings.method, &sizes)?;
    let last = model.schedule.num_train_timesteps;
    tensors.insert("timestep".to_owned(), case.integer("timestep", &["B"], &sizes, last)?);
    let embeds = conditioning::Reader { case, sizes: &sizes, session }.guided(&model, settings.guidance_scale)?;
    tensors.insert("prompt_embeds".to_owned(), embeds.prompt_embeds);
    tensors.insert("negative_prompt_embeds".to_owned(), embeds.negative_prompt_embeds);
    if let Some(AddedPair { prompt, negative }) = embeds.added {
        let added = [
            ("pooled", prompt.pooled),
            ("time_ids", prompt.time_ids),
            ("negative_pooled", negative.pooled),
            ("negative_time_ids", negative.time_ids),
        ];
        tensors.extend(added.map(|(name, tensor)| (name.to_owned(), tensor)));
    }
    let tensors = tensors.into_iter().map(|(name, tensor)| (name, tensor.to_device(session.device()))).collect();
    if takes_steps(&settings.method) {
        session.note(Ddim::training_note(&model.schedule));
    }
    let output = probe_loss(&model, &policy, reference.as_ref(), &tensors, &settings)?;
    let written = file_tensors(case, &raw)?;
    let as_written = |(key, gradient): (String, Tensor)| match written.get(&key) {
        None => Ok((format!("grad.{key}"), gradient)),
        Some((spelling, shape)) => Ok((format!("grad.{spelling}"), gradient.f_reshape(shape.as_slice())?)),
    };
    let mut results = output.grads.into_iter().map(as_written).collect::<Result<Results>>()?;
    results.extend([("loss".to_owned(), output.loss), ("margin".to_owned(), output.margin)]);
    Ok(results)
}

/// The adapter file's own spelling of each key, and the shape there: that of a 1×1 convolution has four axes in some files
/// and two in others, whatever the layer has.
fn file_tensors(case: &Case, settings: &CaseSettings) -> Result<BTreeMap<String, (String, Vec<i64>)>> {
    let Some(written) = settings.text("adapter")? else { return Ok(BTreeMap::new()) };
    let file = WeightFile::open(&resolve(&case.path(written)))?;
    let tensor = |key: &str| Some((canonical_key(key)?, (key.to_owned(), file.shape(key)?.to_vec())));
    Ok(file.names().filter_map(tensor).collect())
}

fn pair_tensors(case: &Case, method: &str, sizes: &Sizes) -> Result<BTreeMap<String, Tensor>> {
    let read = |name: &&str| Ok(((*name).to_owned(), case.float(name, &["B", "C", "h", "w"], sizes)?));
    tensors_of(method)?.iter().map(read).collect()
}

/// The settings, typed; ranges are checked by the objective itself.
fn settings(raw: &CaseSettings) -> Result<ProbeLossSettings> {
    let text = |key: &str| Ok::<_, anyhow::Error>(raw.text(key)?.map(str::to_owned));
    let method =
        text("method")?.context("setting `method`: expected a method such as `spo` or `seppo`, found nothing")?;
    tensors_of(&method)?;
    let form = text("form")?.unwrap_or_else(|| "flatten".to_owned());
    // The denoising error has no sampler's steps.
    let steps = if takes_steps(&method) { raw.count("steps")? } else { raw.optional_count("steps")?.unwrap_or(20) };
    let shaping = text("shaping")?;
    if let Some(name) = &shaping {
        serde_json::from_value::<Flipper>(json!(name))
            .with_context(|| format!("setting `shaping`: expected `sign`, `indicator` or `off`, found `{name}`"))?;
    }
    let mut object = json!({
        "method": method,
        "beta": raw.number("beta", None)?,
        "gamma": raw.number("gamma", Some(0.0))?,
        "clip": raw.optional_number("clip")?,
        "guidance_scale": raw.number("guidance_scale", None)?,
        "steps": steps,
        "eta": raw.number("eta", Some(1.0))?,
        "adapter": text("adapter")?.unwrap_or_default(),
        "reference_adapter": text("reference_adapter")?,
        "shaping": shaping,
    });
    object["form"] = Value::String(form.clone());
    serde_json::from_value(object)
        .with_context(|| format!("setting `form`: expected `flatten` or `literal-power`, found `{form}`"))
}
