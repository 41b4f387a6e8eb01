//! `seedpo adapter convert`.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;

use crate::context::Context;
use crate::failure::Outcome;
use crate::output;

/// Arguments of `seedpo adapter convert`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The LoRA to read: a file of any layout, a folder (a run, a checkpoint, a peft folder), or a hub id.
    #[arg(value_name = "IN")]
    input: PathBuf,

    /// The file to write (.safetensors); must not be there yet.
    #[arg(value_name = "OUT")]
    out: PathBuf,

    /// The layout to write. diffusers: `load_lora_weights` and peft. kohya: A1111, ComfyUI, sd-scripts.
    #[arg(long, value_name = "LAYOUT")]
    to: To,

    /// The models that the LoRA is for, where it changes the text encoder and does not show it: sd (1.x, 2.x) or sdxl, whose
    /// text encoders kohya's layout calls differently [default: none: as the file shows].
    #[arg(long, value_name = "FAMILY")]
    family: Option<Family>,

    /// Leave out what seedpo does not apply (LoHa, LoKr, layers of other architectures, keys of no known layout), and say
    /// what that was.
    #[arg(long)]
    ignore_unsupported: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum To {
    Diffusers,
    Kohya,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Family {
    Sd,
    Sdxl,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<Outcome> {
    super::check_free(&args.out)?;
    let lora = super::open(&args.input, context)?;
    if args.ignore_unsupported {
        for kind in &lora.unsupported {
            context.note(&format!("left out: {} tensor(s) of {}", kind.keys.len(), kind.what));
        }
    }
    let lora = lora.into_lora(args.ignore_unsupported)?;
    match args.to {
        To::Diffusers => lora.save(&args.out)?,
        To::Kohya => lora.save_kohya(&args.out, args.family.map(|family| family == Family::Sdxl))?,
    }
    let (count, out) = (lora.names().count(), args.out.display());
    output::print(&format!("{out}: {count} layers, {} layout\n", format!("{:?}", args.to).to_lowercase()))?;
    Ok(Outcome::Done)
}
