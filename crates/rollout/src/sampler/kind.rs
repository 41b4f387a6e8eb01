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

    /// One of [`SamplerKind::names`], the name of a diffusers class, or [`SamplerKind::label`], in any case, with `_`, a
    /// space or nothing for `-` and `++` for `pp`; `euler-ancestral` too. Errors: [`Error::Setting`].
    fn from_str(name: &str) -> Result<Self, Error> {
        let wanted = plain(name);
        let same = |other: &str| !other.is_empty() && plain(other) == wanted;
        let alias = ALIASES.iter().find(|(alias, _)| same(alias)).map(|(_, kind)| *kind);
        let found = NAMES.iter().find(|row| [row.1, row.2, row.3].into_iter().any(same)).map(|row| row.0);
        let expected = || format!("one of {}", Self::names().collect::<Vec<_>>().join(", "));
        found.or(alias).ok_or_else(|| Error::setting("sampler", expected(), name))
    }
}

/// Names that are none of [`NAMES`] in another spelling.
const ALIASES: [(&str, SamplerKind); 1] = [("euler-ancestral", SamplerKind::EulerAncestral)];

/// A name without what tools spell differently.
fn plain(name: &str) -> String {
    let kept = name.chars().filter(|c| !matches!(c, '_' | '-' | ' ')).flat_map(char::to_lowercase);
    kept.collect::<String>().replace("++", "pp")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for name in SamplerKind::names() {
            assert_eq!(name.parse::<SamplerKind>().unwrap().to_string(), name);
        }
        for (name, kind) in [
            ("EulerDiscreteScheduler", SamplerKind::Euler),
            ("EulerAncestralDiscreteScheduler", SamplerKind::EulerAncestral),
            ("DPMSolverMultistepScheduler", SamplerKind::DpmPlusPlus2M),
            ("DDIMScheduler", SamplerKind::Ddim),
            ("DDIM", SamplerKind::Ddim),
            ("euler_a", SamplerKind::EulerAncestral),
            ("Euler a", SamplerKind::EulerAncestral),
            ("euler-ancestral", SamplerKind::EulerAncestral),
            ("Euler_Karras", SamplerKind::EulerKarras),
            ("dpm++2m", SamplerKind::DpmPlusPlus2M),
            ("dpmpp_2m", SamplerKind::DpmPlusPlus2M),
            ("dpmpp_2m_karras", SamplerKind::DpmPlusPlus2MKarras),
            ("dpm++ 2m karras", SamplerKind::DpmPlusPlus2MKarras),
        ] {
            assert_eq!(name.parse::<SamplerKind>().unwrap(), kind, "{name}");
        }
        let error = "pndm".parse::<SamplerKind>().unwrap_err().to_string();
        assert!(error.contains("dpmpp-2m") && error.contains("found pndm"), "{error}");
        for none in ["", "-", "euler-b", "dpmpp", "dpm+2m"] {
            assert!(none.parse::<SamplerKind>().is_err(), "{none}");
        }
    }
}
