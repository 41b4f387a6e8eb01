//! The samplers by name.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// A sampler for looking and evaluating; training keeps to [`crate::Ddim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SamplerKind {
    /// diffusers' `DDIMScheduler`; the only one with an η.
    #[default]
    Ddim,
    /// diffusers' `EulerDiscreteScheduler`.
    Euler,
    /// The same with `use_karras_sigmas`.
    EulerKarras,
    /// diffusers' `EulerAncestralDiscreteScheduler`: draws noise at every step but the last.
    EulerAncestral,
    /// diffusers' `DPMSolverMultistepScheduler`: dpmsolver++, order 2, midpoint.
    DpmPlusPlus2M,
    /// The same with `use_karras_sigmas`.
    DpmPlusPlus2MKarras,
}

/// Kind, our name, diffusers' class (plain kinds only), and the label that picture tools show.
const NAMES: [(SamplerKind, &str, &str, &str); 6] = [
    (SamplerKind::Ddim, "ddim", "DDIMScheduler", "DDIM"),
    (SamplerKind::Euler, "euler", "EulerDiscreteScheduler", "Euler"),
    (SamplerKind::EulerKarras, "euler-karras", "", "Euler Karras"),
    (SamplerKind::EulerAncestral, "euler-a", "EulerAncestralDiscreteScheduler", "Euler a"),
    (SamplerKind::DpmPlusPlus2M, "dpmpp-2m", "DPMSolverMultistepScheduler", "DPM++ 2M"),
    (SamplerKind::DpmPlusPlus2MKarras, "dpmpp-2m-karras", "", "DPM++ 2M Karras"),
];

impl SamplerKind {
    /// The names that [`FromStr`] takes, diffusers' class names aside.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|row| row.1)
    }

    /// The label in the metadata of pictures, as other tools spell it: `DPM++ 2M Karras`.
    pub fn label(self) -> &'static str {
        self.row().3
    }

    /// Whether noise levels follow Karras et al. 2022, ρ = 7.
    pub fn karras(self) -> bool {
        matches!(self, Self::EulerKarras | Self::DpmPlusPlus2MKarras)
    }

    fn row(self) -> &'static (SamplerKind, &'static str, &'static str, &'static str) {
        // Invariant: every kind has its row; a unit test goes through them.
        NAMES.iter().find(|row| row.0 == self).unwrap_or(&NAMES[0])
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().1)
    }
}

impl FromStr for SamplerKind {
    type Err = Error;

    /// One of [`SamplerKind::names`], or the name of a diffusers class. Errors: [`Error::Setting`].
    fn from_str(name: &str) -> Result<Self, Error> {
        let found = NAMES.iter().find(|row| row.1 == name || (!name.is_empty() && row.2 == name));
        let expected = || format!("one of {}", Self::names().collect::<Vec<_>>().join(", "));
        found.map(|row| row.0).ok_or_else(|| Error::setting("sampler", expected(), name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for name in SamplerKind::names() {
            assert_eq!(name.parse::<SamplerKind>().unwrap().to_string(), name);
        }
        assert_eq!("EulerDiscreteScheduler".parse::<SamplerKind>().unwrap(), SamplerKind::Euler);
        let error = "pndm".parse::<SamplerKind>().unwrap_err().to_string();
        assert!(error.contains("dpmpp-2m") && error.contains("found pndm"), "{error}");
        assert!("".parse::<SamplerKind>().is_err());
    }
}
