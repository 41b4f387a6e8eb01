//! `seedpo judge list`.

use anyhow::Result;
use seedpo_judge::{JudgeInfo, names};
use serde_json::json;

use crate::failure::Outcome;
use crate::output;

const AFTER: &str = "\
Use one by its name wherever a judge is taken: --judge pickscore. Its weights are taken from the hub's cache, downloaded
where they are not there; --judge pickscore=FOLDER, =FILE or =user/repo names others. docs/judges.md has the rest:
external scorers (exec:COMMAND) and several judges as one.";

/// List the judges.
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER)]
pub struct Args {
    /// One JSON object a judge instead of a table.
    #[arg(long)]
    json: bool,
}

/// Prints the list.
pub fn run(args: &Args) -> Result<Outcome> {
    let text = if args.json { names().iter().map(|info| object(info) + "\n").collect() } else { table() };
    output::print(&text)?;
    Ok(Outcome::Done)
}

fn table() -> String {
    let header = ["judge", "unit", "download", "licence", "weights"].map(str::to_owned);
    let row = |info: &JudgeInfo| {
        let size = if info.megabytes == 0 { "none".to_owned() } else { format!("{} MB", info.megabytes) };
        let weights =
            if info.asset.is_empty() { repositories(info).join(", ") } else { format!("assets/{}", info.asset) };
        vec![info.name.to_owned(), info.unit.to_owned(), size, info.licence.to_owned(), weights]
    };
    let rows: Vec<Vec<String>> = names().iter().map(row).collect();
    let about: String = names().iter().map(|info| format!("  {}: {}\n", info.name, info.description)).collect();
    format!("{}\n{about}", output::table(&header, &rows))
}

fn repositories(info: &JudgeInfo) -> Vec<&'static str> {
    let mut repositories: Vec<&str> = info.weights.iter().map(|w| w.repo).collect();
    repositories.dedup();
    repositories
}

fn object(info: &JudgeInfo) -> String {
    let files: Vec<String> = info.weights.iter().map(|w| format!("{}/{}", w.repo, w.file)).collect();
    json!({
        "name": info.name,
        "aliases": info.aliases,
        "unit": info.unit,
        "description": info.description,
        "weights": files,
        "asset": info.asset,
        "megabytes": info.megabytes,
        "licence": info.licence,
        "typical_mean": info.typical.0,
        "typical_std": info.typical.1,
    })
    .to_string()
}
