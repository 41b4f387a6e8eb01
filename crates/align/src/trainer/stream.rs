//! Which prompts each iteration samples: shuffled passes over the list, cut into batches.

use seedpo_tensor::NoiseKey;

/// A prompt to sample for: its index in the list and the pass (epoch) it is drawn in. Together they key its noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Pass over the prompts, from 0.
    pub pass: u64,
    /// Index into the prompts.
    pub prompt: usize,
}

/// An endless (or `epochs` long) sequence of prompts: each pass visits every prompt once, in an order keyed by the pass.
///
/// Departure: D3PO's public code draws prompts with replacement; here every method visits each equally often.
#[derive(Debug, Clone)]
pub struct PromptStream {
    seed: u64,
    prompts: u64,
    batch: u64,
    epochs: u64,
}

impl PromptStream {
    /// `prompts` and `batch` at least 1; `epochs` 0 = endless.
    pub fn new(seed: u64, prompts: usize, batch: u64, epochs: u64) -> Self {
        Self { seed, prompts: prompts as u64, batch, epochs }
    }

    /// Whether the passes are over before this iteration.
    pub fn is_over(&self, iteration: u64) -> bool {
        self.iterations().is_some_and(|iterations| iteration >= iterations)
    }

    /// The slots of an iteration; fewer than a batch (or none) at the end of the last pass.
    pub fn iteration(&self, iteration: u64) -> Vec<Slot> {
        let limit = if self.epochs == 0 { u64::MAX } else { self.epochs.saturating_mul(self.prompts) };
        let start = iteration.saturating_mul(self.batch).min(limit);
        let end = start.saturating_add(self.batch).min(limit);
        let mut slots = Vec::new();
        let mut order: Option<(u64, Vec<usize>)> = None;
        for position in start..end {
            let pass = position / self.prompts;
            if order.as_ref().is_none_or(|(of, _)| *of != pass) {
                let key = NoiseKey::new(self.seed, "prompt-order").epoch(pass);
                order = Some((pass, key.permutation(self.prompts as usize)));
            }
            if let Some((_, order)) = &order {
                slots.push(Slot { pass, prompt: order[(position % self.prompts) as usize] });
            }
        }
        slots
    }

    /// Passes begun before this iteration, as a fraction.
    pub fn epoch(&self, iteration: u64) -> f64 {
        (iteration * self.batch) as f64 / self.prompts as f64
    }

    /// Number of iterations, where `epochs` fixes it.
    pub fn iterations(&self) -> Option<u64> {
        (self.epochs > 0).then(|| self.epochs.saturating_mul(self.prompts).div_ceil(self.batch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pass_visits_each_prompt_once_whatever_the_batch() {
        let all = |batch| -> Vec<Slot> {
            let stream = PromptStream::new(3, 5, batch, 4);
            (0..stream.iterations().unwrap()).flat_map(|i| stream.iteration(i)).collect()
        };
        let slots = all(1);
        assert_eq!(slots.len(), 20);
        assert_eq!((all(3), all(7)), (slots.clone(), slots.clone()));
        for pass in 0..4 {
            let mut seen: Vec<_> = slots.iter().filter(|s| s.pass == pass).map(|s| s.prompt).collect();
            seen.sort_unstable();
            assert_eq!(seen, [0, 1, 2, 3, 4]);
        }
        assert_ne!(
            slots[..5].iter().map(|s| s.prompt).collect::<Vec<_>>(),
            slots[5..10].iter().map(|s| s.prompt).collect::<Vec<_>>()
        );
        let stream = PromptStream::new(3, 5, 7, 4);
        assert!(stream.iteration(3).is_empty() && stream.is_over(3) && !stream.is_over(2));
        assert!(!PromptStream::new(3, 5, 7, 0).is_over(u64::MAX));
    }
}
