//! `seedpo judge`: the judges themselves.

mod list;
mod synthetic;
mod train;

use anyhow::Result;

use crate::context::Context;
use crate::failure::Outcome;

/// Say which judges there are, what each needs and where to get it; train one of your own.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Every judge with a name: what it rewards, its weights, their size and licence.
    List(list::Args),
    /// Train one: a CLIP, a preference model or a step-aware one.
    Train(Box<train::Args>),
    /// Make preference pairs of the emoji by a known rule, to try training on.
    Synthetic(synthetic::Args),
}

/// Runs `seedpo judge`.
pub fn run(args: &Args, context: &Context) -> Result<Outcome> {
    match &args.command {
        Command::List(args) => list::run(args),
        Command::Synthetic(args) => synthetic::run(args, context),
        Command::Train(args) => train::run(args, context),
    }
}
