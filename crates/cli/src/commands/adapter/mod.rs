//! `seedpo adapter`: LoRA files between tools.

mod convert;
mod inspect;
mod merge;

use std::path::Path;

use anyhow::{Result, ensure};
use clap::Subcommand;
use seedpo_model::adapter::{LoraFile, resolve};

use crate::commands::sample::is_whole;
use crate::context::Context;
use crate::failure::Outcome;
use crate::hub;

const EXAMPLES: &str = "\
Examples:
  seedpo adapter inspect styles/ink.safetensors                     what is in it, and which model is it for?
  seedpo adapter convert runs/see-spo ink.safetensors --to kohya    for A1111, ComfyUI, sd-scripts
  seedpo adapter convert ink.safetensors lora.safetensors --to diffusers --ignore-unsupported
  seedpo adapter merge --model path/to/sd15 runs/see-spo:0.8 merged a model folder with the adapter in its weights
  seedpo adapter merge --model path/to/sd15 runs/full merged        a model folder with the U-Net of full fine-tuning
  seedpo adapter merge ink.safetensors:0.5 runs/see-spo both.safetensors    two adapters as one, exactly

Read are LoRAs of the U-Net (linear layers and convolutions) and the text encoders in the layouts of diffusers (old and
new), peft and kohya, as .safetensors or .bin. DoRA, LoHa, LoKr and other architectures' layers are refused by name.";

/// Look into LoRA files, convert them between tools, merge them.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Write a LoRA in the layout that another tool reads.
    Convert(convert::Args),
    /// Merge adapters into a model folder, or several adapters into one.
    Merge(merge::Args),
    /// Say what a LoRA file holds: layout, rank, alpha, targets, the model it is for, its size by block, bad numbers.
    Inspect(inspect::Args),
}

/// Runs `seedpo adapter`.
pub fn run(args: &Args, context: &Context) -> Result<Outcome> {
    match &args.command {
        Command::Convert(args) => convert::run(args, context),
        Command::Merge(args) => merge::run(args, context),
        Command::Inspect(args) => inspect::run(args, context),
    }
}

/// Opens a LoRA file, the one in a folder, or the one of a hub id. Errors: as [`LoraFile::open`]; no such file; a folder
/// of full fine-tuning; those of the hub.
fn open(named: &Path, context: &Context) -> Result<LoraFile> {
    let place = named.display();
    ensure!(
        !is_whole(named),
        "adapter {place}: holds a whole U-Net (full fine-tuning) and no adapter; `seedpo sample --unet {place}` draws with it, \
         `seedpo adapter merge --model MODEL {place} OUT` makes a model folder of it"
    );
    let file = resolve(&hub::adapter(named, context)?);
    ensure!(file.is_file(), "adapter {}: no such file", file.display());
    Ok(LoraFile::open(&file)?)
}

/// Errors: something is at `path` already.
fn check_free(path: &Path) -> Result<()> {
    ensure!(!path.exists(), "{}: is there already and would be overwritten; name another", path.display());
    Ok(())
}
