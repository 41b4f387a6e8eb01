//! Named sets of settings: published ones, and ones tuned for the built-in model.

use super::TrainConfig;
use super::preset_texts::*;
use crate::error::{Error, Result};
use toml::Table;

/// A named set of settings that a user's own keys go on top of.
#[derive(Debug, Clone, Copy)]
pub struct Preset {
    /// The name.
    pub name: &'static str,
    /// Where the settings come from.
    pub source: &'static str,
    /// What to know before using it: data, departures, and where a paper and its public code disagree.
    pub notes: &'static [&'static str],
    layers: &'static [&'static str],
}

const PICK_A_PIC: &str = "Data: trained on Pick-a-Pic v2 when published, which the hub no longer serves. Give a local copy, \
    or an open substitute such as HPDv2 (ymhao/HPDv2), ImageRewardDB (zai-org/ImageRewardDB) or open-image-preferences \
    (data-is-better-together/open-image-preferences-v1-binarized), with pairs_file.";
const DPO_RATE: &str = "Paper against code: the paper states a learning rate of 2000/beta x 2.048e-8 (8.2e-9 at beta 5000); \
    the public launcher passes 1e-8 with --scale_lr, which multiplies it by the batch of 2048: 2.048e-5. The code's is used.";
const LORA_FOR_FULL: &str = "Departure: published as full fine-tuning; here an adapter is trained, for which this learning \
    rate is on the low side. The preset without `lora` in its name trains the whole U-Net.";
const WHOLE: &str = "Full fine-tuning, as published: every parameter of the U-Net, which takes gigabytes of memory and of disk \
    (docs/full-fine-tuning.md; --dry-run measures it). The preset with `lora` in its name trains an adapter instead.";
const SNAPSHOTS: &str = "Disk: a snapshot of the whole U-Net stays in the run folder for every reference_save_steps updates \
    (Stable Diffusion 1.5 in bf16: 1.7 GB each, 66 over the run); a larger reference_save_steps keeps fewer.";
const SPO_JUDGE: &str = "Judge: published with its step-aware preference model (`seedpo judge list`); with another judge set \
    judge_scale so that the scores of candidates differ by about 1.";
const SPO_XL: &str = "Paper against code: rank 64, learning rate 1e-5 and threshold 0.4 are the public SDXL configuration's, \
    which differ from the paper's table for SD 1.5; its num_inner_step = 3 has no counterpart here.";
const D3PO_BATCHES: &str = "Paper against code: the paper's experiments name rewards and prompts of their own; the numbers are \
    those of the public config/base.py, which has one pair per update and accumulates over the 20 steps.";
const DPO_LORA: &str =
    "Source: diffusers' research project diffusion_dpo. Its beta is 2500 by default, half the paper's.";
const SEPPO_CODE: &str = "SePPO has no public training code: implemented from the paper. Snapshots every 30 updates and their \
    random choice are the paper's; beta, batch and learning rate (1e-8 times the batch; for an adapter that of diffusers' script) \
    are ours, after Diffusion-DPO.";
const SEE_BETA: &str = "SEE form: with gamma above 0 and the sign flipper both sides' constants add up where s = -1, so beta is \
    far below 5000 (docs/paper-index.md).";
const SPIN_CODE: &str = "Source: the model cards of SPIN-Diffusion (learning rate 2e-5, batch 2048, warm-up 200, 500 updates a \
    round). Departure: one linear decay over all three rounds; beta as Diffusion-DPO's.";
const SFT_CODE: &str = "Supervision on the winners alone: the baseline of Diffusion-DPO's train_method = sft. There is no beta and \
    no SEE form: without a reference there is nothing to flatten.";
const DDPO_CODE: &str = "Source: the PyTorch code kvablack/ddpo-pytorch, config/base.py (LoRA, learning rate, 16 rewards a prompt) and \
    config/dgx.py (samples and batch). Paper against code: its config clips advantages at 10; 5, which trl's trainer has too, is used. \
    Departure: its prompts are drawn with replacement, here each is visited equally often.";
const DPOK_CODE: &str = "Source: google-research/dpok, train_online_pg.py (learning rate, gradient norm, KL weight). Departures: DDPO's \
    advantages in the place of its learned value function, DDPO's two-sided clipped objective, and the KL of the paper, where the code \
    penalises the squared difference of noise predictions.";
const EMOJI_PAIRS: &str = "Data: pictures of the built-in model itself serve as pairs: `seedpo rollout --preset d3po-emoji \
    --num-train-epochs 12 --images pairs`, then --pairs-file pairs (docs/methods.md section 4.7).";

macro_rules! presets {
    ($($name:literal: $source:literal, [$($layer:ident),*], [$($note:ident),*];)*) => {
        /// Every preset.
        pub const PRESETS: &[Preset] = &[$(Preset {
            name: $name, source: $source, notes: &[$($note),*], layers: &[$($layer),*],
        },)*];
    };
}

presets! {
    "d3po-sd15": "docs/methods.md section 4.1", [D3PO_SD15], [D3PO_BATCHES];
    "see-d3po-sd15": "docs/methods.md sections 3 and 4.1", [D3PO_SD15, SEE], [D3PO_BATCHES];
    "spo-sd15": "docs/methods.md section 4.3", [SPO_SD15], [SPO_JUDGE];
    "see-spo-sd15": "docs/methods.md sections 3 and 4.3", [SPO_SD15, SEE], [SPO_JUDGE];
    "spo-sdxl": "docs/methods.md section 4.3", [SPO_SD15, SPO_SDXL], [SPO_JUDGE, SPO_XL];
    "see-spo-sdxl": "docs/methods.md sections 3 and 4.3", [SPO_SD15, SPO_SDXL, SEE], [SPO_JUDGE, SPO_XL];
    "ddpo-sd15": "docs/methods.md section 4.5", [DDPO_SD15], [DDPO_CODE];
    "dpok-sd15": "docs/methods.md section 4.5", [DDPO_SD15, DPOK_SD15], [DPOK_CODE];
    "diffusion-dpo-sd15": "docs/methods.md section 4.2", [DIFFUSION_DPO_SD15, FULL], [DPO_RATE, WHOLE, PICK_A_PIC];
    "see-diffusion-dpo-sd15": "docs/methods.md sections 3 and 4.2", [DIFFUSION_DPO_SD15, FULL, SEE],
        [DPO_RATE, WHOLE, PICK_A_PIC];
    "diffusion-dpo-sdxl": "docs/methods.md section 4.2", [DIFFUSION_DPO_SD15, DIFFUSION_DPO_SDXL, FULL],
        [DPO_RATE, WHOLE, PICK_A_PIC];
    "see-diffusion-dpo-sdxl": "docs/methods.md sections 3 and 4.2", [DIFFUSION_DPO_SD15, DIFFUSION_DPO_SDXL, FULL, SEE],
        [DPO_RATE, WHOLE, PICK_A_PIC];
    "diffusion-dpo-lora-sdxl": "docs/methods.md section 4.2", [DIFFUSION_DPO_SD15, DIFFUSION_DPO_SDXL],
        [DPO_RATE, LORA_FOR_FULL, PICK_A_PIC];
    "see-diffusion-dpo-lora-sdxl": "docs/methods.md sections 3 and 4.2", [DIFFUSION_DPO_SD15, DIFFUSION_DPO_SDXL, SEE],
        [DPO_RATE, LORA_FOR_FULL, PICK_A_PIC];
    "diffusion-dpo-lora-sd15": "diffusers' diffusion_dpo script", [DIFFUSION_DPO_LORA], [DPO_LORA, PICK_A_PIC];
    "see-diffusion-dpo-lora-sd15": "docs/methods.md section 3", [DIFFUSION_DPO_LORA, SEE], [DPO_LORA, PICK_A_PIC];
    "seppo-sd15": "docs/methods.md section 4.4", [SEPPO_SD15, SEPPO_FULL], [SEPPO_CODE, WHOLE, SNAPSHOTS, PICK_A_PIC];
    "see-seppo-sd15": "docs/methods.md sections 3 and 4.4", [SEPPO_SD15, SEPPO_FULL, SEE_SEPPO],
        [SEPPO_CODE, SEE_BETA, WHOLE, SNAPSHOTS, PICK_A_PIC];
    "seppo-lora-sd15": "docs/methods.md section 4.4", [SEPPO_SD15, LORA_8], [SEPPO_CODE, PICK_A_PIC];
    "see-seppo-lora-sd15": "docs/methods.md sections 3 and 4.4", [SEPPO_SD15, LORA_8, SEE_SEPPO],
        [SEPPO_CODE, SEE_BETA, PICK_A_PIC];
    "spin-sd15": "docs/methods.md section 4.5", [SPIN_SD15, FULL], [SPIN_CODE, WHOLE, PICK_A_PIC];
    "see-spin-sd15": "docs/methods.md sections 3 and 4.5", [SPIN_SD15, FULL, SEE], [SPIN_CODE, WHOLE, PICK_A_PIC];
    "spin-lora-sd15": "docs/methods.md section 4.5", [SPIN_SD15, LORA_8], [SPIN_CODE, LORA_FOR_FULL, PICK_A_PIC];
    "see-spin-lora-sd15": "docs/methods.md sections 3 and 4.5", [SPIN_SD15, LORA_8, SEE],
        [SPIN_CODE, LORA_FOR_FULL, PICK_A_PIC];
    "sft-sd15": "docs/methods.md section 4.5", [DIFFUSION_DPO_SD15, SFT_SD15, FULL],
        [SFT_CODE, DPO_RATE, WHOLE, PICK_A_PIC];
    "sft-lora-sd15": "docs/methods.md section 4.5", [SFT_LORA_SD15], [SFT_CODE, PICK_A_PIC];
    "spo-emoji": "tuned on the built-in model", [EMOJI, EMOJI_SPO], [];
    "see-spo-emoji": "tuned on the built-in model", [EMOJI, EMOJI_SPO, SEE_EMOJI], [];
    "d3po-emoji": "tuned on the built-in model", [EMOJI, EMOJI_D3PO], [];
    "see-d3po-emoji": "tuned on the built-in model", [EMOJI, EMOJI_D3PO, SEE_EMOJI], [];
    "ddpo-emoji": "tuned on the built-in model", [EMOJI, EMOJI_DDPO], [];
    "diffusion-dpo-emoji": "tuned on the built-in model", [EMOJI, EMOJI_FILES, EMOJI_DIFFUSION_DPO], [EMOJI_PAIRS];
    "see-diffusion-dpo-emoji": "as diffusion-dpo-emoji", [EMOJI, EMOJI_FILES, EMOJI_DIFFUSION_DPO, SEE_EMOJI, EMOJI_SEE_FILES],
        [EMOJI_PAIRS];
    "seppo-emoji": "tuned on the built-in model", [EMOJI, EMOJI_FILES, EMOJI_SEPPO], [EMOJI_PAIRS];
    "see-seppo-emoji": "as seppo-emoji", [EMOJI, EMOJI_FILES, EMOJI_SEPPO, SEE_EMOJI, EMOJI_SEE_SEPPO],
        [EMOJI_PAIRS, SEE_BETA];
    "spin-emoji": "tuned on the built-in model", [EMOJI, EMOJI_FILES, EMOJI_SPIN], [EMOJI_PAIRS];
    "see-spin-emoji": "as spin-emoji", [EMOJI, EMOJI_FILES, EMOJI_SPIN, SEE_EMOJI, EMOJI_SEE_FILES], [EMOJI_PAIRS];
    "sft-emoji": "tuned on the built-in model", [EMOJI, EMOJI_FILES, EMOJI_SFT], [EMOJI_PAIRS];
}

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
    fn every_preset_is_valid_once_model_and_data_are_given() {
        for preset in PRESETS {
            let mut table = preset.table().unwrap();
            let method = crate::Method::by_name(table["method"].as_str().unwrap()).unwrap();
            let data = if method.pairs.from_files() { "pairs_file = 'pairs.jsonl'" } else { "prompts = ['a']" };
            super::super::layer(&mut table, format!("model = 'm'\n{data}").parse().unwrap());
            let config = TrainConfig::from_layers(table, preset.name).unwrap();
            let (_, warnings) = config.validate().unwrap_or_else(|e| panic!("{}: {e}", preset.name));
            assert!(warnings.is_empty(), "{}: {warnings:?}", preset.name);
            assert_eq!(config.entropy.gamma > 0.0, preset.name.starts_with("see-"));
            assert!(preset.name.contains(method.name), "{}", preset.name);
            // What is published as full fine-tuning, and the methods on image files were, says so where it is not.
            let whole = method.pairs.from_files() && preset.name.contains("-sd") && !preset.name.contains("-lora-");
            assert_eq!(config.finetuning_type == "full", whole, "{}", preset.name);
        }
        assert!(Preset::by_name("sdxl").unwrap_err().to_string().contains("see-spo-sd15"));
    }
}
