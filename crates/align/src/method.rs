//! A method is a choice on four axes (docs/methods.md section 4); the trainer has one loop for all of them.

use crate::error::{Error, Result};
use serde::Serialize;

/// Where preference pairs come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairsFrom {
    /// Two whole trajectories from the same x_T, judged by the final image (docs/methods.md section 4.1).
    Trajectories,
    /// K candidates for x_t' from the same x_t, judged at that step (docs/methods.md section 4.3).
    Steps,
    /// Image files with a known winner, noised (docs/methods.md section 4.2): nothing is sampled.
    Images,
}

/// The log-likelihood ℓ that enters the margin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Likelihood {
    /// log π_θ(x_t' | x_t, c) of a stochastic DDIM step (docs/methods.md section 2).
    Transition,
    /// −½ of the mean squared error of the predicted noise (docs/methods.md section 4.2).
    DenoisingError,
}

/// Which policy the pair is compared against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReferencePolicy {
    /// The base model without an adapter.
    Initial,
}

/// What is done to the log-ratio before it enters the margin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shaping {
    /// exp(r) is clipped to [1 − ε, 1 + ε]; ε is the setting `clip`, 0 turns it off.
    ClipRatio,
    /// Nothing.
    None,
}

/// One alignment method: data, not code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Method {
    /// The name used in settings.
    pub name: &'static str,
    /// Where pairs come from.
    pub pairs: PairsFrom,
    /// The likelihood in the margin.
    pub likelihood: Likelihood,
    /// The reference policy.
    pub reference: ReferencePolicy,
    /// The shaping of the log-ratio.
    pub shaping: Shaping,
}

/// The methods this version trains with.
pub const METHODS: &[Method] = &[
    Method {
        name: "d3po",
        pairs: PairsFrom::Trajectories,
        likelihood: Likelihood::Transition,
        reference: ReferencePolicy::Initial,
        shaping: Shaping::ClipRatio,
    },
    Method {
        name: "diffusion-dpo",
        pairs: PairsFrom::Images,
        likelihood: Likelihood::DenoisingError,
        reference: ReferencePolicy::Initial,
        shaping: Shaping::None,
    },
    Method {
        name: "spo",
        pairs: PairsFrom::Steps,
        likelihood: Likelihood::Transition,
        reference: ReferencePolicy::Initial,
        shaping: Shaping::ClipRatio,
    },
];

/// Methods of docs/methods.md that are planned; named so that the refusal can say so.
const LATER: &[&str] = &["seppo", "sft", "spin-diffusion", "ddpo", "dpok"];

impl Method {
    /// The method called `name`.
    ///
    /// Errors: [`Error::Setting`] listing the known names; planned methods are refused by name.
    pub fn by_name(name: &str) -> Result<Method> {
        if let Some(method) = METHODS.iter().find(|m| m.name == name) {
            return Ok(*method);
        }
        let known: Vec<_> = METHODS.iter().map(|m| m.name).collect();
        let bare = name.strip_prefix("see-").unwrap_or(name);
        let found = if METHODS.iter().any(|m| m.name == bare) {
            format!("`{name}`; the self-entropy form is `method = \"{bare}\"` with `entropy.gamma` above 0")
        } else if LATER.contains(&bare) {
            format!("`{name}`, which is planned but not in this version")
        } else {
            format!("`{name}`")
        };
        Err(Error::Setting { key: "method".into(), expected: format!("one of {}", known.join(", ")), found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_methods_are_refused_by_name_with_the_known_ones() {
        let message = Method::by_name("seppo").unwrap_err().to_string();
        assert!(
            message.contains("seppo") && message.contains("planned") && message.contains("d3po, diffusion-dpo, spo"),
            "{message}"
        );
        assert!(Method::by_name("see-spo").unwrap_err().to_string().contains("entropy.gamma"));
        assert_eq!(Method::by_name("spo").unwrap().pairs, PairsFrom::Steps);
    }
}
