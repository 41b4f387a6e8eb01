//! `seedpo sample`: pictures for prompts.

mod adapters;
mod folder;
mod texts;

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use seedpo_evaluate::grid::{GridOptions, grid};
use seedpo_evaluate::png::write_png;
use seedpo_model::{Conditioning, DiffusionModel, LoadOptions, Policy, PromptEmbeds};
use seedpo_rollout::{GuidedPolicy, Sampler, SamplerKind, draw, initial_noise, step_noise};
use seedpo_tensor::{NoiseKey, Tensor, tch};

use self::folder::{OutputFolder, file_name};
use self::texts::Recipe;
use crate::context::Context;
use crate::failure::Outcome;
use crate::progress::Progress;
use crate::{images, interrupt, models, out_of_memory, output};

pub use self::adapters::{Weighted, is_whole, load_lora};

const EXAMPLES: &str = "\
Examples:
  seedpo sample --prompt \"red apple\" --prompt \"blue car\" -n 4 --grid --out pictures
  seedpo sample --model stable-diffusion-v1-5/stable-diffusion-v1-5 --variant fp16 --prompts prompts.txt --dtype bf16
  seedpo sample --adapter runs/see-spo --adapter ink.safetensors:0.5 --prompt \"red apple\" --seed 7 --out after

A picture depends on its prompt, the seed, its number among those of the prompt and the settings; not on the batch
size nor on the other prompts. The PNGs carry all of these as text chunks (docs/sampling.md).";

/// Draw pictures for prompts, with or without an adapter.
///
/// Writes one PNG per picture. Nothing that is there is overwritten.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A diffusers folder, a checkpoint file, or a hub id (user/repo) [default: the built-in model].
    #[arg(
        long,
        value_name = "FOLDER|ID",
        visible_alias = "pretrained-model-name-or-path",
        help_heading = "What to draw"
    )]
    model: Option<PathBuf>,

    /// A LoRA file (diffusers, PEFT or kohya), a folder with a pytorch_lora_weights.safetensors (a run, a checkpoint), or a hub
    /// id (user/repo or user/repo/file.safetensors). Its weight may follow, 1 if none does; give it again to add more.
    #[arg(long, value_name = "PATH|ID[:WEIGHT]", value_parser = weighted, help_heading = "What to draw")]
    adapter: Vec<Weighted>,

    /// A U-Net in place of the model's own, from full fine-tuning: a run, a checkpoint, or a folder in diffusers' layout.
    #[arg(long, value_name = "FOLDER", help_heading = "What to draw")]
    unet: Option<PathBuf>,

    /// A prompt; give it again for more.
    #[arg(long, value_name = "TEXT", conflicts_with = "prompts", help_heading = "What to draw")]
    prompt: Vec<String>,

    /// A file of prompts: .txt (one a line), .json or .jsonl (strings, or objects with `caption` or `prompt`).
    #[arg(long, value_name = "FILE", help_heading = "What to draw")]
    prompts: Option<PathBuf>,

    /// What to steer away from, under guidance.
    #[arg(long, value_name = "TEXT", default_value = "", help_heading = "What to draw")]
    negative_prompt: String,

    /// Pictures per prompt, 1 or more.
    #[arg(
        long,
        short = 'n',
        value_name = "N",
        default_value_t = 1,
        visible_alias = "num-images",
        help_heading = "What to draw"
    )]
    images_per_prompt: usize,

    /// The seed, 0 or more.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "What to draw")]
    seed: u64,

    /// How to go from noise to picture: ddim, euler, euler-karras, euler-a, dpmpp-2m, dpmpp-2m-karras, in this or other
    /// tools' spelling ("DPM++ 2M Karras", dpmpp_2m_karras), or the class name of one of these in diffusers.
    #[arg(long, value_name = "NAME", default_value = "ddim", visible_alias = "scheduler", help_heading = "Sampler")]
    sampler: SamplerKind,

    /// Denoising steps, 1 to 1000.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 20,
        visible_alias = "num-inference-steps",
        help_heading = "Sampler"
    )]
    steps: usize,

    /// Guidance scale, 0 or more; 1 runs the conditional prediction alone, at half the cost.
    #[arg(
        long,
        value_name = "W",
        default_value_t = 5.0,
        visible_alias = "guidance",
        allow_negative_numbers = true,
        help_heading = "Sampler"
    )]
    guidance_scale: f64,

    /// Noise of each step of the ddim sampler, 0 (none) to 1 (as much as in training).
    #[arg(long, value_name = "ETA", default_value_t = 0.0, allow_negative_numbers = true, help_heading = "Sampler")]
    eta: f64,

    /// Height and width in pixels, a multiple of the autoencoder's factor (8 for Stable Diffusion) [default: the
    /// model's own].
    #[arg(long, value_name = "PX", help_heading = "Sampler")]
    resolution: Option<i64>,

    /// Height in pixels, where it differs from the width.
    #[arg(long, value_name = "PX", help_heading = "Sampler")]
    height: Option<i64>,

    /// Width in pixels, where it differs from the height.
    #[arg(long, value_name = "PX", help_heading = "Sampler")]
    width: Option<i64>,

    /// Pictures drawn at once: memory and speed only.
    #[arg(long, value_name = "N", default_value_t = 8, visible_alias = "batch-size", help_heading = "Sampler")]
    batch: usize,

    /// The folder to write to; made if it is not there.
    #[arg(
        long,
        value_name = "FOLDER",
        default_value = "pictures",
        visible_alias = "output-dir",
        help_heading = "Output"
    )]
    out: PathBuf,

    /// Also write grid.png, an overview with a row per prompt.
    #[arg(long, help_heading = "Output")]
    grid: bool,
}

/// One picture to draw: its prompt's index, and its number among those of the prompt.
#[derive(Clone, Copy)]
struct Job {
    prompt: usize,
    number: u64,
}

/// Runs `seedpo sample`.
pub fn run(args: &Args, context: &Context) -> Result<Outcome> {
    let prompts = args.all_prompts()?;
    args.check()?;
    let numbers = 0..args.images_per_prompt as u64;
    let jobs: Vec<Job> =
        (0..prompts.len()).flat_map(|prompt| numbers.clone().map(move |number| Job { prompt, number })).collect();
    let name = |job: &Job| args.out.join(file_name(&prompts[job.prompt], job.prompt, job.number));
    let files: Vec<PathBuf> = jobs.iter().map(name).chain(args.grid.then(|| args.out.join(images::GRID))).collect();
    let _no_grad = tch::no_grad_guard();
    let options = LoadOptions { unet: args.unet.clone(), ..context.load_options(context.device()?)? };
    let model = DiffusionModel::load(&models::find(args.model.as_deref(), context)?, &options)?;
    let shape = args.latent_shape(&model)?;
    let sampler = Sampler::new(args.sampler, &model.schedule, args.steps, args.eta)?;
    if let Some(text) = args.sampler.passed_over(&model.scheduler) {
        context.note(&format!("note: {text}"));
    }
    let mut model = adapters::merged(&args.adapter, model, context)?;
    report_truncated(&model, &prompts, context)?;
    let _folder = OutputFolder::make(&args.out, &files)?;
    let text = Text::encode(args, &model, &prompts, shape)?;
    model.release_text_encoders();
    out_of_memory::batch("--batch", args.batch.min(jobs.len()), model.device());
    let painter = Painter { args, model: &model, sampler: &sampler, shape, text };
    let mut progress = context.progress("sampling", jobs.len(), "pictures");
    let mut shown = Vec::new();
    for (jobs, files) in jobs.chunks(args.batch).zip(files.chunks(args.batch)) {
        if interrupt::requested() {
            return Ok(Outcome::Interrupted);
        }
        let pictures = painter.paint(jobs, &mut progress)?;
        painter.write(jobs, files, &pictures, &prompts)?;
        if args.grid {
            shown.push(pictures);
        }
        progress.advance(jobs.len());
    }
    progress.finish();
    let place = args.out.display();
    if args.grid {
        args.write_grid(&shown, &prompts)?;
        output::print(&format!("{} picture(s) and {} in {place}\n", jobs.len(), images::GRID))?;
    } else {
        output::print(&format!("{} picture(s) in {place}\n", jobs.len()))?;
    }
    Ok(Outcome::Done)
}

/// Never fails: what is no weight belongs to the path.
fn weighted(text: &str) -> Result<Weighted, std::convert::Infallible> {
    Ok(Weighted::parse(text))
}

impl Args {
    fn all_prompts(&self) -> Result<Vec<String>> {
        match &self.prompts {
            Some(path) => Ok(seedpo_align::read_prompts(path)?),
            None if self.prompt.is_empty() => {
                bail!("expected at least one prompt, found none; give --prompt TEXT or --prompts FILE")
            }
            None => Ok(self.prompt.clone()),
        }
    }

    fn check(&self) -> Result<()> {
        ensure!(self.images_per_prompt >= 1, "--images-per-prompt: expected 1 or more, found 0");
        ensure!(self.batch >= 1, "--batch: expected 1 or more, found 0");
        let w = self.guidance_scale;
        ensure!(w.is_finite() && w >= 0.0, "--guidance-scale: expected a number of 0 or more, found {w}");
        Ok(())
    }

    fn write_grid(&self, pictures: &[Tensor], prompts: &[String]) -> Result<()> {
        let square = (prompts.len() as f64).sqrt().ceil() as usize;
        let columns = if self.images_per_prompt > 1 { self.images_per_prompt } else { square };
        let pictures = Tensor::f_cat(pictures, 0)?;
        let (_, height, width, _) = pictures.size4()?;
        let sheet = grid(&pictures, &GridOptions::for_size(columns, height as usize, width as usize))?;
        Ok(write_png(&self.out.join(images::GRID), &sheet, &[("prompts", &prompts.join("\n"))])?)
    }

    /// `[C, h, w]` of one latent. Errors: a side that the autoencoder and the U-Net cannot halve evenly.
    fn latent_shape(&self, model: &DiffusionModel) -> Result<[i64; 3]> {
        let ([height, width], channels) = models::native_size(model);
        let factor = model.vae.config().scale_factor();
        let side = |flag: &str, given: Option<i64>, native: i64| {
            let flag = if given.is_none() && self.resolution.is_some() { "resolution" } else { flag };
            let pixels = given.or(self.resolution).unwrap_or(native);
            ensure!(
                pixels >= factor && pixels <= 16384 && pixels % factor == 0,
                "--{flag}: expected a multiple of {factor} from {factor} to 16384 (the autoencoder shrinks by {factor}), found {pixels}"
            );
            Ok(pixels / factor)
        };
        Ok([channels, side("height", self.height, height)?, side("width", self.width, width)?])
    }
}

fn report_truncated(model: &DiffusionModel, prompts: &[String], context: &Context) -> Result<()> {
    let limit = model.tokenizer.max_length();
    for prompt in prompts {
        let count = model.tokenizer.token_count(prompt)?;
        if count > limit {
            context.note(&format!(
                "note: a prompt has {count} tokens, the model reads the first {limit}: {:.60}...",
                prompt
            ));
        }
    }
    Ok(())
}

/// The prompts' embeddings, each distinct prompt's once.
struct Text {
    conditioning: Conditioning,
    /// The row of each prompt.
    rows: Vec<usize>,
}

impl Text {
    fn encode(args: &Args, model: &DiffusionModel, prompts: &[String], shape: [i64; 3]) -> Result<Self> {
        let mut distinct: Vec<&str> = Vec::new();
        let mut row_of = std::collections::HashMap::new();
        let mut rows = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            rows.push(*row_of.entry(prompt.as_str()).or_insert_with(|| {
                distinct.push(prompt);
                distinct.len() - 1
            }));
        }
        let parts = distinct.chunks(args.batch).map(|part| model.encode_prompts(part));
        let parts = parts.collect::<seedpo_model::Result<Vec<_>>>()?;
        let embeds = PromptEmbeds::cat(&parts.iter().collect::<Vec<_>>())?;
        let negative = model.encode_negative_prompt(&args.negative_prompt)?;
        let scale = model.vae.config().scale_factor();
        let conditioning = Conditioning::new(&embeds, &negative, (shape[1] * scale, shape[2] * scale));
        Ok(Self { conditioning, rows })
    }
}

/// What all batches share.
struct Painter<'a> {
    args: &'a Args,
    model: &'a DiffusionModel,
    sampler: &'a Sampler,
    shape: [i64; 3],
    text: Text,
}

impl Painter<'_> {
    /// Draws one batch: `u8` `[B, H, W, 3]`.
    fn paint(&self, jobs: &[Job], progress: &mut Progress) -> Result<Tensor> {
        let policy = Policy::new(self.model, None);
        let predictor = GuidedPolicy::new(policy, &self.text.conditioning, self.args.guidance_scale);
        let keys: Vec<NoiseKey> =
            jobs.iter().map(|job| NoiseKey::new(self.args.seed, "sample").prompt(job.number)).collect();
        let x_t = initial_noise(&keys, &self.shape).to_device(self.model.device());
        let rows: Vec<usize> = jobs.iter().map(|job| self.text.rows[job.prompt]).collect();
        let mut noise = |step: usize| step_noise(&keys, step, &self.shape);
        let mut on_step = |done: usize, total: usize| progress.message(format!("step {done}/{total}"));
        let latents = draw(&predictor, &x_t, &rows, self.sampler, &mut noise, &mut on_step)?;
        Ok(seedpo_judge::to_u8(&self.model.vae.decode_latents(&latents)?)?)
    }

    fn write(&self, jobs: &[Job], files: &[PathBuf], pictures: &Tensor, prompts: &[String]) -> Result<()> {
        let (_, height, width, _) = pictures.size4()?;
        let model = self.args.model.as_ref().map_or("emoji-sd".to_owned(), |model| model.display().to_string());
        for (index, (job, file)) in jobs.iter().zip(files).enumerate() {
            let recipe = Recipe {
                prompt: &prompts[job.prompt],
                negative_prompt: &self.args.negative_prompt,
                seed: self.args.seed,
                number: job.number,
                steps: self.args.steps,
                eta: self.args.eta,
                guidance_scale: self.args.guidance_scale,
                sampler: (self.args.sampler.to_string(), self.args.sampler.label()),
                model: &model,
                unet: self.args.unet.as_deref(),
                adapters: &self.args.adapter,
                size: (width, height),
            };
            let texts = recipe.texts();
            let texts = texts.each_ref().map(|(keyword, text)| (*keyword, text.as_str()));
            write_png(file, &pictures.get(index as i64), &texts)?;
        }
        Ok(())
    }
}
