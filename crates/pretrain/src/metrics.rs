//! `metrics.jsonl`: one line per step, no step twice, whatever was interrupted.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use seedpo_tensor::{read_text, write_atomic};
use serde_json::{Map, Value};

use crate::observer::StageReport;
use crate::{Error, Result};

/// The file of a run's steps.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
}

impl Metrics {
    /// The file at this path; it need not be there yet.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Adds a step that took so many seconds.
    pub fn append(&self, report: &StageReport, seconds: f64) -> Result<()> {
        let mut line = Map::new();
        line.insert("stage".into(), report.stage.into());
        line.insert("step".into(), report.step.into());
        line.insert("loss".into(), report.loss.into());
        line.insert("lr".into(), report.lr.into());
        line.extend(report.metrics.iter().map(|(k, v)| (k.clone(), (*v).into())));
        line.insert("seconds".into(), seconds.into());
        let fail = |e| Error::from(seedpo_tensor::Error::io(&self.path, e));
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path).map_err(fail)?;
        file.write_all(format!("{}\n", Value::Object(line)).as_bytes()).map_err(fail)
    }

    /// Drops the steps of `stage` after `step`, which a resumed run does again, and a last line cut short.
    pub fn rewind(&self, stage: &str, step: u64) -> Result<()> {
        let kept: String = self
            .lines()?
            .into_iter()
            .filter(|(l, _)| l["stage"] != stage || l["step"].as_u64().is_some_and(|s| s <= step))
            .map(|(_, text)| text + "\n")
            .collect();
        Ok(write_atomic(&self.path, kept.as_bytes())?)
    }

    /// The time that all steps took together; `None` where there are none.
    pub fn seconds(&self) -> Result<Option<f64>> {
        let times: Vec<f64> = self.lines()?.iter().filter_map(|(l, _)| l["seconds"].as_f64()).collect();
        Ok((!times.is_empty()).then(|| times.iter().sum()))
    }

    fn lines(&self) -> Result<Vec<(Value, String)>> {
        if !self.path.exists() {
            return Ok(Vec::new());
        }
        let text = read_text(&self.path)?;
        Ok(text.lines().filter_map(|l| Some((serde_json::from_str(l).ok()?, l.to_owned()))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_step_stands_twice_after_a_resume() {
        let folder = tempfile::tempdir().unwrap();
        let metrics = Metrics::at(folder.path().join("metrics.jsonl"));
        assert_eq!(metrics.seconds().unwrap(), None);
        let report =
            |stage, step| StageReport { stage, step, total: 9, loss: 1.0, lr: 0.1, metrics: vec![("m".into(), 2.0)] };
        for (stage, step) in [("vae", 1), ("denoiser", 1), ("denoiser", 2), ("denoiser", 3)] {
            metrics.append(&report(stage, step), 0.5).unwrap();
        }
        let cut = "{\"stage\":\"deno";
        OpenOptions::new().append(true).open(&metrics.path).unwrap().write_all(cut.as_bytes()).unwrap();
        metrics.rewind("denoiser", 2).unwrap();
        assert_eq!((metrics.lines().unwrap().len(), metrics.seconds().unwrap()), (3, Some(1.5)));
        assert!(!read_text(&metrics.path).unwrap().contains("\"step\":3"));
    }
}
