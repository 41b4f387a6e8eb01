//! The stages of `seedpo probe`, but for the loss.

use anyhow::{Context as _, Result, bail, ensure};
use seedpo_judge::{EXEC_TIMEOUT, JudgeSpec};
use seedpo_model::adapter::resolve;
use seedpo_model::{Adapter, ClipTextModel, DiffusionModel, Policy};
use seedpo_rollout::{Ddim, GuidedPolicy, Sampler, SamplerKind};
use seedpo_tensor::{Kind, Tensor, tch};

use super::case::{Case, Sizes};
use super::conditioning::{self, sizes_of};
use super::settings::CaseSettings;
use super::{Results, Session};
use crate::judges;

const LATENTS: [&str; 4] = ["B", "C", "h", "w"];
/// The one result that may be NaN: where a step has no noise.
pub const LOG_PROB: &str = "log_prob";
const STEP_NOISE: [&str; 5] = ["steps", "B", "C", "h", "w"];

fn results<const N: usize>(named: [(&str, Tensor); N]) -> Results {
    named.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect()
}

/// The adapter of a policy that a setting names, if it names one.
pub fn adapter(case: &Case, settings: &CaseSettings, key: &str, model: &DiffusionModel) -> Result<Option<Adapter>> {
    let Some(written) = settings.text(key)? else { return Ok(None) };
    let path = resolve(&case.path(written));
    ensure!(path.is_file(), "setting `{key}`: adapter {}: no such file", path.display());
    Ok(Some(Adapter::load(&path, &model.unet).with_context(|| format!("setting `{key}`"))?))
}

/// The model with the adapter that the settings name: beside the U-Net where it can run so, else in the weights.
fn adapted(case: &Case, settings: &CaseSettings, session: &Session) -> Result<(DiffusionModel, Option<Adapter>)> {
    let model = session.model()?;
    let Some(written) = settings.text("adapter")? else { return Ok((model, None)) };
    let lora = crate::commands::sample::load_lora(&case.path(written), &model).context("setting `adapter`")?;
    if lora.runs_unmerged(&model.unet) {
        let adapter = lora.into_adapter(&model.unet)?;
        return Ok((model, Some(adapter)));
    }
    Ok((model.merged(&lora)?, None))
}

/// Prompts to token ids; of both tokenizers where the folder has two.
pub fn tokenize(case: &Case, session: &Session) -> Result<Results> {
    let prompts = case.settings(&["prompts"])?.texts("prompts")?;
    let prompts = prompts.context("setting `prompts`: expected a list of strings, found nothing")?;
    ensure!(!prompts.is_empty(), "setting `prompts`: expected at least one prompt, found an empty list");
    let (first, second) = session.tokenizers()?;
    let mut found = results([("input_ids", first.encode(&prompts)?)]);
    if let Some(second) = second {
        found.insert("input_ids_2".to_owned(), second.encode(&prompts)?);
    }
    Ok(found)
}

/// Token ids to embeddings, with an adapter's change to the text encoders. SDXL: `input_ids_2` are the second encoder's; the first's again where absent.
pub fn text(case: &Case, session: &Session) -> Result<Results> {
    let (model, _) = adapted(case, &case.settings(&["adapter"])?, session)?;
    let sizes = Sizes::default();
    let input_ids = token_ids(case, "input_ids", &model.text_encoder, &sizes)?.to_device(session.device());
    let _no_grad = tch::no_grad_guard();
    let Some(second) = &model.text_encoder_2 else {
        let output = model.text_encoder.forward(&input_ids)?;
        return Ok(results([("prompt_embeds", output.prompt_embeds), ("pooled", output.pooled)]));
    };
    let name = if case.has("input_ids_2") { "input_ids_2" } else { "input_ids" };
    let input_ids_2 = token_ids(case, name, &second.text_encoder, &sizes)?.to_device(session.device());
    let output = model.encode_tokens(&input_ids, Some(&input_ids_2))?;
    let pooled = output.pooled.context("the second text encoder gave no pooled embedding")?;
    Ok(results([("prompt_embeds", output.prompt_embeds), ("pooled", pooled)]))
}

fn token_ids(case: &Case, name: &str, encoder: &ClipTextModel, sizes: &Sizes) -> Result<Tensor> {
    let config = encoder.config();
    let input_ids = case.integer(name, &["B", "L"], sizes, config.vocab_size)?;
    let (length, longest) = (input_ids.size()[1], config.max_position_embeddings);
    ensure!(length <= longest, "tensor `{name}`: expected at most {longest} tokens a row, found {length}");
    Ok(input_ids)
}

/// The U-Net's raw output.
pub fn unet(case: &Case, session: &Session) -> Result<Results> {
    let (model, adapter) = adapted(case, &case.settings(&["adapter"])?, session)?;
    let sizes = sizes_of(&model);
    let latents = case.float("latents", &LATENTS, &sizes)?;
    let timestep = case.integer("timestep", &["B"], &sizes, model.schedule.num_train_timesteps)?;
    let (embeds, added) = conditioning::Reader { case, sizes: &sizes, session }.prompt(&model)?;
    let _no_grad = tch::no_grad_guard();
    let to = |tensor: Tensor| tensor.to_device(session.device());
    let noise_pred = model.unet.forward(&to(latents), &to(timestep), &embeds, added.as_ref(), adapter.as_ref())?;
    Ok(results([("noise_pred", noise_pred)]))
}

/// Images to the latent Gaussian's mean and log-variance, unscaled.
pub fn encode(case: &Case, session: &Session) -> Result<Results> {
    case.settings(&[])?;
    let model = session.model()?;
    let images = case.float("images", &["B", "3", "H", "W"], &Sizes::default())?;
    let _no_grad = tch::no_grad_guard();
    let (mean, logvar) = model.vae.encode(&images.to_device(session.device()))?;
    Ok(results([("mean", mean), ("logvar", logvar)]))
}

/// Scaled latents to images, not clamped.
pub fn decode(case: &Case, session: &Session) -> Result<Results> {
    case.settings(&[])?;
    let model = session.model()?;
    let latents = case.float("latents", &LATENTS, &sizes_of(&model))?;
    let _no_grad = tch::no_grad_guard();
    Ok(results([("images", model.vae.decode_latents(&latents.to_device(session.device()))?)]))
}

/// One DDIM step: its Gaussian, and the log-probability of where it led. A row whose step has no noise (σ = 0) has no
/// density: its log-probability is NaN, and a line says so.
pub fn ddim(case: &Case, session: &Session) -> Result<Results> {
    let settings = case.settings(&["steps", "eta"])?;
    let schedule = session.schedule()?;
    let sizes = Sizes::default();
    let latents = case.float("latents", &LATENTS, &sizes)?;
    let noise_pred = case.float("noise_pred", &LATENTS, &sizes)?;
    let next = case.float("next_latents", &LATENTS, &sizes)?;
    let timestep = case.integer("timestep", &["B"], &sizes, schedule.num_train_timesteps)?;
    let ddim = Ddim::new(&schedule, settings.count("steps")?, settings.number("eta", Some(1.0))?)?;
    session.note(Ddim::spacing_note(&schedule));
    let timesteps = Vec::<i64>::try_from(&timestep)?;
    let transition = ddim.transition(&timesteps, &latents, &noise_pred)?;
    let log_prob = transition.log_prob_where_defined(&next)?;
    let finite = Vec::<bool>::try_from(log_prob.isfinite())?;
    for (row, sigma) in transition.sigmas().iter().enumerate() {
        if *sigma > 0.0 {
            ensure!(finite[row], "result `{LOG_PROB}`: row {row} is not a finite number; look for such in the inputs");
            continue;
        }
        session.context().note(&format!(
            "note: row {row} (timestep {}): the step's standard deviation is 0, so that it has no density; its `{LOG_PROB}` \
             is NaN",
            timesteps[row]
        ));
    }
    Ok(results([("mean", transition.mean), ("std", transition.std), (LOG_PROB, log_prob)]))
}

/// x_T, unit noise as a pipeline's `latents` argument, to x_0.
pub fn sample(case: &Case, session: &Session) -> Result<Results> {
    let settings = case.settings(&["steps", "eta", "guidance_scale", "sampler", "adapter"])?;
    let kind: SamplerKind = settings.text("sampler")?.map_or(Ok(SamplerKind::default()), str::parse)?;
    let (model, adapter) = adapted(case, &settings, session)?;
    let steps = settings.count("steps")?;
    let sampler = Sampler::new(kind, &model.schedule, steps, settings.number("eta", Some(0.0))?)?;
    session.note(kind.passed_over(&model.scheduler));
    let sizes = sizes_of(&model);
    let latents = case.float("latents", &LATENTS, &sizes)?.to_device(session.device());
    let draws_noise = (0..steps).any(|step| sampler.draws_noise(step));
    let noise = draws_noise.then(|| case.float("noise", &STEP_NOISE, &sizes.and("steps", steps as i64)));
    let noise = noise.transpose().with_context(|| format!("sampler `{kind}` draws noise"))?;
    let guidance_scale = settings.number("guidance_scale", None)?;
    let conditioning = conditioning::Reader { case, sizes: &sizes, session }.guided(&model, guidance_scale)?;
    let policy = Policy::new(&model, adapter.as_ref());
    let predictor = GuidedPolicy::new(policy, &conditioning, guidance_scale);
    let rows: Vec<usize> = (0..latents.size()[0] as usize).collect();
    let mut step_noise = |step: usize| noise.as_ref().map_or_else(Tensor::new, |noise| noise.get(step as i64));
    let latents = seedpo_rollout::draw(&predictor, &latents, &rows, &sampler, &mut step_noise, &mut |_, _| ())?;
    Ok(results([("latents", latents)]))
}

/// A judge's scores; of predicted images where a timestep is given.
pub fn score(case: &Case, session: &Session) -> Result<Results> {
    let settings = case.settings(&["judge", "prompts", "judge_path", "timestep"])?;
    let name = settings.text("judge")?.context("setting `judge`: expected a judge's name, found nothing")?;
    let mut spec: JudgeSpec = name.parse().context("setting `judge`")?;
    if let Some(path) = settings.text("judge_path")? {
        let JudgeSpec::Named { location, .. } = &mut spec else {
            bail!(
                "setting `judge_path`: expected none beside `{name}`, which needs no weights of its own; found `{path}`"
            );
        };
        *location = Some(case.path(path).display().to_string());
    }
    let judge = judges::build(&spec, session.device(), session.kind(), EXEC_TIMEOUT, session.context());
    let judge = judge.context("setting `judge`")?;
    let images = case.bytes("images", &["B", "H", "W", "3"], &Sizes::default())?;
    let count = images.size()[0] as usize;
    let prompts = settings.texts("prompts")?;
    ensure!(
        prompts.is_some() || !spec.reads_prompt(),
        "setting `prompts`: expected {count}, one per image, since judge `{spec}` reads the prompt; found none"
    );
    let prompts = prompts.unwrap_or_else(|| vec![String::new(); count]);
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    ensure!(prompts.len() == count, "setting `prompts`: expected {count}, one per image, found {}", prompts.len());
    let scores = match settings.optional_number("timestep")? {
        None => judge.score(&images, &prompts)?,
        Some(_) => {
            let timestep = settings.count("timestep")? as i64;
            ensure!(timestep < 1000, "setting `timestep`: expected 0 to 999, found {timestep}");
            let floats = images.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 127.5 - 1.0;
            judge.score_step(&floats, timestep, &prompts)?
        }
    };
    Ok(results([("scores", Tensor::from_slice(&scores))]))
}
