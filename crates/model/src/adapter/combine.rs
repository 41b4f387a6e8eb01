//! Several adapters as one.

use std::collections::BTreeMap;

use tch::Tensor;

use super::{Adapter, Delta, argument};
use crate::Result;

/// The low-rank factors that are added up at one projection: A, and B times its scale and weight.
#[derive(Default)]
struct Factors {
    a: Vec<Tensor>,
    b: Vec<Tensor>,
}

impl Adapter {
    /// One adapter that adds what all `parts` add, each times its weight (any finite number). Exact, whatever the
    /// ranks: factors stand side by side, so that `B A = Σ weightᵢ scaleᵢ Bᵢ Aᵢ`. Without gradient.
    ///
    /// Errors: [`crate::Error::Argument`] for a weight that is not finite, and for an adapter that holds merged
    /// weights.
    pub fn combined(parts: &[(Self, f64)]) -> Result<Self> {
        let _frozen = tch::no_grad_guard();
        let mut factors: BTreeMap<&str, Factors> = BTreeMap::new();
        for (adapter, weight) in parts {
            if !weight.is_finite() {
                return Err(argument("adapter weight", "a finite number", weight));
            }
            for (path, delta) in &adapter.deltas {
                let Delta::LowRank { a, b, scale } = delta else {
                    return Err(argument(&format!("adapter at `{path}`"), "a low-rank pair", "a merged weight"));
                };
                let place = factors.entry(path).or_default();
                place.a.push(a.detach());
                place.b.push(b.detach() * (scale * weight));
            }
        }
        let side_by_side = |(path, factors): (&str, Factors)| {
            let (a, b) = (Tensor::f_cat(&factors.a, 0)?, Tensor::f_cat(&factors.b, 1)?);
            Ok((path.to_owned(), Delta::LowRank { a, b, scale: 1.0 }))
        };
        Ok(Self { deltas: factors.into_iter().map(side_by_side).collect::<Result<_>>()? })
    }
}
