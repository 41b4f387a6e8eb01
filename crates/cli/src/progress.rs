//! Progress on standard error: a bar in a terminal, a line every ten seconds elsewhere, nothing with `--quiet`.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Progress through `total` units of work, with rate and time left.
pub struct Progress {
    label: String,
    unit: String,
    total: u64,
    done: u64,
    skipped: u64,
    message: String,
    started: Instant,
    last_line: Instant,
    shown: Shown,
}

enum Shown {
    Bar(ProgressBar),
    Lines,
    Nothing,
}

impl Progress {
    /// Progress that starts now. `unit` is a plural: `images`, `steps`.
    pub fn new(quiet: bool, label: &str, total: usize, unit: &str) -> Self {
        let shown = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Shown::Nothing,
            (false, true) => Shown::Bar(bar(label, total as u64, unit)),
            (false, false) => Shown::Lines,
        };
        let now = Instant::now();
        let (label, unit) = (label.to_owned(), unit.to_owned());
        Self {
            label,
            unit,
            total: total as u64,
            done: 0,
            skipped: 0,
            message: String::new(),
            started: now,
            last_line: now,
            shown,
        }
    }

    /// `count` more units are done.
    pub fn advance(&mut self, count: usize) {
        self.done += count as u64;
        match &self.shown {
            Shown::Bar(bar) => bar.inc(count as u64),
            _ => self.line_if_due(),
        }
    }

    fn line_if_due(&mut self) {
        if matches!(self.shown, Shown::Lines) && self.last_line.elapsed() >= BETWEEN_LINES {
            self.last_line = Instant::now();
            say(&self.line());
        }
    }

    /// Work that was done before this start (a resumed run): it counts as done, but not in the rate.
    pub fn skip(&mut self, count: usize) {
        self.done += count as u64;
        self.skipped += count as u64;
        if let Shown::Bar(bar) = &self.shown {
            bar.inc(count as u64);
            bar.reset_eta();
        }
    }

    /// What to show beside the bar, e.g. the last loss.
    pub fn message(&mut self, text: impl Into<String>) {
        self.message = text.into();
        match &self.shown {
            Shown::Bar(bar) => bar.set_message(self.message.clone()),
            _ => self.line_if_due(),
        }
    }

    /// A line above the bar.
    pub fn note(&self, text: &str) {
        match &self.shown {
            Shown::Bar(bar) => bar.println(text),
            Shown::Lines => say(text),
            Shown::Nothing => {}
        }
    }

    /// Ends the progress; a run of more than two seconds leaves its last line.
    pub fn finish(&mut self) {
        let long = self.started.elapsed() > Duration::from_secs(2);
        match std::mem::replace(&mut self.shown, Shown::Nothing) {
            Shown::Bar(bar) if long => bar.abandon(),
            Shown::Bar(bar) => bar.finish_and_clear(),
            Shown::Lines if long => say(&self.line()),
            _ => {}
        }
    }

    fn line(&self) -> String {
        let elapsed = self.started.elapsed().as_secs_f64();
        let rate = (self.done - self.skipped) as f64 / elapsed.max(1e-9);
        let left = match self.total.saturating_sub(self.done) as f64 / rate {
            seconds if seconds.is_finite() => format!(", {} left", clock(seconds)),
            _ => String::new(),
        };
        let message = if self.message.is_empty() { String::new() } else { format!("  {}", self.message) };
        let of = if self.total == 0 { String::new() } else { format!("/{}", self.total) };
        let (label, done, unit) = (&self.label, self.done, &self.unit);
        format!("{label}: {done}{of} {unit} in {}, {rate:.2}/s{left}{message}", clock(elapsed))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.abandon();
        }
    }
}

fn bar(label: &str, total: u64, unit: &str) -> ProgressBar {
    let colour = if std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()) { "" } else { ".cyan" };
    let template = format!(
        "{{prefix}} {{bar:28{colour}}} {{pos}}/{{len}} {unit} {{elapsed}} {{per_sec}} {{eta}} left  {{wide_msg}}"
    );
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_style(style);
    bar.set_prefix(label.to_owned());
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Seconds as `12s`, `3m05s` or `2h07m`.
pub fn clock(seconds: f64) -> String {
    let whole = seconds.round().min(1e9) as u64;
    match whole {
        0..=59 => format!("{whole}s"),
        60..=3599 => format!("{}m{:02}s", whole / 60, whole % 60),
        _ => format!("{}h{:02}m", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        assert_eq!([clock(3.4), clock(185.0), clock(7620.0)], ["3s", "3m05s", "2h07m"]);
    }

    #[test]
    fn a_line_has_rate_and_time_left() {
        let mut progress = Progress::new(true, "sampling", 10, "images");
        progress.advance(5);
        let line = progress.line();
        assert!(
            line.starts_with("sampling: 5/10 images in ") && line.contains("/s, ") && line.ends_with(" left"),
            "{line}"
        );
    }
}
