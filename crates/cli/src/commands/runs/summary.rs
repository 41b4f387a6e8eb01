//! A run in a line.

use std::path::Path;

use anyhow::Result;
use seedpo_align::{Record, RunDir};

/// What a list shows of a run.
pub struct Summary {
    row: Vec<String>,
}

impl Summary {
    /// The columns.
    pub const HEADER: [&str; 9] =
        ["run", "method", "judge", "updates", "reward", "held out", "diversity", "KL", "noticed"];

    /// Reads a run folder. Errors: no run there, or a damaged one.
    pub fn read(folder: &Path) -> Result<Self> {
        let run = RunDir::open(folder)?;
        let (config, _) = run.recorded()?;
        let records = run.records()?;
        let previews: Vec<_> =
            records.iter().filter_map(|r| if let Record::Preview(m) = r { Some(m) } else { None }).collect();
        let step = records.iter().filter(|r| matches!(r, Record::Update(_))).map(Record::step).max().unwrap_or(0);
        let planned = if config.max_train_steps > 0 { format!("/{}", config.max_train_steps) } else { String::new() };
        let moved = |value: &dyn Fn(usize) -> Option<f64>| {
            let last = previews.len().checked_sub(1)?;
            Some(format!("{} → {}", short(value(0)?), short(value(last)?)))
        };
        let dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let diversity = |at: usize| previews[at].measured.get("rmse").copied();
        let kept = previews.len().checked_sub(1).and_then(|last| Some(100.0 * diversity(last)? / diversity(0)?));
        let count = |is: fn(&Record) -> bool| records.iter().filter(|record| is(record)).count();
        let noticed = [
            (count(|r| matches!(r, Record::Watch(_))), "reward hacking"),
            (count(|r| matches!(r, Record::Guard(_))), "guard"),
        ];
        let noticed: Vec<String> =
            noticed.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{what} ×{count}")).collect();
        let see = if config.entropy.gamma == 0.0 { String::new() } else { format!(", γ = {}", config.entropy.gamma) };
        let kl =
            records.iter().rev().find_map(|r| if let Record::Update(m) = r { Some(m.kl_to_reference) } else { None });
        let row = vec![
            folder.display().to_string(),
            format!("{}{see}", config.method),
            config.judge.clone(),
            format!("{step}{planned}"),
            dash(moved(&|at| Some(previews[at].reward_mean))),
            dash(moved(&|at| previews[at].heldout_mean)),
            dash(kept.filter(|kept| kept.is_finite()).map(|kept| format!("{kept:.0} %"))),
            dash(kl.map(|kl| format!("{kl:.1e}"))),
            if noticed.is_empty() { "-".to_owned() } else { noticed.join(", ") },
        ];
        Ok(Self { row })
    }

    /// The cells, in the order of [`Summary::HEADER`].
    pub fn row(self) -> Vec<String> {
        self.row
    }
}

/// Four figures are enough to see a change.
fn short(value: f64) -> String {
    let digits =
        if value == 0.0 || !value.is_finite() { 1 } else { 3 - (value.abs().log10().floor() as i32).clamp(-3, 3) };
    format!("{value:.*}", digits.max(0) as usize)
}

#[cfg(test)]
mod tests {
    #[test]
    fn four_figures() {
        let shown = [0.0, 1.23456, 137.94, -0.012345, 20571.3].map(super::short);
        assert_eq!(shown, ["0.0", "1.235", "137.9", "-0.01235", "20571"]);
    }
}
