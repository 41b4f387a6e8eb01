//! Published settings, and settings tuned for the built-in model, as TOML text.

use super::TrainConfig;
use crate::error::{Error, Result};
use toml::Table;

/// A named set of settings that a user's own keys go on top of.
#[derive(Debug, Clone, Copy)]
pub struct Preset {
    /// The name.
    pub name: &'static str,
    /// Where the settings come from.
    pub source: &'static str,
    layers: &'static [&'static str],
}

/// D3PO's published settings: 400 epochs of 20 prompts, one pair per update.
const D3PO_SD15: &str = r#"
method = "d3po"
beta = 0.1
clip = 0.1
learning_rate = 3e-5
prompts_per_iteration = 20
rollout_batch_size = 10
train_batch_size = 1
max_train_steps = 8000
resolution = 512
judge = "jpeg-compressibility"
checkpointing_steps = 400
validation_steps = 400
"#;

/// SPO's published settings for Stable Diffusion 1.5, with a judge of this version in the step model's place.
const SPO_SD15: &str = r#"
method = "spo"
beta = 10.0
clip = 0.1
learning_rate = 6e-5
rank = 4
candidates = 4
divert_start_step = 4
threshold = 0.3
prompts_per_iteration = 10
rollout_batch_size = 10
train_batch_size = 10
num_train_epochs = 10
resolution = 512
checkpointing_steps = 500
validation_steps = 500
"#;

/// Diffusion-DPO's published settings: effective batch 2048, lr 1e-8 times the batch ("scale_lr").
const DIFFUSION_DPO_SD15: &str = r#"
method = "diffusion-dpo"
beta = 5000.0
guidance_scale = 1.0
learning_rate = 2.048e-5
adam_weight_decay = 1e-2
lr_scheduler = "constant_with_warmup"
lr_warmup_steps = 500
max_train_steps = 2000
prompts_per_iteration = 2048
train_batch_size = 8
gradient_accumulation_steps = 256
resolution = 512
checkpointing_steps = 200
validation_steps = 200
"#;

/// What SPO's published settings for SDXL base change.
const SPO_SDXL: &str = r#"
candidates = 2
prompts_per_iteration = 2
rollout_batch_size = 2
train_batch_size = 2
gradient_accumulation_steps = 2
resolution = 1024
"#;

const SEE: &str = "entropy = { gamma = 1.0 }\n";

/// Small and quick: for the built-in 64x64 model on two CPU cores, one to three minutes a run. In f32, so that runs
/// differ as little as may be between machines.
const EMOJI: &str = r#"
model = "assets/emoji-sd"
dtype = "f32"
prompts = ["cat face", "red apple", "heart", "fish", "tree", "car", "bird", "moon", "dog face", "house", "flower", "sun"]
judge = "colourfulness"
heldout_judge = "jpeg-compressibility"
steps = 10
learning_rate = 3e-3
prompts_per_iteration = 12
rollout_batch_size = 12
max_train_steps = 100
checkpointing_steps = 20
validation_steps = 20
"#;

/// β is ten times the published one: with it the loss, and not the clip alone, keeps the policy near its reference, and
/// γ shows (measured on the built-in model: at β = 10 the clip ends the climb, at 100 it cuts 2 % of the ratios).
const EMOJI_SPO: &str = r#"
method = "spo"
beta = 100.0
candidates = 4
divert_start_step = 2
threshold = 0.3
train_batch_size = 24
"#;

const EMOJI_D3PO: &str = r#"
method = "d3po"
beta = 1.0
learning_rate = 1e-3
train_batch_size = 4
train_micro_batch_size = 16
"#;

/// At γ = 2 the reward rises faster still, but after 120 updates the cats have lost their faces.
const SEE_EMOJI: &str = "entropy = { gamma = 0.5 }\n";

/// Every preset.
pub const PRESETS: &[Preset] = &[
    Preset { name: "d3po-sd15", source: "docs/methods.md section 4.1", layers: &[D3PO_SD15] },
    Preset { name: "see-d3po-sd15", source: "docs/methods.md sections 3 and 4.1", layers: &[D3PO_SD15, SEE] },
    Preset { name: "spo-sd15", source: "docs/methods.md section 4.3", layers: &[SPO_SD15] },
    Preset { name: "see-spo-sd15", source: "docs/methods.md sections 3 and 4.3", layers: &[SPO_SD15, SEE] },
    Preset { name: "diffusion-dpo-sd15", source: "docs/methods.md section 4.2", layers: &[DIFFUSION_DPO_SD15] },
    Preset {
        name: "see-diffusion-dpo-sd15",
        source: "docs/methods.md sections 3 and 4.2",
        layers: &[DIFFUSION_DPO_SD15, SEE],
    },
    Preset { name: "spo-sdxl", source: "docs/methods.md section 4.3", layers: &[SPO_SD15, SPO_SDXL] },
    Preset { name: "see-spo-sdxl", source: "docs/methods.md sections 3 and 4.3", layers: &[SPO_SD15, SPO_SDXL, SEE] },
    Preset { name: "spo-emoji", source: "tuned on the built-in model", layers: &[EMOJI, EMOJI_SPO] },
    Preset { name: "see-spo-emoji", source: "tuned on the built-in model", layers: &[EMOJI, EMOJI_SPO, SEE_EMOJI] },
    Preset { name: "d3po-emoji", source: "tuned on the built-in model", layers: &[EMOJI, EMOJI_D3PO] },
    Preset { name: "see-d3po-emoji", source: "tuned on the built-in model", layers: &[EMOJI, EMOJI_D3PO, SEE_EMOJI] },
];

impl Preset {
    /// The preset called `name`. Errors: [`Error::Setting`] listing the known names.
    pub fn by_name(name: &str) -> Result<&'static Preset> {
        PRESETS.iter().find(|p| p.name == name).ok_or_else(|| Error::Setting {
            key: "preset".into(),
            expected: format!("one of {}", PRESETS.iter().map(|p| p.name).collect::<Vec<_>>().join(", ")),
            found: format!("`{name}`"),
        })
    }

    /// The keys it sets.
    pub fn table(&self) -> Result<Table> {
        let mut table = Table::new();
        for text in self.layers {
            let refuse =
                |e: toml::de::Error| Error::Config { origin: format!("preset {}", self.name), reason: e.to_string() };
            super::layer(&mut table, text.parse().map_err(refuse)?);
        }
        TrainConfig::check_keys(&table, &format!("preset {}", self.name))?;
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_valid_once_model_and_prompts_are_given() {
        for preset in PRESETS {
            let mut table = preset.table().unwrap();
            let from_pairs = preset.name.contains("diffusion-dpo");
            let data = if from_pairs { "pairs_file = 'pairs.jsonl'" } else { "prompts = ['a']" };
            super::super::layer(&mut table, format!("model = 'm'\n{data}").parse().unwrap());
            let config = TrainConfig::from_table(table, preset.name).unwrap();
            config.validate().unwrap_or_else(|e| panic!("{}: {e}", preset.name));
            assert_eq!(config.entropy.gamma > 0.0, preset.name.starts_with("see-"));
        }
        assert!(Preset::by_name("sdxl").unwrap_err().to_string().contains("see-spo-sd15"));
    }
}
