//! Judges by the names users write: what each needs, where that lies, under which licence.

use crate::{Error, Result};

/// One row of the list that `seedpo judge list` and the documentation show.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct JudgeInfo {
    /// The name to write in a configuration.
    pub name: &'static str,
    /// Other spellings that are understood.
    pub aliases: &'static [&'static str],
    /// The unit of its scores.
    pub unit: &'static str,
    /// Whether its score depends on the prompt.
    pub reads_prompt: bool,
    /// What it rewards, in one line.
    pub description: &'static str,
    /// The published weights; empty for judges that have none. Its own repository comes first; the others hold what it needs
    /// besides, as other models do.
    pub weights: &'static [HubFile],
    /// The folder below `assets/` where the weights of a judge of the built-in world lie; empty for the others.
    pub asset: &'static str,
    /// Bytes to download, in MB; 0 where there is nothing to.
    pub megabytes: u32,
    /// The weights' licence, as their authors state it.
    pub licence: &'static str,
    /// Mean and spread of scores on Stable Diffusion 1.5's pictures (of the built-in world's judges on the built-in model's):
    /// what ensembles normalise by.
    pub typical: (f64, f64),
}

impl JudgeInfo {
    /// Whether it has weights to load.
    pub fn has_weights(&self) -> bool {
        !self.weights.is_empty() || !self.asset.is_empty()
    }

    /// The files of its own repository.
    pub fn own_weights(&self) -> impl Iterator<Item = &'static HubFile> {
        let own = self.weights.first().map(|weights| weights.repo);
        self.weights.iter().filter(move |weights| Some(weights.repo) == own)
    }

    /// The files that it needs besides, which lie in other models' repositories.
    pub fn other_weights(&self) -> impl Iterator<Item = &'static HubFile> {
        let own = self.weights.first().map(|weights| weights.repo);
        self.weights.iter().filter(move |weights| Some(weights.repo) != own)
    }

    /// Whether its network knows the timestep.
    pub fn step_aware(&self) -> bool {
        ["spm", "spm-sdxl", "emoji-step-aware"].contains(&self.name)
    }
}

/// A file in a public repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubFile {
    /// `user/repo`.
    pub repo: &'static str,
    /// Its path there.
    pub file: &'static str,
}

const fn file(repo: &'static str, file: &'static str) -> HubFile {
    HubFile { repo, file }
}

const CLIP_L: &str = "openai/clip-vit-large-patch14";
const SPM: &str = "SPO-Diffusion-Models/Step-Aware_Preference_Models";
const NO_WEIGHTS: JudgeInfo = JudgeInfo {
    name: "",
    aliases: &[],
    unit: "",
    reads_prompt: false,
    description: "",
    weights: &[],
    asset: "",
    megabytes: 0,
    licence: "-",
    typical: (0.0, 1.0),
};

/// What the judges of the built-in world share (docs/judges.md, "Training a judge").
const EMOJI: JudgeInfo =
    JudgeInfo { unit: "logit", reads_prompt: true, licence: "Apache-2.0 (as the emoji)", ..NO_WEIGHTS };

const CATALOGUE: [JudgeInfo; 18] = [
    JudgeInfo {
        name: "pickscore",
        aliases: &["pickscore-v1", "pick-score"],
        unit: "logit",
        reads_prompt: true,
        description: "PickScore v1: human preference for the prompt (CLIP-H tuned on Pick-a-Pic)",
        weights: &[
            file("yuvalkirstain/PickScore_v1", "config.json"),
            file("yuvalkirstain/PickScore_v1", "model.safetensors"),
        ],
        megabytes: 3945,
        licence: "none stated (code MIT)",
        typical: (20.5, 1.2),
        ..NO_WEIGHTS
    },
    JudgeInfo {
        name: "hpsv2",
        aliases: &["hps", "hps-v2", "hpsv2.0", "hps-v2.0"],
        unit: "cosine",
        reads_prompt: true,
        description: "HPS v2: human preference score (CLIP-H tuned on HPDv2), pictures padded to a square",
        weights: &[file("xswu/HPSv2", "HPS_v2_compressed.pt")],
        megabytes: 1972,
        licence: "Apache-2.0",
        typical: (0.265, 0.015),
        ..NO_WEIGHTS
    },
    JudgeInfo {
        name: "hpsv2.1",
        aliases: &["hps-v2.1", "hpsv21", "hps2.1", "hpsv2-1", "hps-v2-1", "hps2-1"],
        unit: "cosine",
        reads_prompt: true,
        description: "HPS v2.1: the same trained on more and cleaner preferences; not comparable with v2",
        weights: &[file("xswu/HPSv2", "HPS_v2.1_compressed.pt")],
        megabytes: 1972,
        licence: "Apache-2.0",
        typical: (0.24, 0.03),
        ..NO_WEIGHTS
    },
    JudgeInfo {
        name: "hpsv2-no-antialias",
        aliases: &[],
        unit: "cosine",
        reads_prompt: true,
        description: "HPS v2 as torchvision before 0.17 resized, without antialias",
        weights: &[file("xswu/HPSv2", "HPS_v2_compressed.pt")],
        megabytes: 1972,
        licence: "Apache-2.0",
        typical: (0.265, 0.015),
        ..NO_WEIGHTS
    },
    JudgeInfo {
        name: "hpsv2.1-no-antialias",
        aliases: &[],
        unit: "cosine",
        reads_prompt: true,
        description: "HPS v2.1 as torchvision before 0.17 resized, without antialias",
        weights: &[file("xswu/HPSv2", "HPS_v2.1_compressed.pt")],
        megabytes: 1972,
        licence: "Apache-2.0",
        typical: (0.24, 0.03),
        ..NO_WEIGHTS
    },
    JudgeInfo {
        name: "imagereward",
        aliases: &["image-reward", "imagereward-v1.0"],
        unit: "σ",
        reads_prompt: true,
        description: "ImageReward v1.0: human preference for the prompt (BLIP), near standard normal",
        weights: &[file("THUDM/ImageReward", "ImageReward.pt"), file("google-bert/bert-base-uncased", "vocab.txt")],
        megabytes: 1787,
        licence: "Apache-2.0",
        typical: (0.0, 1.0),
        ..NO_WEIGHTS
    },
    JudgeInfo {
        name: "aesthetic",
        aliases: &["laion-aesthetic", "aesthetics", "aesthetic-predictor", "aesthetic-v2"],
        unit: "points",
        description: "LAION's aesthetic predictor (sac+logos+ava1-l14-linearMSE), 1 to 10; ignores the prompt",
        weights: &[
            file("trl-lib/ddpo-aesthetic-predictor", "aesthetic-model.pth"),
            file(CLIP_L, "config.json"),
            file(CLIP_L, "model.safetensors"),
        ],
        megabytes: 1714,
        licence: "Apache-2.0 (head), MIT (CLIP)",
        typical: (5.4, 0.5),
        ..NO_WEIGHTS
    },
    JudgeInfo {
        name: "clipscore",
        aliases: &["clip-score", "clip"],
        unit: "2.5·cosine",
        reads_prompt: true,
        description: "CLIPScore: agreement of picture and prompt (OpenAI's ViT-B/32), 0 and above",
        weights: &[
            file("openai/clip-vit-base-patch32", "config.json"),
            file("openai/clip-vit-base-patch32", "pytorch_model.bin"),
        ],
        megabytes: 605,
        licence: "MIT",
        typical: (0.75, 0.08),
        ..NO_WEIGHTS
    },
    JudgeInfo {
        name: "spm",
        aliases: &[
            "step-aware",
            "stepaware",
            "spm-sd15",
            "step-aware-preference",
            "step-aware-preference-model",
            "spm-sd-v1-5",
        ],
        unit: "logit",
        reads_prompt: true,
        description: "SPO's step-aware preference model for SD 1.5: judges x̂0 at any timestep (0: a finished picture)",
        weights: &[file(SPM, "sd-v1-5_step-aware_preference_model.bin")],
        megabytes: 5225,
        licence: "Apache-2.0",
        typical: (20.5, 1.2),
        ..NO_WEIGHTS
    },
    JudgeInfo {
        name: "spm-sdxl",
        aliases: &["step-aware-sdxl"],
        unit: "logit",
        reads_prompt: true,
        description: "SPO's step-aware preference model for SDXL",
        weights: &[file(SPM, "sdxl_step-aware_preference_model.bin")],
        megabytes: 5225,
        licence: "Apache-2.0",
        typical: (20.5, 1.2),
        ..NO_WEIGHTS
    },
    JudgeInfo {
        name: "jpeg-compressibility",
        aliases: &["compressibility"],
        unit: "kB",
        description: "minus the size as JPEG at quality 95: rewards flat, smooth images",
        typical: (-120.0, 50.0),
        ..NO_WEIGHTS
    },
    JudgeInfo {
        name: "jpeg-incompressibility",
        aliases: &["incompressibility"],
        unit: "kB",
        description: "the size as JPEG at quality 95: rewards texture and detail",
        typical: (120.0, 50.0),
        ..NO_WEIGHTS
    },
    JudgeInfo {
        name: "colourfulness",
        aliases: &["colorfulness"],
        unit: "M",
        description: "Hasler and Süsstrunk's M: rewards vivid, varied colour (0 grey, 30 average, 100 extreme)",
        typical: (40.0, 20.0),
        ..NO_WEIGHTS
    },
    JudgeInfo {
        name: "chroma",
        unit: "%",
        description: "mean of max − min of R, G, B: rewards much and strong colour (0 grey, 100 one pure colour)",
        typical: (25.0, 12.0),
        ..NO_WEIGHTS
    },
    JudgeInfo {
        name: "emoji-preference",
        description: "for emoji: prefers the prompt's subject, large and saturated (trained by `make judges`)",
        asset: "judges/preference",
        typical: (10.5, 4.2),
        ..EMOJI
    },
    JudgeInfo {
        name: "emoji-step-aware",
        description: "the same at any timestep, for SPO on the built-in model",
        asset: "judges/step-aware",
        typical: (7.6, 4.9),
        ..EMOJI
    },
    JudgeInfo {
        name: "emoji-heldout",
        description: "as emoji-preference, from other emoji and another seed: for --heldout-judge",
        asset: "judges/heldout",
        typical: (12.1, 3.6),
        ..EMOJI
    },
    JudgeInfo {
        name: "emoji-clip",
        description: "for emoji: agreement of picture and name, what emoji-preference was trained from",
        asset: "judges/clip",
        typical: (8.1, 2.6),
        ..EMOJI
    },
];

/// Every judge with a name, in the order of the documentation.
pub fn names() -> &'static [JudgeInfo] {
    &CATALOGUE
}

/// The judge of this name. Case and `_` for `-` do not matter.
///
/// Errors: [`Error::UnknownJudge`] with the nearest known name.
pub fn info(name: &str) -> Result<&'static JudgeInfo> {
    let wanted = name.trim().to_lowercase().replace(['_', ' '], "-");
    let found = CATALOGUE.iter().find(|info| info.name == wanted || info.aliases.contains(&wanted.as_str()));
    found.ok_or_else(|| unknown(name, &wanted))
}

fn unknown(name: &str, normalised: &str) -> Error {
    let nearest = CATALOGUE.iter().min_by_key(|info| strsim::levenshtein(normalised, info.name));
    let nearest = nearest.map(|info| info.name).unwrap_or_default().to_owned();
    let known = CATALOGUE.map(|info| info.name).join(", ");
    Error::UnknownJudge { name: name.to_owned(), nearest, known }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_aliases_are_unique_and_found() {
        let mut all: Vec<&str> = CATALOGUE.iter().flat_map(|i| i.aliases.iter().copied().chain([i.name])).collect();
        for name in &all {
            assert!(info(name).is_ok() && info(&name.to_uppercase().replace('-', "_")).is_ok(), "{name}");
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn what_reads_a_prompt_is_what_has_a_text_tower_to_read_it() {
        let blind: Vec<&str> = names().iter().filter(|info| !info.reads_prompt).map(|info| info.name).collect();
        let expected = ["aesthetic", "jpeg-compressibility", "jpeg-incompressibility", "colourfulness", "chroma"];
        assert_eq!(blind, expected);
    }

    #[test]
    fn unknown_names_get_the_nearest() {
        for (wrong, nearest) in [
            ("jpeg-compresibility", "jpeg-compressibility"),
            ("jpg-incompressibility", "jpeg-incompressibility"),
            ("colorful", "colourfulness"),
            ("pikscore", "pickscore"),
        ] {
            let Err(Error::UnknownJudge { nearest: found, .. }) = info(wrong) else { panic!("{wrong} was accepted") };
            assert_eq!(found, nearest, "{wrong}");
        }
        let text = info("nice").err().unwrap().to_string();
        assert!(text.contains("`nice`") && names().iter().all(|info| text.contains(info.name)), "{text}");
    }
}
