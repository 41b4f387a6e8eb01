//! What each method's authors publish: the layer of defaults below presets, files and flags.

use super::{TrainConfig, layer};
use crate::error::Result;
use crate::method::{Likelihood, METHODS, Method};
use toml::{Table, Value};

/// docs/methods.md section 4.1.
const D3PO: &str = "beta = 0.1\nlearning_rate = 3e-5\nclip = 0.1\nguidance_scale = 5.0\nadam_weight_decay = 1e-4\n";
/// docs/methods.md section 4.3.
const SPO: &str = "beta = 10.0\nlearning_rate = 6e-5\nclip = 0.1\nguidance_scale = 5.0\nadam_weight_decay = 1e-4\n";
/// docs/methods.md section 4.2; batch and learning rate as diffusers' LoRA script has them, since that is what is trained
/// here. Pictures are sampled under the guidance that Stable Diffusion 1.5 is published with.
const DENOISING: &str = "
beta = 5000.0
learning_rate = 1e-5
clip = 0.0
guidance_scale = 1.0
sampling_guidance_scale = 7.5
adam_weight_decay = 1e-2
prompts_per_iteration = 16
train_batch_size = 16
";
/// docs/methods.md section 4.5: kvablack/ddpo-pytorch, config/base.py.
const POLICY_GRADIENT: &str = "learning_rate = 1e-4\nclip = 1e-4\nguidance_scale = 5.0\nadam_weight_decay = 1e-4\n";
/// What another method takes along with the denoising error: its rollouts stay as they are.
const DENOISING_LIKELIHOOD: &str =
    "beta = 5000.0\nclip = 0.0\nguidance_scale = 1.0\nsampling_guidance_scale = 5.0\nadam_weight_decay = 1e-2\n";

/// The published settings of a method as a layer; empty for an unknown one.
fn of(method: &str) -> &'static str {
    match method {
        "d3po" => D3PO,
        "spo" => SPO,
        "diffusion-dpo" | "seppo" | "spin" | "sft" => DENOISING,
        "ddpo" | "dpok" => POLICY_GRADIENT,
        _ => "",
    }
}

/// The defaults that the `method` (and `likelihood`) in `given` bring with them. What `given` has besides wins over them.
pub fn method_defaults(given: &Table) -> Table {
    let text = |key: &str| given.get(key).and_then(Value::as_str).map(str::to_owned);
    let name = text("method").unwrap_or_else(|| TrainConfig::default().method);
    let parse = |text: &str| text.parse::<Table>().unwrap_or_default();
    let mut table = parse(of(&name));
    let own = Method::by_name(&name).map(|method| method.likelihood);
    let other = text("likelihood").as_deref() == Some(Likelihood::DenoisingError.name());
    if other && own.is_ok_and(|own| own == Likelihood::Transition) {
        layer(&mut table, parse(DENOISING_LIKELIHOOD));
    }
    table
}

/// What each method has for `key`, where methods differ in it: name and value.
pub fn default_of(key: &str) -> Vec<(&'static str, Value)> {
    let value = |method: &'static Method| {
        let table: Table = of(method.name).parse().unwrap_or_default();
        Some((method.name, table.get(key)?.clone()))
    };
    METHODS.iter().filter_map(value).collect()
}

impl TrainConfig {
    /// Settings from what was given (presets, files and flags, merged) over the method's defaults. Not yet validated.
    ///
    /// Errors: as [`TrainConfig::from_table`].
    pub fn from_layers(given: Table, origin: &str) -> Result<Self> {
        let mut table = method_defaults(&given);
        layer(&mut table, given);
        Self::from_table(table, origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_brings_its_published_settings_and_what_is_given_wins() {
        let config = |text: &str| TrainConfig::from_layers(text.parse().unwrap(), "x").unwrap();
        let of = |text: &str| {
            let config = config(text);
            (config.beta, config.learning_rate, config.clip, config.guidance_scale, config.adam_weight_decay)
        };
        assert_eq!(of(""), (10.0, 6e-5, 0.1, 5.0, 1e-4));
        assert_eq!(of("method = 'd3po'"), (0.1, 3e-5, 0.1, 5.0, 1e-4));
        for method in ["diffusion-dpo", "seppo", "spin", "sft"] {
            assert_eq!(of(&format!("method = '{method}'")), (5000.0, 1e-5, 0.0, 1.0, 1e-2), "{method}");
        }
        assert_eq!(of("method = 'd3po'\nbeta = 3").0, 3.0);
        let online = config("method = 'spo'\nlikelihood = 'denoising-error'");
        assert_eq!((online.beta, online.guidance_scale, online.sampling_guidance()), (5000.0, 1.0, 5.0));
        assert_eq!(default_of("beta").len(), METHODS.len() - 2, "ddpo and dpok have none");
    }

    #[test]
    fn every_layer_is_made_of_known_keys() {
        for text in [D3PO, SPO, POLICY_GRADIENT, DENOISING, DENOISING_LIKELIHOOD] {
            TrainConfig::check_keys(&text.parse().unwrap(), "defaults").unwrap();
        }
    }
}
