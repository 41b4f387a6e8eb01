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
    /// The LoRA to read: a file of any layout, or a folder (a run, a checkpoint, a peft folder).
    #[arg(value_name = "IN")]
    input: PathBuf,

    /// The file to write (.safetensors); must not be there yet.
    #[arg(value_name = "OUT")]
    out: PathBuf,

    /// The layout to write. diffusers: `load_lora_weights` and peft. kohya: A1111, ComfyUI, sd-scripts.
    #[arg(long, value_name = "LAYOUT")]
    to: To,

    /// Leave out what seedpo does not apply (LoHa, LoKr, layers of other architectures), and say what that was.
    #[arg(long)]
    ignore_unsupported: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum To {
    Diffusers,
    Kohya,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<Outcome> {
    super::check_free(&args.out)?;
    let lora = super::open(&args.input)?;
    if args.ignore_unsupported {
        for kind in &lora.unsupported {
            context.note(&format!("left out: {} tensor(s) of {}", kind.keys.len(), kind.what));
        }
    }
    let lora = lora.into_lora(args.ignore_unsupported)?;
    match args.to {
        To::Diffusers => lora.save(&args.out)?,
        To::Kohya => lora.save_kohya(&args.out)?,
    }
    let (count, out) = (lora.names().count(), args.out.display());
    output::print(&format!("{out}: {count} layers, {} layout\n", format!("{:?}", args.to).to_lowercase()))?;
    Ok(Outcome::Done)
}
