//! Memory that ran out: what is advised then, by the command that ran.

use std::sync::{Mutex, PoisonError};

use clap::ArgMatches;
use seedpo_align::forecast::GENERAL_ADVICE;
use seedpo_tensor::{Device, memory};

const GIB: f64 = (1u64 << 30) as f64;

/// What a command is: what is left of its work, and its flags that save memory.
type Advice = (&'static str, &'static str, &'static str);

/// By command; one without an entry has no flag that would help.
const ADVICE: &[Advice] = &[
    ("train", RESUMES, GENERAL_ADVICE),
    (
        "rollout",
        "The store's whole files are intact; the same command goes on.",
        "What saves memory: a smaller --rollout-batch-size in sampling, --vae-slicing and --vae-tiling in decoding, --dtype bf16 \
         and a lower --resolution everywhere.",
    ),
    (
        "sample",
        "The pictures written before are whole.",
        "What saves memory: a smaller --batch, --vae-slicing and --vae-tiling in decoding, --dtype bf16 and a lower --resolution \
         everywhere.",
    ),
    ("score", NOTHING, "What saves memory: one judge at a time with --judge, --dtype bf16, smaller pictures."),
    ("pairs relabel", NOTHING, "What saves memory: one judge at a time with --judge, --dtype bf16, smaller pictures."),
    (
        "judge train",
        RESUMES_AS_IT_WAS,
        "What saves memory, in a new run (another --out): a smaller --batch, with --accumulation raised as much for updates of the \
         same size (pairs are compared within a batch, so a CLIP learns from fewer at a time).",
    ),
    (
        "pretrain",
        RESUMES_AS_IT_WAS,
        "What saves memory, in a new run (another --out): a smaller --batch (in the autoencoder's stage --vae-batch), fewer \
         --workers, each of which holds a copy of the model.",
    ),
    ("pretrain measure", NOTHING, "What saves memory: --dtype bf16, --vae-slicing for the grid."),
    ("probe", NOTHING, "What saves memory: fewer rows in the --case file, --dtype bf16, --vae-slicing."),
    ("doctor", NOTHING, "What saves memory: --dtype bf16, with which the model takes half."),
];
const RESUMES: &str = "What was saved before is intact; --resume goes on from it.";
const RESUMES_AS_IT_WAS: &str =
    "What was saved before is intact; --resume goes on from it where more memory is free, with the same settings.";
const NOTHING: &str = "Nothing was written.";

/// What is known of the memory of this process.
#[derive(Clone)]
struct Known {
    intact: &'static str,
    advice: String,
    batch: Option<Batch>,
}

/// The rows that a command computes at once.
#[derive(Clone, Copy)]
struct Batch {
    flag: &'static str,
    rows: usize,
    /// Bytes in use before the first.
    at_rest: u64,
    /// The most that was in use before the first, as while a model is read.
    peak_before: u64,
    device: Device,
}

static KNOWN: Mutex<Known> = Mutex::new(Known { intact: "", advice: String::new(), batch: None });

fn known() -> std::sync::MutexGuard<'static, Known> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sets what is advised while the command of these arguments runs.
pub fn of_command(matches: &ArgMatches) {
    let (mut path, mut inner) = (String::new(), matches);
    while let Some((name, matches)) = inner.subcommand() {
        path = format!("{path} {name}").trim_start().to_owned();
        inner = matches;
    }
    if let Some((_, intact, advice)) = advice_of(&path) {
        *known() = Known { intact, advice: (*advice).to_owned(), batch: None };
    }
}

/// The entry of a command, or of the nearest one above it.
fn advice_of(path: &str) -> Option<&'static Advice> {
    let above = |name: &str| path == name || path.strip_prefix(name).is_some_and(|rest| rest.starts_with(' '));
    ADVICE.iter().filter(|(name, ..)| above(name)).max_by_key(|(name, ..)| name.len())
}

/// Sets what is left of the work, where flags decide it.
pub fn left(intact: &'static str) {
    known().intact = intact;
}

/// Sets what has been measured in the place of what is generally advised.
pub fn measured(advice: &str) {
    advice.clone_into(&mut known().advice);
}

/// Says that from now on `rows` at once are computed on `device`, and which flag sets them; what is in use now is there
/// for any number of them.
pub fn batch(flag: &'static str, rows: usize, device: Device) {
    let (at_rest, peak_before) = (memory::settled_bytes(device), memory::peak_bytes(device));
    known().batch = Some(Batch { flag, rows, at_rest, peak_before, device });
}

/// Whether libtorch said that an allocation failed, on the CPU or on a card.
pub fn is_meant(text: &str) -> bool {
    text.contains("allocate memory") || text.contains("out of memory")
}

/// The block for a failed allocation that libtorch reported as `text`.
pub fn block(text: &str) -> String {
    let Known { intact, advice, batch } = known().clone();
    let text = first_line(text);
    let half = batch.and_then(|batch| half(batch, batch.most(), asked(text)));
    let lines = [format!("out of memory: {text}"), intact.to_owned(), half.unwrap_or_default(), advice];
    lines.into_iter().filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n  ")
}

impl Batch {
    /// The most that a batch is known to have had in use, what was there before it included.
    fn most(&self) -> u64 {
        let peak = memory::peak_bytes(self.device);
        self.most_of(peak, if self.device.is_cuda() { peak } else { memory::rss_bytes() })
    }

    /// As [`Batch::most`], of a process that has `now` in use and had `peak` in its life: in that of its batches only if
    /// they came to more than what was before them.
    fn most_of(&self, peak: u64, now: u64) -> u64 {
        if peak > self.peak_before { peak } else { now }
    }
}

/// What half the rows would take less, where there is half: what a batch had taken (with `most` bytes in use) and wanted is
/// in proportion to its rows.
fn half(batch: Batch, most: u64, asked: u64) -> Option<String> {
    let Batch { flag, rows, at_rest, .. } = batch;
    let fewer = rows / 2;
    let taken = most.saturating_sub(at_rest).saturating_add(asked) as f64;
    let saved = taken * (rows - fewer) as f64 / rows as f64 / GIB;
    (fewer > 0).then(|| format!("{flag} {fewer} instead of {rows}: about {saved:.2} GiB less."))
}

/// The bytes that libtorch could not get: `you tried to allocate 9 bytes`, `Tried to allocate 2.00 GiB`; else 0.
fn asked(text: &str) -> u64 {
    let after = text.split_once("ried to allocate ").map_or("", |(_, after)| after);
    let mut words = after.split_whitespace();
    let number: f64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
    let unit = words.next().unwrap_or_default().trim_end_matches(['.', ',']);
    let power = ["KiB", "MiB", "GiB", "TiB"].iter().position(|name| *name == unit).map_or(0, |at| at as i32 + 1);
    (number * 1024f64.powi(power)) as u64
}

/// libtorch's message within tch's `Torch("...")` wrapping, up to the first line break.
fn first_line(text: &str) -> &str {
    let start = text.find("Torch(\"").map_or(0, |at| at + 7);
    let rest = &text[start..];
    let end = rest.find("\\n").or_else(|| rest.find('\n')).unwrap_or(rest.len());
    &rest[..end]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::{Command, CommandFactory};

    use super::*;

    const CPU: &str = "Torch(\"DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.\\nframe\")";

    #[test]
    fn a_failed_allocation_is_told_what_saves_memory() {
        let matches = crate::args::Cli::command().get_matches_from(["seedpo", "sample", "--prompt", "a"]);
        of_command(&matches);
        assert!(is_meant(CPU) && is_meant("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"));
        let told = block(CPU);
        assert!(told.contains("tried to allocate 9 bytes.\n") && told.contains("smaller --batch"), "{told}");
        measured("use --vae-slicing");
        assert!(block(CPU).ends_with("use --vae-slicing"));
    }

    #[test]
    fn half_a_batch_saves_half_of_what_it_took_and_wanted() {
        let batch = |rows| Batch { flag: "--batch", rows, at_rest: 2 << 30, peak_before: 5 << 30, device: Device::Cpu };
        assert_eq!(asked("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0"), 2 << 30);
        assert_eq!((asked(CPU), asked("out of memory")), (9, 0));
        assert_eq!(half(batch(8), 4 << 30, 2 << 30).unwrap(), "--batch 4 instead of 8: about 2.00 GiB less.");
        assert_eq!(half(batch(3), 2 << 30, 3 << 30).unwrap(), "--batch 1 instead of 3: about 2.00 GiB less.");
        assert_eq!(half(batch(1), 4 << 30, 0), None);
        // What reading the model took beside it says nothing of a batch that took less.
        assert_eq!([(5, 3), (6, 3)].map(|(peak, now)| batch(8).most_of(peak << 30, now << 30)), [3 << 30, 6 << 30]);
    }

    /// The command at a path, all flags of those above it included.
    fn command(path: &str) -> Command {
        let mut root = crate::args::Cli::command();
        root.build();
        path.split(' ').fold(root, |above, name| above.find_subcommand(name).unwrap().clone())
    }

    #[test]
    fn every_flag_advised_is_one_of_the_command() {
        for (path, intact, advice) in ADVICE {
            let text = format!("{intact} {advice}");
            let edge = |c: char| !c.is_ascii_alphanumeric() && c != '-';
            // What another command is told to do with its own flags is in backquotes.
            let own = text.split('`').step_by(2);
            let flags: BTreeSet<&str> =
                own.flat_map(|part| part.split(edge)).filter_map(|word| word.strip_prefix("--")).collect();
            let command = command(path);
            // The kinds of judge share their flags.
            let inner = command.get_subcommands().next().filter(|_| *path == "judge train").unwrap_or(&command);
            let known: BTreeSet<&str> = inner.get_arguments().filter_map(|argument| argument.get_long()).collect();
            assert!(flags.is_subset(&known), "{path}: {:?}", flags.difference(&known));
        }
        assert_eq!(advice_of("judge train clip").unwrap().0, "judge train");
        assert_eq!(advice_of("pretrain measure").unwrap().0, "pretrain measure");
        assert!(advice_of("trainer").is_none() && advice_of("runs list").is_none());
    }
}
