//! Finding model folders.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use seedpo_model::DiffusionModel;

use crate::context::Context;
use crate::hub;

/// What is built in, in the clone and beside an installed binary.
const ASSETS: &str = "assets";
/// The built-in model's place there.
const BUILT_IN: &str = "emoji-sd";

/// The folder or single-file checkpoint of a model: the one named, by its path or hub id, or the built-in one.
///
/// Errors: no such folder, or no `model_index.json` in it; those of [`crate::hub::model`].
pub fn find(named: Option<&Path>, context: &Context) -> Result<PathBuf> {
    let Some(named) = named else { return built_in() };
    let folder = hub::model(named, context.flag("variant").unwrap_or_default(), context).context("--model")?;
    check(&folder).map(|()| folder)
}

/// The built-in model's folder, looked for from here and from the binary upwards. Errors: it is not there.
pub fn built_in() -> Result<PathBuf> {
    match places(BUILT_IN).find(|folder| check(folder).is_ok()) {
        Some(folder) => Ok(folder),
        None => bail!(
            "no --model was given, and the built-in model is not here: expected the folder {ASSETS}/{BUILT_IN} in this folder or above the binary; name a diffusers folder with --model"
        ),
    }
}

/// A folder of what is built in, found as the built-in model is. Errors: it is not there.
pub fn asset(name: &str) -> Result<PathBuf> {
    let found = places(name).find(|folder| folder.is_dir());
    found.with_context(|| format!("expected the folder {ASSETS}/{name} in this folder or above the binary, found none"))
}

/// Where something built in may lie: here, and from the binary upwards.
fn places(name: &str) -> impl Iterator<Item = PathBuf> {
    let relative = Path::new(ASSETS).join(name);
    let binary = std::env::current_exe().ok().and_then(|exe| exe.canonicalize().ok());
    let above: Vec<PathBuf> =
        binary.iter().flat_map(|exe| exe.ancestors().skip(1)).map(|f| f.join(&relative)).collect();
    std::iter::once(relative).chain(above)
}

fn check(folder: &Path) -> Result<()> {
    let shown = folder.display();
    if !folder.exists() {
        bail!(
            "--model {shown}: no such folder or file; expected a diffusers folder (with model_index.json, unet/, vae/ ...), a checkpoint (.safetensors, .ckpt) or a hub id (user/repo)"
        );
    }
    if folder.is_file() {
        let ending = folder.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        if !["safetensors", "ckpt", "pt", "pth", "bin"].contains(&ending.as_str()) {
            bail!("--model {shown}: found a file; expected a diffusers folder, or a checkpoint (.safetensors, .ckpt)");
        }
        return Ok(());
    }
    if !folder.join("model_index.json").is_file() {
        bail!("--model {shown}: expected a diffusers folder, found no model_index.json in it");
    }
    Ok(())
}

/// Height and width of the images the model was trained on, in pixels, and its latent channels.
pub fn native_size(model: &DiffusionModel) -> ([i64; 2], i64) {
    let factor = model.vae.config().scale_factor();
    (model.latent_size().map(|side| side * factor), model.unet.config().in_channels)
}
