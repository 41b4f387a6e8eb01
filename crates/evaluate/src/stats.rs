//! Small statistics with honest intervals.

use crate::{Error, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// z of a two-sided 95 % normal interval.
const Z95: f64 = 1.959_963_984_540_054;

/// Mean, spread and range of a list of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many values.
    pub count: usize,
    /// Their mean.
    pub mean: f64,
    /// Their sample standard deviation (divides by n − 1); 0 for one value.
    pub std: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Summarises at least one finite value. Errors: [`Error::Shape`] for none, [`Error::NonFinite`].
    pub fn of(values: &[f64]) -> Result<Self> {
        check("summary", values)?;
        let count = values.len();
        let mean = mean(values);
        let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
        let std = if count > 1 { (squares / (count - 1) as f64).sqrt() } else { 0.0 };
        let min = values.iter().copied().fold(f64::INFINITY, f64::min);
        let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Ok(Self { count, mean, std, min, max })
    }
}

/// A two-sided interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The 95 % percentile-bootstrap interval of the mean: `resamples` draws of n values with replacement, keyed by `seed`.
///
/// Errors: [`Error::Shape`] for no values or no resamples, [`Error::NonFinite`].
pub fn bootstrap_mean(values: &[f64], resamples: usize, seed: u64) -> Result<Interval> {
    check("bootstrap", values)?;
    if resamples == 0 {
        return Err(too_few("bootstrap", "at least 1 resample"));
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let count = values.len();
    let mut means: Vec<f64> = (0..resamples)
        .map(|_| (0..count).map(|_| values[random.random_range(0..count)]).sum::<f64>() / count as f64)
        .collect();
    means.sort_by(f64::total_cmp);
    Ok(Interval { low: quantile(&means, 0.025), high: quantile(&means, 0.975) })
}

/// Quantile of sorted values by linear interpolation, as numpy's default.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, part) = (place.floor() as usize, place.fract());
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + part * (sorted[above] - sorted[below])
}

/// The 95 % Wilson score interval of a share of `total`; `successes` may be fractional, so that a tie counts ½.
///
/// Errors: [`Error::Shape`] for a total of 0 or successes outside 0..=total.
pub fn wilson(successes: f64, total: usize) -> Result<Interval> {
    if total == 0 || !(0.0..=total as f64).contains(&successes) {
        return Err(Error::Shape {
            what: "Wilson interval",
            expected: "0 <= successes <= total, total >= 1".to_owned(),
            found: format!("{successes} of {total}"),
        });
    }
    let n = total as f64;
    let share = successes / n;
    let squared = Z95 * Z95;
    let centre = (share + squared / (2.0 * n)) / (1.0 + squared / n);
    let half = Z95 / (1.0 + squared / n) * (share * (1.0 - share) / n + squared / (4.0 * n * n)).sqrt();
    Ok(Interval { low: (centre - half).max(0.0), high: (centre + half).min(1.0) })
}

/// How often one list of scores beats another, image by image.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WinRate {
    /// Images that score higher than their counterpart.
    pub wins: usize,
    /// Images that score exactly the same.
    pub ties: usize,
    /// Images that score lower.
    pub losses: usize,
    /// (wins + ties/2) / all, 0 to 1.
    pub rate: f64,
    /// 95 % Wilson interval of `rate`.
    pub interval: Interval,
}

/// Win rate of `candidate` over `baseline`: the share of prompts whose image scores higher than the base model's from
/// the same seed, ties ½ (docs/methods.md section 5). Index i of both must be the same prompt and seed.
///
/// Errors: [`Error::Lengths`], [`Error::Shape`] for no images, [`Error::NonFinite`].
pub fn win_rate(candidate: &[f64], baseline: &[f64]) -> Result<WinRate> {
    if candidate.len() != baseline.len() {
        return Err(Error::Lengths { what: "win rate", left: candidate.len(), right: baseline.len() });
    }
    check("win rate", candidate)?;
    check("win rate", baseline)?;
    let pairs = || candidate.iter().zip(baseline);
    let wins = pairs().filter(|(a, b)| a > b).count();
    let ties = pairs().filter(|(a, b)| a == b).count();
    let score = wins as f64 + ties as f64 / 2.0;
    Ok(WinRate {
        wins,
        ties,
        losses: candidate.len() - wins - ties,
        rate: score / candidate.len() as f64,
        interval: wilson(score, candidate.len())?,
    })
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn check(what: &'static str, values: &[f64]) -> Result<()> {
    if values.is_empty() {
        return Err(too_few(what, "at least 1 value"));
    }
    match values.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(index) => Err(Error::NonFinite { what, index, value: values[index] }),
    }
}

fn too_few(what: &'static str, expected: &str) -> Error {
    Error::Shape { what, expected: expected.to_owned(), found: "none".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn summary_by_hand() {
        let found = Summary::of(&[2.0, 4.0, 9.0]).unwrap();
        assert_eq!((found.count, found.mean, found.min, found.max), (3, 5.0, 2.0, 9.0));
        assert!((found.std - 13f64.sqrt()).abs() < 1e-12);
        assert_eq!(Summary::of(&[3.0]).unwrap().std, 0.0);
        assert!(Summary::of(&[]).is_err());
        assert!(matches!(Summary::of(&[0.0, f64::NAN]), Err(Error::NonFinite { index: 1, .. })));
    }

    #[test]
    fn wilson_equals_published_values() {
        // scipy.stats.binomtest(count, total).proportion_ci(method="wilson")
        for (count, total, low, high) in [
            (5.0, 10, 0.236593090512564, 0.7634069094874361),
            (0.0, 8, 0.0, 0.32440756488388023),
            (37.0, 40, 0.8013576647568945, 0.9741639742254118),
        ] {
            let found = wilson(count, total).unwrap();
            assert!((found.low - low).abs() < 1e-12 && (found.high - high).abs() < 1e-12, "{found:?}");
        }
        assert!(wilson(1.0, 0).is_err() && wilson(2.5, 2).is_err());
    }

    #[test]
    fn ties_count_half() {
        let found = win_rate(&[1.0, 2.0, 3.0, 0.0], &[1.0, 1.0, 4.0, -1.0]).unwrap();
        assert_eq!((found.wins, found.ties, found.losses, found.rate), (2, 1, 1, 0.625));
        assert!(matches!(win_rate(&[1.0], &[]), Err(Error::Lengths { left: 1, right: 0, .. })));
        assert!(win_rate(&[], &[]).is_err());
    }

    #[test]
    fn the_bootstrap_is_repeatable_and_covers_the_mean() {
        let values: Vec<f64> = (0..50).map(f64::from).collect();
        let interval = bootstrap_mean(&values, 2000, 7).unwrap();
        assert_eq!(interval, bootstrap_mean(&values, 2000, 7).unwrap());
        assert_ne!(interval, bootstrap_mean(&values, 2000, 8).unwrap());
        // Normal theory: 24.5 ± 1.96·14.58/√50 (population deviation 14.43).
        assert!((interval.low - 20.5).abs() < 0.5 && (interval.high - 28.5).abs() < 0.5, "{interval:?}");
        assert!(bootstrap_mean(&values, 0, 7).is_err());
    }

    proptest! {
        #[test]
        fn win_rates_of_the_two_sides_sum_to_one(scores in prop::collection::vec((0i8..4, 0i8..4), 1..40)) {
            let (a, b): (Vec<f64>, Vec<f64>) = scores.iter().map(|&(a, b)| (f64::from(a), f64::from(b))).unzip();
            let (ours, theirs) = (win_rate(&a, &b).unwrap(), win_rate(&b, &a).unwrap());
            prop_assert!((ours.rate + theirs.rate - 1.0).abs() < 1e-12);
            prop_assert!(ours.interval.low <= ours.rate && ours.rate <= ours.interval.high);
            prop_assert!((ours.interval.low - (1.0 - theirs.interval.high)).abs() < 1e-12);
        }
    }
}
