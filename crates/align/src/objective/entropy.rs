//! The self-entropy term: the power κ the reference policy is raised to (docs/methods.md section 3).

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How γ becomes the reference's power κ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntropyForm {
    /// κ = 1/(1+γ): the optimum of the objective with an entropy bonus; γ > 0 flattens the reference.
    #[default]
    Flatten,
    /// κ = 1+γ: the published sentence read literally; γ > 0 sharpens the reference.
    LiteralPower,
}

/// The self-entropy term of the objective: strength γ and the form it takes. γ = 0 is plain DPO, bit for bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelfEntropy {
    /// γ, above −1; 0 is off, negative values sharpen (in the default form).
    #[serde(default)]
    pub gamma: f64,
    /// How γ becomes κ.
    #[serde(default)]
    pub form: EntropyForm,
}

impl SelfEntropy {
    /// A term of strength `gamma` in the given form. Errors: as [`SelfEntropy::check`].
    pub fn new(gamma: f64, form: EntropyForm) -> Result<Self> {
        let entropy = Self { gamma, form };
        entropy.check()?;
        Ok(entropy)
    }

    /// Refuses a γ that is not a finite number above −1 (κ would be infinite or negative).
    pub fn check(&self) -> Result<()> {
        if self.gamma.is_finite() && self.gamma > -1.0 {
            return Ok(());
        }
        Err(Error::Setting {
            key: "entropy.gamma".into(),
            expected: "a finite number above -1".into(),
            found: self.gamma.to_string(),
        })
    }

    /// κ: 1/(1+γ), or 1+γ in the literal form. Exactly 1 for γ = 0.
    pub fn kappa(&self) -> f64 {
        match self.form {
            EntropyForm::Flatten => 1.0 / (1.0 + self.gamma),
            EntropyForm::LiteralPower => 1.0 + self.gamma,
        }
    }

    /// What to tell the user about a γ below 0, which the source reports to do badly.
    pub fn warning(&self) -> Option<String> {
        (self.gamma < 0.0).then(|| {
            format!(
                "entropy.gamma = {} is negative: kappa = {:.4}; the source reports worse images for negative gamma",
                self.gamma,
                self.kappa()
            )
        })
    }
}
