//! Several judges as one.

use std::cell::RefCell;
use std::fmt;

use crate::{ImageBatch, Judge, Predicted, Result};

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
    /// The judge.
    pub judge: Box<dyn Judge>,
    /// Its weight in a weighted sum.
    pub weight: f64,
    /// Mean and spread that its scores are normalised by: (score − mean) / spread.
    pub typical: (f64, f64),
}

/// A member's scores so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// The judge's name.
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

/// Judges whose scores become one.
///
/// Normalisation is by fixed numbers, so a score does not depend on what was judged before or beside it. The majority and
/// the Pareto rule compare pictures of the same prompt within one call, and are 0 for a picture that is alone.
pub struct Ensemble {
    rule: Rule,
    members: Vec<Member>,
    name: String,
    seen: RefCell<Vec<Sums>>,
}

#[derive(Clone, Default)]
struct Sums {
    count: u64,
    sum: f64,
    squares: f64,
    range: Option<(f64, f64)>,
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = self.range;
        let Self { judge, count, mean, std, .. } = self;
        write!(f, "{judge}: mean {mean:.4}, deviation {std:.4}, {low:.4} to {high:.4}, over {count} pictures")
    }
}

impl Ensemble {
    /// Of at least one member.
    pub fn new(rule: Rule, members: Vec<Member>) -> Self {
        let names: Vec<&str> = members.iter().map(|member| member.judge.name()).collect();
        let name = format!("{}({})", rule.name(), names.join(", "));
        let seen = RefCell::new(vec![Sums::default(); members.len()]);
        Self { rule, members, name, seen }
    }

    fn combine(&self, prompts: &[&str], score: impl Fn(&dyn Judge) -> Result<Vec<f64>>) -> Result<Vec<f64>> {
        let raw = self.members.iter().map(|member| score(member.judge.as_ref())).collect::<Result<Vec<_>>>()?;
        self.remember(&raw);
        let normalised: Vec<Vec<f64>> =
            self.members.iter().zip(&raw).map(|(m, scores)| scores.iter().map(|s| m.normalise(*s)).collect()).collect();
        let of = |at: usize| normalised.iter().map(move |scores| scores[at]);
        Ok(match self.rule {
            Rule::Weighted => {
                (0..prompts.len()).map(|at| self.members.iter().zip(of(at)).map(|(m, s)| m.weight * s).sum()).collect()
            }
            Rule::Worst => (0..prompts.len()).map(|at| of(at).fold(f64::INFINITY, f64::min)).collect(),
            Rule::Majority => compared(prompts, &raw, |a, b| {
                let votes: i32 = a.iter().zip(b).map(|(a, b)| a.partial_cmp(b).map_or(0, |order| order as i32)).sum();
                votes.signum()
            }),
            Rule::Pareto => compared(prompts, &raw, |a, b| {
                let orders = a.iter().zip(b).filter_map(|(a, b)| a.partial_cmp(b)).map(|order| order as i32);
                let (low, high) = orders.fold((0, 0), |(low, high), order| (order.min(low), order.max(high)));
                low + high
            }),
        })
    }

    fn remember(&self, raw: &[Vec<f64>]) {
        for ((sums, scores), member) in self.seen.borrow_mut().iter_mut().zip(raw).zip(&self.members) {
            for score in scores {
                sums.count += 1;
                sums.sum += score;
                sums.squares += score * score;
                let (low, high) = sums.range.unwrap_or((*score, *score));
                sums.range = Some((low.min(*score), high.max(*score)));
            }
            let mean = scores.iter().sum::<f64>() / scores.len().max(1) as f64;
            tracing::info!(judge = member.judge.name(), pictures = scores.len(), mean, "scores");
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
    let one = |at: usize| {
        let others = (0..prompts.len()).filter(|other| *other != at && prompts[*other] == prompts[at]);
        let (sum, count) = others.fold((0, 0), |(sum, n), other| (sum + compare(&rows[at], &rows[other]), n + 1));
        f64::from(sum) / f64::from(count.max(1))
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
        self.combine(prompts, |judge| judge.score_batch(images, prompts))
    }

    fn judge_step(&self, images: &Predicted, timestep: i64, prompts: &[&str]) -> Result<Vec<f64>> {
        self.combine(prompts, |judge| judge.score_predicted(images, timestep, prompts))
    }

    fn statistics(&self) -> Vec<Statistics> {
        let row = |(member, sums): (&Member, &Sums)| {
            let count = sums.count.max(1) as f64;
            let mean = sums.sum / count;
            Statistics {
                judge: member.judge.name().to_owned(),
                count: sums.count,
                mean,
                std: (sums.squares / count - mean * mean).max(0.0).sqrt(),
                range: sums.range.unwrap_or_default(),
            }
        };
        self.members.iter().zip(self.seen.borrow().iter()).map(row).collect()
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
        let member = |name, scores: [f64; 4], weight, typical| Member {
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
    }
}
