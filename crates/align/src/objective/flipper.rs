//! SePPO's anchor-based flipper: whether the reference's sample is pushed away or learned from.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{Error, Result};

/// How s is made of the two denoising errors on the winner (docs/methods.md section 4.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flipper {
    /// s = 1: the rejected side is always pushed away.
    #[default]
    Off,
    /// s = sign(‖ε − ε_ref‖² − ‖ε − ε_θ‖²), 0 where the two are equal.
    Sign,
    /// s = 1 where the policy's error is the smaller one, else 0.
    Indicator,
}

impl Flipper {
    /// The flipper called `name`. Errors: [`Error::Setting`] listing all.
    pub fn by_name(name: &str) -> Result<Self> {
        match name {
            "sign" => Ok(Self::Sign),
            "indicator" => Ok(Self::Indicator),
            "off" => Ok(Self::Off),
            _ => Err(Error::Setting {
                key: "flipper".into(),
                expected: "sign | indicator | off".into(),
                found: format!("`{name}`"),
            }),
        }
    }

    /// s `[B]`, without graph, from the errors on the winner, `[B]` each; `None` where it is 1 throughout.
    pub fn signs(self, policy_error: &Tensor, reference_error: &Tensor) -> Option<Tensor> {
        let gain = || reference_error.detach() - policy_error.detach();
        match self {
            Self::Off => None,
            Self::Sign => Some(gain().sign()),
            Self::Indicator => Some(gain().gt(0.0).to_kind(policy_error.kind())),
        }
    }
}
