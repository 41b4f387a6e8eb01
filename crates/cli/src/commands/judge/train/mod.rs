//! `seedpo judge train`: CLIPs, preference models and step-aware ones, trained from pictures.

mod args;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use seedpo_align::run_dir::hash_model;
use seedpo_data::{Options, Pairs, fingerprint};
use seedpo_judge_train::{
    Captions, Contrastive, Crop, EmojiCaptions, FileCaptions, Noising, Preference, Run, Settings, Sizes, Start, Task,
};
use seedpo_model::{ClipDialect, ClipTokenizer, DiffusionModel};
use seedpo_tensor::Device;
use serde_json::{Map, Value};

use args::{ClipArgs, Common, KindArgs, PairArgs, StepAwareArgs};

use crate::commands::pretrain::Shown;
use crate::context::{Context, kind_name};
use crate::failure::Outcome;
use crate::{hub, models, output};

const EXAMPLES: &str = "\
Examples:
  seedpo judge train clip --data emoji --tokenizer assets/emoji-sd       a small CLIP from nothing (make emoji fetches the data)
  seedpo judge train preference --data pickapic/data --init laion/CLIP-ViT-H-14-laion2B-s32B-b79K   PickScore's recipe
  seedpo judge train step-aware --data pickapic/data --init path/to/PickScore --model path/to/sd15 --preset spm-sd15
  seedpo judge train preference --resume --data .. --init ..             go on after Ctrl-C, bit for bit on a CPU
  seedpo score --judge pickscore=runs/judge-preference/model pictures/   use it; `spm=..` for a step-aware one

A run writes one folder: model/ (the judge, in transformers' layout), checkpoint.safetensors, metrics.jsonl. docs/judges.md
(\"Training a judge\") says what each kind learns and by which loss.";

/// Train a judge: a CLIP from captioned pictures, a preference model from pairs, a step-aware one from noised pairs.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    kind: KindArgs,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<Outcome> {
    match &args.kind {
        KindArgs::Clip(args) => clip(args, context),
        KindArgs::Preference(args) => {
            let device = context.device()?;
            let (pairs, run) = open_pairs(&args.pairs, &args.common, "preference", context)?;
            let start = start(&args.pairs.init, device, context)?.plain()?;
            train_on_pairs(pairs, start, None, &run, context)
        }
        KindArgs::StepAware(args) => step_aware(args, context),
    }
}

fn clip(args: &ClipArgs, context: &Context) -> Result<Outcome> {
    let (device, settings) = (context.device()?, args.common.settings("clip")?);
    ensure!(
        args.crop_area > 0.0 && args.crop_area <= 1.0,
        "--crop-area: expected above 0, at most 1, found {}",
        args.crop_area
    );
    let sizes = Sizes {
        image_size: args.image_size,
        patch_size: args.patch_size,
        vision: three(&args.vision).context("--vision")?,
        text: three(&args.text).context("--text")?,
        projection: args.projection,
    };
    let emoji = args.data == Path::new("emoji") && !args.data.exists();
    let data = if emoji { &args.emoji } else { &args.data };
    let captions: Box<dyn Captions> = match emoji {
        true => Box::new(EmojiCaptions::read(data).context("--emoji")?),
        false => Box::new(FileCaptions::open(data, args.common.bad_rows_limit).context("--data")?),
    };
    context.note(&format!("{}: {} captioned pictures", data.display(), captions.len()));
    let inputs = Map::from_iter([
        ("data".to_owned(), Value::from(fingerprint(data)?)),
        ("crop-area".to_owned(), Value::from(args.crop_area)),
    ]);
    let run = args.common.run("clip", settings, inputs)?;
    let start = match &args.init {
        Some(init) => start(init, device, context)?.plain()?,
        None => {
            let tokenizer = match context.flag("tokenizer") {
                Some(folder) => ClipTokenizer::from_folder(Path::new(folder)).context("--tokenizer")?,
                None => ClipTokenizer::built_in(ClipDialect::Transformers)?,
            };
            Start::fresh(&sizes, tokenizer, run.settings.seed, device)?
        }
    };
    let crop = Crop { least_area: args.crop_area };
    let side = start.config.vision.image_size;
    let task = Contrastive::new(captions, Arc::clone(&start.tokenizer), side, crop, &run.settings)?;
    train(&task, start, &run, context)
}

fn step_aware(args: &StepAwareArgs, context: &Context) -> Result<Outcome> {
    let device = context.device()?;
    let (pairs, mut run) = open_pairs(&args.pairs, &args.common, "step-aware", context)?;
    let start = start(&args.pairs.init, device, context)?.step_aware(run.settings.seed)?;
    let folder = models::find(args.model.as_deref(), context)?;
    context.note(&format!("loading {}", folder.display()));
    let options = context.load_options(device)?;
    let model = DiffusionModel::load(&folder, &options).context("--model")?;
    let ([height, width], _) = models::native_size(&model);
    let resolution = args.resolution.unwrap_or(height.min(width));
    run.inputs.extend([
        ("dtype".to_owned(), Value::from(kind_name(options.kind))),
        ("vae-dtype".to_owned(), Value::from(kind_name(options.vae_kind))),
        ("prediction-type".to_owned(), serde_json::to_value(model.schedule.prediction_type)?),
        ("guidance-scale".to_owned(), Value::from(args.guidance_scale)),
        ("resolution".to_owned(), Value::from(resolution)),
    ]);
    let hashes = hash_model(&folder, options.variant.as_deref(), options.tokenizer.as_deref())?;
    run.inputs.extend(hashes.into_iter().map(|(name, hash)| (format!("model {name}"), Value::from(hash))));
    let noising = Noising::new(model, args.guidance_scale, resolution)?;
    train_on_pairs(pairs, start, Some(noising), &run, context)
}

/// The pairs and the run on them: what can be refused before anything large is read is refused here.
fn open_pairs(args: &PairArgs, common: &Common, kind: &str, context: &Context) -> Result<(Pairs, Run)> {
    let settings = common.settings(kind)?;
    let (generator, bad_rows_limit) = (args.pairs_generator.clone(), common.bad_rows_limit);
    let options = Options { generator, bad_rows_limit, ties: true, ..Options::default() };
    let pairs = Pairs::open(&args.data, &options).context("--data")?;
    let (count, ties, bad) = (pairs.len(), pairs.report().ties, pairs.report().bad_rows());
    context.note(&format!("{}: {count} pairs, {ties} of them ties; {bad} bad rows", args.data.display()));
    let inputs = Map::from_iter([
        ("data".to_owned(), Value::from(fingerprint(&args.data)?)),
        ("pairs-generator".to_owned(), Value::from(args.pairs_generator.clone())),
    ]);
    Ok((pairs, common.run(kind, settings, inputs)?))
}

/// Trains on pairs, as they are or noised.
fn train_on_pairs(
    pairs: Pairs,
    start: Start,
    noising: Option<Noising>,
    run: &Run,
    context: &Context,
) -> Result<Outcome> {
    let (tokenizer, side) = (Arc::clone(&start.tokenizer), start.config.vision.image_size);
    let task = Preference::new(Arc::new(pairs), tokenizer, side, noising, &run.settings)?;
    train(&task, start, run, context)
}

impl Common {
    /// The run that the flags describe. Errors: what [`Run::check`] refuses of its folder.
    fn run(&self, kind: &str, settings: Settings, inputs: Map<String, Value>) -> Result<Run> {
        let run = Run {
            out: self.out.clone().unwrap_or_else(|| PathBuf::from(format!("runs/judge-{kind}"))),
            settings,
            inputs,
            resume: self.resume,
            checkpoint_every: self.checkpoint_every,
            evaluate_every: self.evaluate_every,
            bad_rows_limit: self.bad_rows_limit,
            storage: self.save_dtype,
        };
        run.check(kind)?;
        Ok(run)
    }
}

fn train<T: Task>(task: &T, start: Start, run: &Run, context: &Context) -> Result<Outcome> {
    let (kind, settings) = (task.kind(), &run.settings);
    let parameters: usize = start.parameters.values().map(|tensor| tensor.numel()).sum();
    context.note(&format!(
        "training a judge ({kind}) of {:.1} million parameters: {} updates of {} x {} at {:e}, {}, weight decay {}; {} \
         held out",
        parameters as f64 / 1e6,
        settings.steps,
        settings.accumulation,
        settings.batch,
        settings.lr,
        settings.schedule,
        settings.weight_decay,
        task.heldout()
    ));
    let mut shown = Shown::new(context);
    let finished = seedpo_judge_train::run(run, task, start, &mut shown);
    shown.finish();
    let finished = finished?;
    if let Some((count, list)) = &finished.unreadable {
        context.note(&format!("passed over {count} whose pictures cannot be had: {}", list.display()));
    }
    if finished.step < settings.steps {
        context
            .note(&format!("stopped and saved after update {}; the same command with --resume goes on", finished.step));
        return Ok(Outcome::Interrupted);
    }
    output::print(&format!("{}\n", finished.model.display()))?;
    Ok(Outcome::Done)
}

/// The CLIP to start from: a path, else a repository of the hub with `config.json` and `model.safetensors`.
fn start(init: &str, device: Device, context: &Context) -> Result<Start> {
    let load = || -> Result<Start> {
        let path = Path::new(init);
        if path.exists() {
            return Ok(Start::load(path, device)?);
        }
        hub::file(init, "config.json", context)?;
        let weights = hub::file(init, "model.safetensors", context)?;
        Ok(Start::load(&weights, device)?)
    };
    load().context("--init")
}

/// Three whole numbers between commas.
fn three(text: &str) -> Result<[i64; 3]> {
    let numbers: Option<Vec<i64>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
    let three = numbers.and_then(|numbers| numbers.try_into().ok());
    three.with_context(|| format!("expected width, layers and heads as in 128,4,4, found `{text}`"))
}
