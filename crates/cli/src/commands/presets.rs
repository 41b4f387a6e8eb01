//! `seedpo presets`: what the named sets of settings are, line by line.

use anyhow::Result;
use clap::Subcommand;
use seedpo_align::config::{PRESETS, Preset, TrainConfig, keys};
use seedpo_align::{Likelihood, Method};
use toml::Table;

use crate::failure::Outcome;
use crate::output;
use crate::settings::shown;

const EXAMPLES: &str = "\
Examples:
  seedpo presets list                        every preset, with where its settings come from
  seedpo presets show see-spo-sd15           each of its lines explained, the effective rates, what to know
  seedpo train --preset see-spo-sd15 --print-config      all settings of a run, defaults included, as TOML";

/// List the presets of `train`, or explain one.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Every preset: name, method, data, source.
    List,
    /// One preset: each line explained, the effective learning rate, batch and β, and what to know before using it.
    Show {
        /// The preset's name.
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// Runs the command.
pub fn run(args: &Args) -> Result<Outcome> {
    match &args.what {
        What::List => output::print(&list()?)?,
        What::Show { name } => output::print(&show(Preset::by_name(name)?)?)?,
    }
    Ok(Outcome::Done)
}

fn list() -> Result<String> {
    let line = |columns: [&str; 5]| {
        let [name, method, data, trains, source] = columns;
        format!("{name:<28} {method:<14} {data:<11} {trains:<7} {source}")
    };
    let mut lines = vec![line(["preset", "method", "data", "trains", "source"])];
    for preset in PRESETS {
        let config = resolved(preset)?;
        let method = config.resolved_method()?;
        let data = if method.pairs.from_files() { "pairs_file" } else { "prompts" };
        let trains = if config.finetuning_type == "full" { "U-Net" } else { "LoRA" };
        lines.push(line([preset.name, method.name, data, trains, preset.source]));
    }
    lines.push("\n`seedpo presets show NAME` explains one; `seedpo train --preset NAME` uses it.".into());
    Ok(lines.join("\n") + "\n")
}

/// The settings of a run with the preset and nothing else.
fn resolved(preset: &Preset) -> Result<TrainConfig> {
    Ok(TrainConfig::from_layers(preset.table()?, preset.name)?)
}

fn show(preset: &Preset) -> Result<String> {
    let (table, config) = (preset.table()?, resolved(preset)?);
    let method = config.resolved_method()?;
    let mut text = format!("{}: settings from {}\n\n", preset.name, preset.source);
    for key in keys() {
        if let Some(value) = shown(key.name, &table) {
            text += &format!("{} = {value}\n", key.name);
            text += &wrapped(&format!("{} Range: {}.", key.help, key.range), 4);
        }
    }
    text += "\nIn effect\n";
    for (name, value) in in_effect(&config, &method)? {
        text += &format!("  {name:<16} {value}\n");
    }
    if !preset.notes.is_empty() {
        text += "\nTo know\n";
        preset.notes.iter().for_each(|note| text += &wrapped(note, 2));
    }
    Ok(text)
}

/// What the settings amount to, defaults included.
fn in_effect(config: &TrainConfig, method: &Method) -> Result<Vec<(&'static str, String)>> {
    let table = Table::try_from(config)?;
    let value = |key: &str| shown(key, &table).unwrap_or_default();
    let warm_up = match config.lr_warmup_steps {
        0 => String::new(),
        steps => format!(", rising over {steps} updates"),
    };
    let pairs = config.pairs_per_update();
    let steps = method.likelihood == Likelihood::Transition && method.pairs == seedpo_align::PairsFrom::Trajectories;
    let batch = format!(
        "{pairs} pairs per update ({} x {}){}",
        config.train_batch_size,
        config.gradient_accumulation_steps,
        if steps { format!(", each at all {} steps", config.steps) } else { String::new() }
    );
    let beta = match method.plausible_beta(config.entropy.gamma) {
        None => "none: the loss has no reference".to_owned(),
        Some(range) => format!("{} (usual: {} to {})", value("beta"), range.start(), range.end()),
    };
    let gamma = config.entropy.gamma;
    Ok(vec![
        ("learning rate", format!("{}, {}{warm_up}", value("learning_rate"), config.lr_scheduler)),
        ("per pair", format!("{:e}", config.learning_rate / pairs as f64)),
        ("batch", batch),
        ("beta", beta),
        ("self-entropy", format!("gamma {gamma}: the reference to the power of {:.4}", config.entropy.kappa())),
        ("pairs", method.pairs.name().to_owned()),
        ("likelihood", method.likelihood.name().to_owned()),
        ("reference", method.reference.name().to_owned()),
        ("clip, flipper", format!("{}, {}", config.clip, format!("{:?}", method.flipper()).to_lowercase())),
        ("guidance", format!("{} in training, {} in previews", config.guidance_scale, config.sampling_guidance())),
    ])
}

/// `text` in lines of at most 110 characters, indented.
fn wrapped(text: &str, indent: usize) -> String {
    let (mut lines, mut line) = (String::new(), String::new());
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + word.chars().count() + indent >= 110 {
            lines += &format!("{:indent$}{line}\n", "");
            line.clear();
        }
        line += if line.is_empty() { "" } else { " " };
        line += word;
    }
    lines + &format!("{:indent$}{line}\n", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_listed_and_explained() {
        let list = list().unwrap();
        for preset in PRESETS {
            assert!(list.contains(preset.name));
            let text = show(preset).unwrap();
            assert!(text.contains("learning rate") && text.contains("pairs per update"), "{text}");
            assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
        }
    }

    #[test]
    fn effective_rates_and_disagreements_are_told() {
        let text = show(Preset::by_name("diffusion-dpo-sd15").unwrap()).unwrap();
        for part in
            ["2.048e-5", "2048 pairs per update (8 x 256)", "per pair         1e-8", "5000 (usual: 100 to 20000)"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.contains("8.2e-9") && text.contains("HPDv2") && text.contains("longer serves"), "{text}");
        let text = show(Preset::by_name("sft-sd15").unwrap()).unwrap();
        assert!(text.contains("none: the loss has no reference"), "{text}");
    }
}
