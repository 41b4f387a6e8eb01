//! Which examples are trained on, and which are held out: decided by a group's name (a prompt, a picture), never by its
//! place, so that all examples of a group are on one side.

use sha2::{Digest, Sha256};

use crate::{Error, Result, Settings};

/// Indices of examples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Trained on.
    pub train: Vec<usize>,
    /// Held out.
    pub heldout: Vec<usize>,
}

impl Split {
    /// Splits examples by the names of their groups; of those held out only such that are `useful` to look at (no ties) are
    /// kept, and at most as many as the settings say. `what` is what an example is called in errors.
    ///
    /// Errors: [`Error::Setting`] where a side is empty that should not be.
    pub fn new<'g>(
        groups: impl Iterator<Item = &'g str>,
        useful: impl Fn(usize) -> bool,
        settings: &Settings,
        what: &str,
    ) -> Result<Self> {
        let mut split = Self { train: Vec::new(), heldout: Vec::new() };
        let mut useless = 0;
        for (index, group) in groups.enumerate() {
            if part_of(group, settings.part.of) != settings.part.index {
                continue;
            }
            let held = fraction("held out", settings.seed, group) < settings.heldout_share;
            match held {
                true if useful(index) => split.heldout.push(index),
                true => useless += 1,
                false => split.train.push(index),
            }
        }
        let (share, part) = (settings.heldout_share, settings.part);
        if split.train.is_empty() {
            return Err(Error::setting("data", format!("at least one of the {what} to train on"), "none"));
        }
        if split.heldout.is_empty() && share > 0.0 {
            let all = split.train.len() + useless;
            let (expected, found) = match useless {
                0 => ("a share that holds at least one out, or 0", format!("holds out none of {all} {what}")),
                _ => (
                    "a share that holds out at least one that a side won, or 0",
                    format!("holds out {useless} of {all} {what}, all of them ties"),
                ),
            };
            return Err(Error::setting("heldout-share", expected, format!("{share}, which {found} of part {part}")));
        }
        let (all, limit) = (split.heldout.len(), settings.heldout_limit);
        if limit > 0 && limit < all {
            split.heldout = (0..limit).map(|place| split.heldout[place * all / limit]).collect();
        }
        Ok(split)
    }
}

/// Which of `of` parts a group (a pair's prompt, a picture's title) belongs to, 1 to `of`: what `--part 1/2` chooses by.
pub fn part_of(group: &str, of: u64) -> u64 {
    (fraction("part", 0, group) * of as f64) as u64 + 1
}

/// A number in [0, 1) that depends on purpose, seed and name alone.
fn fraction(purpose: &str, seed: u64, name: &str) -> f64 {
    let digest = Sha256::new().chain_update(purpose).chain_update(seed.to_le_bytes()).chain_update(name).finalize();
    let mut bytes = [0u8; 8];
    bytes.copy_from_slice(&digest[..8]);
    (u64::from_le_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Part, Preset};
    use std::collections::HashSet;

    fn settings(seed: u64, heldout_share: f64, part: &str) -> Settings {
        let preset = Preset::find("preference", None).unwrap().settings();
        Settings { seed, heldout_share, heldout_limit: 0, part: part.parse().unwrap(), ..preset }
    }

    #[test]
    fn groups_stay_together_and_parts_share_none() {
        let names: Vec<String> = (0..3000).map(|i| format!("prompt {}", i % 1000)).collect();
        let split = |seed, share, part| {
            Split::new(names.iter().map(String::as_str), |_| true, &settings(seed, share, part), "pairs").unwrap()
        };
        let groups = |indices: &[usize]| indices.iter().map(|&i| names[i].as_str()).collect::<HashSet<_>>();
        let whole = split(1, 0.1, "1/1");
        assert!(groups(&whole.train).is_disjoint(&groups(&whole.heldout)));
        assert_eq!(whole.train.len() + whole.heldout.len(), 3000);
        // Three standard deviations of 1,000 draws at 0.1.
        assert!((groups(&whole.heldout).len() as f64 - 100.0).abs() < 30.0);
        assert_ne!(whole, split(2, 0.1, "1/1"));
        let few = Split::new(
            names.iter().map(String::as_str),
            |index| index % 2 == 0,
            &Settings { heldout_limit: 20, ..settings(1, 0.1, "1/1") },
            "pairs",
        );
        let few = few.unwrap();
        assert_eq!((few.heldout.len(), &few.train), (20, &whole.train));
        assert!(few.heldout.iter().all(|index| index % 2 == 0 && whole.heldout.contains(index)));
        let halves = ["1/2", "2/2"].map(|part| split(part.len() as u64, 0.0, part));
        assert!(groups(&halves[0].train).is_disjoint(&groups(&halves[1].train)));
        assert_eq!(halves[0].train.len() + halves[1].train.len(), 3000);
    }

    #[test]
    fn an_empty_side_is_refused() {
        let one = |share| Split::new(["x"].into_iter(), |_| true, &settings(1, share, "1/1"), "pairs");
        assert!(one(0.0).is_ok());
        let none = one(1e-9).unwrap_err().to_string();
        assert!(none.contains("heldout-share") && none.contains("none of 1 pairs"), "{none}");
        let names: Vec<String> = (0..40).map(|name| name.to_string()).collect();
        let tied = Split::new(names.iter().map(String::as_str), |_| false, &settings(1, 0.5, "1/1"), "pairs");
        let tied = tied.unwrap_err().to_string();
        assert!(tied.contains("of 40 pairs, all of them ties"), "{tied}");
        for text in ["0/2", "3/2", "x", "1"] {
            assert!(text.parse::<Part>().is_err(), "{text}");
        }
    }
}
