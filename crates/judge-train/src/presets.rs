//! Published settings by name.

use crate::{Part, Settings};

/// A published recipe, as far as its code and paper tell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preset {
    /// What users write.
    pub name: &'static str,
    /// The kind of judge it is of.
    pub kind: &'static str,
    /// Where the numbers come from, and which are uncertain.
    pub source: &'static str,
    steps: u64,
    batch: usize,
    accumulation: usize,
    lr: f64,
    weight_decay: f64,
    schedule: &'static str,
    warmup: u64,
    heldout_share: f64,
    heldout_limit: usize,
}

/// PickScore's, which SPO's step-aware models inherit.
const PICKSCORE: Preset = Preset {
    name: "pickscore-v1",
    kind: "preference",
    source: "PickScore's code; 128 pairs an update (16 x 8 GPUs) are the paper's, the code says 4 a GPU and accumulation 1 \
             or 16",
    steps: 4000,
    batch: 16,
    accumulation: 8,
    lr: 3e-6,
    weight_decay: 0.3,
    schedule: "linear",
    warmup: 500,
    heldout_share: 0.01,
    heldout_limit: 500,
};

/// Every preset.
pub const PRESETS: [Preset; 4] = [
    Preset {
        name: "small-clip",
        kind: "clip",
        source: "our own, for small CLIPs from nothing",
        steps: 3000,
        batch: 128,
        accumulation: 1,
        lr: 1e-3,
        weight_decay: 0.1,
        schedule: "cosine",
        warmup: 100,
        heldout_share: 0.05,
        heldout_limit: 0,
    },
    PICKSCORE,
    Preset {
        name: "spm-sd15",
        kind: "step-aware",
        source: "SPO's code for Stable Diffusion 1.5; 16 pairs on each of 4 GPUs, accumulation uncertain (1 or 16)",
        steps: 8000,
        accumulation: 4,
        ..PICKSCORE
    },
    Preset {
        name: "spm-sdxl",
        kind: "step-aware",
        source: "SPO's code for SDXL, uncertain as spm-sd15; its labels are PickScore's (`seedpo pairs relabel`; SPO keeps \
                 pairs within 0.1 as ties, `relabel` leaves equal scores out)",
        steps: 7000,
        accumulation: 4,
        lr: 1e-6,
        ..PICKSCORE
    },
];

impl Preset {
    /// The preset of this name, if it is one of this kind; without a name the kind's first. `None` where there is none.
    pub fn find(kind: &str, name: Option<&str>) -> Option<&'static Self> {
        PRESETS.iter().find(|preset| preset.kind == kind && name.is_none_or(|name| name == preset.name))
    }

    /// Its settings, with seed 42 as there, the whole dataset, gradients clipped at 1.
    pub fn settings(&self) -> Settings {
        Settings {
            steps: self.steps,
            batch: self.batch,
            accumulation: self.accumulation,
            lr: self.lr,
            weight_decay: self.weight_decay,
            schedule: self.schedule.to_owned(),
            warmup: self.warmup,
            max_grad_norm: 1.0,
            seed: 42,
            heldout_share: self.heldout_share,
            heldout_limit: self.heldout_limit,
            part: Part { index: 1, of: 1 },
        }
    }
}
