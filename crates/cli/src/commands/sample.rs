//! `seedpo sample`: pictures for prompts.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use seedpo_evaluate::grid::{GridOptions, grid};
use seedpo_evaluate::png::write_png;
use seedpo_model::adapter::resolve;
use seedpo_model::{Adapter, Conditioning, DiffusionModel, LoadOptions, Policy};
use seedpo_rollout::{Ddim, GuidedPolicy, initial_noise, sample, step_noise};
use seedpo_tensor::{NoiseKey, Tensor, tch};
use serde_json::json;

use crate::context::Context;
use crate::failure::Outcome;
use crate::progress::Progress;
use crate::{images, interrupt, models, output};

const EXAMPLES: &str = "\
Examples:
  seedpo sample --prompt \"red apple\" --prompt \"blue car\" -n 4 --out pictures
  seedpo sample --model path/to/stable-diffusion-v1-5 --prompts prompts.txt --dtype bf16 --out pictures
  seedpo sample --adapter runs/see-spo --prompt \"red apple\" --seed 7 --out after

A picture depends on its prompt, the seed, its number among those of the prompt and the settings; not on the batch
size nor on the other prompts. The PNGs carry all of these as text chunks.";

/// Draw pictures for prompts, with or without an adapter.
///
/// Writes one PNG per picture and `grid.png`, a row per prompt. Nothing that is there is overwritten.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A diffusers folder [default: the built-in model].
    #[arg(long, value_name = "FOLDER", visible_alias = "pretrained-model-name-or-path", help_heading = "What to draw")]
    model: Option<PathBuf>,

    /// A LoRA file (diffusers or PEFT), or a folder with a pytorch_lora_weights.safetensors: a run, a checkpoint.
    #[arg(long, value_name = "PATH", help_heading = "What to draw")]
    adapter: Option<PathBuf>,

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
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1, help_heading = "What to draw")]
    images_per_prompt: usize,

    /// The seed, 0 or more.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "What to draw")]
    seed: u64,

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

    /// Noise of each DDIM step, 0 (none) to 1 (as much as in training).
    #[arg(long, value_name = "ETA", default_value_t = 0.0, allow_negative_numbers = true, help_heading = "Sampler")]
    eta: f64,

    /// Height in pixels, a multiple of the autoencoder's factor [default: the model's own].
    #[arg(long, value_name = "PX", help_heading = "Sampler")]
    height: Option<i64>,

    /// Width in pixels, a multiple of the autoencoder's factor [default: the model's own].
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
    let files: Vec<PathBuf> = jobs.iter().map(|job| args.out.join(file_name(&prompts[job.prompt], *job))).collect();
    let _no_grad = tch::no_grad_guard();
    let options = LoadOptions::new(context.device()?, context.kind()?);
    let model = DiffusionModel::load(&models::find(args.model.as_deref())?, &options)?;
    let shape = args.latent_shape(&model)?;
    let adapter = match args.adapter.as_deref() {
        Some(path) => Some(load_adapter(path, &model)?.merge(&model.unet)?),
        None => None,
    };
    let ddim = Ddim::new(&model.schedule, args.steps, args.eta)?;
    report_truncated(&model, &prompts, context)?;
    let folder = OutputFolder::make(&args.out, &files)?;
    let painter = Painter { args, model: &model, adapter: adapter.as_ref(), ddim: &ddim, shape, prompts: &prompts };
    let mut progress = context.progress("sampling", jobs.len(), "pictures");
    let mut pictures = Vec::new();
    for (jobs, files) in jobs.chunks(args.batch).zip(files.chunks(args.batch)) {
        if interrupt::requested() {
            return Ok(Outcome::Interrupted);
        }
        pictures.push(painter.paint(jobs, &mut progress)?);
        painter.write(jobs, files, pictures.last().context("a batch was just drawn")?)?;
        progress.advance(jobs.len());
    }
    progress.finish();
    let columns =
        if args.images_per_prompt > 1 { args.images_per_prompt } else { (prompts.len() as f64).sqrt().ceil() as usize };
    let pictures = Tensor::f_cat(&pictures, 0)?;
    let (_, height, width, _) = pictures.size4()?;
    let sheet = grid(&pictures, &GridOptions::for_size(columns, height as usize, width as usize))?;
    write_png(&args.out.join(images::GRID), &sheet, &[("prompts", &prompts.join("\n"))])?;
    folder.keep();
    output::print(&format!("{} picture(s) and {} in {}\n", jobs.len(), images::GRID, args.out.display()))?;
    Ok(Outcome::Done)
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

    /// `[C, h, w]` of one latent. Errors: a side that the autoencoder and the U-Net cannot halve evenly.
    fn latent_shape(&self, model: &DiffusionModel) -> Result<[i64; 3]> {
        let (native, channels) = models::native_size(model);
        let factor = model.vae.config().scale_factor();
        let side = |flag: &str, given: Option<i64>| {
            let pixels = given.unwrap_or(native);
            ensure!(
                pixels >= factor && pixels <= 16384 && pixels % factor == 0,
                "--{flag}: expected a multiple of {factor} from {factor} to 16384 (the autoencoder shrinks by {factor}), found {pixels}"
            );
            Ok(pixels / factor)
        };
        Ok([channels, side("height", self.height)?, side("width", self.width)?])
    }
}

/// The adapter of a file, or of the one in a folder (a run, a checkpoint, a peft folder).
pub fn load_adapter(path: &Path, model: &DiffusionModel) -> Result<Adapter> {
    let file = resolve(path);
    ensure!(file.is_file(), "adapter {}: no such file", file.display());
    Ok(Adapter::load(&file, &model.unet)?)
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

/// What all batches share.
struct Painter<'a> {
    args: &'a Args,
    model: &'a DiffusionModel,
    adapter: Option<&'a Adapter>,
    ddim: &'a Ddim,
    shape: [i64; 3],
    prompts: &'a [String],
}

impl Painter<'_> {
    /// Draws one batch: `u8` `[B, H, W, 3]`.
    fn paint(&self, jobs: &[Job], progress: &mut Progress) -> Result<Tensor> {
        let prompts: Vec<&str> = jobs.iter().map(|job| self.prompts[job.prompt].as_str()).collect();
        let negative = self.model.encode_negative_prompt(&self.args.negative_prompt)?;
        let scale = self.model.vae.config().scale_factor();
        let size = (self.shape[1] * scale, self.shape[2] * scale);
        let conditioning = Conditioning::new(&self.model.encode_prompts(&prompts)?, &negative, size);
        let policy = Policy { base: self.model, adapter: self.adapter };
        let predictor = GuidedPolicy::new(policy, &conditioning, self.args.guidance_scale);
        let keys: Vec<NoiseKey> =
            jobs.iter().map(|job| NoiseKey::new(self.args.seed, "sample").prompt(job.number)).collect();
        let device = conditioning.prompt_embeds.device();
        let x_t = initial_noise(&keys, &self.shape).to_device(device);
        let rows: Vec<usize> = (0..jobs.len()).collect();
        let mut noise =
            |step: usize| (self.args.eta > 0.0).then(|| step_noise(&keys, step, &self.shape).to_device(device));
        let mut on_step = |done: usize, total: usize| progress.message(format!("step {done}/{total}"));
        let trajectory = sample(&predictor, &x_t, &rows, self.ddim, &mut noise, &mut on_step)?;
        let decoded = self.model.vae.decode_latents(trajectory.final_latents())?;
        Ok(seedpo_judge::to_u8(&decoded)?)
    }

    fn write(&self, jobs: &[Job], files: &[PathBuf], pictures: &Tensor) -> Result<()> {
        for (index, (job, file)) in jobs.iter().zip(files).enumerate() {
            let settings = json!({
                "seed": self.args.seed, "number": job.number, "steps": self.args.steps, "eta": self.args.eta,
                "guidance_scale": self.args.guidance_scale, "negative_prompt": self.args.negative_prompt,
                "model": self.model.folder.display().to_string(),
                "adapter": self.args.adapter.as_ref().map(|path| path.display().to_string()),
                "sampler": "ddim", "seedpo": env!("CARGO_PKG_VERSION"),
            });
            let (seed, settings) = (self.args.seed.to_string(), settings.to_string());
            let texts = [("prompt", self.prompts[job.prompt].as_str()), ("seed", &seed), ("settings", &settings)];
            write_png(file, &pictures.get(index as i64), &texts)?;
        }
        Ok(())
    }
}

/// `0003-red-apple-1.png`: the prompt's index, its first words, the picture's number.
fn file_name(prompt: &str, job: Job) -> String {
    let words: String =
        prompt.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { ' ' }).collect();
    let slug: String = words.split_whitespace().collect::<Vec<_>>().join("-").chars().take(40).collect();
    format!(
        "{:04}-{}-{}.png",
        job.prompt,
        if slug.is_empty() { "prompt" } else { slug.trim_end_matches('-') },
        job.number
    )
}

/// The folder written to; taken away again if this run made it and left nothing in it.
struct OutputFolder<'a> {
    path: &'a Path,
    made: bool,
}

impl<'a> OutputFolder<'a> {
    /// Errors: the folder cannot be made, or holds a file that would be overwritten.
    fn make(path: &'a Path, files: &[PathBuf]) -> Result<Self> {
        let made = !path.exists();
        std::fs::create_dir_all(path)
            .with_context(|| format!("--out {}: could not make the folder", path.display()))?;
        let grid = path.join(images::GRID);
        if let Some(there) = files.iter().chain([&grid]).find(|file| file.exists()) {
            bail!("--out: {} is there already and would be overwritten; name another folder", there.display());
        }
        Ok(Self { path, made })
    }

    fn keep(mut self) {
        self.made = false;
    }
}

impl Drop for OutputFolder<'_> {
    fn drop(&mut self) {
        if self.made {
            // Fails where pictures are in it, which is what we want.
            let _ = std::fs::remove_dir(self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_after_their_prompts() {
        let job = Job { prompt: 3, number: 1 };
        assert_eq!(file_name("Red apple, on a table!", job), "0003-red-apple-on-a-table-1.png");
        assert_eq!(file_name("☕", job), "0003-prompt-1.png");
    }
}
