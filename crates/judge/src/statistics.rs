//! What the judges of an ensemble have given: mean, spread and range of each.

use std::fmt;

/// Scores of one judge of an ensemble.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// The judge's name within its ensemble.
    pub judge: String,
    /// Pictures.
    pub count: u64,
    /// Mean score.
    pub mean: f64,
    /// Standard deviation of the scores (population).
    pub std: f64,
    /// Lowest and highest score.
    pub range: (f64, f64),
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = self.range;
        let Self { judge, count, mean, std, .. } = self;
        write!(f, "{judge}: mean {mean:.4}, deviation {std:.4}, {low:.4} to {high:.4}, over {count} pictures")
    }
}

/// Sums from which [`Statistics`] are made.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    count: u64,
    sum: f64,
    squares: f64,
    range: Option<(f64, f64)>,
}

impl Sums {
    /// Adds a score.
    pub fn add(&mut self, score: f64) {
        self.join(&Self { count: 1, sum: score, squares: score * score, range: Some((score, score)) });
    }

    /// Adds those of other scores.
    pub fn join(&mut self, other: &Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.squares += other.squares;
        self.range = match (self.range, other.range) {
            (Some((low, high)), Some((lower, higher))) => Some((low.min(lower), high.max(higher))),
            (range, None) | (None, range) => range,
        };
    }

    /// What they say of the judge of this name.
    pub fn statistics(&self, judge: &str) -> Statistics {
        let count = self.count.max(1) as f64;
        let mean = self.sum / count;
        Statistics {
            judge: judge.to_owned(),
            count: self.count,
            mean,
            std: (self.squares / count - mean * mean).max(0.0).sqrt(),
            range: self.range.unwrap_or_default(),
        }
    }
}
