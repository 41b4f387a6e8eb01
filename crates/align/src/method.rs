//! A method is a choice on four axes (docs/methods.md section 4); the trainer has one loop for all of them.

use crate::choice::choice;
use crate::error::{Error, Result};
use crate::objective::Flipper;
use serde::Serialize;
use std::ops::RangeInclusive;

choice! {
    /// Where preference pairs come from.
    PairsFrom, "pairs" {
        /// Two whole trajectories from the same x_T, judged by the final image (docs/methods.md section 4.1).
        Trajectories = "trajectories",
        /// K candidates for x_t' from the same x_t, judged at that step (docs/methods.md section 4.3).
        Steps = "steps",
        /// Image files with a known winner, noised (docs/methods.md section 4.2): nothing is sampled.
        Images = "images",
        /// Winners of the dataset against samples of the reference policy (docs/methods.md section 4.4).
        WinnersAndSamples = "winners-and-samples",
        /// Single trajectories with the rewards of their final images (docs/methods.md section 4.5).
        Samples = "samples",
        /// Winners of the dataset alone: no pair, plain supervision (docs/methods.md section 4.5).
        Winners = "winners",
    }
}

choice! {
    /// The log-likelihood ℓ that enters the margin.
    Likelihood, "likelihood" {
        /// log π_θ(x_t' | x_t, c) of a stochastic DDIM step (docs/methods.md section 2).
        Transition = "transition",
        /// −½ of the mean squared error of the predicted noise (docs/methods.md section 4.2).
        DenoisingError = "denoising-error",
    }
}

choice! {
    /// Which policy the pair is compared against.
    ReferencePolicy, "reference" {
        /// No policy: supervision compares with nothing.
        None = "none",
        /// The base model without an adapter, θ_0.
        Initial = "initial",
        /// The newest snapshot of the policy.
        Latest = "latest",
        /// One snapshot per update, drawn uniformly from all, θ_0 among them.
        RandomHistory = "random-history",
        /// The exponential moving average of the policy's adapter.
        Ema = "ema",
    }
}

/// What is done to the log-ratio, or the rejected side, before it enters the margin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shaping {
    /// exp(r) is clipped to [1 − ε, 1 + ε]; ε is the setting `clip`, 0 turns it off.
    ClipRatio,
    /// SePPO's flipper decides what becomes of the rejected side.
    Flip(Flipper),
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
    /// The shaping of the margin; the settings `clip` and `flipper` adjust it.
    pub shaping: Shaping,
}

/// The methods this version trains with, by name.
pub const METHODS: &[Method] = &[
    Method {
        name: "d3po",
        pairs: PairsFrom::Trajectories,
        likelihood: Likelihood::Transition,
        reference: ReferencePolicy::Initial,
        shaping: Shaping::ClipRatio,
    },
    Method {
        name: "ddpo",
        pairs: PairsFrom::Samples,
        likelihood: Likelihood::Transition,
        reference: ReferencePolicy::None,
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
        name: "dpok",
        pairs: PairsFrom::Samples,
        likelihood: Likelihood::Transition,
        reference: ReferencePolicy::Initial,
        shaping: Shaping::ClipRatio,
    },
    Method {
        name: "seppo",
        pairs: PairsFrom::WinnersAndSamples,
        likelihood: Likelihood::DenoisingError,
        reference: ReferencePolicy::RandomHistory,
        shaping: Shaping::Flip(Flipper::Sign),
    },
    Method {
        name: "sft",
        pairs: PairsFrom::Winners,
        likelihood: Likelihood::DenoisingError,
        reference: ReferencePolicy::None,
        shaping: Shaping::None,
    },
    Method {
        name: "spin",
        pairs: PairsFrom::WinnersAndSamples,
        likelihood: Likelihood::DenoisingError,
        reference: ReferencePolicy::Latest,
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

impl PairsFrom {
    /// Whether the pairs, or their winners, are image files (`pairs_file`) rather than samples that a judge compares.
    pub fn from_files(self) -> bool {
        matches!(self, Self::Images | Self::WinnersAndSamples | Self::Winners)
    }
}

impl Method {
    /// The method called `name`.
    ///
    /// Errors: [`Error::Setting`] listing the known names.
    pub fn by_name(name: &str) -> Result<Method> {
        if let Some(method) = METHODS.iter().find(|m| m.name == name) {
            return Ok(*method);
        }
        let known: Vec<_> = METHODS.iter().map(|m| m.name).collect();
        let bare = name.strip_prefix("see-").unwrap_or(name);
        let found = if METHODS.iter().any(|m| m.name == bare) {
            format!("`{name}`; the self-entropy form is `method = \"{bare}\"` with `entropy.gamma` above 0")
        } else if bare == "spin-diffusion" {
            format!("`{name}`, which is called spin here")
        } else {
            format!("`{name}`")
        };
        Err(refused("method", &format!("one of {}", known.join(", ")), &found))
    }

    /// The flipper; off where the shaping is another.
    pub fn flipper(&self) -> Flipper {
        match self.shaping {
            Shaping::Flip(flipper) => flipper,
            Shaping::ClipRatio | Shaping::None => Flipper::Off,
        }
    }

    /// Refuses combinations of axes that have no meaning, saying why.
    pub fn check(&self) -> Result<()> {
        let pairs = self.pairs.name();
        if self.likelihood == Likelihood::Transition && self.pairs.from_files() {
            let expected = format!(
                "denoising-error with pairs = {pairs}: only sampled pairs (trajectories, steps) have the sampler's steps \
                 whose likelihood `transition` is"
            );
            return Err(refused("likelihood", &expected, "transition"));
        }
        if self.pairs == PairsFrom::Winners && self.reference != ReferencePolicy::None {
            let expected = "none with pairs = winners: supervision compares the policy with nothing";
            return Err(refused("reference", expected, self.reference.name()));
        }
        if self.pairs == PairsFrom::Samples && self.likelihood != Likelihood::Transition {
            let expected =
                "transition with pairs = samples: a single sample has no other whose error it is compared with";
            return Err(refused("likelihood", expected, self.likelihood.name()));
        }
        let alone = matches!(self.pairs, PairsFrom::Winners | PairsFrom::Samples);
        if !alone && self.reference == ReferencePolicy::None {
            let expected = format!("a policy with pairs = {pairs}: the margin is relative to one");
            return Err(refused("reference", &expected, "none"));
        }
        if self.flipper() == Flipper::Off {
            return Ok(());
        }
        let reason = match (self.likelihood, self.pairs) {
            (Likelihood::Transition, _) => {
                "it compares denoising errors, which the likelihood `transition` does not have"
            }
            (_, PairsFrom::Winners) => "winners alone have no other side to flip",
            _ => return Ok(()),
        };
        Err(refused("flipper", &format!("off: {reason}"), &format!("{:?}", self.flipper()).to_lowercase()))
    }

    /// Where β usually lies: around the published values, with a decade or so to either side. `None` where the loss has
    /// no β. With the sign flipper and γ above 0 both sides' constants add up where s = −1 (docs/paper-index.md), so that
    /// far smaller values make sense.
    pub fn plausible_beta(&self, gamma: f64) -> Option<RangeInclusive<f64>> {
        match (self.likelihood, self.pairs) {
            (_, PairsFrom::Winners | PairsFrom::Samples) => None,
            (Likelihood::DenoisingError, _) if self.flipper() == Flipper::Sign && gamma != 0.0 => Some(1.0..=20_000.0),
            (Likelihood::DenoisingError, _) => Some(100.0..=20_000.0),
            (Likelihood::Transition, PairsFrom::Steps) => Some(1.0..=200.0),
            (Likelihood::Transition, _) => Some(0.01..=10.0),
        }
    }
}

fn refused(key: &str, expected: &str, found: &str) -> Error {
    Error::Setting { key: key.into(), expected: expected.into(), found: found.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_methods_are_refused_with_the_known_ones() {
        let message = Method::by_name("dpop").unwrap_err().to_string();
        assert!(
            message.contains("dpop") && message.contains("d3po, ddpo, diffusion-dpo, dpok, seppo, sft, spin, spo"),
            "{message}"
        );
        assert!(Method::by_name("see-spo").unwrap_err().to_string().contains("entropy.gamma"));
        assert!(Method::by_name("spin-diffusion").unwrap_err().to_string().contains("called spin"));
        assert_eq!(Method::by_name("spo").unwrap().pairs, PairsFrom::Steps);
    }

    #[test]
    fn every_method_makes_sense_and_other_combinations_do_or_say_why_not() {
        for method in METHODS {
            method.check().unwrap();
        }
        let of = |name| Method::by_name(name).unwrap();
        for sensible in [
            Method { likelihood: Likelihood::DenoisingError, ..of("spo") },
            Method { likelihood: Likelihood::DenoisingError, shaping: Shaping::Flip(Flipper::Sign), ..of("d3po") },
            Method { reference: ReferencePolicy::Ema, ..of("d3po") },
            Method { reference: ReferencePolicy::Latest, ..of("dpok") },
            Method { reference: ReferencePolicy::RandomHistory, ..of("diffusion-dpo") },
            Method { shaping: Shaping::Flip(Flipper::Indicator), ..of("diffusion-dpo") },
        ] {
            sensible.check().unwrap();
        }
        let refused = |method: Method| method.check().unwrap_err().to_string();
        assert!(refused(Method { likelihood: Likelihood::Transition, ..of("seppo") }).contains("sampler's steps"));
        assert!(refused(Method { reference: ReferencePolicy::Initial, ..of("sft") }).contains("with nothing"));
        assert!(refused(Method { reference: ReferencePolicy::None, ..of("spin") }).contains("relative to one"));
        assert!(refused(Method { shaping: Shaping::Flip(Flipper::Sign), ..of("spo") }).contains("denoising errors"));
        assert!(refused(Method { likelihood: Likelihood::DenoisingError, ..of("ddpo") }).contains("no other"));
        assert!(refused(Method { shaping: Shaping::Flip(Flipper::Sign), ..of("sft") }).contains("no other side"));
    }
}
