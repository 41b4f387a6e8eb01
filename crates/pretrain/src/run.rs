//! A whole pretraining run: tokenizer, VAE, latents, text encoder and U-Net, diffusers folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use seedpo_model::{ClipTokenizer, DiffusionModel, LoadOptions, NoiseSchedule};
use seedpo_tensor::{WeightFile, write_weights};
use tch::Tensor;

use crate::bpe::Bpe;
use crate::captions::corpus;
use crate::dataset::Dataset;
use crate::denoiser_stage::DenoiserStage;
use crate::export::Trained;
use crate::measure::{SampleSettings, sample_prompts};
use crate::metrics::Metrics;
use crate::observer::Observer;
use crate::preview::write_grid;
use crate::recipe::Recipe;
use crate::state::State;
use crate::vae_stage::{self, VaeStage, encode_all};
use crate::{Error, Result, denoiser_stage};

/// Where a run reads and writes.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The data folder (see [`Dataset::read`]).
    pub data: PathBuf,
    /// The run's folder: checkpoints, `metrics.jsonl`, `previews/`, and `model/`, the result so far.
    pub work: PathBuf,
    /// Sizes and settings.
    pub recipe: Recipe,
    /// Continue from the checkpoints in `work`; without it, a `work` that holds any is refused.
    pub resume: bool,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Steps between preview grids; 0 for none.
    pub preview_every: u64,
}

/// Trains, and returns the folder of the finished model, `work/model`.
///
/// Errors: [`Error::Data`], [`Error::Setting`]; [`Error::Stopped`] where the observer asked to stop, after saving;
/// [`Error::NotFinite`], with the last checkpoint intact.
pub fn run(options: &RunOptions, observer: &mut dyn Observer) -> Result<PathBuf> {
    options.recipe.validate()?;
    let run = Run::start(options)?;
    observer.on_note(&format!("{} emoji with {} captions", run.data.len(), corpus(&run.data.emoji).len()));
    let vae = run.train_vae(observer)?;
    run.train_denoiser(&vae, observer)
}

struct Run<'a> {
    options: &'a RunOptions,
    data: Dataset,
    bpe: Bpe,
    recipe_json: String,
    metrics: Metrics,
}

/// The finished VAE: its tensors, and 1 / std of the latents.
struct FinishedVae {
    tensors: BTreeMap<String, Tensor>,
    scaling_factor: f64,
    /// Of the training images, scaled.
    latents: Tensor,
}

impl<'a> Run<'a> {
    fn start(options: &'a RunOptions) -> Result<Self> {
        let (work, recipe) = (&options.work, &options.recipe);
        std::fs::create_dir_all(work).map_err(|e| seedpo_tensor::Error::io(work, e))?;
        let occupied = ["vae-checkpoint.safetensors", "vae.safetensors"].iter().any(|f| work.join(f).exists());
        if occupied && !options.resume {
            let reason = "this folder holds a run already; continue it with --resume, or name another folder";
            return Err(Error::data(work, reason));
        }
        let data = Dataset::read(&options.data, recipe.sizes.image)?;
        let bpe = Bpe::train(&corpus(&data.emoji), recipe.sizes.vocab);
        let metrics = Metrics::at(work.join("metrics.jsonl"));
        Ok(Self { options, data, bpe, recipe_json: recipe_identity(recipe), metrics })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.options.work.join(name)
    }

    fn train_vae(&self, observer: &mut dyn Observer) -> Result<FinishedVae> {
        let recipe = &self.options.recipe;
        let finished = self.path("vae.safetensors");
        if !finished.exists() {
            let mut stage = VaeStage::new(recipe, &self.data)?;
            let checkpoint = self.path("vae-checkpoint.safetensors");
            self.load(&mut stage.state, &checkpoint, vae_stage::STAGE, &vae_identity(recipe))?;
            while stage.state.step < recipe.vae.steps {
                let begun = Instant::now();
                let report = stage.step()?;
                self.metrics.append(&report, begun.elapsed().as_secs_f64())?;
                observer.on_step(&report);
                let stop = observer.stop();
                if stop || self.due(stage.state.step, self.options.checkpoint_every) {
                    stage.state.save(&checkpoint, vae_stage::STAGE, &vae_identity(recipe))?;
                }
                if self.due(stage.state.step, self.options.preview_every) {
                    self.preview_vae(&stage, observer)?;
                }
                if stop {
                    return Err(Error::Stopped { stage: vae_stage::STAGE, step: stage.state.step });
                }
            }
            self.preview_vae(&stage, observer)?;
            let metadata = BTreeMap::from([("recipe".to_owned(), vae_identity(recipe))]);
            write_weights(&finished, &stage.result(), &metadata)?;
        }
        self.finished_vae(&finished, observer)
    }

    fn finished_vae(&self, path: &Path, observer: &mut dyn Observer) -> Result<FinishedVae> {
        let recipe = &self.options.recipe;
        let file = WeightFile::open(path)?;
        if file.metadata().get("recipe").is_none_or(|r| *r != vae_identity(recipe)) {
            let reason = "this VAE was trained by another recipe; name another folder for this run";
            return Err(Error::data(path, reason));
        }
        let tensors = file.tensors()?;
        let shared = tensors.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect();
        let vae = vae_stage::build(recipe, shared, 1.0)?;
        let (latents, scaling_factor) = encode_all(&vae, &self.data)?;
        observer.on_note(&format!("latents cached, scaling factor {scaling_factor:.4}"));
        Ok(FinishedVae { tensors, scaling_factor, latents: latents * scaling_factor })
    }

    fn preview_vae(&self, stage: &VaeStage<'_>, observer: &mut dyn Observer) -> Result<()> {
        let vae = vae_stage::build(&self.options.recipe, stage.result(), 1.0)?;
        let count = self.data.len().min(32) as i64;
        let chosen: Vec<i64> = (0..count).map(|i| i * self.data.len() as i64 / count).collect();
        let images = self.data.batch(&chosen);
        let drawn = tch::no_grad(|| vae.decode(&vae.encode(&images)?.0))?;
        let path = self.path(&format!("previews/vae-{:06}.png", stage.state.step));
        write_grid(&path, &Tensor::cat(&[images, drawn], 0), 16)?;
        observer.on_note(&format!("wrote {} (two rows of images, then the same reconstructed)", path.display()));
        Ok(())
    }

    fn train_denoiser(&self, vae: &FinishedVae, observer: &mut dyn Observer) -> Result<PathBuf> {
        let recipe = &self.options.recipe;
        let folder = self.path("model");
        self.bpe.save(&folder.join("tokenizer"), recipe.sizes.tokens)?;
        let tokenizer = ClipTokenizer::from_folder(&folder)?;
        let alphas = NoiseSchedule::new(&recipe.scheduler_config())?.alphas_cumprod;
        let latents = vae.latents.shallow_clone();
        let vocab = self.bpe.vocab_size();
        let mut stage = DenoiserStage::new(recipe, &self.data, &tokenizer, vocab, latents, alphas)?;
        let checkpoint = self.path("denoiser-checkpoint.safetensors");
        self.load(&mut stage.state, &checkpoint, denoiser_stage::STAGE, &self.recipe_json)?;
        while stage.state.step < recipe.denoiser.steps {
            let begun = Instant::now();
            let report = stage.step()?;
            self.metrics.append(&report, begun.elapsed().as_secs_f64())?;
            observer.on_step(&report);
            let stop = observer.stop();
            if stop || self.due(stage.state.step, self.options.checkpoint_every) {
                stage.state.save(&checkpoint, denoiser_stage::STAGE, &self.recipe_json)?;
            }
            if self.due(stage.state.step, self.options.preview_every) {
                self.export(&folder, vae, &stage)?;
                self.preview_samples(&folder, stage.state.step, observer)?;
            }
            if stop {
                return Err(Error::Stopped { stage: denoiser_stage::STAGE, step: stage.state.step });
            }
        }
        stage.state.save(&checkpoint, denoiser_stage::STAGE, &self.recipe_json)?;
        self.export(&folder, vae, &stage)?;
        self.preview_samples(&folder, stage.state.step, observer)?;
        Ok(folder)
    }

    fn export(&self, folder: &Path, vae: &FinishedVae, stage: &DenoiserStage<'_>) -> Result<()> {
        let (text, unet) = stage.result();
        let recipe = &self.options.recipe;
        let scaling_factor = vae.scaling_factor;
        let trained = Trained {
            recipe,
            bpe: &self.bpe,
            vae: &vae.tensors,
            scaling_factor,
            text: &text,
            unet: &unet,
            images: self.data.len(),
            steps: stage.state.step,
            seconds: self.metrics.seconds()?,
        };
        trained.save(folder)
    }

    /// Names spread over the dataset, the same at every preview.
    fn preview_samples(&self, folder: &Path, step: u64, observer: &mut dyn Observer) -> Result<()> {
        let model = DiffusionModel::load(folder, &LoadOptions::default())?;
        let count = self.data.len().min(32);
        let name = |i: usize| self.data.emoji[(2 * i + 1) * self.data.len() / (2 * count)].name.clone();
        let prompts: Vec<String> = (0..count).map(name).collect();
        let latents = sample_prompts(&model, &prompts, SampleSettings::default(), &mut |_| ())?;
        let images = tch::no_grad(|| model.vae.decode_latents(&latents))?;
        let path = self.path(&format!("previews/samples-{step:06}.png"));
        write_grid(&path, &images, 8)?;
        observer.on_note(&format!("wrote {}: {}", path.display(), prompts.join(", ")));
        Ok(())
    }

    fn load(&self, state: &mut State, path: &Path, stage: &str, recipe: &str) -> Result<()> {
        if self.options.resume && path.exists() {
            state.load(path, stage, recipe)?;
            self.metrics.rewind(stage, state.step)?;
        }
        Ok(())
    }

    fn due(&self, step: u64, every: u64) -> bool {
        every > 0 && step.is_multiple_of(every)
    }
}

/// What a resumed denoiser must agree with: all but its number of steps, which may be changed on the way.
fn recipe_identity(recipe: &Recipe) -> String {
    let mut recipe = recipe.clone();
    recipe.denoiser.steps = 0;
    serde_json::to_string(&recipe).unwrap_or_default()
}

/// What a resumed or finished VAE must agree with: the denoiser's settings may change after it.
fn vae_identity(recipe: &Recipe) -> String {
    let sizes = &recipe.sizes;
    let parts = (&sizes.image, &sizes.vae_channels, &sizes.latent_channels, &sizes.vae_groups);
    let settings = (recipe.vae, recipe.kl_weight, recipe.edge_weight, recipe.chroma_weight, recipe.seed);
    serde_json::to_string(&(parts, settings)).unwrap_or_default()
}
