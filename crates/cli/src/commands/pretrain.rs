//! `seedpo pretrain`: train the built-in model from the emoji, and measure how good it is.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use seedpo_model::DiffusionModel;
use seedpo_pretrain::measure::{Figure, SampleSettings, measure};
use seedpo_pretrain::preview::write_grid;
use seedpo_pretrain::recipe::Compute;
use seedpo_pretrain::{Dataset, Error, Observer, Recipe, RunOptions, StageReport};
use seedpo_tensor::tch;

use crate::context::Context;
use crate::failure::Outcome;
use crate::progress::Progress;
use crate::{interrupt, output};

const EXAMPLES: &str = "\
Examples:
  make emoji                                       fetch the data into .emoji (74 MB)
  seedpo pretrain                                  the recipe of the built-in model, into runs/pretrain/model
  seedpo pretrain --resume                         go on after Ctrl-C or a crash, to the same result
  seedpo pretrain measure --model assets/emoji-sd  the figure, and a grid of 64

docs/pretrain.md explains the recipe and says how long it takes.";

/// Train a small Stable-Diffusion-shaped model (VAE, text encoder, U-Net) from the emoji, or measure one.
///
/// Everything is drawn from keys of --seed, and a resumed run ends with the same weights, bit for bit, on CPU.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,

    #[command(flatten)]
    train: TrainArgs,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// How often a name's picture lies nearest to an image of that name or subcategory; and a grid of pictures.
    Measure(MeasureArgs),
}

#[derive(clap::Args, Debug)]
struct TrainArgs {
    /// The data folder: emoji.json, keywords.json and img/google/64/*.png, as `make emoji` makes it.
    #[arg(long, default_value = ".emoji", value_name = "FOLDER")]
    data: PathBuf,

    /// The run's folder; the model goes to its `model/`.
    #[arg(long, visible_alias = "output-dir", default_value = "runs/pretrain", value_name = "FOLDER")]
    out: PathBuf,

    /// Steps of the VAE [default: the recipe's].
    #[arg(long, value_name = "N")]
    vae_steps: Option<u64>,

    /// Images per VAE step [default: the recipe's].
    #[arg(long, value_name = "N")]
    vae_batch: Option<usize>,

    /// Peak learning rate of the VAE [default: the recipe's].
    #[arg(long, value_name = "RATE")]
    vae_lr: Option<f64>,

    /// Steps of text encoder and U-Net [default: the recipe's]; may be changed on --resume.
    #[arg(long, visible_alias = "max-train-steps", value_name = "N")]
    steps: Option<u64>,

    /// Images per step of text encoder and U-Net [default: the recipe's].
    #[arg(long, visible_alias = "train-batch-size", value_name = "N")]
    batch: Option<usize>,

    /// Peak learning rate of text encoder and U-Net [default: the recipe's].
    #[arg(long, visible_alias = "learning-rate", value_name = "RATE")]
    lr: Option<f64>,

    /// Seed of weights, batches, captions and noise.
    #[arg(long, default_value_t = 0, value_name = "SEED")]
    seed: u64,

    /// Threads that each compute a part of every batch [default: 2].
    #[arg(long, value_name = "N")]
    workers: Option<usize>,

    /// Continue the run in --out from its last checkpoint.
    #[arg(long)]
    resume: bool,

    /// Steps between checkpoints.
    #[arg(long, visible_alias = "checkpointing-steps", default_value_t = 200, value_name = "N")]
    checkpoint_every: u64,

    /// Steps between preview grids (and exports of the model so far); 0 for none.
    #[arg(long, default_value_t = 500, value_name = "N")]
    preview_every: u64,
}

#[derive(clap::Args, Debug)]
struct MeasureArgs {
    /// The diffusers folder to measure.
    #[arg(
        long,
        visible_alias = "pretrained-model-name-or-path",
        default_value = "assets/emoji-sd",
        value_name = "FOLDER"
    )]
    model: PathBuf,

    /// The data folder it was trained on.
    #[arg(long, default_value = ".emoji", value_name = "FOLDER")]
    data: PathBuf,

    /// How many names to draw, each once.
    #[arg(long, default_value_t = 200, value_name = "N")]
    names: usize,

    /// DDIM steps.
    #[arg(long, visible_alias = "num-inference-steps", default_value_t = 20, value_name = "N")]
    steps: usize,

    /// Guidance scale.
    #[arg(long, default_value_t = 5.0, value_name = "SCALE")]
    guidance_scale: f64,

    /// Seed of the choice of names and of the noise.
    #[arg(long, default_value_t = 0, value_name = "SEED")]
    seed: u64,

    /// Where to write the grid of the first 64 pictures.
    #[arg(long, default_value = "emoji-grid.png", value_name = "FILE")]
    grid: PathBuf,

    /// Also write every name, its nearest image's name and the verdict to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// A quality gate: exit with code 1 if the share is below this, in [0, 1].
    #[arg(long, value_name = "SHARE")]
    at_least: Option<f64>,
}

/// Runs `seedpo pretrain`.
pub fn run(args: &Args, context: &Context) -> Result<Outcome> {
    match &args.what {
        None => train(&args.train, context),
        Some(What::Measure(args)) => run_measure(args, context),
    }
}

fn recipe(args: &TrainArgs, context: &Context) -> Result<Recipe> {
    let mut recipe = Recipe { seed: args.seed, ..Recipe::default() };
    recipe.compute = match context.flag("dtype") {
        None | Some("bf16") => Compute::Bf16,
        Some("f32") => Compute::F32,
        Some(other) => bail!("--dtype: expected bf16 or f32 for training, found {other}"),
    };
    let set = |value: Option<u64>, to: &mut u64| value.into_iter().for_each(|v| *to = v);
    set(args.vae_steps, &mut recipe.vae.steps);
    set(args.steps, &mut recipe.denoiser.steps);
    let set = |value: Option<usize>, to: &mut usize| value.into_iter().for_each(|v| *to = v);
    set(args.vae_batch, &mut recipe.vae.batch);
    set(args.batch, &mut recipe.denoiser.batch);
    set(args.workers, &mut recipe.workers);
    let set = |value: Option<f64>, to: &mut f64| value.into_iter().for_each(|v| *to = v);
    set(args.vae_lr, &mut recipe.vae.lr);
    set(args.lr, &mut recipe.denoiser.lr);
    recipe.validate()?;
    Ok(recipe)
}

fn train(args: &TrainArgs, context: &Context) -> Result<Outcome> {
    if let Some(device) = context.flag("device").filter(|&name| name != "cpu" && name != "auto") {
        bail!("--device: pretraining runs on cpu, found {device}");
    }
    let recipe = recipe(args, context)?;
    context.note(&format!(
        "pretraining: VAE {} steps of {} at {:e}; text encoder and U-Net {} steps of {} at {:e}, {:?}; {} workers",
        recipe.vae.steps,
        recipe.vae.batch,
        recipe.vae.lr,
        recipe.denoiser.steps,
        recipe.denoiser.batch,
        recipe.denoiser.lr,
        recipe.compute,
        recipe.workers
    ));
    let options = RunOptions {
        data: args.data.clone(),
        work: args.out.clone(),
        recipe,
        resume: args.resume,
        checkpoint_every: args.checkpoint_every,
        preview_every: args.preview_every,
    };
    let mut shown = Shown::new(context);
    match seedpo_pretrain::run(&options, &mut shown) {
        Ok(folder) => {
            shown.finish();
            output::print(&format!("{}\n", folder.display()))?;
            context.note(&format!("measure it: seedpo pretrain measure --model {}", folder.display()));
            Ok(Outcome::Done)
        }
        Err(stopped @ Error::Stopped { .. }) => {
            shown.finish();
            context.note(&stopped.to_string());
            Ok(Outcome::Interrupted)
        }
        Err(error) => Err(error.into()),
    }
}

/// Shows a run: one progress for each stage.
pub(super) struct Shown<'a> {
    context: &'a Context,
    stage: &'static str,
    progress: Option<Progress>,
}

impl<'a> Shown<'a> {
    /// Shows nothing until the first step.
    pub(super) fn new(context: &'a Context) -> Self {
        Self { context, stage: "", progress: None }
    }

    /// Ends the last stage's progress.
    pub(super) fn finish(&mut self) {
        if let Some(mut progress) = self.progress.take() {
            progress.finish();
        }
    }
}

impl Observer for Shown<'_> {
    fn on_step(&mut self, report: &StageReport) {
        if self.stage != report.stage {
            self.finish();
            self.stage = report.stage;
            let mut progress = self.context.progress(report.stage, report.total as usize, "steps");
            progress.skip(report.step as usize - 1);
            self.progress = Some(progress);
        }
        if let Some(progress) = &mut self.progress {
            progress.message(format!("loss {:.4}", report.loss));
            progress.advance(1);
        }
    }

    fn on_note(&mut self, text: &str) {
        match &self.progress {
            Some(progress) => progress.note(text),
            None => self.context.note(text),
        }
    }

    fn stop(&self) -> bool {
        interrupt::requested()
    }
}

fn run_measure(args: &MeasureArgs, context: &Context) -> Result<Outcome> {
    ensure!(args.names > 0, "--names: expected 1 or more, found 0");
    ensure!(args.guidance_scale.is_finite(), "--guidance-scale: expected a finite number");
    let options = context.load_options_or(context.device_or("cpu")?, "f32")?;
    let model = DiffusionModel::load(&args.model, &options).context("--model")?;
    let vae = model.vae.config();
    let data = Dataset::read(&args.data, vae.sample_size).context("--data")?;
    let settings = SampleSettings { steps: args.steps, guidance_scale: args.guidance_scale, seed: args.seed };
    let mut progress = context.progress("sampling", args.names.min(data.len()), "pictures");
    let mut done = 0;
    let (figure, latents) = measure(&model, &data, args.names, settings, &mut |now| {
        progress.advance(now - done);
        done = now;
    })?;
    progress.finish();
    let shown = latents.narrow(0, 0, latents.size()[0].min(64));
    let images = tch::no_grad(|| model.vae.decode_latents(&shown))?;
    write_grid(&args.grid, &images, 8)?;
    output::print(&text(&figure, &args.grid))?;
    if let Some(path) = &args.json {
        seedpo_tensor::write_atomic(path, format!("{}\n", serde_json::to_string(&figure)?).as_bytes())?;
    }
    match args.at_least {
        Some(bound) if figure.name_or_subcategory < bound => Ok(Outcome::GateFailed),
        _ => Ok(Outcome::Done),
    }
}

fn text(figure: &Figure, grid: &Path) -> String {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    format!(
        "nearest image carries the name or its subcategory: {}\nnearest image carries the very name: {}\nnames: {}\ngrid of the first 64: {}\n",
        percent(figure.name_or_subcategory),
        percent(figure.name),
        figure.names,
        grid.display()
    )
}
