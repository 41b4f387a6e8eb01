//! `seedpo probe`: any stage on given inputs, to compare it with a reference.

mod case;
mod conditioning;
mod loss;
mod settings;
mod stages;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use seedpo_model::{ClipTokenizer, DiffusionModel, LoadOptions, NoiseSchedule, SchedulerConfig};
use seedpo_tensor::{Device, Kind, Tensor, write_weights};

use self::case::Case;
use crate::context::Context;
use crate::failure::Outcome;
use crate::models;

const TABLE: &str = "\
The case is a safetensors file: its tensors are the inputs; its metadata has the strings `what` and `settings` (JSON).

  what      inputs                                              settings                    outputs
  tokenize                                                      prompts                     input_ids i64 [B, L]; SDXL: input_ids_2
  text      input_ids i64 [B, L]; SDXL: input_ids_2, those of                               prompt_embeds [B, L, D], pooled [B, P]
            tokenizer_2 (absent: input_ids for both encoders)
  unet      latents, timestep i64 [B], prompt_embeds            adapter                     noise_pred
  encode    images [B, 3, H, W] in [-1, 1]                                                  mean, logvar
  decode    latents (scaled)                                                                images
  ddim      latents, noise_pred, next_latents, timestep         steps, eta                  mean, std, log_prob
  sample    latents (unit noise), prompt_embeds,                steps, eta, guidance_scale, latents
            negative_prompt_embeds; noise [steps, B, C, h, w]   sampler, adapter
            where the sampler draws it (euler-a, eta > 0)
  loss      prompt_embeds, negative_prompt_embeds, timestep,    method, beta, gamma, form,  loss [1], margin [B],
            spo: latents, next_latents_w, next_latents_l        clip, guidance_scale,       grad.<adapter key>
            d3po: latents_w, next_latents_w, latents_l,         steps, eta, adapter,
                  next_latents_l                                reference_adapter,
            diffusion-dpo: latents_w, latents_l, noise          shaping
            seppo, spin: latents_w, latents_ref, noise
            sft: latents_w, noise
  score     images u8 [B, H, W, 3]                              judge, prompts, judge_path  scores [B]
            (as x / 127.5 - 1 where there is a timestep)        (its weights), timestep

SDXL: unet, sample and loss also read pooled [B, P] and time_ids [B, 6], floats or integers (original height, width; crop
top, left; target height, width), sample and loss negative_pooled [1, P] and, if they differ from time_ids,
negative_time_ids [B, 6]. At guidance_scale 1 all that is negative may be left out.

ddim: noise_pred is noise (epsilon) whatever the model predicts, and steps are counted leading; log_prob is NaN in a row whose
step has no noise (std 0). grad.<adapter key> has the shape that the adapter file has there.

Defaults of settings: eta 0 for sample and 1 for ddim and loss, sampler ddim, gamma 0, form flatten, clip null (off),
shaping the method's own (sign, indicator or off: the flipper; latents_w, _l and _ref are clean where noise is given).
Samplers: ddim, euler, euler-karras, euler-a, dpmpp-2m, dpmpp-2m-karras, also in other tools' spelling (DPM++ 2M), or the
name of their class in diffusers.
Paths in settings are taken from the working folder, or else from the case's folder.";

/// Run one stage on given inputs, to compare it with a reference of your own.
///
/// Results are written as f32 (token ids as i64), with `what` in the metadata.
#[derive(clap::Args, Debug)]
#[command(after_long_help = TABLE, after_help = "See `seedpo probe --help` for the table of stages.")]
pub struct Args {
    /// A diffusers folder, a checkpoint file, or a hub id (user/repo) [default: the built-in model].
    #[arg(long, value_name = "FOLDER|ID")]
    model: Option<PathBuf>,

    /// The case: inputs, `what` and `settings` in a safetensors file.
    #[arg(long, value_name = "FILE")]
    case: PathBuf,

    /// The file of results.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// The results of a stage, by name.
type Results = BTreeMap<String, Tensor>;

/// Where the model is and how to load it; loaded by the stages that need it.
pub struct Session<'a> {
    folder: PathBuf,
    options: LoadOptions,
    context: &'a Context,
}

impl Session<'_> {
    /// The model's tokenizers alone: one, or SDXL's two.
    pub fn tokenizers(&self) -> Result<(ClipTokenizer, Option<ClipTokenizer>)> {
        if !self.folder.is_dir() {
            let model = self.model()?;
            return Ok((model.tokenizer, model.text_encoder_2.map(|second| second.tokenizer)));
        }
        let read = |own: &Path| ClipTokenizer::from_folder(self.options.tokenizer.as_deref().unwrap_or(own));
        let second = self.folder.join("tokenizer_2");
        Ok((read(&self.folder)?, second.is_dir().then(|| read(&second)).transpose()?))
    }

    /// The whole model.
    pub fn model(&self) -> Result<DiffusionModel> {
        Ok(DiffusionModel::load(&self.folder, &self.options)?)
    }

    /// The model's noise schedule alone.
    pub fn schedule(&self) -> Result<NoiseSchedule> {
        if !self.folder.is_dir() {
            return Ok(self.model()?.schedule);
        }
        let config = SchedulerConfig::from_file(&self.folder.join("scheduler/scheduler_config.json"))?;
        let prediction_type = self.options.prediction_type.unwrap_or(config.prediction_type);
        Ok(NoiseSchedule::new(&SchedulerConfig { prediction_type, ..config })?)
    }

    /// Where the stage computes.
    pub fn device(&self) -> Device {
        self.options.device
    }

    /// The dtype that was asked for.
    pub fn kind(&self) -> Kind {
        self.options.kind
    }

    /// Tells the user of what a result does not take over from the model's folder, if there is such.
    pub fn note(&self, text: Option<String>) {
        if let Some(text) = text {
            self.context.note(&format!("note: {text}"));
        }
    }

    /// The global flags.
    pub fn context(&self) -> &Context {
        self.context
    }
}

/// Runs `seedpo probe`. The device is the CPU unless one is named.
pub fn run(args: &Args, context: &Context) -> Result<Outcome> {
    let case = Case::open(&args.case)?;
    let options = context.load_options_or(context.device_or("cpu")?, "f32")?;
    let session = Session { folder: models::find(args.model.as_deref(), context)?, options, context };
    let stage = stage(case.what()).with_context(|| format!("case {}", args.case.display()))?;
    let results =
        stage(&case, &session).with_context(|| format!("case {} (`{}`)", args.case.display(), case.what()))?;
    let results = in_f32(results)?;
    let metadata = BTreeMap::from([("what".to_owned(), case.what().to_owned())]);
    write_weights(&args.out, &results, &metadata).context("--out")?;
    Ok(Outcome::Done)
}

type Stage = fn(&Case, &Session<'_>) -> Result<Results>;

const STAGES: [(&str, Stage); 9] = [
    ("tokenize", stages::tokenize),
    ("text", stages::text),
    ("unet", stages::unet),
    ("encode", stages::encode),
    ("decode", stages::decode),
    ("ddim", stages::ddim),
    ("sample", stages::sample),
    ("loss", loss::loss),
    ("score", stages::score),
];

fn stage(what: &str) -> Result<Stage> {
    let names: Vec<&str> = STAGES.iter().map(|(name, _)| *name).collect();
    match STAGES.iter().find(|(name, _)| *name == what) {
        Some((_, stage)) => Ok(*stage),
        None => bail!("metadata `what`: expected one of {}; found `{what}`", names.join(", ")),
    }
}

/// Floating results as f32; a result that is not finite is refused by name, but for log-probabilities that do not exist.
fn in_f32(results: Results) -> Result<Results> {
    let convert = |(name, tensor): (String, Tensor)| {
        if !tensor.is_floating_point() {
            return Ok((name, tensor));
        }
        let finite = if name == stages::LOG_PROB { tensor.isinf().logical_not() } else { tensor.isfinite() };
        let bad = finite.logical_not().sum(Kind::Int64).int64_value(&[]);
        ensure!(
            bad == 0,
            "result `{name}`: {bad} of its {} values are NaN or infinite; look for such values in the inputs, the weights and the adapter",
            tensor.numel()
        );
        Ok((name, tensor.f_to_kind(Kind::Float)?))
    };
    results.into_iter().map(convert).collect()
}
