//! Going back in a run: what came later leaves its records and its checkpoints.

use std::fs;
use std::path::PathBuf;

use seedpo_tensor::files;

use super::{METRICS_FILE, RunDir};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

impl RunDir {
    /// Takes back what came after `step`: lines of metrics.jsonl, and half-written files of a killed process.
    ///
    /// Without a checkpoint (`None`) all lines go. Checkpoints after `step` are moved with a copy of metrics.jsonl to a
    /// folder `superseded`, `superseded-2`, .. of the run, which is returned.
    pub fn rewind(&self, step: Option<u64>) -> Result<Option<PathBuf>> {
        Checkpoint::clean(&self.path);
        let later = Checkpoint::list(&self.path)?.into_iter().filter(|at| step.is_none_or(|step| *at > step));
        let moved = self.supersede(&later.collect::<Vec<_>>())?;
        let lines = self.lines()?;
        let after = |line: &Line| step.is_none_or(|step| line.step > step);
        // What the guard did has a number of its own: it stays if an update that stays came later.
        let last = lines.iter().rposition(|line| line.kind == "update" && !after(line));
        let kept =
            |(at, line): &(usize, &Line)| !after(line) || (line.kind == "guard" && last.is_some_and(|last| *at < last));
        self.write_lines(lines.iter().enumerate().filter(kept).map(|(_, line)| line))?;
        Ok(moved)
    }

    fn supersede(&self, steps: &[u64]) -> Result<Option<PathBuf>> {
        if steps.is_empty() {
            return Ok(None);
        }
        let name = |attempt: u32| if attempt == 1 { "superseded".into() } else { format!("superseded-{attempt}") };
        let mut free = (1..).map(|attempt| self.path.join(name(attempt))).filter(|path| !path.exists());
        let Some(folder) = free.next() else { return Ok(None) };
        let io = |e| Error::from(seedpo_tensor::Error::io(&folder, e));
        fs::create_dir(&folder).map_err(io)?;
        if self.metrics().exists() {
            fs::copy(self.metrics(), folder.join(METRICS_FILE)).map_err(io)?;
        }
        // The newest first: a kill in between leaves a run that was at one of them.
        for step in steps.iter().rev() {
            let name = Checkpoint::folder_name(*step);
            fs::rename(self.path.join(&name), folder.join(&name)).map_err(io)?;
        }
        Ok(Some(folder))
    }

    /// Drops the lines of metrics.jsonl after `step`, except what the guard saw and did.
    pub fn roll_back(&self, step: u64) -> Result<()> {
        let lines = self.lines()?;
        self.write_lines(lines.iter().filter(|line| line.step <= step || line.kind == "guard"))
    }

    /// The lines of metrics.jsonl as they stand there, without one cut short by a kill.
    fn lines(&self) -> Result<Vec<Line>> {
        if !self.metrics().exists() {
            return Ok(Vec::new());
        }
        let text = files::read_text(&self.metrics())?;
        Ok(text.lines().filter_map(Line::read).collect())
    }

    fn write_lines<'l>(&self, lines: impl Iterator<Item = &'l Line>) -> Result<()> {
        let text: String = lines.map(|line| format!("{}\n", line.text)).collect();
        Ok(files::write_atomic(&self.metrics(), text.as_bytes())?)
    }
}

/// A line of metrics.jsonl, whatever else it holds.
struct Line {
    text: String,
    kind: String,
    step: u64,
}

impl Line {
    fn read(text: &str) -> Option<Self> {
        let value: serde_json::Value = serde_json::from_str(text).ok()?;
        let (kind, step) = (value.get("kind")?.as_str()?.to_owned(), value.get("step")?.as_u64()?);
        Some(Self { text: text.to_owned(), kind, step })
    }
}
