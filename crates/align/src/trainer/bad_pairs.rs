//! Pairs of a dataset whose pictures turn out to be missing or undecodable: recorded, reported, passed over in a limit.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use seedpo_data::{BadRow, Pairs, Report};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The file of a run folder with a line for every such pair; of a judge's run as well.
const FILE: &str = "bad_rows.jsonl";

/// A line of that file.
#[derive(Serialize, Deserialize)]
struct Line {
    /// Index of the pair.
    pair: usize,
    #[serde(flatten)]
    row: BadRow,
}

/// The pairs found bad so far, a resumed run's earlier ones included.
#[derive(Debug)]
pub struct BadPairs {
    known: BTreeSet<usize>,
    report: Report,
    dataset: PathBuf,
    file: PathBuf,
    limit: f64,
}

impl BadPairs {
    /// For a run that begins in folder `run`, which may exist: what another one recorded there is removed. `limit` as in
    /// [`BadPairs::open`]. Errors: the file cannot be removed; those of [`BadPairs::open`].
    pub fn begin(pairs: &Pairs, run: &Path, limit: f64) -> Result<Self> {
        let file = run.join(FILE);
        match std::fs::remove_file(&file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(seedpo_tensor::Error::io(&file, e).into()),
            _ => Self::open(pairs, run, limit),
        }
    }

    /// Reads what the run in folder `run` recorded before. `limit` is the share of the dataset's rows that may be bad.
    /// Errors: there are more of them than that, with the list; the file cannot be read.
    pub fn open(pairs: &Pairs, run: &Path, limit: f64) -> Result<Self> {
        let (dataset, file) = (pairs.path().to_owned(), run.join(FILE));
        let text = if file.is_file() { seedpo_tensor::files::read_text(&file)? } else { String::new() };
        let mut bad = Self { known: BTreeSet::new(), report: pairs.report().clone(), dataset, file, limit };
        // A last line cut short by a kill is written again when its pair comes round.
        for line in text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()) {
            if bad.known.insert(line.pair) {
                bad.report.add_bad(line.row);
            }
        }
        bad.check()?;
        Ok(bad)
    }

    /// Whether pair `index` is known to be bad.
    pub fn contains(&self, index: usize) -> bool {
        self.known.contains(&index)
    }

    /// How many are known to be bad.
    pub fn count(&self) -> usize {
        self.known.len()
    }

    /// The file that lists them, where there is one.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Records a pair. Errors: there are more than the limit allows, with the list; the file cannot be written.
    pub fn add(&mut self, index: usize, row: BadRow) -> Result<()> {
        if !self.known.insert(index) {
            return Ok(());
        }
        tracing::warn!("passed over {row}");
        self.report.add_bad(row.clone());
        // A dry run has no folder.
        if self.file.parent().is_some_and(Path::is_dir) {
            self.record(&Line { pair: index, row })?;
        }
        self.check()
    }

    fn check(&self) -> Result<()> {
        if self.report.exceeds(self.limit) {
            return Err(seedpo_data::Error::too_many_bad(&self.dataset, &self.report, self.limit).into());
        }
        Ok(())
    }

    fn record(&self, line: &Line) -> Result<()> {
        let text =
            serde_json::to_string(line).map_err(|e| Error::Run { path: self.file.clone(), reason: e.to_string() })?;
        let file = OpenOptions::new().create(true).append(true).open(&self.file);
        let written = file.and_then(|mut file| file.write_all(format!("{text}\n").as_bytes()));
        Ok(written.map_err(|e| seedpo_tensor::Error::io(&self.file, e))?)
    }
}
