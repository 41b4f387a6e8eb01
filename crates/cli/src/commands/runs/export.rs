//! A run's numbers as one table: what spreadsheets, pandas and experiment trackers read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Result, bail};
use seedpo_align::RunDir;
use seedpo_evaluate::report::RunSeries;
use seedpo_tensor::write_atomic;

use crate::output;

/// Writes the table of `run` to `out`, or as CSV to the screen.
///
/// Errors: no run there; a file name that ends neither in .csv nor in .jsonl; the file cannot be written.
pub fn run(run: &Path, out: Option<&Path>) -> Result<()> {
    let series = RunSeries::from_jsonl("run", &RunDir::open(run)?.metrics())?;
    let Some(out) = out else { return output::print(&csv(&series)?) };
    let text = match out.extension().and_then(|ending| ending.to_str()) {
        Some("csv") => csv(&series)?,
        Some("jsonl") => jsonl(&series),
        _ => bail!("--out {}: expected a name that ends in .csv or .jsonl", out.display()),
    };
    write_atomic(out, text.as_bytes())?;
    output::print(&format!("{}\n", out.display()))
}

/// Every metric by step. Steps are whole numbers; of several lines for one step the last counts.
fn rows(series: &RunSeries) -> BTreeMap<u64, BTreeMap<&str, f64>> {
    let mut rows: BTreeMap<u64, BTreeMap<&str, f64>> = BTreeMap::new();
    for (key, points) in &series.series {
        for (step, value) in points.iter().filter(|(_, value)| value.is_finite()) {
            rows.entry(*step as u64).or_default().insert(key, *value);
        }
    }
    rows
}

fn csv(series: &RunSeries) -> Result<String> {
    let rows = rows(series);
    let columns: BTreeSet<&str> = rows.values().flat_map(|row| row.keys().copied()).collect();
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(std::iter::once("step").chain(columns.iter().copied()))?;
    for (step, row) in &rows {
        let cell = |column: &&str| row.get(column).map(f64::to_string).unwrap_or_default();
        table.write_record(std::iter::once(step.to_string()).chain(columns.iter().map(cell)))?;
    }
    Ok(String::from_utf8(table.into_inner()?)?)
}

fn jsonl(series: &RunSeries) -> String {
    let line = |(step, row): (u64, BTreeMap<&str, f64>)| {
        let mut object = serde_json::Map::from_iter([("step".to_owned(), step.into())]);
        object.extend(row.into_iter().map(|(key, value)| (key.to_owned(), value.into())));
        format!("{}\n", serde_json::Value::Object(object))
    };
    rows(series).into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series() -> RunSeries {
        let mut series = RunSeries { name: "x".into(), ..RunSeries::default() };
        series.push("update.loss", 1.0, 0.5);
        series.push("update.loss", 2.0, f64::NAN);
        series.push("preview.heldout.a,b", 2.0, -3.25);
        series
    }

    #[test]
    fn a_row_per_step_with_gaps_left_empty() {
        assert_eq!(csv(&series()).unwrap(), "step,\"preview.heldout.a,b\",update.loss\n1,,0.5\n2,-3.25,\n");
        assert_eq!(jsonl(&series()), "{\"step\":1,\"update.loss\":0.5}\n{\"step\":2,\"preview.heldout.a,b\":-3.25}\n");
    }
}
