//! `seedpo judge`: the judges themselves.

mod list;

use anyhow::Result;

use crate::context::Context;
use crate::failure::Outcome;

/// Say which judges there are, what each needs and where to get it.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Every judge with a name: what it rewards, its weights, their size and licence.
    List(list::Args),
}

/// Runs `seedpo judge`.
pub fn run(args: &Args, _context: &Context) -> Result<Outcome> {
    match &args.command {
        Command::List(args) => list::run(args),
    }
}
