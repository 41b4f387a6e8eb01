//! The settings as they take effect, and what they will cost.

use super::Trainer;
use super::state::samples_itself;
use crate::error::Result;
use crate::method::{Likelihood, PairsFrom, ReferencePolicy};
use crate::observer::EffectiveSettings;
use seedpo_model::FinetuningType;
use std::time::Instant;

impl Trainer<'_> {
    /// Everything worth knowing before a run, measured where that is cheap: one U-Net pass is timed.
    pub fn effective_settings(&mut self) -> Result<EffectiveSettings> {
        let (config, model) = (&self.parts.config, self.parts.model);
        let per_update = config.pairs_per_update();
        let mut lines: Vec<(String, String)> = Vec::new();
        let mut line = |name: &str, value: String| lines.push((name.to_string(), value));
        line("run folder", self.parts.run.path().display().to_string());
        line("model", format!("{} ({:?} on {:?})", config.model, model.unet.kind(), model.device()));
        let pairs_from = match self.method.pairs {
            PairsFrom::Trajectories => "two trajectories per prompt".to_string(),
            PairsFrom::Samples => "none: single trajectories and their rewards".to_string(),
            PairsFrom::Images => format!("{} of image files", self.items()),
            PairsFrom::WinnersAndSamples => {
                format!("{} winners of image files against the reference's samples", self.items())
            }
            PairsFrom::Winners => {
                format!("{} winners of image files, compared with nothing", self.items())
            }
            PairsFrom::Steps => {
                format!("{} candidates a step from step {}", config.candidates, config.divert_start_step)
            }
        };
        let stored = self.parts.store.as_ref();
        let stored = stored.map_or_else(String::new, |store| format!(", stored in {}", store.path().display()));
        line("method", format!("{}: pairs from {pairs_from}{stored}", self.method.name));
        let reference = match self.method.reference {
            ReferencePolicy::None => "none: supervision".to_string(),
            ReferencePolicy::Initial => "the base".to_string(),
            ReferencePolicy::Latest => {
                format!("the newest snapshot, one every {} updates", config.reference_save_steps)
            }
            ReferencePolicy::RandomHistory => {
                format!("one of the snapshots, taken every {} updates, drawn per update", config.reference_save_steps)
            }
            ReferencePolicy::Ema => format!("a moving average, decay {}", config.reference_ema_decay),
        };
        let flipper = format!("{:?}", self.method.flipper()).to_lowercase();
        line("reference", format!("{reference}; likelihood {}; flipper {flipper}", self.method.likelihood.name()));
        let heldout: Vec<&str> = self.parts.heldout.iter().map(|judge| judge.name()).collect();
        line(
            "judge",
            format!(
                "{} ({}), held out: {}",
                config.judge,
                self.parts.judge.unit(),
                if heldout.is_empty() { "none".to_string() } else { heldout.join(", ") }
            ),
        );
        line("prompts", format!("{}, {} per iteration", self.parts.prompts.len(), config.prompts_per_iteration));
        let [channels, height, width] = [0, 1, 2].map(|i| self.latent_shape[i]);
        line(
            "latents",
            format!(
                "{channels}x{height}x{width}, {} steps, eta {}, guidance {} in training, {} in previews",
                config.steps,
                config.eta,
                config.guidance_scale,
                config.sampling_guidance()
            ),
        );
        let pairs = match self.method.pairs {
            PairsFrom::Trajectories => "trajectory pairs",
            PairsFrom::Steps => "step pairs",
            PairsFrom::Images => "image pairs",
            PairsFrom::WinnersAndSamples => "pairs of winner and sample",
            PairsFrom::Winners => "winners",
            PairsFrom::Samples => "trajectories",
        };
        line("batch", format!("{per_update} {pairs} per update, {} at once", self.pairs_at_once()));
        match self.method.pairs {
            PairsFrom::Samples => {
                line("clip, advantages", format!("{}, at most {}", config.clip, config.advantage_clip))
            }
            _ => {
                let (kappa, gamma) = (config.entropy.kappa(), config.entropy.gamma);
                line("beta, kappa, clip", format!("{}, {kappa:.4} (gamma {gamma}), {}", config.beta, config.clip));
            }
        }
        let (rate, warmup) = (config.learning_rate, config.lr_warmup_steps);
        line("learning rate", format!("{rate:e}, {}, warm-up {warmup}, {}", config.lr_scheduler, config.optimizer));
        let safeguard = if config.safeguard { format!(", safeguard {}", config.safeguard_mu) } else { String::new() };
        line("guard", format!("{}{safeguard}", config.guard));
        let (count, alpha) = (self.weights.parameter_count(), config.alpha());
        match self.weights.finetuning_type() {
            FinetuningType::Lora => {
                let (rank, targets) = (config.rank, config.lora_targets.join(", "));
                line("adapter", format!("LoRA rank {rank}, alpha {alpha}, {count} parameters on {targets}"));
            }
            FinetuningType::Full => {
                line("fine-tuning", format!("full: all {count} parameters of the U-Net, f32"));
                line("disk", self.disk_line());
            }
        }
        let length = |n: u64, unit: &str| if n == 0 { String::new() } else { format!("{n} {unit}") };
        let lengths = [length(config.max_train_steps, "updates"), length(config.num_train_epochs, "epochs")];
        line("length", lengths.iter().filter(|s| !s.is_empty()).cloned().collect::<Vec<_>>().join(" or "));
        line("images per epoch", (self.items() * self.images_per_prompt()).to_string());
        line("seed", config.seed.to_string());
        let total = self.total_steps();
        let began = Instant::now();
        let forecast = self.forecast(false)?;
        tracing::debug!(seconds = began.elapsed().as_secs_f64(), "memory and time forecast");
        lines.push(("time expected".into(), forecast.time_line()));
        lines.push(("memory expected".into(), forecast.memory_line()));
        let config = &self.parts.config;
        let mut warnings = self.warnings.clone();
        warnings.extend(forecast.warning(config));
        Ok(EffectiveSettings {
            lines,
            warnings,
            memory_advice: forecast.advice(config),
            start_step: self.position.step,
            total_steps: total,
        })
    }

    /// What checkpoints of a whole U-Net take on disk.
    fn disk_line(&self) -> String {
        let config = &self.parts.config;
        let kept = match config.checkpoints_total_limit {
            0 => "all are kept".to_string(),
            n => format!("{n} are kept"),
        };
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        let history = match self.snapshot_bytes() {
            0 => String::new(),
            bytes => format!(
                "; a snapshot of {:.2} GiB every {} updates, in reference_history/",
                gib(bytes),
                config.reference_save_steps
            ),
        };
        format!("{:.2} GiB per checkpoint, {kept}{history}", gib(self.checkpoint_bytes()))
    }

    /// Bytes of a checkpoint's tensors.
    fn checkpoint_bytes(&self) -> u64 {
        let f32s = 4 * self.weights.parameter_count() as u64;
        let average = if self.average.is_some() { f32s } else { 0 };
        let ema = if self.method.reference == ReferencePolicy::Ema { f32s } else { 0 };
        let sampled = samples_itself(&self.parts.config, &self.method);
        let rollout = if sampled { self.weights_bytes() } else { 0 };
        f32s + average + ema + rollout + self.optimizer.state_bytes()
    }

    /// Bytes of the policy in the number type it computes in.
    fn weights_bytes(&self) -> u64 {
        self.weights.parameter_count() as u64 * self.parts.model.unet.kind().elt_size_in_bytes() as u64
    }

    /// Bytes of a snapshot that the reference policy is read from; 0 where none is.
    fn snapshot_bytes(&self) -> u64 {
        if self.references.reads_snapshots() { self.weights_bytes() } else { 0 }
    }

    /// Bytes that a run of whole weights will hold besides what its pieces do: the policy that drew an iteration's samples,
    /// and a past one.
    pub(super) fn later_bytes(&self) -> u64 {
        let whole = self.weights.finetuning_type() == FinetuningType::Full;
        let sampled = whole && samples_itself(&self.parts.config, &self.method);
        self.snapshot_bytes() + if sampled { self.weights_bytes() } else { 0 }
    }

    /// Pairs of one step each that run at once; D3PO's are joined over steps.
    fn pairs_at_once(&self) -> usize {
        let config = &self.parts.config;
        let steps = if self.joins_steps() { config.steps as usize } else { 1 };
        config.micro_batch().min(config.pairs_per_update() * steps)
    }

    fn images_per_prompt(&self) -> usize {
        match self.method.pairs {
            PairsFrom::Trajectories | PairsFrom::Images | PairsFrom::WinnersAndSamples => 2,
            PairsFrom::Steps | PairsFrom::Winners | PairsFrom::Samples => 1,
        }
    }

    /// Whether a pair is trained on at every step of its trajectories.
    pub(super) fn joins_steps(&self) -> bool {
        let whole = matches!(self.method.pairs, PairsFrom::Trajectories | PairsFrom::Samples);
        whole && self.method.likelihood == Likelihood::Transition
    }

    /// Updates of the whole run where the settings fix it. SPO's number of pairs is known only afterwards.
    pub(super) fn total_steps(&self) -> Option<u64> {
        let config = &self.parts.config;
        let by_epochs = self.stream.iterations().filter(|_| self.method.pairs != PairsFrom::Steps);
        let by_epochs = by_epochs.map(|n| n * self.prompts_per_iteration().div_ceil(config.pairs_per_update() as u64));
        match config.max_train_steps {
            0 => by_epochs,
            max => Some(by_epochs.map_or(max, |n| n.min(max))),
        }
    }
}
