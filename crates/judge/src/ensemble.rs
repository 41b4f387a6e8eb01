//! Several judges as one.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;

use rayon::prelude::*;

use crate::judge::checked;
use crate::statistics::Sums;
use crate::{Error, ImageBatch, Judge, Predicted, Result, Statistics};

/// Pictures whose comparisons with others one task makes at least.
const AT_ONCE: usize = 64;

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
        let normalised = |at: usize| self.members.iter().zip(raw).map(move |(m, scores)| (m, m.normalise(scores[at])));
        match self.rule {
            Rule::Weighted => (0..prompts.len()).map(|at| normalised(at).map(|(m, s)| m.weight * s).sum()).collect(),
            Rule::Worst => {
                (0..prompts.len()).map(|at| normalised(at).map(|(_, s)| s).fold(f64::INFINITY, f64::min)).collect()
            }
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

/// For each picture the sum of `compare` (1 better, −1 worse, so that the other way round it has the other sign) with the
/// others of its prompt, as a share of them. Every two pictures of a prompt are compared once, on all cores.
fn compared(prompts: &[&str], scores: &[Vec<f64>], compare: impl Fn(&[f64], &[f64]) -> i32 + Sync) -> Vec<f64> {
    let mut of_prompt: HashMap<&str, Vec<usize>> = HashMap::new();
    for (at, prompt) in prompts.iter().enumerate() {
        of_prompt.entry(prompt).or_default().push(at);
    }
    let mut shares = vec![0.0; prompts.len()];
    for pictures in of_prompt.into_values().filter(|pictures| pictures.len() > 1) {
        let rows: Vec<f64> = pictures.iter().flat_map(|&at| scores.iter().map(move |judge| judge[at])).collect();
        let row = |at: usize| &rows[at * scores.len()..][..scores.len()];
        let add = |mut sums: Vec<i64>, one: usize| {
            for other in one + 1..pictures.len() {
                let better = i64::from(compare(row(one), row(other)));
                sums[one] += better;
                sums[other] -= better;
            }
            sums
        };
        let none = || vec![0i64; pictures.len()];
        let both = |one: Vec<i64>, other: Vec<i64>| one.iter().zip(other).map(|(a, b)| a + b).collect();
        let sums = (0..pictures.len()).into_par_iter().with_min_len(AT_ONCE).fold(none, add).reduce(none, both);
        for (&at, sum) in pictures.iter().zip(sums) {
            shares[at] = sum as f64 / (pictures.len() - 1) as f64;
        }
    }
    shares
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
        if parts.len() != self.parts() {
            let (expected, found) = (self.parts() * prompts.len(), parts.iter().map(Vec::len).sum());
            return Err(Error::ScoreCount { judge: self.name.clone(), expected, found });
        }
        let mut rest = parts;
        let raw = self.each(|judge| {
            let (own, others) = rest.split_at(judge.parts());
            rest = others;
            judge.combine(prompts, own)
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

    fn forget_statistics(&self) {
        self.seen.borrow_mut().iter_mut().for_each(|[_, recent]| *recent = Sums::default());
        self.members.iter().for_each(|member| member.judge.forget_statistics());
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
    fn each_rule_by_hand() {
        assert_eq!(scores(Rule::Weighted), [1.0, 5.0, 6.0, 17.0]);
        assert_eq!(scores(Rule::Worst), [0.0, 1.0, 1.0, 0.0]);
        // Picture 0 loses to both; 1 and 2 split a and b and tie on c; 3 is alone with its prompt.
        assert_eq!(scores(Rule::Majority), [-1.0, 0.5, 0.5, 0.0]);
        assert_eq!(scores(Rule::Pareto), [-1.0, 0.5, 0.5, 0.0]);
    }

    /// Every picture against every other, in both directions.
    #[test]
    fn comparing_each_two_once_gives_what_comparing_all_does() {
        let (count, judges) = (700, 3);
        let score = |at: usize, judge: usize| ((at * 7919 + judge * 104_729) % 1009 % 97) as f64;
        let scores: Vec<Vec<f64>> = (0..judges).map(|judge| (0..count).map(|at| score(at, judge)).collect()).collect();
        let prompts: Vec<&str> = (0..count).map(|at| ["x", "y", "x", "x"][at % 4]).collect();
        let compare = |a: &[f64], b: &[f64]| {
            let votes: i32 = a.iter().zip(b).map(|(a, b)| a.total_cmp(b) as i32).sum();
            votes.signum()
        };
        let row = |at: usize| (0..judges).map(|judge| score(at, judge)).collect::<Vec<_>>();
        let share = |at: usize| {
            let others: Vec<usize> = (0..count).filter(|&o| o != at && prompts[o] == prompts[at]).collect();
            let sum: i32 = others.iter().map(|&other| compare(&row(at), &row(other))).sum();
            f64::from(sum) / others.len() as f64
        };
        assert_eq!(compared(&prompts, &scores, compare), (0..count).map(share).collect::<Vec<_>>());
    }

    #[test]
    fn rows_of_scores_are_counted() {
        let rows = |count: usize| vec![vec![1.0, 2.0]; count];
        let nested =
            || Ensemble::new(Rule::Worst, vec![member_of(ensemble(Rule::Worst)), member_of(ensemble(Rule::Pareto))]);
        assert_eq!(nested().combine(&["x", "y"], &rows(6)).unwrap().len(), 2);
        for wrong in [rows(5), rows(7), rows(0)] {
            let refused = nested().combine(&["x", "y"], &wrong);
            assert!(matches!(refused, Err(Error::ScoreCount { expected: 12, .. })), "{refused:?}");
        }
    }

    fn member_of(judge: Ensemble) -> Member {
        Member { name: judge.name().to_owned(), judge: Box::new(judge), weight: 1.0, typical: (0.0, 1.0) }
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
        // Or forgotten.
        ensemble.score(&images, &["x"; 4]).unwrap();
        ensemble.forget_statistics();
        assert_eq!([ensemble.statistics()[0].count, ensemble.take_statistics()[0].count], [8, 0]);
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
            assert_eq!(collected.scores(&prompts).unwrap(), together, "{}", rule.name());
            assert!(together.iter().any(|score| *score != together[0]), "{together:?}");
        }
    }
}
