//! Every setting of `seedpo train`: one struct, one table of keys, layered from presets, files and flags.

mod defaults;
mod judge_line;
mod load;
mod preset_texts;
mod presets;
mod validate;

pub use defaults::{default_of, method_defaults};
pub use judge_line::flatten_judges;
pub use load::{layer, parse_value};
pub use presets::{PRESETS, Preset};

use crate::choice::refuse;
use crate::error::Result;
use crate::method::{Likelihood, Method, PairsFrom, ReferencePolicy, Shaping};
use crate::objective::{Clip, Flipper, Objective, SelfEntropy};
use seedpo_model::FinetuningType;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What kind of value a key takes, for command lines that offer every key as a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// A string.
    Text,
    /// A whole number, 0 or more.
    Integer,
    /// A number.
    Number,
    /// A list of strings.
    List,
    /// True or false; a flag without value is true.
    Switch,
}

/// One documented key of [`TrainConfig`].
#[derive(Debug, Clone, Copy)]
pub struct KeyInfo {
    /// The key in TOML (`entropy.gamma` for nested ones); a flag is the same with `_` or `-`.
    pub name: &'static str,
    /// The kind of value.
    pub kind: KeyKind,
    /// The accepted values, in words.
    pub range: &'static str,
    /// What it does, and where its default comes from.
    pub help: &'static str,
}

trait Kinded {
    const KIND: KeyKind;
}
macro_rules! kinded {
    ($($type:ty => $kind:ident),*) => { $(impl Kinded for $type { const KIND: KeyKind = KeyKind::$kind; })* };
}
kinded!(String => Text, u64 => Integer, f64 => Number, Vec<String> => List, bool => Switch);

/// Declares a settings struct, its defaults and its table of keys in one place, so that they cannot drift apart.
macro_rules! settings {
    ($(#[$meta:meta])* $name:ident, $table:ident;
     $($key:ident: $type:ty = $default:expr, $range:literal, $help:literal;)*) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $(#[doc = concat!($help, " Range: ", $range, ".")] pub $key: $type,)* }
        impl Default for $name {
            fn default() -> Self { Self { $($key: $default,)* } }
        }
        const $table: &[KeyInfo] = &[$(KeyInfo {
            name: stringify!($key), kind: <$type as Kinded>::KIND, range: $range, help: $help,
        },)*];
    };
}

/// The keys of the self-entropy term.
const ENTROPY_KEYS: &[KeyInfo] = &[
    KeyInfo {
        name: "entropy.gamma",
        kind: KeyKind::Number,
        range: "above -1 (negative sharpens, and warns)",
        help: "γ of the self-entropy term; 0 is the plain method, bit for bit (docs/methods.md section 3).",
    },
    KeyInfo {
        name: "entropy.form",
        kind: KeyKind::Text,
        range: "flatten | literal-power",
        help: "flatten: κ = 1/(1+γ); literal-power: κ = 1+γ (docs/methods.md section 3).",
    },
];

impl Kinded for SelfEntropy {
    const KIND: KeyKind = KeyKind::Number;
}

settings! {
    /// Every setting of a training run. TOML keys are the field names; unknown keys are refused.
    ///
    /// Defaults are SPO's published ones for Stable Diffusion 1.5 where docs/methods.md section 4.3 states them; what other
    /// methods publish instead is in [`method_defaults`].
    TrainConfig, TABLE;
    model: String = String::new(), "a diffusers folder or a hub id",
        "The base model: a folder in diffusers layout (tokenizer, text_encoder, unet, vae, scheduler), or user/repo.";
    variant: String = String::new(), "a name such as fp16; empty = full precision, where it is there",
        "Which of several sets of weight files to read.";
    prediction_type: String = String::new(), "epsilon | v_prediction | sample; empty = as the model's files say",
        "What the U-Net predicts.";
    tokenizer: String = String::new(), "a folder; empty = the model's own", "A CLIP tokenizer (vocab.json, merges.txt).";
    output_dir: String = "runs".into(), "a folder", "Where run folders are made.";
    name: String = String::new(), "a file name; empty = the method's name",
        "Name of the run folder; if taken, -2, -3, .. is appended.";
    method: String = "spo".into(), "d3po | ddpo | diffusion-dpo | dpok | seppo | sft | spin | spo",
        "The base method (docs/methods.md section 4); set entropy.gamma above 0 for its SEE form.";
    pairs: String = String::new(), "trajectories | steps | images | winners-and-samples | samples | winners; empty = the method's own",
        "Where pairs come from: another method's source than the one named by `method` (docs/methods.md section 4.6).";
    likelihood: String = String::new(), "transition | denoising-error; empty = the method's own",
        "The log-likelihood in the margin, in place of the method's own; sampled pairs are noised anew for denoising-error \
         (docs/methods.md section 4.6).";
    reference: String = String::new(), "initial | latest | random-history | ema; empty = the method's own",
        "The reference policy, in place of the method's own: the base, the newest snapshot of the policy, one drawn anew \
         from all in every update, or a moving average.";
    reference_save_steps: u64 = 30, "1 or more",
        "latest and random-history: a snapshot of the policy every so many updates (docs/methods.md section 4.4).";
    reference_ema_decay: f64 = 0.999, "0 to below 1", "ema: the share of the average that an update leaves in place.";
    flipper: String = String::new(), "sign | indicator | off; empty = the method's own",
        "What becomes of the rejected side where the reference fits the winner better than the policy does \
         (docs/methods.md section 4.4).";
    prompts_file: String = String::new(), ".txt (one a line), .json (strings or objects with caption) or .jsonl",
        "File of training prompts; exactly one of prompts_file and prompts is given.";
    pairs_file: String = String::new(), "a file or folder: JSON lines or lists, parquet, win/ and lose/, ... (docs/data.md)",
        "diffusion-dpo: the dataset of preference pairs; its prompts are the run's. seppo, spin and sft read its winners only.";
    pair_weighting: String = "none".into(), "none | per-prompt",
        "per-prompt: every prompt of the dataset counts the same in the loss, however many pairs it has (docs/data.md).";
    proportion_empty_prompts: f64 = 0.0, "0 to below 1",
        "Share of a dataset's pairs that are trained without their prompt, drawn anew in every pass; 0.2 is common \
         (docs/methods.md section 4.2).";
    random_flip: bool = false, "true | false",
        "Mirror half of a dataset's pairs left to right, both pictures alike, drawn anew in every pass: not for text, or where \
         prompts say left and right.";
    pairs_generator: String = String::new(), "part of a generator's name; empty = all",
        "Only pairs whose both pictures this generator made, where the dataset says so (Pick-a-Pic's model_0, model_1).";
    bad_rows_limit: f64 = 0.01, "0 to 1",
        "Share of a dataset's rows that may be bad: those are counted, reported and passed over; above it the run stops.";
    dataloader_num_workers: u64 = 2, "0 to 64; 0 = none",
        "Threads that decode a dataset's pictures ahead; no effect on the result.";
    prompts: Vec<String> = Vec::new(), "at least one, unless prompts_file or pairs_file is given", "Training prompts, in line.";
    judge: String = "jpeg-compressibility".into(), "a judge's name or line (docs/judges.md)",
        "The judge whose preference is trained on (for spo it scores each step's predicted clean image).";
    judge_scale: f64 = 1.0, "above 0",
        "Factor on the judge's scores before SPO's softmax threshold: 1 for scores in logits, larger for others.";
    heldout_judge: String = String::new(), "as judge; several separated by commas; empty = none",
        "Judges that are never trained on, measured on the validation images to show reward hacking.";
    judge_dtype: String = "f32".into(), "f32 | bf16", "Number type of the judges' weights (docs/judges.md has bf16's error).";
    judge_device: String = String::new(), "cpu, cuda or cuda:N; empty = the model's", "Where judges compute.";
    judge_timeout: u64 = 120, "1 to 86400",
        "Seconds that a process of yours (exec:) may take for one batch of pictures; five times as many for its first.";
    judge_background: String = "auto".into(), "auto | on | off",
        "Whether the judge works on a thread of its own while sampling goes on; auto: where it computes elsewhere, on \
         another device or in a process of yours. No effect on the result.";
    steps: u64 = 20, "1 to 1000", "Denoising steps of the sampler (docs/methods.md section 4.1).";
    eta: f64 = 1.0, "above 0, at most 1", "η of stochastic DDIM; every method uses 1 (docs/methods.md section 2).";
    guidance_scale: f64 = 5.0, "1 or more; 1 = conditional prediction alone",
        "Guidance in rollouts and in training (docs/methods.md section 4.1).";
    sampling_guidance_scale: f64 = 0.0, "1 or more; 0 = guidance_scale",
        "Guidance where nothing is trained on the steps themselves: previews, the reference's samples (seppo, spin), and \
         rollouts with likelihood denoising-error.";
    resolution: u64 = 0, "a multiple of the autoencoder's factor; 0 = the model's own",
        "Height and width of images in pixels.";
    prompts_per_iteration: u64 = 10, "1 or more", "Prompts sampled with one policy before it is updated.";
    rollout_batch_size: u64 = 10, "1 or more",
        "Prompts sampled at once; affects memory and speed only, never which noise a prompt gets.";
    candidates: u64 = 4, "2 to 64", "SPO's K: candidates per step (docs/methods.md section 4.3; 2 for SDXL).";
    divert_start_step: u64 = 4, "0 to steps - 1", "SPO: the first step with candidates (docs/methods.md section 4.3).";
    threshold: f64 = 0.3, "0 to below 1",
        "SPO: a pair is kept if softmax over its two scores differs by more (docs/methods.md section 4.3).";
    beta: f64 = 10.0, "above 0",
        "β of the loss, relative to the method's likelihood: 10 for spo, 0.1 for d3po, 5000 where it is the denoising error \
         (docs/methods.md section 4).";
    entropy: SelfEntropy = SelfEntropy::default(), "see entropy.gamma", "The self-entropy term.";
    clip: f64 = 0.1, "0 to below 1; 0 = off", "ε of the clip on the likelihood ratio (docs/methods.md section 4.1).";
    advantage_clip: f64 = 5.0, "above 0", "ddpo and dpok: advantages are clamped to this size (docs/methods.md section 4.5).";
    reward_history: u64 = 16, "1 or more",
        "ddpo and dpok: the newest rewards of a prompt, whose mean and spread its rewards are compared with.";
    reward_history_min: u64 = 16, "1 to reward_history",
        "ddpo and dpok: below so many rewards of a prompt, those of the whole iteration are compared with.";
    kl_weight: f64 = 0.01, "0 or more", "dpok: weight of the KL to the reference in the loss (docs/methods.md section 4.5).";
    safeguard: bool = false, "true | false",
        "Diffusion-SDPO's safeguard: the loser's gradient is scaled down where it would, to first order, raise the \
         winner's error (docs/stability.md).";
    safeguard_mu: f64 = 0.0, "0 to 1",
        "μ of the safeguard: the share of the winner's own descent that must remain; published: 0.9 (SD1.5), 0.6 (SDXL).";
    learning_rate: f64 = 6e-5, "above 0", "The learning rate: 6e-5 for spo, 3e-5 for d3po.";
    optimizer: String = "adamw".into(), "adamw | adafactor",
        "The optimizer; adafactor (the public Diffusion-DPO code's for SDXL) keeps a fraction of AdamW's state.";
    adam_beta1: f64 = 0.9, "0 to below 1", "AdamW's β1.";
    adam_beta2: f64 = 0.999, "0 to below 1", "AdamW's β2.";
    adam_epsilon: f64 = 1e-8, "above 0", "AdamW's ε.";
    adam_weight_decay: f64 = 1e-4, "0 or more", "Decoupled weight decay.";
    max_grad_norm: f64 = 1.0, "0 or more; 0 = off", "Gradients are scaled down to this norm.";
    finetuning_type: String = "lora".into(), "lora | full",
        "What is trained: an adapter on the frozen base, or every parameter of the U-Net (docs/full-fine-tuning.md; rank and \
         lora_ keys do not apply then).";
    rank: u64 = 4, "1 to 1024", "LoRA rank.";
    lora_alpha: f64 = 0.0, "0 or more; 0 = the rank", "LoRA alpha; the adapter's scale is alpha/rank.";
    lora_targets: Vec<String> = ["to_q", "to_k", "to_v", "to_out.0"].map(String::from).to_vec(),
        "attention | all-linear | names of layers",
        "The layers of the U-Net that get an adapter: attention is to_q,to_k,to_v,to_out.0; all-linear adds ff.net.0.proj,ff.net.2,proj_in,proj_out.";
    lr_scheduler: String = "constant".into(), "constant | constant_with_warmup | linear | cosine | cosine_with_restarts | polynomial",
        "Learning-rate schedule, equal to diffusers.optimization's; all but the constant ones need max_train_steps.";
    lr_warmup_steps: u64 = 0, "0 or more", "Updates over which the learning rate rises from 0.";
    lr_num_cycles: u64 = 1, "1 or more", "Half cosines of the schedule cosine_with_restarts.";
    lr_power: f64 = 1.0, "above 0", "Power of the schedule polynomial, which ends at 1e-7.";
    ema_decay: f64 = 0.0, "0 to below 1; 0 = off",
        "Averages the trained weights over updates as diffusers' EMAModel does, and saves them as a file or folder of their own.";
    max_train_steps: u64 = 0, "0 or more; 0 = no limit", "Stop after this many updates.";
    num_train_epochs: u64 = 0, "0 or more; 0 = no limit", "Stop after this many passes over the prompts.";
    train_batch_size: u64 = 10, "1 or more",
        "Pairs per micro-step; times gradient_accumulation_steps = pairs per update.";
    gradient_accumulation_steps: u64 = 1, "1 or more", "Micro-steps per update.";
    train_micro_batch_size: u64 = 0, "0 or more; 0 = train_batch_size",
        "Pairs whose forward and backward run at once; above train_batch_size, d3po joins several steps of its \
         trajectories. Affects memory and speed only (rounding aside).";
    gradient_checkpointing: bool = false, "true | false",
        "Keep one stage of the U-Net in memory at a time while training, for one more forward pass: the same gradient in a \
         fraction of the memory.";
    guard: String = "stop".into(), "off | stop | skip | back-off | roll-back",
        "What is done when an update is out of line (docs/stability.md): ends the run, leaves the update out, lowers the \
         learning rate for a while, or goes back to the last good checkpoint.";
    guard_loss_factor: f64 = 10.0, "0 or more; 0 = off",
        "A loss, or fall of the winners' reward, this many spreads above its running median is a spike.";
    guard_grad_factor: f64 = 20.0, "0 or more; 0 = off",
        "A gradient norm this many times its running median is a spike.";
    guard_patience: u64 = 3, "1 or more", "Spikes in a row that count as divergence.";
    guard_window: u64 = 50, "10 or more", "Updates that the running medians cover.";
    guard_back_off: f64 = 0.5, "above 0, at most 1",
        "Factor on the learning rate at each back-off or roll-back, taken back after guard_cooldown updates in line.";
    guard_cooldown: u64 = 50, "1 or more", "Updates in line after which one back-off is taken back.";
    guard_limit: u64 = 10, "0 or more",
        "Back-offs or roll-backs of a run, or updates left out in a row, before it ends after all.";
    watch: String = "warn".into(), "off | warn | stop | raise-gamma",
        "What is done when the reward of the previews rises while a held-out score or diversity falls \
         (docs/reward-hacking.md).";
    watch_patience: u64 = 2, "1 or more", "Previews in a row that must show it.";
    watch_standard_errors: f64 = 2.0, "0 or more",
        "Standard errors by which mean scores must have moved to count as risen or fallen.";
    watch_heldout_drop: f64 = 0.8, "0 or more",
        "Standard deviations over pictures by which a held-out score must have fallen; 0.8 is a large effect.";
    watch_diversity_drop: f64 = 0.15, "above 0, below 1",
        "Share by which the median of the diversity metrics must have fallen.";
    watch_gamma_step: f64 = 0.5, "above 0", "What watch = raise-gamma adds to entropy.gamma each time.";
    watch_gamma_max: f64 = 2.0, "0 or more", "The γ at which watch = raise-gamma ends.";
    seed: u64 = 42, "0 to 9223372036854775807", "Key of all randomness.";
    dtype: String = "auto".into(), "auto | f32 | bf16 | f16",
        "Type of the frozen base (auto: bf16 where the machine multiplies it faster; a run records which), and of passes \
         through a U-Net trained whole; trained weights, loss and optimizer stay f32.";
    vae_dtype: String = "auto".into(), "auto | f32 | bf16 | f16",
        "Type of the autoencoder; auto: the base's. In the place of f16 it is f32 where the autoencoder overflows in f16.";
    vae_slicing: bool = false, "true | false", "Decode one picture at a time: less memory.";
    vae_tiling: bool = false, "true | false",
        "Decode pictures larger than the autoencoder's own size in overlapping tiles: less memory, faint seams.";
    device: String = "auto".into(), "auto | cpu | cuda | cuda:N", "Where the model runs.";
    checkpointing_steps: u64 = 50, "1 or more", "A checkpoint every so many updates, and at the end.";
    checkpoints_total_limit: u64 = 3, "0 or more; 0 = keep all", "Older checkpoints are deleted, except the best one.";
    checkpoint_metric: String = String::new(), "reward | heldout | accuracy; empty = none",
        "Keep the best checkpoint too, by the judge's or the held-out judge's mean score of its previews, or by the implicit \
         accuracy of the updates up to it; best.json names it.";
    validation_prompts: Vec<String> = Vec::new(), "any; empty = the first four training prompts",
        "Prompts of the preview grids, drawn with the same noise every time.";
    validation_steps: u64 = 50, "0 or more; 0 = no previews",
        "Preview images before training, every so many updates, and at the end.";
    validation_images_per_prompt: u64 = 4, "1 to 64", "Preview images per prompt; diversity needs at least 2.";
    resume: String = String::new(), "a run folder, a checkpoint folder, or latest; empty = a new run",
        "Continue a run; every other setting must be the run's own, except that the length may grow.";
}

/// All keys with their documentation, nested ones included.
pub fn keys() -> impl Iterator<Item = &'static KeyInfo> {
    TABLE.iter().flat_map(|key| if key.name == "entropy" { ENTROPY_KEYS } else { std::slice::from_ref(key) })
}

/// The text of a setting, of which an empty one says that it is not given.
pub fn given(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

impl TrainConfig {
    /// Which of several sets of weight files the model is read from, where one is named.
    pub fn variant(&self) -> Option<&str> {
        given(&self.variant)
    }

    /// The folder of a tokenizer in the place of the model's own, where one is named.
    pub fn tokenizer(&self) -> Option<&Path> {
        given(&self.tokenizer).map(Path::new)
    }

    /// Pairs that share one optimizer update.
    pub fn pairs_per_update(&self) -> usize {
        (self.train_batch_size * self.gradient_accumulation_steps) as usize
    }

    /// Pairs whose forward and backward run at once.
    pub fn micro_batch(&self) -> usize {
        if self.train_micro_batch_size == 0 {
            self.train_batch_size as usize
        } else {
            self.train_micro_batch_size as usize
        }
    }

    /// The method with its axes as these settings choose them.
    ///
    /// Errors: [`crate::Error::Setting`] for an unknown name, or a combination without meaning, saying why.
    pub fn resolved_method(&self) -> Result<Method> {
        let mut method = Method::by_name(&self.method)?;
        if let Some(name) = given(&self.pairs) {
            method.pairs = PairsFrom::by_name(name)?;
        }
        if let Some(name) = given(&self.likelihood) {
            method.likelihood = Likelihood::by_name(name)?;
        }
        if let Some(name) = given(&self.reference) {
            method.reference = ReferencePolicy::by_name(name)?;
        }
        if let Some(name) = given(&self.flipper) {
            let flipper = Flipper::by_name(name)?;
            if flipper != Flipper::Off || method.flipper() != Flipper::Off {
                method.shaping = Shaping::Flip(flipper);
            }
        }
        method.check()?;
        Ok(method)
    }

    /// β, self-entropy, clip and flipper, as the loss takes them.
    pub fn objective(&self) -> Objective {
        let flipper = self.resolved_method().map_or(Flipper::Off, |method| method.flipper());
        let clip = Clip((self.clip > 0.0).then_some(self.clip));
        let safeguard = self.safeguard.then_some(self.safeguard_mu);
        let kl_weight = self.kl_weight;
        Objective { beta: self.beta, entropy: self.entropy, clip, flipper, safeguard, kl_weight }
    }

    /// Guidance of previews and of the samples that no step of is trained on.
    pub fn sampling_guidance(&self) -> f64 {
        if self.sampling_guidance_scale == 0.0 { self.guidance_scale } else { self.sampling_guidance_scale }
    }

    /// What is trained. Errors: [`crate::Error::Setting`] for an unknown name.
    pub fn finetuning(&self) -> Result<FinetuningType> {
        FinetuningType::from_name(&self.finetuning_type)
            .map_or_else(|| refuse("finetuning_type", FinetuningType::NAMES, &self.finetuning_type), Ok)
    }

    /// LoRA alpha, with 0 resolved to the rank (scale 1).
    pub fn alpha(&self) -> f64 {
        if self.lora_alpha == 0.0 { self.rank as f64 } else { self.lora_alpha }
    }

    /// The run folder's name.
    pub fn run_name(&self) -> String {
        let see = if self.entropy.gamma == 0.0 { "" } else { "see-" };
        if self.name.is_empty() { format!("{see}{}", self.method) } else { self.name.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lists_exactly_the_keys_of_the_struct() {
        let table = toml::Table::try_from(TrainConfig::default()).unwrap();
        let mut flat = Vec::new();
        for (key, value) in &table {
            match value {
                toml::Value::Table(inner) => flat.extend(inner.keys().map(|k| format!("{key}.{k}"))),
                _ => flat.push(key.clone()),
            }
        }
        let mut listed: Vec<_> = keys().map(|k| k.name.to_string()).collect();
        flat.sort();
        listed.sort();
        assert_eq!(flat, listed);
    }
}
