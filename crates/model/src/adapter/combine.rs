//! Several LoRAs as one.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::argument;
use super::lora::{Lora, LoraModule, misfit};
use crate::Result;

/// The low-rank factors that are added up at one layer: A, and B times its scale and weight.
#[derive(Default)]
struct Factors {
    a: Vec<Tensor>,
    b: Vec<Tensor>,
}

impl Lora {
    /// One LoRA that adds what all `parts` add, each times its weight (any finite number). Exact, whatever the
    /// ranks: factors stand side by side, so that `B A = Σ weightᵢ scaleᵢ Bᵢ Aᵢ`, in f32. Without gradient.
    ///
    /// Errors: [`crate::Error::Argument`] for a weight that is not finite, and for parts that were made for different
    /// models.
    pub fn combined(parts: &[(Self, f64)]) -> Result<Self> {
        let _frozen = tch::no_grad_guard();
        let mut factors: BTreeMap<&str, Factors> = BTreeMap::new();
        for (lora, weight) in parts {
            if !weight.is_finite() {
                return Err(argument("adapter weight", "a finite number", weight));
            }
            for (name, module) in &lora.modules {
                let place = factors.entry(name).or_default();
                let weight_shape = [&module.b.size()[..1], &module.a.size()[1..]].concat();
                let first = place.a.first().zip(place.b.first());
                if let Some(problem) = first.and_then(|(a, b)| misfit(name, a, b, &weight_shape)) {
                    return Err(argument("adapters", "ones for the same model", problem));
                }
                let float = |tensor: &Tensor| tensor.detach().to_kind(Kind::Float);
                place.a.push(float(&module.a));
                place.b.push(float(&module.b) * (module.scale * weight));
            }
        }
        let side_by_side = |(name, factors): (&str, Factors)| {
            let (a, b) = (joined(&factors.a, 0)?, joined(&factors.b, 1)?);
            Ok((name.to_owned(), LoraModule { a, b, scale: 1.0, has_alpha: true }))
        };
        Ok(Self { modules: factors.into_iter().map(side_by_side).collect::<Result<_>>()? })
    }
}

/// Side by side along `axis`; where some are written as 1×1 convolutions and others as matrices, as convolutions.
fn joined(parts: &[Tensor], axis: i64) -> Result<Tensor> {
    let conv = parts.iter().any(|part| part.dim() == 4);
    let with_axes = |part: &Tensor| match conv && part.dim() == 2 {
        true => part.unsqueeze(-1).unsqueeze(-1),
        false => part.shallow_clone(),
    };
    Ok(Tensor::f_cat(&parts.iter().map(with_axes).collect::<Vec<_>>(), axis)?)
}
