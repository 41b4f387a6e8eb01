//! What a run will take: memory and time, from its pieces measured one by one.

use crate::config::TrainConfig;
use std::fmt;

const GIB: f64 = (1u64 << 30) as f64;

/// A piece that a run repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// A guided U-Net pass of the rollout, without gradients; rows are latents.
    Sampling,
    /// Decoding and judging; rows are pictures.
    Judging,
    /// A micro-batch of pairs: reference pass, forward and backward; rows are pairs.
    Training,
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sampling => "sampling: one step, latents",
            Self::Judging => "decoding and judging, pictures",
            Self::Training => "training: one micro-batch, pairs",
        })
    }
}

/// What a piece took, or is expected to take.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cost {
    /// How many latents, pictures or pairs at once.
    pub rows: usize,
    /// Seconds by the clock.
    pub seconds: f64,
    /// Seconds of CPU time, all threads.
    pub cpu_seconds: f64,
    /// The most memory in use meanwhile, weights included, in bytes; 0 where the system does not say.
    pub peak: u64,
}

impl Cost {
    /// The cost for `rows`: time in proportion, memory by the line through `at_rest` (what is in use anyway) or, where
    /// `fewer` was measured too, through that.
    pub fn scaled(self, rows: usize, fewer: Option<Cost>, at_rest: u64) -> Cost {
        let from = fewer.map_or((0.0, at_rest as f64), |cost| (cost.rows as f64, cost.peak as f64));
        let slope = ((self.peak as f64 - from.1) / (self.rows as f64 - from.0).max(1.0)).max(0.0);
        let times = rows as f64 / self.rows.max(1) as f64;
        let peak = (self.peak as f64 + slope * (rows as f64 - self.rows as f64)).max(0.0) as u64;
        Cost { rows, seconds: self.seconds * times, cpu_seconds: self.cpu_seconds * times, peak }
    }
}

/// One measured piece of the run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Which.
    pub piece: Piece,
    /// For one row.
    pub one: Cost,
    /// For as many rows as the run takes at once.
    pub full: Cost,
    /// Whether `full` was computed from fewer rows: at a normal start, and where it would not fit.
    pub extrapolated: bool,
}

/// Seconds by the clock and of CPU time.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Span {
    /// By the clock.
    pub seconds: f64,
    /// Of CPU time, all threads.
    pub cpu_seconds: f64,
}

/// What a run is expected to take.
#[derive(Debug, Clone)]
pub struct Forecast {
    /// The pieces, in the order they were measured.
    pub pieces: Vec<Measured>,
    /// Memory in use before any piece ran, in bytes: weights, moments, and the gradients of whole weights.
    pub at_rest: u64,
    /// The most memory the process has used or will use, in bytes.
    pub peak: u64,
    /// The most it can have, in bytes, where the system says.
    pub capacity: Option<u64>,
    /// One update, sampling excluded.
    pub update: Span,
    /// One iteration: sampling, judging and all updates. Pairs that turn out tied make it shorter.
    pub iteration: Span,
    /// One set of previews; zero where there are none.
    pub previews: Span,
    /// The whole run from here, previews included, where its length is known.
    pub whole: Option<Span>,
    /// The same training piece with gradient checkpointing, where that is off: one row.
    pub checkpointed: Option<Cost>,
}

impl Forecast {
    /// Whether less memory can be had than is needed.
    pub fn exceeds_memory(&self) -> bool {
        self.capacity.is_some_and(|capacity| self.peak > capacity)
    }

    /// The table that `seedpo train --dry-run` prints.
    pub fn table(&self) -> String {
        let mut lines =
            vec![format!("{:<34} {:>5} {:>10} {:>10} {:>9}", "piece", "rows", "seconds", "CPU s", "peak GiB")];
        for measured in &self.pieces {
            let Cost { rows, seconds, cpu_seconds, peak } = measured.full;
            let name = measured.piece.to_string();
            let mark = if measured.extrapolated { "  (from fewer rows)" } else { "" };
            lines.push(format!("{name:<34} {rows:>5} {seconds:>10.3} {cpu_seconds:>10.3} {:>9.2}{mark}", gib(peak)));
        }
        let mut span = |name: &str, span: Span| {
            lines.push(format!("{name:<40} {:>10.3} {:>10.3}", span.seconds, span.cpu_seconds));
        };
        span("one update, sampling excluded", self.update);
        span("one iteration, at most", self.iteration);
        span("one set of previews", self.previews);
        if let Some(whole) = self.whole {
            span("the whole run, at most", whole);
        }
        lines.push(format!("{:<61} {:>9.2}", "weights and moments, before any pass", gib(self.at_rest)));
        lines.push(format!("{:<61} {:>9.2}", "peak memory", gib(self.peak)));
        if let Some(capacity) = self.capacity {
            lines.push(format!("{:<61} {:>9.2}", "memory there is", gib(capacity)));
        }
        lines.join("\n") + "\n"
    }

    /// Time as one line of the effective settings.
    pub fn time_line(&self) -> String {
        let whole =
            self.whole.map_or("length unknown".into(), |span| format!("at most {} in all", duration(span.seconds)));
        let (update, iteration) = (duration(self.update.seconds), duration(self.iteration.seconds));
        format!("{update} per update, {iteration} per iteration with its sampling; {whole}")
    }

    /// Memory as one line of the effective settings.
    pub fn memory_line(&self) -> String {
        let most = self.pieces.iter().max_by_key(|measured| measured.full.peak);
        let place = most.filter(|measured| measured.full.peak >= self.peak);
        let place = place.map_or("while loading".to_string(), |measured| format!("in {}", measured.piece));
        let there = self.capacity.map_or(String::new(), |bytes| format!(", of {:.2} GiB there are", gib(bytes)));
        format!("{:.2} GiB at most ({place}){there}", gib(self.peak))
    }

    /// Flags that take memory out of a piece, each with what the piece needs now and would need then.
    pub fn economies(&self, config: &TrainConfig) -> Vec<String> {
        let mut found = Vec::new();
        for measured in &self.pieces {
            let full = measured.full;
            let mut saves = |flag: String, with: u64| {
                // Less than a twentieth is not worth a flag.
                if (with as f64) < 0.95 * full.peak as f64 {
                    found.push((full.peak, full.peak - with, flag, measured.piece, with));
                }
            };
            let part = |share: f64| self.at_rest + ((full.peak.saturating_sub(self.at_rest)) as f64 * share) as u64;
            match measured.piece {
                Piece::Sampling if config.rollout_batch_size > 1 => {
                    let batch = config.rollout_batch_size.min(config.prompts_per_iteration) as f64;
                    saves("--rollout-batch-size 1".into(), part(1.0 / batch));
                }
                Piece::Judging if full.rows > 1 && !config.vae_slicing => {
                    saves("--vae-slicing".into(), measured.one.peak);
                }
                Piece::Training => {
                    if full.rows > 1 {
                        saves("--train-micro-batch-size 1".into(), measured.one.peak);
                    }
                    if let Some(one) = self.checkpointed {
                        let with = one.scaled(full.rows, None, self.at_rest).peak;
                        saves("--gradient-checkpointing".into(), with);
                    }
                }
                _ => {}
            }
            if config.dtype == "f32" {
                saves("--dtype bf16 (estimated)".into(), full.peak / 2);
            }
            saves("half the --resolution (estimated)".into(), part(0.25));
        }
        // What helps most first: the hungriest piece, and within it the largest saving.
        found.sort_by_key(|(peak, saving, ..)| std::cmp::Reverse((*peak, *saving)));
        let line = |(peak, saving, flag, piece, with)| {
            format!("{flag}: {piece}, {:.2} GiB instead of {:.2} ({:.2} less)", gib(with), gib(peak), gib(saving))
        };
        found.into_iter().map(line).collect()
    }

    /// What to do about memory, a flag a line.
    pub fn advice(&self, config: &TrainConfig) -> String {
        let economies = self.economies(config);
        if economies.is_empty() {
            GENERAL_ADVICE.to_string()
        } else {
            format!("What saves memory:\n  {}", economies.join("\n  "))
        }
    }

    /// The warning of a run that will not fit, with advice.
    pub fn warning(&self, config: &TrainConfig) -> Option<String> {
        let capacity = self.capacity.filter(|_| self.exceeds_memory())?;
        let (peak, there) = (gib(self.peak), gib(capacity));
        Some(format!("this run needs about {peak:.2} GiB, and there are {there:.2}. {}", self.advice(config)))
    }
}

/// What saves memory, where nothing could be measured.
pub const GENERAL_ADVICE: &str = "What saves memory: --gradient-checkpointing and --train-micro-batch-size 1 in training, \
    --rollout-batch-size 1 in sampling, --vae-slicing and --vae-tiling in decoding, --dtype bf16 and a lower --resolution \
    everywhere; `seedpo train --dry-run` measures each piece.";

fn gib(bytes: u64) -> f64 {
    bytes as f64 / GIB
}

/// Seconds in a unit that reads well.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(rows: usize, peak: u64) -> Cost {
        Cost { rows, seconds: rows as f64, cpu_seconds: rows as f64, peak: peak << 30 }
    }

    fn forecast(capacity: u64) -> Forecast {
        let piece = |piece, rows, one, full| {
            let (one, full) = (cost(1, one), cost(rows, full));
            Measured { piece, one, full, extrapolated: false }
        };
        Forecast {
            pieces: vec![
                piece(Piece::Sampling, 8, 5, 9),
                piece(Piece::Judging, 8, 5, 12),
                piece(Piece::Training, 4, 7, 16),
            ],
            at_rest: 4 << 30,
            peak: 16 << 30,
            capacity: Some(capacity << 30),
            update: Span::default(),
            iteration: Span::default(),
            previews: Span::default(),
            whole: None,
            checkpointed: Some(cost(1, 5)),
        }
    }

    #[test]
    fn a_run_that_does_not_fit_is_told_the_flags_and_what_each_saves() {
        let config = TrainConfig { dtype: "bf16".into(), ..TrainConfig::default() };
        assert_eq!(forecast(20).warning(&config), None);
        let warning = forecast(10).warning(&config).unwrap();
        assert!(warning.contains("needs about 16.00 GiB, and there are 10.00"), "{warning}");
        let lines = forecast(10).economies(&config);
        assert!(
            lines[0].starts_with("--train-micro-batch-size 1: training")
                && lines[0].contains("7.00 GiB instead of 16.00")
        );
        assert!(lines[1].contains("--resolution") && lines[2].starts_with("--gradient-checkpointing"), "{lines:?}");
        assert!(
            lines.iter().any(|line| line.starts_with("--vae-slicing: decoding and judging, pictures, 5.00")),
            "{lines:?}"
        );
        assert!(!lines.iter().any(|line| line.contains("--dtype")));
    }

    #[test]
    fn memory_grows_along_a_line_and_time_in_proportion() {
        let eight = cost(2, 6).scaled(8, Some(cost(1, 5)), 0);
        assert_eq!((eight.rows, eight.seconds, eight.peak >> 30), (8, 8.0, 12));
        assert_eq!(cost(1, 5).scaled(8, None, 4 << 30).peak >> 30, 12);
    }
}
