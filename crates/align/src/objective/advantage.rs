//! Rewards relative to those usual for their prompt (docs/methods.md section 4.5).

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

/// Added to standard deviations.
const EPSILON: f64 = 1e-6;

/// The newest rewards of every prompt, as public DDPO's `PerPromptStatTracker` keeps them.
///
/// In f32, which JSON gives back to the bit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RewardHistory {
    prompts: BTreeMap<usize, VecDeque<f32>>,
}

impl RewardHistory {
    /// Takes in the rewards of a batch and gives their advantages, (r − mean)/(std + 1e-6), clamped to ±`clip`.
    ///
    /// `prompts` numbers the prompt of each reward. Mean and (population) standard deviation are those of the prompt's
    /// newest `keep` rewards, this batch included; for prompts with fewer than `least`, those of the batch.
    pub fn advantages(&mut self, prompts: &[usize], rewards: &[f64], keep: usize, least: usize, clip: f64) -> Vec<f64> {
        for (prompt, reward) in prompts.iter().zip(rewards) {
            let kept = self.prompts.entry(*prompt).or_default();
            kept.push_back(*reward as f32);
            while kept.len() > keep.max(1) {
                kept.pop_front();
            }
        }
        let batch = moments(rewards.iter().copied());
        let one = |(prompt, reward): (&usize, &f64)| {
            let own = self.prompts.get(prompt).filter(|kept| kept.len() >= least.max(1));
            let (mean, std) = own.map_or(batch, |kept| moments(kept.iter().map(|r| f64::from(*r))));
            ((reward - mean) / (std + EPSILON)).clamp(-clip, clip)
        };
        prompts.iter().zip(rewards).map(one).collect()
    }
}

/// Mean and population standard deviation.
fn moments(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let values: Vec<f64> = values.collect();
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    (mean, (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use seedpo_tensor::WeightFile;
    use std::path::Path;

    /// Eight batches through an independent implementation in numpy; buffers of 5 that count from 3.
    #[test]
    fn equals_the_public_tracker() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/loss/ddpo.safetensors");
        let file = WeightFile::open(&path).unwrap();
        let at = |name: &str, batch: i64| file.tensor(&format!("tracker.{name}")).unwrap().get(batch);
        let mut history = RewardHistory::default();
        for batch in 0..8 {
            let prompts: Vec<i64> = Vec::try_from(at("prompts", batch)).unwrap();
            let prompts: Vec<usize> = prompts.into_iter().map(|p| p as usize).collect();
            let rewards: Vec<f64> = Vec::try_from(at("rewards", batch)).unwrap();
            let expected: Vec<f64> = Vec::try_from(at("advantages", batch)).unwrap();
            let found = history.advantages(&prompts, &rewards, 5, 3, 1.5);
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-6, "batch {batch}: {found} {expected}");
            }
        }
        let text = serde_json::to_string(&history).unwrap();
        assert_eq!(serde_json::from_str::<RewardHistory>(&text).unwrap(), history);
    }
}
