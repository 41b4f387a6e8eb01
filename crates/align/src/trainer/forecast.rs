//! From measured pieces to the memory and time of a run.

use super::Trainer;
use super::pieces::Bench;
use crate::error::Result;
use crate::forecast::{Cost, Forecast, Measured, Piece, Span};
use crate::method::PairsFrom;
use seedpo_model::FinetuningType;
use seedpo_tensor::Kind;
use seedpo_tensor::memory::{capacity_bytes, peak_rss_bytes, settled_bytes};

/// Seconds up to which a pass is short: it is run again and with two rows, since set-up is much of it. For a longer one a start
/// does not wait.
const SHORT: f64 = 0.1;

/// How many latents, pictures and pairs a run takes at once, and how often.
struct Plan {
    pieces: [(Piece, usize); 3],
    /// Latents that pass the U-Net, pictures judged, pairs of steps trained on: in one iteration.
    iteration: [f64; 3],
    /// Pairs of steps in one update.
    update: f64,
    /// Latents that pass the U-Net, and pictures judged, in one set of previews.
    previews: [f64; 2],
    /// Updates of one iteration.
    updates: u64,
}

impl Trainer<'_> {
    /// What this run will take. With `full` (`seedpo train --dry-run`) each piece runs with as many rows as the run uses
    /// at once, unless that would not fit; else with two rows at most, one where that takes long, and the rest is computed.
    ///
    /// Errors: those of the pieces.
    pub fn forecast(&mut self, full: bool) -> Result<Forecast> {
        let device = self.parts.model.device();
        let bench = self.bench()?;
        self.allocate_gradients()?;
        let (at_rest, plan) = (settled_bytes(device), self.plan());
        let capacity = capacity_bytes(device);
        let mut pieces = Vec::new();
        for (piece, rows) in plan.pieces.into_iter().filter(|(_, rows)| *rows > 0) {
            pieces.push(self.piece(&bench, piece, rows, full, at_rest, capacity)?);
        }
        let peak = pieces.iter().map(|measured| measured.full.peak).max().unwrap_or(0);
        let peak = peak + self.later_bytes();
        let peak = if device.is_cuda() { peak } else { peak.max(peak_rss_bytes()) };
        let wanted = full || capacity.is_some_and(|bytes| peak > bytes);
        let checkpointed = (wanted && !self.parts.config.gradient_checkpointing)
            .then(|| self.measure(&bench, Piece::Training, 1, true))
            .transpose()?;
        let span = |rows: &[(Piece, f64)]| {
            rows.iter().fold(Span::default(), |sum, (piece, rows)| {
                let cost = pieces.iter().find(|measured| measured.piece == *piece).map_or(Cost::default(), |m| m.full);
                let times = rows / cost.rows.max(1) as f64;
                Span {
                    seconds: sum.seconds + cost.seconds * times,
                    cpu_seconds: sum.cpu_seconds + cost.cpu_seconds * times,
                }
            })
        };
        let [sampled, judged, trained] = plan.iteration;
        let iteration = span(&[(Piece::Sampling, sampled), (Piece::Judging, judged), (Piece::Training, trained)]);
        let previews = span(&[(Piece::Sampling, plan.previews[0]), (Piece::Judging, plan.previews[1])]);
        let update = span(&[(Piece::Training, plan.update)]);
        let whole = self.whole(&plan, iteration, previews);
        Ok(Forecast { at_rest, peak, capacity, update, iteration, previews, whole, checkpointed, pieces })
    }

    /// Makes the gradients of whole weights, zeros, which stay from the first update on while pictures are drawn and judged
    /// too. An adapter's are small.
    fn allocate_gradients(&self) -> Result<()> {
        if self.weights.finetuning_type() == FinetuningType::Full {
            for (_, parameter) in self.optimizer.parameters() {
                if !parameter.grad().defined() {
                    // Through none of its numbers, so that none is read.
                    tch::with_grad(|| parameter.f_flatten(0, -1)?.f_narrow(0, 0, 0)?.f_sum(Kind::Float)?.f_backward())?;
                }
            }
        }
        Ok(())
    }

    fn piece(
        &self,
        bench: &Bench,
        piece: Piece,
        rows: usize,
        full: bool,
        at_rest: u64,
        capacity: Option<u64>,
    ) -> Result<Measured> {
        let on = self.parts.config.gradient_checkpointing;
        // The first pass pays for set-up, and shows whether more would fit.
        let first = self.measure(bench, piece, 1, on)?;
        let fits = capacity.is_none_or(|bytes| first.scaled(rows, None, at_rest).peak <= bytes);
        let short = first.seconds < SHORT;
        let few = if fits && short { 2 } else { 1 };
        let count = if full && fits { rows } else { rows.min(few) };
        let mut second = if count == 1 && !short { first } else { self.measure(bench, piece, count, on)? };
        // What a short pass takes for an instant is seen more surely in three.
        for _ in 0..if short { 2 } else { 0 } {
            second.peak = second.peak.max(self.measure(bench, piece, count, on)?.peak);
        }
        // Only a pass in memory that is warm takes as long as those of a run.
        for _ in 0..if short { 2 } else { usize::from(full) } {
            let warm = self.time(bench, piece, count, on)?;
            second.seconds = second.seconds.min(warm.seconds);
            second.cpu_seconds = second.cpu_seconds.min(warm.cpu_seconds);
        }
        let fewer = (count > 1).then_some(first);
        let full = if count == rows { second } else { second.scaled(rows, fewer, at_rest) };
        let one = Cost { rows: 1, peak: first.peak, ..second.scaled(1, fewer, at_rest) };
        Ok(Measured { piece, one, full, extrapolated: count < rows })
    }

    fn plan(&self) -> Plan {
        let config = &self.parts.config;
        let [prompts, batch, steps, divert, candidates, images] = [
            self.prompts_per_iteration(),
            config.rollout_batch_size,
            config.steps,
            config.divert_start_step,
            config.candidates,
            config.validation_images_per_prompt,
        ]
        .map(|n| n as usize);
        let at_once = batch.min(prompts);
        // Latents at once, and per prompt: U-Net rows, pictures, pairs (each of `pair_steps` steps).
        let (latents, rows, pictures, pairs, pair_steps) = match self.method.pairs {
            PairsFrom::Trajectories => (2 * at_once, 2 * steps - 1, 2, 1, if self.joins_steps() { steps } else { 1 }),
            PairsFrom::Images | PairsFrom::Winners => (0, 0, 0, 1, 1),
            PairsFrom::WinnersAndSamples => (at_once, steps, 0, 1, 1),
            PairsFrom::Samples => (at_once, steps, 1, 1, steps),
            PairsFrom::Steps => {
                let branching = steps - divert;
                let wide = branching > 1;
                let rows = divert + 1 + (branching - 1) * candidates;
                (if wide { at_once * candidates } else { at_once }, rows, branching * candidates, branching, 1)
            }
        };
        // Stored pairs are neither sampled nor judged.
        let (latents, rows, pictures) = if self.parts.store.is_some() { (0, 0, 0) } else { (latents, rows, pictures) };
        let judged = match self.method.pairs {
            _ if self.parts.store.is_some() => 0,
            PairsFrom::Steps => at_once * candidates,
            PairsFrom::Trajectories | PairsFrom::Samples => at_once,
            PairsFrom::Images | PairsFrom::WinnersAndSamples | PairsFrom::Winners => 0,
        };
        let previews = if config.validation_steps == 0 { 0 } else { self.validation_prompts().len() * images };
        let per_update = config.pairs_per_update().min(prompts * pairs);
        let joined = if self.joins_steps() {
            config.micro_batch().min(per_update * steps)
        } else {
            config.micro_batch().min(config.train_batch_size as usize).min(per_update)
        };
        Plan {
            pieces: [
                (Piece::Sampling, latents.max(previews.min(batch))),
                (Piece::Judging, judged.max(previews.min(batch))),
                (Piece::Training, joined.max(1)),
            ],
            iteration: [rows, pictures, pairs * pair_steps].map(|n| (prompts * n) as f64),
            update: (per_update * pair_steps) as f64,
            previews: [(previews * steps) as f64, previews as f64],
            updates: (prompts * pairs).div_ceil(config.pairs_per_update()).max(1) as u64,
        }
    }

    /// The rest of the run, where its length is known.
    fn whole(&self, plan: &Plan, iteration: Span, previews: Span) -> Option<Span> {
        let left = self.total_steps().map(|n| n.saturating_sub(self.position.step) as f64 / plan.updates as f64);
        let by_epochs = || self.stream.iterations().map(|n| n.saturating_sub(self.position.iteration) as f64);
        let iterations = left.map(f64::ceil).or_else(by_epochs)?;
        let every = self.parts.config.validation_steps as f64;
        let sets = if every > 0.0 { (iterations * plan.updates as f64 / every).floor() + 2.0 } else { 0.0 };
        let sum = |of: fn(Span) -> f64| of(iteration) * iterations + of(previews) * sets;
        Some(Span { seconds: sum(|span| span.seconds), cpu_seconds: sum(|span| span.cpu_seconds) })
    }
}
