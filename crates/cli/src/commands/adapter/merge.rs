//! `seedpo adapter merge`.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use seedpo_model::{DiffusionModel, LoadOptions, Lora};
use seedpo_tensor::Kind;
use seedpo_tensor::files::TemporaryFolder;

use crate::commands::sample::{Weighted, is_whole, load_lora};
use crate::context::Context;
use crate::failure::Outcome;
use crate::{hub, models, output};

/// Arguments of `seedpo adapter merge`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The model to merge into: OUT becomes a diffusers folder, in --dtype [default: none: OUT becomes one adapter].
    #[arg(long, value_name = "MODEL", visible_alias = "pretrained-model-name-or-path")]
    model: Option<PathBuf>,

    /// Adapters (files, folders, hub ids), each with a weight after a colon that its change is multiplied by [default: 1].
    /// With --model one of them may be a run or checkpoint of full fine-tuning, whose U-Net then takes the place of the
    /// model's.
    #[arg(value_name = "ADAPTER[:WEIGHT]", required = true, num_args = 1.., allow_hyphen_values = false)]
    adapters: Vec<String>,

    /// What to write: with --model a folder, else a .safetensors file in diffusers' layout; must not be there yet.
    #[arg(value_name = "OUT")]
    out: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<Outcome> {
    super::check_free(&args.out)?;
    let given: Vec<Weighted> = args.adapters.iter().map(|text| Weighted::parse(text)).collect();
    let (whole, adapters): (Vec<_>, Vec<_>) = given.into_iter().partition(|adapter| is_whole(&adapter.path));
    if let Some(first) = whole.first() {
        let place = first.path.display();
        ensure!(args.model.is_some(), "{place}: holds a whole U-Net; expected --model, the model it is to be put into");
        ensure!(whole.len() == 1, "{place}: expected one whole U-Net at most, found {}", whole.len());
        ensure!(first.weight == 1.0, "{place}: expected no weight on a whole U-Net, found {}", first.weight);
    }
    let count = whole.len() + adapters.len();
    match &args.model {
        None => {
            let load =
                |adapter: &Weighted| Ok((super::open(&adapter.path, context)?.into_lora(false)?, adapter.weight));
            let merged = Lora::combined(&adapters.iter().map(load).collect::<Result<Vec<_>>>()?)?;
            merged.save(&args.out)?;
        }
        Some(model) => merge_into(model, whole.first(), &adapters, &args.out, context)?,
    }
    output::print(&format!("{}: {count} adapter(s) merged\n", args.out.display()))?;
    Ok(Outcome::Done)
}

/// Writes the model with the adapters in its weights, or in those of a whole U-Net. Computed in f32; stored in --dtype.
fn merge_into(
    model: &Path,
    whole: Option<&Weighted>,
    adapters: &[Weighted],
    out: &Path,
    context: &Context,
) -> Result<()> {
    let options = context.load_options_or(context.device_or("cpu")?, "f32")?;
    let kind = options.kind;
    let unet = whole.map(|whole| whole.path.clone());
    let options = LoadOptions { kind: Kind::Float, vae_kind: Kind::Float, unet, ..options };
    let model = DiffusionModel::load(&models::find(Some(model), context)?, &options)?;
    let load = |adapter: &Weighted| Ok((load_lora(&hub::adapter(&adapter.path, context)?, &model)?, adapter.weight));
    let combined = Lora::combined(&adapters.iter().map(load).collect::<Result<Vec<_>>>()?)?;
    let merged = model.merged(&combined)?;
    let temporary = TemporaryFolder::beside(out)?;
    merged.save(temporary.path(), (kind != Kind::Float).then_some(kind))?;
    Ok(temporary.finish()?)
}
