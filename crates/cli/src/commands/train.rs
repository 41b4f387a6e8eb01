//! `seedpo train`: align a model with preferences.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use seedpo_align::checkpoint::Checkpoint;
use seedpo_align::run_dir::{InputHashes, RunDir, check_inputs, hash_inputs, resume_settings};
use seedpo_align::store::Store;
use seedpo_align::{Finished, PairsFrom, Parts, ReferencePolicy, TrainConfig, Trainer, load_prompts, trainer};
use seedpo_data::{Options, Pairs};
use seedpo_judge::{BackgroundJudge, Judge, JudgeSpec};
use seedpo_model::{DiffusionModel, FinetuningType, LoadOptions};
use seedpo_tensor::device::parse_device;
use seedpo_tensor::speed::LIBTORCH_VERSION;
use seedpo_tensor::{Device, Kind, memory};
use toml::{Table, Value};

use crate::context::{Context, ModelFlags, kind_name};
use crate::failure::Outcome;
use crate::observer::RunObserver;
use crate::settings::Settings;
use crate::{hub, interrupt, judges, output};

const EXAMPLES: &str = "\
Examples:
  seedpo train --preset see-spo-emoji --name first                 align the built-in model
  seedpo train --preset see-spo-sd15 --model path/to/sd15 --prompts-file prompts.txt
  seedpo train --config run.toml --gamma 2 --max-train-steps 200   a file of settings, two of them changed
  seedpo train --preset see-spo-sd15 --model path/to/sd15 --dry-run    does it fit, and how long will it take?
  seedpo train --resume latest                                     go on after a stop, bit for bit on a CPU

A run writes one folder, <output_dir>/<name>, and nothing outside it; a name that is taken gets a number. Ctrl-C ends
the run after its current update, saves, and exits with 130; a second Ctrl-C exits at once. A run that was killed at
any moment continues from its last checkpoint with --resume.";

/// Align a model with preferences: sample, judge, pair, update, repeat.
///
/// The method is SPO or D3PO, or from pairs of image files Diffusion-DPO, or from their winners SePPO, SPIN or SFT, or
/// without pairs DDPO or DPOK;
/// `entropy.gamma` above 0 makes it its SEE form. Every setting can stand in a TOML file or be given as a flag; a method
/// brings its published defaults, and presets hold whole published recipes (`seedpo presets list`).
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    settings: Settings,

    /// Run each piece of the run once, print the memory and time that the run will take, and stop; no folder is made.
    #[arg(long, conflicts_with_all = ["resume", "print_config"])]
    dry_run: bool,
}

/// A run about to start or go on.
pub(super) struct Start {
    pub(super) config: TrainConfig,
    pub(super) prompts: Vec<String>,
    image_pairs: Option<Arc<Pairs>>,
    store: Option<Arc<Store>>,
    pub(super) model: DiffusionModel,
    judge: Box<dyn Judge>,
    heldout: Vec<Box<dyn Judge>>,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<Outcome> {
    let mut given = args.settings.given(context)?;
    if args.settings.print_config {
        output::print(&args.settings.resolve(context)?.to_documented_toml()?)?;
        return Ok(Outcome::Done);
    }
    let settings = || -> Result<TrainConfig> {
        let config = args.settings.resolve(context)?;
        let model = local_model(&config.model, &config.variant, context)?;
        Ok(TrainConfig { model, ..config })
    };
    if args.dry_run {
        return dry_run(settings()?, context);
    }
    match given.get("resume").and_then(|value| value.as_str()).filter(|text| !text.is_empty()) {
        Some(resume) => {
            let resume = resume.to_owned();
            if let Some(Value::String(model)) = given.get("model") {
                let variant = given.get("variant").and_then(Value::as_str).unwrap_or_default();
                let model = local_model(model, variant, context)?;
                given.insert("model".to_owned(), Value::String(model));
            }
            go_on(&resume, &given, context)
        }
        None => begin(settings()?, context),
    }
}

/// A model's path; a hub id becomes that of its files in the cache, whose folder bears the commit's hash. So a run
/// records exactly what it was trained on.
pub(super) fn local_model(model: &str, variant: &str, context: &Context) -> Result<String> {
    let path = hub::model(Path::new(model), variant, context).context("setting `model`")?;
    Ok(path.display().to_string())
}

/// A new run: everything that can be refused is checked before its folder is made.
fn begin(config: TrainConfig, context: &Context) -> Result<Outcome> {
    let began = Instant::now();
    let hashes = hashing(&config);
    let start = Start::load(config, context)?;
    tracing::debug!(seconds = began.elapsed().as_secs_f64(), "model and judges loaded");
    trainer::check(&start.config, &start.prompts, &start.model)?;
    let run = RunDir::create(&start.config, &versions(), &hashes()?)?;
    let _lock = run.lock()?;
    train(start, run, None, None, context)
}

/// Begins to hash the inputs, gigabytes of weights, while they are loaded; what it returns waits for the hashes.
fn hashing(config: &TrainConfig) -> impl FnOnce() -> Result<InputHashes> + use<> {
    let inputs = config.clone();
    let hashes = std::thread::spawn(move || {
        let began = Instant::now();
        let hashes = hash_inputs(&inputs);
        tracing::debug!(seconds = began.elapsed().as_secs_f64(), "inputs hashed");
        hashes
    });
    move || Ok(hashes.join().map_err(|_| anyhow!("the inputs could not be hashed"))??)
}

/// Measures what a run would take. A warning where it would not fit is no failure.
fn dry_run(config: TrainConfig, context: &Context) -> Result<Outcome> {
    let start = Start::load(config, context)?;
    let run = RunDir::planned(&start.config);
    let config = start.config.clone();
    let mut trainer = Trainer::new(start.parts(run), None)?;
    let forecast = trainer.forecast(true)?;
    output::print(&forecast.table())?;
    match forecast.warning(&config) {
        Some(warning) => eprintln!("warning: {warning}"),
        None => output::print(&format!("{}\n", forecast.advice(&config)))?,
    }
    Ok(Outcome::Done)
}

/// Continues a run with its own settings, from its newest checkpoint or the one named.
fn go_on(resume: &str, given: &Table, context: &Context) -> Result<Outcome> {
    let text = |key: &str| given.get(key).and_then(|value| value.as_str()).map(str::to_owned);
    let output_dir = text("output_dir").unwrap_or_else(|| TrainConfig::default().output_dir);
    let (run, checkpoint) = RunDir::resolve(resume, Path::new(&output_dir), &text("name").unwrap_or_default())?;
    let _lock = run.lock()?;
    let (recorded, inputs) = run.recorded()?;
    let config = resume_settings(&run, &recorded, given)?;
    let hashes = hashing(&config);
    let start = Start::load(config, context);
    // Inputs that changed may be why they cannot be loaded.
    check_inputs(&run, &inputs, &hashes()?)?;
    let start = start?;
    let step = checkpoint.as_ref().map(|checkpoint| checkpoint.position.step);
    context.note(&match step {
        Some(step) => format!("resuming {} after update {step}", run.path().display()),
        None => format!("resuming {}, which has no checkpoint yet, from its beginning", run.path().display()),
    });
    if let Some(folder) = run.rewind(step)? {
        context.note(&format!("its later checkpoints and metrics are now in {}", folder.display()));
    }
    train(start, run, checkpoint, Some(step.unwrap_or(0)), context)
}

impl Start {
    /// Loads what the settings name; in the `config` it returns, no dtype is `auto` any more.
    pub(super) fn load(mut config: TrainConfig, context: &Context) -> Result<Self> {
        config.validate()?;
        let (image_pairs, store) = (image_pairs(&config, context)?, store(&config)?);
        let prompts = match (&image_pairs, &store) {
            (None, None) => load_prompts(&config)?,
            (None, Some(store)) => store.prompts().to_vec(),
            (Some(pairs), _) => pairs.prompts().map(str::to_owned).collect(),
        };
        let device = parse_device(&config.device).context("setting `device`")?;
        let judge = config.judge.parse().map_err(anyhow::Error::from);
        let judge =
            judge.and_then(|spec| training_judge(&config, &spec, device, context)).context("setting `judge`")?;
        let heldout = heldout_judges(&config, device, context).context("setting `heldout_judge`")?;
        context.note(&format!("loading {}", config.model));
        let flags = ModelFlags {
            dtype: config.dtype.clone(),
            vae_dtype: config.vae_dtype.clone(),
            vae_slicing: config.vae_slicing,
            vae_tiling: config.vae_tiling,
            variant: config.variant.clone(),
            prediction_type: config.prediction_type.clone(),
            tokenizer: config.tokenizer.clone(),
        };
        let options = flags.load_options(device, context)?;
        // A whole U-Net that is compared with nothing is the only one in memory.
        let compares = config.resolved_method()?.reference != ReferencePolicy::None;
        let unet_weights = compares || config.finetuning()? == FinetuningType::Lora;
        let options = LoadOptions { unet_weights, ..options };
        let model = DiffusionModel::load(Path::new(&config.model), &options)?;
        config.dtype = kind_name(model.unet.kind()).to_owned();
        config.vae_dtype = kind_name(model.vae.kind()).to_owned();
        Ok(Self { config, prompts, image_pairs, store, model, judge, heldout })
    }

    pub(super) fn parts(&self, run: RunDir) -> Parts<'_> {
        Parts {
            config: self.config.clone(),
            prompts: self.prompts.clone(),
            image_pairs: self.image_pairs.clone(),
            store: self.store.clone(),
            model: &self.model,
            judge: self.judge.as_ref(),
            heldout: self.heldout.iter().map(|judge| judge.as_ref()).collect(),
            run,
        }
    }
}

/// The dataset of pairs, where the method reads one.
fn image_pairs(config: &TrainConfig, context: &Context) -> Result<Option<Arc<Pairs>>> {
    let from = config.resolved_method()?.pairs;
    if !from.from_files() {
        return Ok(None);
    }
    let options = Options {
        generator: config.pairs_generator.clone(),
        winners_only: from != PairsFrom::Images,
        bad_rows_limit: config.bad_rows_limit,
        ..Options::default()
    };
    let path = Path::new(&config.pairs_file);
    let pairs = Pairs::open(path, &options).context("setting `pairs_file`")?;
    super::pairs::note_passed_over(path, &pairs, context);
    Ok(Some(Arc::new(pairs)))
}

/// The stored rollouts, where a method that samples is told to train on some instead.
fn store(config: &TrainConfig) -> Result<Option<Arc<Store>>> {
    if config.pairs_file.is_empty() || config.resolved_method()?.pairs.from_files() {
        return Ok(None);
    }
    let path = Path::new(&config.pairs_file);
    let hint = || format!("setting `pairs_file`: method {} reads a store of `seedpo rollout` there", config.method);
    Ok(Some(Arc::new(Store::open(path).with_context(hint)?)))
}

fn train(
    start: Start,
    run: RunDir,
    checkpoint: Option<Checkpoint>,
    resumed: Option<u64>,
    context: &Context,
) -> Result<Outcome> {
    let mut observer = RunObserver::new(context, run.path(), resumed)?;
    let mut trainer = Trainer::new(start.parts(run.clone()), checkpoint)?;
    let finished = trainer.run(&mut observer, interrupt::flag());
    observer.finish();
    judges::note_statistics(start.judge.as_ref(), context);
    let step = trainer.position().step;
    let shown = run.path().display();
    match finished? {
        Finished::Completed => {
            let peak = memory::peak_rss_bytes() as f64 / (1u64 << 30) as f64;
            let finetuning = trainer.weights().finetuning_type();
            let what = if finetuning == FinetuningType::Full { "U-Net" } else { "adapter" };
            context.note(&format!("done after {step} updates: the {what} is {}", run.result(finetuning).display()));
            context.note(&format!("peak memory: {peak:.2} GiB resident"));
            Ok(Outcome::Done)
        }
        Finished::Interrupted if step == 0 => {
            context.note(&format!("stopped before the first update; `seedpo train --resume {shown}` starts it again"));
            Ok(Outcome::Interrupted)
        }
        Finished::Interrupted => {
            context.note(&format!("stopped and saved after update {step}; `seedpo train --resume {shown}` goes on"));
            Ok(Outcome::Interrupted)
        }
    }
}

/// The judge that is trained on, on a thread of its own where that is asked for or of use.
fn training_judge(config: &TrainConfig, spec: &JudgeSpec, device: Device, context: &Context) -> Result<Box<dyn Judge>> {
    let judge = build_judge(config, spec, device, context)?;
    let elsewhere = if spec.computes() { judge_device(config, device)? != device } else { device != Device::Cpu };
    let background = match config.judge_background.as_str() {
        "auto" => elsewhere || spec.is_external(),
        chosen => chosen == "on",
    };
    Ok(if background { Box::new(BackgroundJudge::new(judge)?) } else { judge })
}

fn judge_device(config: &TrainConfig, device: Device) -> Result<Device> {
    match config.judge_device.as_str() {
        "" => Ok(device),
        name => parse_device(name).context("setting `judge_device`"),
    }
}

/// A judge by its line, in the dtype and on the device that the settings give judges.
fn build_judge(config: &TrainConfig, spec: &JudgeSpec, device: Device, context: &Context) -> Result<Box<dyn Judge>> {
    let device = judge_device(config, device)?;
    let kind = if config.judge_dtype == "bf16" { Kind::BFloat16 } else { Kind::Float };
    judges::build(spec, device, kind, Duration::from_secs(config.judge_timeout), context)
}

/// The judges that are only measured, each loaded on its own.
fn heldout_judges(config: &TrainConfig, device: Device, context: &Context) -> Result<Vec<Box<dyn Judge>>> {
    let specs = match config.heldout_judge.trim() {
        "" => Vec::new(),
        list => JudgeSpec::list(list)?,
    };
    let judges = specs.iter().map(|spec| build_judge(config, spec, device, context)).collect::<Result<Vec<_>>>()?;
    let names: Vec<&str> = judges.iter().map(|judge| judge.name()).collect();
    // Their scores are told apart by name.
    if let Some(name) = names.iter().enumerate().find_map(|(at, name)| names[..at].contains(name).then_some(name)) {
        bail!("expected different judges, found `{name}` twice");
    }
    Ok(judges)
}

/// What config.toml records besides settings and input hashes.
fn versions() -> BTreeMap<String, String> {
    let entries =
        [("seedpo", env!("CARGO_PKG_VERSION")), ("libtorch", LIBTORCH_VERSION), ("platform", std::env::consts::ARCH)];
    entries.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}
