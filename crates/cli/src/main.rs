//! The `seedpo` command: align text-to-image diffusion models with preferences.
//!
//! This crate holds arguments, configuration files, progress and exit codes, and no mathematics. The flow is in
//! `docs/architecture.md`; every command is one file in [`commands`].

mod args;
mod commands;
mod context;
mod failure;
mod hub;
mod images;
mod interrupt;
mod judges;
mod models;
mod observer;
mod out_of_memory;
mod output;
mod progress;
mod prompts;
mod settings;
mod sheet;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

fn main() -> ExitCode {
    failure::install_panic_hook();
    let arguments = args::with_hyphens(std::env::args_os());
    let matches = args::Cli::command().get_matches_from(arguments);
    let cli = args::Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
    out_of_memory::of_command(&matches);
    cli.global.start_logs();
    interrupt::install();
    match commands::run(cli) {
        Ok(outcome) => outcome.exit_code(),
        Err(error) => failure::report(&error),
    }
}
