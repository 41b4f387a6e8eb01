//! How a failure reaches the user: one block on standard error, and an exit code.

use std::io::Write;
use std::process::ExitCode;

use crate::out_of_memory;

/// The exit code of a command that could not run.
pub const COULD_NOT_RUN: u8 = 2;
/// The exit code after Ctrl-C or SIGTERM.
pub const INTERRUPTED: u8 = 130;

/// How a command that did not fail ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did what was asked: exit code 0.
    Done,
    /// It ran, and a measured quality missed the bound the user set: exit code 1.
    GateFailed,
    /// The user stopped it, and its work so far is saved: exit code 130.
    Interrupted,
}

impl Outcome {
    /// The process's exit code for this outcome.
    pub fn exit_code(self) -> ExitCode {
        match self {
            Self::Done => ExitCode::SUCCESS,
            Self::GateFailed => ExitCode::from(1),
            Self::Interrupted => ExitCode::from(INTERRUPTED),
        }
    }
}

/// Prints an error and its causes as one block, and says with which code to exit.
///
/// A cause whose text its parent already shows is left out.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let block = block(error);
    let advice =
        if out_of_memory::is_meant(&block) { format!("\n{}", out_of_memory::block(&block)) } else { String::new() };
    let _ = writeln!(std::io::stderr().lock(), "error: {block}{advice}");
    let stopped = error.downcast_ref().is_some_and(|error| matches!(error, seedpo_hub::Error::Cancelled { .. }));
    ExitCode::from(if stopped { INTERRUPTED } else { COULD_NOT_RUN })
}

fn block(error: &anyhow::Error) -> String {
    let mut lines: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = tidy(&cause.to_string());
        if !lines.iter().any(|shown| shown.contains(&text)) {
            lines.push(text);
        }
    }
    // A context of a few words (`--judge`, `setting \`dtype\``) needs no line of its own.
    let mut block = String::new();
    for (index, line) in lines.iter().enumerate() {
        let short = index > 0 && lines[index - 1].chars().count() < 32;
        block += if index == 0 {
            ""
        } else if short {
            ": "
        } else {
            "\n  because: "
        };
        block += line;
    }
    block
}

/// libtorch's messages end in a C++ backtrace, which helps no user.
fn tidy(text: &str) -> String {
    let end = ["\nException raised from", "\nC++ CapturedTraceback", "\nframe #0"];
    let cut = end.iter().filter_map(|mark| text.find(mark)).min().unwrap_or(text.len());
    text[..cut].trim_end().to_owned()
}

/// A panic is a bug of ours, or memory that ran out inside libtorch: say which, in a line, and exit with code 2.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        // Panics that are caught, and told as errors where they are.
        if seedpo_data::picture::is_decoding() || seedpo_tensor::gradient::is_running() {
            return;
        }
        let payload = info.payload();
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default();
        let mut stderr = std::io::stderr().lock();
        let _ = if out_of_memory::is_meant(&text) {
            writeln!(stderr, "error: {}", out_of_memory::block(&text))
        } else {
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            writeln!(
                stderr,
                "error: a bug in seedpo {}, at {place}: {}\n  please report this line and the command at {}/issues",
                env!("CARGO_PKG_VERSION"),
                tidy(&text),
                env!("CARGO_PKG_REPOSITORY"),
            )
        };
        end_at_once(COULD_NOT_RUN);
    }));
}

/// Exits with this code although nothing is dropped then: the scorers that were started are ended, as their judges would.
pub fn end_at_once(code: u8) -> ! {
    seedpo_judge::end_scorers();
    std::process::exit(code.into())
}

/// The known name nearest to one that was written, where it is near enough to be what was meant.
pub fn nearest<'a>(written: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let near = known.map(|name| (strsim::levenshtein(written, name), name)).min()?;
    (near.0 <= 1 + written.chars().count() / 2).then_some(near.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn causes_are_shown_once() {
        let inner = std::io::Error::other("disk on fire");
        let error =
            Err::<(), _>(inner).context("prompts.txt: disk on fire").context("reading the prompts").unwrap_err();
        assert_eq!(block(&error), "reading the prompts: prompts.txt: disk on fire");
        let error = error.context("a longer sentence about what was being done at the time");
        assert!(block(&error).ends_with("at the time\n  because: reading the prompts: prompts.txt: disk on fire"));
    }

    #[test]
    fn near_names_are_offered_and_far_ones_are_not() {
        let known = ["steps", "eta"];
        assert_eq!(nearest("step", known.into_iter()), Some("steps"));
        assert_eq!(nearest("guidance_scale", known.into_iter()), None);
    }

    #[test]
    fn libtorch_backtraces_are_cut() {
        assert_eq!(tidy("shape mismatch\nException raised from foo at x.cpp:1\nframe #0"), "shape mismatch");
    }
}
