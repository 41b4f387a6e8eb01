//! What a folder's sampler has set that ours do not do.

use seedpo_model::SchedulerConfig;
use serde_json::{Value, json};

use super::SamplerKind;

/// Options of diffusers' `EulerDiscreteScheduler` that change its steps, and what is done here.
const EULER: [(&str, &[&str]); 8] = [
    ("final_sigmas_type", &["zero"]),
    ("interpolation_type", &["linear"]),
    ("sigma_max", &[]),
    ("sigma_min", &[]),
    ("timestep_type", &["discrete"]),
    ("use_beta_sigmas", &[]),
    ("use_exponential_sigmas", &[]),
    (KARRAS, &[]),
];

/// The same of `DPMSolverMultistepScheduler`, which takes the second values for the first.
const DPM_SOLVER: [(&str, &[&str]); 12] = [
    ("algorithm_type", &["dpmsolver++", "deis"]),
    ("final_sigmas_type", &["zero"]),
    ("lambda_min_clipped", &[]),
    ("solver_order", &["2"]),
    ("solver_type", &["midpoint", "logrho", "bh1", "bh2"]),
    ("use_beta_sigmas", &[]),
    ("use_dynamic_shifting", &[]),
    ("use_exponential_sigmas", &[]),
    ("use_flow_sigmas", &[]),
    (KARRAS, &[]),
    ("use_lu_lambdas", &[]),
    ("variance_type", &[]),
];

const KARRAS: &str = "use_karras_sigmas";

impl SamplerKind {
    /// What to tell the user of options in the folder's scheduler that diffusers' class of this sampler would take over
    /// (`from_config`), and this one does not. `None` where there are none.
    pub fn passed_over(self, config: &SchedulerConfig) -> Option<String> {
        let options: &[(&str, &[&str])] = match self {
            Self::Ddim | Self::EulerAncestral => &[],
            Self::Euler | Self::EulerKarras => &EULER,
            Self::DpmPlusPlus2M | Self::DpmPlusPlus2MKarras => &DPM_SOLVER,
        };
        let set = |(key, done): &(&str, &[&str])| {
            let value = config.sampler_options.get(*key)?;
            // The ends of a sampler's levels are Karras' own; to the others they are nothing.
            let no_matter = if key.starts_with("sigma_") { !self.karras() } else { *key == KARRAS && self.karras() };
            (!no_matter && !is_off(value) && !done.contains(&spelled(value).as_str())).then(|| format!("{key} {value}"))
        };
        let set: Vec<String> = options.iter().filter_map(set).collect();
        let karras = config.sampler_options.get(KARRAS) == Some(&json!(true)) && !self.karras() && !options.is_empty();
        let advice = if karras { format!("; `{self}-karras` has {KARRAS}") } else { String::new() };
        (!set.is_empty()).then(|| {
            format!(
                "sampler `{self}` passes over what the model's scheduler_config.json says: {}{advice}",
                set.join(", ")
            )
        })
    }
}

/// Whether an option that is off unless it is said has this value.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        // The lowest log-SNR: without limit.
        Value::Number(number) => number.as_f64().is_some_and(|n| n < -1e300),
        _ => false,
    }
}

fn spelled(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn said(kind: SamplerKind, json: &str) -> Option<String> {
        kind.passed_over(&SchedulerConfig::from_json(json, Path::new("scheduler_config.json")).unwrap())
    }

    #[test]
    fn options_that_change_the_steps_are_named() {
        use SamplerKind::{Ddim, DpmPlusPlus2M, DpmPlusPlus2MKarras, Euler, EulerAncestral, EulerKarras};
        for (key, value, kind) in [
            ("interpolation_type", "\"log_linear\"", Euler),
            ("timestep_type", "\"continuous\"", EulerKarras),
            ("sigma_max", "14.5", EulerKarras),
            ("final_sigmas_type", "\"sigma_min\"", Euler),
            ("final_sigmas_type", "\"sigma_min\"", DpmPlusPlus2MKarras),
            ("solver_order", "3", DpmPlusPlus2M),
            ("algorithm_type", "\"sde-dpmsolver++\"", DpmPlusPlus2M),
            ("lambda_min_clipped", "-5.1", DpmPlusPlus2M),
            ("use_karras_sigmas", "true", DpmPlusPlus2M),
        ] {
            let json = format!(r#"{{"{key}": {value}}}"#);
            let text = said(kind, &json).unwrap_or_else(|| panic!("{json}"));
            assert!(text.contains(&format!("{key} {value}")) && text.contains(&kind.to_string()), "{text}");
            assert_eq!((said(Ddim, &json), said(EulerAncestral, &json)), (None, None));
        }
        assert!(
            said(Euler, r#"{"use_karras_sigmas": true}"#).unwrap().ends_with("`euler-karras` has use_karras_sigmas")
        );
        assert_eq!(said(EulerKarras, r#"{"use_karras_sigmas": true}"#), None);
        assert_eq!(said(Euler, r#"{"solver_order": 3, "sigma_max": 14.5}"#), None, "no option of Euler's");
        // As diffusers 0.38 writes it, Python's infinity included.
        let usual = r#"{"algorithm_type": "dpmsolver++", "euler_at_final": false, "final_sigmas_type": "zero", "flow_shift": 1.0,
            "lambda_min_clipped": -Infinity, "lower_order_final": true, "solver_order": 2, "solver_type": "midpoint",
            "use_beta_sigmas": false, "use_karras_sigmas": false, "use_lu_lambdas": false, "variance_type": null}"#;
        assert_eq!((said(DpmPlusPlus2M, usual), said(Euler, usual)), (None, None));
    }
}
