//! The flags of `seedpo judge train`.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use seedpo_judge_train::{PRESETS, Part, Preset, Settings};
use seedpo_tensor::Kind;

use crate::context::parse_dtype;

#[derive(clap::Subcommand, Debug)]
pub enum KindArgs {
    /// A CLIP by the contrastive loss, from captioned pictures; from nothing, or further from --init.
    Clip(ClipArgs),
    /// A preference model by PickScore's loss, from pairs of pictures, starting from a CLIP.
    Preference(PreferenceArgs),
    /// A step-aware preference model by SPO's recipe: the same from noised pictures, with the timestep known.
    StepAware(StepAwareArgs),
}

#[derive(clap::Args, Debug)]
pub struct Common {
    /// The run's folder; the judge goes to its model/ [default: runs/judge-KIND].
    #[arg(long, visible_alias = "output-dir", value_name = "FOLDER")]
    pub out: Option<PathBuf>,

    /// Published settings to start from, which the other flags change.
    #[arg(long, value_name = "NAME", help = presets_help())]
    pub preset: Option<String>,

    /// Updates [default: the preset's].
    #[arg(long, visible_alias = "max-train-steps", value_name = "N")]
    pub steps: Option<u64>,

    /// Pairs or captioned pictures of one pass [default: the preset's].
    #[arg(long, visible_alias = "train-batch-size", value_name = "N")]
    pub batch: Option<usize>,

    /// Passes whose gradients make one update [default: the preset's].
    #[arg(long, visible_alias = "gradient-accumulation-steps", value_name = "N")]
    pub accumulation: Option<usize>,

    /// Peak learning rate of AdamW [default: the preset's].
    #[arg(long, visible_alias = "learning-rate", value_name = "RATE")]
    pub lr: Option<f64>,

    /// AdamW's weight decay, of all parameters [default: the preset's].
    #[arg(long, value_name = "X")]
    pub weight_decay: Option<f64>,

    /// Learning-rate schedule: constant, constant_with_warmup, linear, cosine, cosine_with_restarts, polynomial
    /// [default: the preset's].
    #[arg(long, visible_alias = "lr-scheduler", value_name = "NAME")]
    pub schedule: Option<String>,

    /// Updates of the linear rise from 0 [default: the preset's].
    #[arg(long, visible_alias = "lr-warmup-steps", value_name = "N")]
    pub warmup: Option<u64>,

    /// Gradients with a larger norm are scaled down to it; 0 never [default: 1].
    #[arg(long, value_name = "X")]
    pub max_grad_norm: Option<f64>,

    /// Seed of fresh weights, order, crops, captions, timesteps, noise and of what is held out [default: 42].
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,

    /// The share of prompts (or captioned pictures) that is never trained on, 0 to 0.9 [default: the preset's].
    #[arg(long, value_name = "SHARE")]
    pub heldout_share: Option<f64>,

    /// Held-out pairs or pictures looked at, evenly over the dataset; 0 all [default: the preset's].
    #[arg(long, value_name = "N")]
    pub heldout_limit: Option<usize>,

    /// Use part K of N of the dataset's prompts alone: judges of other parts share no prompt with it [default: 1/1].
    #[arg(long, value_name = "K/N")]
    pub part: Option<Part>,

    /// Go on with the run in --out from its checkpoint; give the same flags as before.
    #[arg(long)]
    pub resume: bool,

    /// Updates between checkpoints; 0 for one at the end.
    #[arg(long, visible_alias = "checkpointing-steps", default_value_t = 200, value_name = "N")]
    pub checkpoint_every: u64,

    /// Updates between looks at the held-out data; 0 for one at the end.
    #[arg(long, visible_alias = "validation-steps", default_value_t = 200, value_name = "N")]
    pub evaluate_every: u64,

    /// Number type of the judge's weights on disk: f32, bf16 or f16.
    #[arg(long, default_value = "f32", value_name = "DTYPE", value_parser = storage)]
    pub save_dtype: Kind,

    /// Stop where more than this share of the rows is bad, 0 to 1.
    #[arg(long, default_value_t = 0.01, value_name = "SHARE")]
    pub bad_rows_limit: f64,
}

#[derive(clap::Args, Debug)]
pub struct ClipArgs {
    /// An imagefolder with metadata.jsonl (or any dataset of docs/data.md, of which the winners are taken), or `emoji`.
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,

    /// The folder of the emoji, for `--data emoji`.
    #[arg(long, default_value = ".emoji", value_name = "FOLDER")]
    pub emoji: PathBuf,

    /// A CLIP to train further: a folder, a weight file or a hub id; without it one from nothing, of the sizes below.
    #[arg(long, value_name = "PATH|ID")]
    pub init: Option<String>,

    /// The least share of a picture's area that is trained on at a time; 1 is the whole picture.
    #[arg(long, default_value_t = 0.9, value_name = "SHARE")]
    pub crop_area: f64,

    /// From nothing: side of the pictures in pixels.
    #[arg(long, default_value_t = 64, value_name = "N", help_heading = "Sizes of a CLIP from nothing")]
    pub image_size: i64,

    /// Side of a patch in pixels.
    #[arg(long, default_value_t = 16, value_name = "N", help_heading = "Sizes of a CLIP from nothing")]
    pub patch_size: i64,

    /// Width, layers and heads of the vision tower.
    #[arg(long, default_value = "128,4,4", value_name = "W,L,H", help_heading = "Sizes of a CLIP from nothing")]
    pub vision: String,

    /// Width, layers and heads of the text tower.
    #[arg(long, default_value = "96,2,4", value_name = "W,L,H", help_heading = "Sizes of a CLIP from nothing")]
    pub text: String,

    /// Width that both are projected to.
    #[arg(long, default_value_t = 96, value_name = "N", help_heading = "Sizes of a CLIP from nothing")]
    pub projection: i64,

    #[command(flatten)]
    pub common: Common,
}

#[derive(clap::Args, Debug)]
pub struct PreferenceArgs {
    #[command(flatten)]
    pub pairs: PairArgs,
    #[command(flatten)]
    pub common: Common,
}

#[derive(clap::Args, Debug)]
pub struct PairArgs {
    /// A file or folder of pairs, ties welcome (docs/data.md).
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,

    /// What to start from: a CLIP, a PickScore or a judge trained before; a folder, a weight file or a hub id.
    #[arg(long, value_name = "PATH|ID")]
    pub init: String,

    /// Only pairs whose both pictures come from a generator whose name contains this.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub pairs_generator: String,
}

#[derive(clap::Args, Debug)]
pub struct StepAwareArgs {
    #[command(flatten)]
    pub pairs: PairArgs,

    /// The diffusion model that predicts from noise: a diffusers folder, a checkpoint or a hub id [default: the built-in
    /// model].
    #[arg(long, visible_alias = "pretrained-model-name-or-path", value_name = "PATH|ID")]
    pub model: Option<PathBuf>,

    /// Guidance scale of its predictions.
    #[arg(long, default_value_t = 5.0, value_name = "SCALE")]
    pub guidance_scale: f64,

    /// Side of the pictures that are noised, in pixels [default: the model's own].
    #[arg(long, value_name = "N")]
    pub resolution: Option<i64>,

    #[command(flatten)]
    pub common: Common,
}

fn presets_help() -> String {
    let line = |preset: &Preset| format!("{} ({}): {}", preset.name, preset.kind, preset.source);
    let list: Vec<String> = PRESETS.iter().map(line).collect();
    format!("Published settings to start from, which the other flags change.\n  {}\n", list.join("\n  "))
}

impl Common {
    /// The preset's settings with what flags change.
    pub fn settings(&self, kind: &str) -> Result<Settings> {
        let Some(preset) = Preset::find(kind, self.preset.as_deref()) else {
            let known: Vec<&str> = PRESETS.iter().filter(|p| p.kind == kind).map(|p| p.name).collect();
            let found = self.preset.as_deref().unwrap_or_default();
            bail!("--preset: expected {} for the kind {kind}, found `{found}`", known.join(" or "));
        };
        let base = preset.settings();
        let settings = Settings {
            steps: self.steps.unwrap_or(base.steps),
            batch: self.batch.unwrap_or(base.batch),
            accumulation: self.accumulation.unwrap_or(base.accumulation),
            lr: self.lr.unwrap_or(base.lr),
            weight_decay: self.weight_decay.unwrap_or(base.weight_decay),
            schedule: self.schedule.clone().unwrap_or(base.schedule),
            warmup: self.warmup.unwrap_or(base.warmup),
            max_grad_norm: self.max_grad_norm.unwrap_or(base.max_grad_norm),
            seed: self.seed.unwrap_or(base.seed),
            heldout_share: self.heldout_share.unwrap_or(base.heldout_share),
            heldout_limit: self.heldout_limit.unwrap_or(base.heldout_limit),
            part: self.part.unwrap_or(base.part),
        };
        settings.validate()?;
        Ok(settings)
    }
}

/// A number type that weights can be stored in.
fn storage(text: &str) -> Result<Kind> {
    let wrong = || format!("expected f32, bf16 or f16, found `{text}`");
    parse_dtype(text).ok().flatten().with_context(wrong)
}
