//! `seedpo pairs inspect`.

use std::collections::BTreeMap;

use anyhow::Result;
use seedpo_data::{BadRow, Options, Pairs, Reason, Report, picture};

use super::Source;
use crate::context::Context;
use crate::failure::Outcome;
use crate::{interrupt, output};

/// Pictures whose headers are read to list resolutions.
const SAMPLED: usize = 256;
/// Resolutions listed.
const LISTED: usize = 8;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    source: Source,

    /// Decode every picture, so that undecodable ones are counted too.
    #[arg(long)]
    decode: bool,

    /// How many pairs to show.
    #[arg(long, value_name = "N", default_value_t = 3)]
    rows: usize,
}

/// Runs `seedpo pairs inspect`.
pub fn run(args: &Args, context: &Context) -> Result<Outcome> {
    let options = Options { bad_rows_limit: f64::INFINITY, ..args.source.options() };
    let pairs = Pairs::open(&args.source.path, &options)?;
    let mut report = pairs.report().clone();
    if args.decode && !decode_all(&pairs, &mut report, context) {
        return Ok(Outcome::Interrupted);
    }
    output::print(&(counts(&pairs, &report) + &resolutions(&pairs) + &first(&pairs, args.rows)))?;
    if report.exceeds(args.source.bad_rows_limit) {
        let limit = args.source.bad_rows_limit * 100.0;
        eprintln!("above the limit of {limit} % bad rows (--bad-rows-limit): a training run would stop");
        return Ok(Outcome::GateFailed);
    }
    Ok(Outcome::Done)
}

/// Decodes all pictures, a pair with one that cannot be had counting as a bad row. False if the user stopped it.
fn decode_all(pairs: &Pairs, report: &mut Report, context: &Context) -> bool {
    let mut progress = context.progress("decoding", pairs.len(), "pairs");
    for index in 0..pairs.len() {
        if interrupt::requested() {
            return false;
        }
        let pair = pairs.pair(index);
        let failed = std::iter::once(pair.winner).chain(pair.loser).find_map(|id| pairs.picture(id).err());
        if let Some(bad) = failed {
            report.add_bad(bad.of_row(pairs.place(index)));
            report.pairs -= 1;
        }
        progress.advance(1);
    }
    progress.finish();
    true
}

fn counts(pairs: &Pairs, report: &Report) -> String {
    let mut of_prompt: BTreeMap<&str, usize> = BTreeMap::new();
    (0..pairs.len()).for_each(|index| *of_prompt.entry(pairs.pair(index).prompt).or_default() += 1);
    let most = of_prompt.values().max().copied().unwrap_or(0);
    let mean = pairs.len() as f64 / of_prompt.len().max(1) as f64;
    let mut lines = vec![
        format!("{}: {}", pairs.path().display(), pairs.layout()),
        format!("rows      {}", report.rows),
        format!("pairs     {}", report.pairs),
        format!("ties      {} (dropped)", report.ties),
        format!("prompts   {} ({mean:.1} pairs each, at most {most})", of_prompt.len()),
        format!("bad rows  {}", report.bad_rows()),
    ];
    if report.other_generators > 0 {
        lines.insert(4, format!("others    {} pairs of other generators (dropped)", report.other_generators));
    }
    if report.bad_rows() > 0 {
        lines.push(report.bad_list());
    }
    lines.join("\n") + "\n"
}

/// Sizes of pictures spread evenly over the pairs, from their headers.
fn resolutions(pairs: &Pairs) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let taken = pairs.len().min(SAMPLED);
    for i in 0..taken {
        let size = pairs.bytes(pairs.pair(i * pairs.len() / taken).winner).and_then(|bytes| {
            let bad = |detail| BadRow { place: String::new(), reason: Reason::Undecodable, detail };
            picture::dimensions(&bytes).map_err(bad)
        });
        *counts.entry(size.map_or_else(|_| "unreadable".into(), |(w, h)| format!("{w}x{h}"))).or_default() += 1;
    }
    let mut counts: Vec<(String, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let more = if counts.len() > LISTED { format!(", and {} more", counts.len() - LISTED) } else { String::new() };
    let shown: Vec<String> = counts.iter().take(LISTED).map(|(size, count)| format!("{size} ({count})")).collect();
    format!("pictures  {}; of {taken} winners: {}{more}\n", pairs.pictures(), shown.join(", "))
}

fn first(pairs: &Pairs, rows: usize) -> String {
    let of = |index: usize| {
        let pair = pairs.pair(index);
        let name = |id| pairs.file(id).map_or_else(|| "(in the file)".to_owned(), |file| file.display().to_string());
        let loser = pair.loser.map(name).unwrap_or_else(|| "none".to_owned());
        let (place, prompt) = (pairs.place(index), pair.prompt);
        format!("\n{place}: {prompt:?}\n  winner {}\n  loser  {loser}\n", name(pair.winner))
    };
    (0..pairs.len().min(rows)).map(of).collect()
}
