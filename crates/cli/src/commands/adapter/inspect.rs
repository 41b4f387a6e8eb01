//! `seedpo adapter inspect`.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::path::PathBuf;

use anyhow::Result;
use seedpo_model::adapter::{LoraFile, LoraSummary};

use crate::context::Context;
use crate::failure::Outcome;
use crate::output;

/// Arguments of `seedpo adapter inspect`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The LoRA: a file of any layout, a folder (a run, a checkpoint, a peft folder), or a hub id.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<Outcome> {
    let lora = super::open(&args.file, context)?;
    output::print(&describe(&lora, &lora.summary())?)?;
    Ok(Outcome::Done)
}

/// The report, a line for each matter.
fn describe(lora: &LoraFile, summary: &LoraSummary) -> Result<String> {
    let mut text = format!("{}\n", lora.path.display());
    let mut line = |name: &str, value: String| writeln!(text, "  {name:<12} {value}");
    line("layout", lora.layouts.iter().map(|layout| layout.name()).collect::<Vec<_>>().join(" and "))?;
    line("made for", lora.family().unwrap_or("no family known by its shapes").to_owned())?;
    line("layers", format!("{}: {}", lora.modules.len(), counts(&summary.targets)))?;
    line("rank", counts(&summary.ranks))?;
    line("alpha", counts(&summary.alphas))?;
    line("numbers", format!("{} ({})", summary.parameters, counts(&summary.kinds)))?;
    line("not finite", if summary.not_finite.is_empty() { "none".into() } else { summary.not_finite.join(", ") })?;
    if summary.without_effect > 0 {
        line("no effect", format!("{} layers, whose change is 0", summary.without_effect))?;
    }
    for kind in &lora.unsupported {
        line("not applied", format!("{} tensor(s) of {}", kind.keys.len(), kind.what))?;
    }
    writeln!(text, "  Frobenius norm of the change, by block (all its layers; the largest one):")?;
    for (name, block) in &summary.blocks {
        let (count, norm, largest) = (block.modules, block.norm, block.largest);
        writeln!(text, "    {name:<14} {count:>4} layers  {norm:>10.4}  {largest:>10.4}")?;
    }
    Ok(text)
}

/// `4 (128), 8 (2)`: each value with how many have it; the value alone where there is one.
fn counts<K: Display>(counts: &BTreeMap<K, usize>) -> String {
    match counts.len() {
        1 => counts.keys().map(ToString::to_string).collect(),
        _ => counts.iter().map(|(value, count)| format!("{value} ({count})")).collect::<Vec<_>>().join(", "),
    }
}
