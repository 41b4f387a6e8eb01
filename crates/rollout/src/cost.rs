//! Counting what a rollout spends.

use std::ops::AddAssign;

/// How often the U-Net ran. Benches and the effective-settings table report it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Batched calls of the noise predictor.
    pub passes: u64,
    /// Latents those calls were made for, times the guidance branches: the U-Net evaluations of a batch of one.
    pub evaluations: u64,
}

impl Cost {
    pub(crate) fn count(&mut self, rows: usize, branches: usize) {
        self.passes += 1;
        self.evaluations += (rows * branches) as u64;
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.passes += other.passes;
        self.evaluations += other.evaluations;
    }
}
