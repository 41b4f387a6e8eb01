//! The command line as a whole; each command's own arguments stand in its file under `commands/`.

use std::ffi::OsString;

use clap::{Args, Parser, Subcommand};

use crate::commands::{
    adapter, doctor, judge, pairs, presets, pretrain, probe, report, rollout, runs, sample, score, train,
};

const EXAMPLES: &str = "\
Start here:
  seedpo doctor                                          is this machine ready?
  seedpo sample --prompt \"red apple\" --out apples        pictures from the built-in model
  seedpo train --preset see-spo-emoji                    align it, with the self-entropy term
  seedpo sample --adapter runs/see-spo --prompt \"red apple\" the same picture after alignment

Exit codes: 0 done; 1 a quality gate failed; 2 could not run; 130 interrupted (work so far is saved).
Environment: HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE (docs/hub.md); OMP_NUM_THREADS, CUDA_VISIBLE_DEVICES, RUST_LOG (e.g. RUST_LOG=seedpo=debug), NO_COLOR.
Flags may be written with - or _.  `seedpo <command> --help` explains each flag, its range and its default.";

/// Align text-to-image diffusion models with preferences.
///
/// seedpo samples from a Stable Diffusion model, judges the pictures, trains a LoRA adapter on the preferences
/// (SPO, D3PO, with or without the self-entropy term of SEE-DPO) and reports what changed. Models are diffusers
/// folders; adapters are files that diffusers' `load_lora_weights` takes unchanged.
#[derive(Parser, Debug)]
#[command(name = "seedpo", version, after_help = EXAMPLES, arg_required_else_help = true, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What seedpo can be asked to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Align a model with preferences: sample, judge, pair, update, repeat.
    Train(Box<train::Args>),
    /// Draw pictures for prompts, with or without an adapter.
    Sample(sample::Args),
    /// Sample pairs with the initial policy, judge them and store them, to train on them later.
    Rollout(Box<rollout::Args>),
    /// Look into datasets of preference pairs, convert them, let judges label them.
    Pairs(pairs::Args),
    /// List the presets of `train`, or explain one.
    Presets(presets::Args),
    /// Train the built-in model from the emoji, or measure it.
    Pretrain(pretrain::Args),
    /// Score pictures with one or more judges.
    Score(score::Args),
    /// Say which judges there are, what each needs and where to get it; train one of your own.
    Judge(judge::Args),
    /// Write report.html from run folders.
    Report(report::Args),
    /// List runs, compare them, export their numbers.
    Runs(runs::Args),
    /// Look into LoRA files, convert them between tools, merge them.
    Adapter(adapter::Args),
    /// Say whether this machine is ready: libtorch, CPU, memory, GPU, a model folder.
    Doctor(doctor::Args),
    /// Run one stage on given inputs, to compare it with a reference of your own.
    Probe(probe::Args),
}

/// Flags that every command takes.
#[derive(Args, Debug)]
#[command(next_help_heading = "Machine")]
pub struct Global {
    /// Where to compute: cpu, cuda, cuda:N, or auto (CUDA where it works) [default: auto].
    #[arg(long, global = true, value_name = "DEVICE")]
    pub device: Option<String>,

    /// Dtype of the frozen base's weights: f32, bf16, f16, or auto (bf16 where this machine multiplies it faster than
    /// f32, measured once) [default: auto; f32 for
    /// probe, adapter merge and pretrain measure, bf16 for pretrain]. Losses, likelihoods and adapters are f32
    /// whatever this says.
    #[arg(long, global = true, value_name = "DTYPE", visible_alias = "mixed-precision")]
    pub dtype: Option<String>,

    /// Dtype of the autoencoder: f32, bf16, f16, or auto (the base's). In the place of f16 it is f32 unless the
    /// autoencoder's configuration says `force_upcast: false`: Stable Diffusion's overflow in f16 [default: auto].
    #[arg(long, global = true, value_name = "DTYPE")]
    pub vae_dtype: Option<String>,

    /// Decode one picture at a time: less memory.
    #[arg(long, global = true, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub vae_slicing: Option<bool>,

    /// Decode pictures larger than the autoencoder's own size in overlapping tiles: less memory, faint seams.
    #[arg(long, global = true, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub vae_tiling: Option<bool>,

    /// Which of several sets of weight files to read, e.g. fp16 for *.fp16.safetensors [default: full precision,
    /// where it is there].
    #[arg(long, global = true, value_name = "NAME", help_heading = "Model files")]
    pub variant: Option<String>,

    /// The branch, tag or commit of a model named by its hub id; adapters and judges are taken from main [default: main].
    #[arg(long, global = true, value_name = "NAME", help_heading = "Model files")]
    pub revision: Option<String>,

    /// What the U-Net predicts: epsilon, v_prediction or sample (the clean latents) [default: as the model's files say].
    #[arg(long, global = true, value_name = "TYPE", help_heading = "Model files")]
    pub prediction_type: Option<String>,

    /// A folder with a CLIP tokenizer (vocab.json, merges.txt), instead of the model's own.
    #[arg(long, global = true, value_name = "FOLDER", help_heading = "Model files")]
    pub tokenizer: Option<String>,

    /// CPU threads, 1 to 1024 [default: OMP_NUM_THREADS, else all cores].
    #[arg(long, global = true, value_name = "N")]
    pub threads: Option<i32>,

    /// No progress and no notes; errors and results only.
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

impl Global {
    /// Starts the logs that `RUST_LOG` asks for; warnings only where it is not set.
    pub fn start_logs(&self) {
        use tracing_subscriber::EnvFilter;
        let default = if self.quiet { "error" } else { "warn" };
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
        let colours = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let colours = colours && std::io::IsTerminal::is_terminal(&std::io::stderr());
        let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
        // Whoever asks for logs wants to know when and where; others want the sentence. A second subscriber cannot exist
        // here: this is called once, from main.
        let _ = match std::env::var_os("RUST_LOG") {
            Some(_) => logs.try_init(),
            None => logs.without_time().with_target(false).try_init(),
        };
    }
}

/// The arguments with every `_` in a flag's name turned into `-`, so that both spellings work; values are untouched.
pub fn with_hyphens(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut rest_is_values = false;
    arguments
        .map(|argument| {
            let Some(text) = argument.to_str().filter(|t| t.len() > 2 && t.starts_with("--") && !rest_is_values) else {
                rest_is_values |= argument == "--";
                return argument;
            };
            let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
            format!("{}{value}", name.replace('_', "-")).into()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn only_the_names_of_flags_lose_their_underscores() {
        let given = ["seedpo", "--output_dir=a_b", "c_d", "--", "--x_y"];
        let expected = ["seedpo", "--output-dir=a_b", "c_d", "--", "--x_y"];
        assert_eq!(with_hyphens(given.iter().map(OsString::from)), expected.map(OsString::from));
    }
}
