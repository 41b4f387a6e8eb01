//! What became of a dataset's rows: pairs, ties, other generators', bad ones by reason.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::{Deserialize, Serialize};

/// Examples kept of each reason.
const EXAMPLES: usize = 3;

/// Why a row cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// A line or cell is not what it should be: no JSON, another type, lists of unequal length.
    WrongType,
    /// The prompt is absent or empty.
    NoPrompt,
    /// There is no label, or none that says which picture is the better one.
    NoLabel,
    /// There is a winner only, where a method needs both.
    NoLoser,
    /// A picture's file or cell is not there.
    MissingPicture,
    /// A picture's bytes are no PNG, JPEG or WebP picture of a sane size.
    Undecodable,
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::WrongType => "not of the expected form",
            Self::NoPrompt => "no prompt",
            Self::NoLabel => "no label",
            Self::NoLoser => "no loser",
            Self::MissingPicture => "a picture is missing",
            Self::Undecodable => "a picture cannot be decoded",
        })
    }
}

/// A row that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadRow {
    /// File and line or row.
    pub place: String,
    /// Why.
    pub reason: Reason,
    /// What was found.
    pub detail: String,
}

impl BadRow {
    /// What is wrong with a picture as what is wrong with the row at `place`, which it belongs to.
    pub fn of_row(self, place: String) -> Self {
        Self { place, reason: self.reason, detail: self.to_string() }
    }
}

impl fmt::Display for BadRow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.place, self.detail)
    }
}

/// Bad rows of one reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BadCount {
    /// How many.
    pub count: u64,
    /// The first few.
    pub examples: Vec<BadRow>,
}

/// What became of the rows of a dataset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Rows read: lines, parquet rows, labelled prompts, files.
    pub rows: u64,
    /// Pairs (or winners) that can be trained on.
    pub pairs: u64,
    /// Pairs without a winner, dropped.
    pub ties: u64,
    /// Pairs of other generators than the one asked for, dropped.
    pub other_generators: u64,
    /// Rows that cannot be used.
    pub bad: BTreeMap<Reason, BadCount>,
    /// Places of those: a row may hold several pairs, and is bad but once.
    #[serde(skip)]
    places: HashSet<String>,
}

impl Report {
    /// Counts a bad row, unless its place was counted before; keeps it as an example if it is among the first of its
    /// reason.
    pub fn add_bad(&mut self, row: BadRow) {
        if !self.places.insert(row.place.clone()) {
            return;
        }
        let entry = self.bad.entry(row.reason).or_default();
        entry.count += 1;
        if entry.examples.len() < EXAMPLES {
            entry.examples.push(row);
        }
    }

    /// Bad rows of all reasons.
    pub fn bad_rows(&self) -> u64 {
        self.bad.values().map(|bad| bad.count).sum()
    }

    /// Whether more than the share `limit` of the rows is bad.
    pub fn exceeds(&self, limit: f64) -> bool {
        self.bad_rows() as f64 > limit * self.rows as f64
    }

    /// The bad rows as indented lines: a reason with its count, then its examples. Empty where there are none.
    pub fn bad_list(&self) -> String {
        let mut lines = Vec::new();
        for (reason, bad) in &self.bad {
            lines.push(format!("  {}: {reason}", bad.count));
            lines.extend(bad.examples.iter().map(|row| format!("    {row}")));
            if bad.count > bad.examples.len() as u64 {
                lines.push("    ...".into());
            }
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_many_pairs_is_bad_once() {
        let mut report = Report { rows: 10, pairs: 30, ..Report::default() };
        let row = |place: &str| BadRow { place: place.into(), reason: Reason::Undecodable, detail: String::new() };
        (0..3).for_each(|_| report.add_bad(row("a.jsonl line 4")));
        assert!(report.bad_rows() == 1 && !report.exceeds(0.1));
        report.add_bad(row("a.jsonl line 5"));
        assert!(report.bad_rows() == 2 && report.exceeds(0.1));
    }
}
