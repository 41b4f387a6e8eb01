//! One file per command.

pub mod adapter;
pub mod doctor;
pub mod judge;
pub mod pairs;
pub mod presets;
pub mod pretrain;
pub mod probe;
pub mod report;
pub mod rollout;
pub mod runs;
pub mod sample;
pub mod score;
pub mod train;

use anyhow::Result;

use crate::args::{Cli, Command};
use crate::context::Context;
use crate::failure::Outcome;

/// Runs the command that was asked for.
pub fn run(cli: Cli) -> Result<Outcome> {
    let context = Context::new(&cli.global)?;
    match cli.command {
        Command::Train(args) => train::run(&args, &context),
        Command::Rollout(args) => rollout::run(&args, &context),
        Command::Sample(args) => sample::run(&args, &context),
        Command::Pairs(args) => pairs::run(&args, &context),
        Command::Presets(args) => presets::run(&args),
        Command::Pretrain(args) => pretrain::run(&args, &context),
        Command::Score(args) => score::run(&args, &context),
        Command::Judge(args) => judge::run(&args, &context),
        Command::Report(args) => report::run(&args, &context),
        Command::Runs(args) => runs::run(&args, &context),
        Command::Adapter(args) => adapter::run(&args, &context),
        Command::Doctor(args) => doctor::run(&args, &context),
        Command::Probe(args) => probe::run(&args, &context),
    }
}
