//! Several judges as one.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;

use crate::judge::checked;
use crate::statistics::Sums;
use crate::{ImageBatch, Judge, Predicted, Result, Statistics};

/// How several scores become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The weighted sum of normalised scores.
    Weighted,
    /// Won votes: each judge votes on each pair of pictures of a prompt.
    Majority,
    /// Pictures of the same prompt that it dominates, less those that dominate it.
    Pareto,
    /// The lowest normalised score.
    Worst,
}

const RULES: [(Rule, &str, &str); 4] = [
    (Rule::Weighted, "weighted", "σ"),
    (Rule::Majority, "majority", "votes"),
    (Rule::Pareto, "pareto", "dominated"),
    (Rule::Worst, "worst", "σ"),
];

impl Rule {
    /// The rule of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        RULES.iter().find(|(_, known, _)| *known == name).map(|(rule, ..)| *rule)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Whether a score says how a picture compares with the others of its prompt.
    pub fn compares(self) -> bool {
        matches!(self, Self::Majority | Self::Pareto)
    }

    /// The unit of its scores.
    pub fn unit(self) -> &'static str {
        self.row().2
    }

    fn row(self) -> &'static (Rule, &'static str, &'static str) {
        // RULES has a row for every rule.
        RULES.iter().find(|(rule, ..)| *rule == self).unwrap_or(&RULES[0])
    }
}

/// One judge of an ensemble.
pub struct Member {
    /// What it is called among the others.
    pub name: String,
    /// The judge.
    pub judge: Box<dyn Judge>,
    /// Its weight in a weighted sum.
    pub weight: f64,
    /// Mean and spread that its scores are normalised by: (score − mean) / spread.
    pub typical: (f64, f64),
}

/// Judges whose scores become one.
///
/// Normalisation is by fixed numbers, so a score does not depend on what was judged before or beside it. The majority and
/// the Pareto rule compare the pictures of a prompt that are in one call (or [`Collected`](crate::Collected)), and are 0 for
/// a picture that is alone.
pub struct Ensemble {
    rule: Rule,
    members: Vec<Member>,
    name: String,
    /// Of each member: all its scores but the recent ones, and those since they were last taken.
    seen: RefCell<Vec<[Sums; 2]>>,
}

impl Ensemble {
    /// Of at least one member.
    pub fn new(rule: Rule, members: Vec<Member>) -> Self {
        let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
        let name = format!("{}({})", rule.name(), names.join(", "));
        let seen = RefCell::new(vec![Default::default(); members.len()]);
        Self { rule, members, name, seen }
    }

    /// A row of scores per member.
    fn each(&self, mut score: impl FnMut(&dyn Judge) -> Result<Vec<f64>>) -> Result<Vec<Vec<f64>>> {
        self.members.iter().map(|member| score(member.judge.as_ref())).collect()
    }

    /// The scores from a row per member.
    fn combined(&self, prompts: &[&str], raw: &[Vec<f64>]) -> Vec<f64> {
        self.remember(raw);
        let normalised: Vec<Vec<f64>> =
            self.members.iter().zip(raw).map(|(m, scores)| scores.iter().map(|s| m.normalise(*s)).collect()).collect();
        let of = |at: usize| normalised.iter().map(move |scores| scores[at]);
        match self.rule {
            Rule::Weighted => {
                (0..prompts.len()).map(|at| self.members.iter().zip(of(at)).map(|(m, s)| m.weight * s).sum()).collect()
            }
            Rule::Worst => (0..prompts.len()).map(|at| of(at).fold(f64::INFINITY, f64::min)).collect(),
            Rule::Majority => compared(prompts, raw, |a, b| {
                let votes: i32 = a.iter().zip(b).map(|(a, b)| a.partial_cmp(b).map_or(0, |order| order as i32)).sum();
                votes.signum()
            }),
            Rule::Pareto => compared(prompts, raw, |a, b| {
                let orders = a.iter().zip(b).filter_map(|(a, b)| a.partial_cmp(b)).map(|order| order as i32);
                let (low, high) = orders.fold((0, 0), |(low, high), order| (order.min(low), order.max(high)));
                low + high
            }),
        }
    }

    fn remember(&self, raw: &[Vec<f64>]) {
        for (([_, recent], scores), member) in self.seen.borrow_mut().iter_mut().zip(raw).zip(&self.members) {
            scores.iter().for_each(|score| recent.add(*score));
            let mean = scores.iter().sum::<f64>() / scores.len().max(1) as f64;
            tracing::info!(judge = member.name, pictures = scores.len(), mean, "scores");
        }
    }
}

impl Member {
    fn normalise(&self, score: f64) -> f64 {
        (score - self.typical.0) / self.typical.1
    }
}

/// For each picture the sum of `compare` (1 better, −1 worse) with the others of its prompt, as a share of them.
fn compared(prompts: &[&str], scores: &[Vec<f64>], compare: impl Fn(&[f64], &[f64]) -> i32) -> Vec<f64> {
    let rows: Vec<Vec<f64>> = (0..prompts.len()).map(|at| scores.iter().map(|judge| judge[at]).collect()).collect();
    let mut of_prompt: HashMap<&str, Vec<usize>> = HashMap::new();
    for (at, prompt) in prompts.iter().enumerate() {
        of_prompt.entry(prompt).or_default().push(at);
    }
    let one = |at: usize| {
        let all = &of_prompt[prompts[at]];
        // A picture ties with itself.
        let sum: i64 = all.iter().map(|&other| i64::from(compare(&rows[at], &rows[other]))).sum();
        sum as f64 / (all.len() - 1).max(1) as f64
    };
    (0..prompts.len()).map(one).collect()
}

impl Judge for Ensemble {
    fn name(&self) -> &str {
        &self.name
    }

    fn unit(&self) -> &str {
        self.rule.unit()
    }

    fn judge(&self, images: &ImageBatch, prompts: &[&str]) -> Result<Vec<f64>> {
        Ok(self.combined(prompts, &self.each(|judge| judge.score_batch(images, prompts))?))
    }

    fn judge_step(&self, images: &Predicted, timestep: i64, prompts: &[&str]) -> Result<Vec<f64>> {
        Ok(self.combined(prompts, &self.each(|judge| judge.score_predicted(images, timestep, prompts))?))
    }

    fn parts(&self) -> usize {
        self.members.iter().map(|member| member.judge.parts()).sum()
    }

    fn part_scores(&self, images: &ImageBatch, prompts: &[&str]) -> Result<Vec<Vec<f64>>> {
        let parts = self.members.iter().map(|member| member.judge.part_scores(images, prompts));
        Ok(parts.collect::<Result<Vec<_>>>()?.concat())
    }

    fn combine(&self, prompts: &[&str], parts: &[Vec<f64>]) -> Result<Vec<f64>> {
        let mut rest = parts.iter();
        let raw = self.each(|judge| {
            let own: Vec<Vec<f64>> = rest.by_ref().take(judge.parts()).cloned().collect();
            judge.combine(prompts, &own)
        })?;
        checked(&self.name, prompts.len(), prompts, || Ok(self.combined(prompts, &raw)))
    }

    fn statistics(&self) -> Vec<Statistics> {
        let seen = self.seen.borrow();
        let all = |[before, recent]: &[Sums; 2]| {
            let mut sums = before.clone();
            sums.join(recent);
            sums
        };
        self.members.iter().zip(seen.iter()).map(|(member, sums)| all(sums).statistics(&member.name)).collect()
    }

    fn take_statistics(&self) -> Vec<Statistics> {
        let mut seen = self.seen.borrow_mut();
        let take = |(member, [before, recent]): (&Member, &mut [Sums; 2])| {
            let taken = std::mem::take(recent);
            before.join(&taken);
            taken.statistics(&member.name)
        };
        self.members.iter().zip(seen.iter_mut()).map(take).collect()
    }
}

impl fmt::Debug for Ensemble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Collected;
    use tch::{Device, Kind, Tensor};

    struct Fixed(&'static str, Vec<f64>);

    impl Judge for Fixed {
        fn name(&self) -> &str {
            self.0
        }
        fn unit(&self) -> &str {
            "1"
        }
        fn judge(&self, _: &ImageBatch, _: &[&str]) -> Result<Vec<f64>> {
            Ok(self.1.clone())
        }
    }

    fn ensemble(rule: Rule) -> Ensemble {
        let member = |name: &'static str, scores: [f64; 4], weight, typical| Member {
            name: name.to_owned(),
            judge: Box::new(Fixed(name, scores.to_vec())),
            weight,
            typical,
        };
        Ensemble::new(
            rule,
            vec![
                member("a", [1.0, 2.0, 3.0, 9.0], 2.0, (1.0, 1.0)),
                member("b", [10.0, 30.0, 20.0, 10.0], 1.0, (0.0, 10.0)),
                member("c", [5.0, 6.0, 6.0, 5.0], 0.0, (5.0, 1.0)),
            ],
        )
    }

    fn scores(rule: Rule) -> Vec<f64> {
        let images = Tensor::zeros([4, 1, 1, 3], (Kind::Uint8, Device::Cpu));
        ensemble(rule).score(&images, &["x", "x", "x", "y"]).unwrap()
    }

    #[test]
    /// A row of scores per member.
    fn each_rule_by_hand() {
        assert_eq!(scores(Rule::Weighted), [1.0, 5.0, 6.0, 17.0]);
        assert_eq!(scores(Rule::Worst), [0.0, 1.0, 1.0, 0.0]);
        // Picture 0 loses to both; 1 and 2 split a and b and tie on c; 3 is alone with its prompt.
        assert_eq!(scores(Rule::Majority), [-1.0, 0.5, 0.5, 0.0]);
        assert_eq!(scores(Rule::Pareto), [-1.0, 0.5, 0.5, 0.0]);
    }

    #[test]
    fn statistics_are_per_judge() {
        let ensemble = ensemble(Rule::Worst);
        let images = Tensor::zeros([4, 1, 1, 3], (Kind::Uint8, Device::Cpu));
        ensemble.score(&images, &["x"; 4]).unwrap();
        let [a, b, _] = &ensemble.statistics()[..] else { panic!() };
        assert_eq!((a.judge.as_str(), a.count, a.mean, a.range), ("a", 4, 3.75, (1.0, 9.0)));
        assert!((b.std - 68.75f64.sqrt()).abs() < 1e-12, "{b:?}");
        assert_eq!(ensemble.name(), "worst(a, b, c)");
        // Those since the last time, and still all.
        assert_eq!(ensemble.take_statistics()[0].count, 4);
        ensemble.score(&images, &["x"; 4]).unwrap();
        let [all, recent] = [ensemble.statistics(), ensemble.take_statistics()].map(|of| of[0].clone());
        assert_eq!([(all.count, all.mean), (recent.count, recent.mean)], [(8, 3.75), (4, 3.75)]);
        assert_eq!(ensemble.take_statistics()[0].count, 0);
    }

    /// Scores by the first byte of the picture, in an order that a factor shuffles.
    struct Bytes(f64);

    impl Judge for Bytes {
        fn name(&self) -> &str {
            "bytes"
        }
        fn unit(&self) -> &str {
            "1"
        }
        fn judge(&self, images: &ImageBatch, _: &[&str]) -> Result<Vec<f64>> {
            Ok(images.pixels().map(|pixels| f64::from(pixels[0]) * self.0 % 11.0).collect())
        }
    }

    #[test]
    fn pictures_collected_from_batches_of_any_sizes_score_as_one_batch() {
        let of = |factor: f64| Member {
            name: "bytes".to_owned(),
            judge: Box::new(Bytes(factor)),
            weight: 1.0,
            typical: (0.0, 1.0),
        };
        for rule in [Rule::Weighted, Rule::Worst, Rule::Majority, Rule::Pareto] {
            let inner = Ensemble::new(Rule::Majority, vec![of(1.0), of(5.0)]);
            let inner = Member { name: "inner".into(), judge: Box::new(inner), weight: 2.0, typical: (0.0, 1.0) };
            let ensemble = Ensemble::new(rule, vec![of(3.0), inner, of(4.0)]);
            let bytes: Vec<u8> = (0..20u8).map(|at| at.wrapping_mul(37) % 23).collect();
            let prompts: Vec<&str> = (0..20).map(|at| if at % 3 == 0 { "x" } else { "y" }).collect();
            let all = Tensor::from_slice(&bytes).view([20, 1, 1, 1]).repeat([1, 1, 1, 3]);
            let together = ensemble.score(&all, &prompts).unwrap();
            let mut collected = Collected::new(&ensemble);
            for (start, count, side) in [(0, 16, 1), (16, 3, 2), (19, 1, 1)] {
                let part = all.narrow(0, start, count).repeat([1, side, side, 1]);
                let part = ImageBatch::from_tensor(&part).unwrap();
                collected.add(&part, &prompts[start as usize..][..count as usize]).unwrap();
            }
            assert_eq!(collected.scores().unwrap(), together, "{}", rule.name());
            assert!(together.iter().any(|score| *score != together[0]), "{together:?}");
        }
    }
}
