//! From scores to preferences.

/// Which of two samples is preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preference {
    /// The first sample wins.
    First,
    /// The second sample wins.
    Second,
    /// Neither: such a pair gives no gradient.
    Tie,
}

impl Preference {
    /// By one or several reward values each, higher is better: a sample wins only if it is at least as good in all
    /// of them and better in one (docs/methods.md section 4.1). Values that cannot be compared (NaN) make a tie.
    pub fn by_dominance(first: &[f64], second: &[f64]) -> Self {
        let all = |better: fn(&f64, &f64) -> bool| first.iter().zip(second).all(|(a, b)| better(a, b));
        match (all(|a, b| a >= b), all(|a, b| a <= b)) {
            (true, false) => Self::First,
            (false, true) => Self::Second,
            _ => Self::Tie,
        }
    }

    /// Whether there is a winner.
    pub fn decided(self) -> bool {
        self != Self::Tie
    }
}
