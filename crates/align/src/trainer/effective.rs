//! The settings as they take effect, and what they will cost.

use super::Trainer;
use crate::error::Result;
use crate::method::PairsFrom;
use crate::observer::EffectiveSettings;
use seedpo_model::Policy;
use seedpo_rollout::{GuidedPolicy, NoisePredictor, initial_noise};
use seedpo_tensor::NoiseKey;
use std::time::Instant;

const GIB: f64 = (1u64 << 30) as f64;

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
            PairsFrom::Steps => {
                format!("{} candidates a step from step {}", config.candidates, config.divert_start_step)
            }
        };
        line("method", format!("{}: pairs from {pairs_from}", self.method.name));
        line(
            "judge",
            format!(
                "{} ({}), held out: {}",
                config.judge,
                self.parts.judge.unit(),
                self.parts.heldout.map_or("none", |j| j.name())
            ),
        );
        line("prompts", format!("{}, {} per iteration", self.parts.prompts.len(), config.prompts_per_iteration));
        let [channels, height, width] = [0, 1, 2].map(|i| self.latent_shape[i]);
        line(
            "latents",
            format!(
                "{channels}x{height}x{width}, {} steps, eta {}, guidance {}",
                config.steps, config.eta, config.guidance_scale
            ),
        );
        let pairs = if self.method.pairs == PairsFrom::Trajectories { "trajectory pairs" } else { "step pairs" };
        line("batch", format!("{per_update} {pairs} per update, {} at once", config.micro_batch().min(per_update)));
        line(
            "beta, kappa, clip",
            format!("{}, {:.4} (gamma {}), {}", config.beta, config.entropy.kappa(), config.entropy.gamma, config.clip),
        );
        line(
            "learning rate",
            format!("{:e}, {}, warm-up {}", config.learning_rate, config.lr_scheduler, config.lr_warmup_steps),
        );
        let alpha = config.alpha();
        line(
            "adapter",
            format!("LoRA rank {}, alpha {alpha}, {} parameters", config.rank, self.adapter.parameter_count()),
        );
        let length = |n: u64, unit: &str| if n == 0 { String::new() } else { format!("{n} {unit}") };
        let lengths = [length(config.max_train_steps, "updates"), length(config.num_train_epochs, "epochs")];
        line("length", lengths.iter().filter(|s| !s.is_empty()).cloned().collect::<Vec<_>>().join(" or "));
        line("images per epoch", (self.parts.prompts.len() * self.images_per_prompt()).to_string());
        line("seed", config.seed.to_string());
        let total = self.total_steps();
        let (seconds, evaluations) = (self.time_one_pass()?, self.evaluations_per_iteration());
        let (iteration_hours, hours) = self.expected_hours(seconds, evaluations, total);
        lines.push(("time expected".into(), format!("{} per iteration; {hours}", duration(iteration_hours))));
        lines.push((
            "memory".into(),
            format!("{:.2} GiB so far, before the first update", seedpo_tensor::memory::peak_rss_bytes() as f64 / GIB),
        ));
        Ok(EffectiveSettings {
            lines,
            warnings: self.warnings.clone(),
            start_step: self.position.step,
            total_steps: total,
        })
    }

    fn images_per_prompt(&self) -> usize {
        if self.method.pairs == PairsFrom::Trajectories { 2 } else { 1 }
    }

    /// Updates of the whole run where the settings fix it. SPO's number of pairs is known only afterwards.
    fn total_steps(&self) -> Option<u64> {
        let config = &self.parts.config;
        let by_epochs = self.stream.iterations().filter(|_| self.method.pairs == PairsFrom::Trajectories);
        let by_epochs = by_epochs.map(|n| n * config.prompts_per_iteration.div_ceil(config.pairs_per_update() as u64));
        match config.max_train_steps {
            0 => by_epochs,
            max => Some(by_epochs.map_or(max, |n| n.min(max))),
        }
    }

    /// Seconds of one guided pass with one latent, the second of two.
    fn time_one_pass(&mut self) -> Result<f64> {
        let (config, model) = (&self.parts.config, self.parts.model);
        let conditioning = self.embeddings.conditioning(model, &[self.parts.prompts[0].as_str()])?;
        let policy = GuidedPolicy::new(Policy::new(model, None), &conditioning, config.guidance_scale);
        let x = initial_noise(&[NoiseKey::new(config.seed, "timing")], &self.latent_shape).to_device(model.device());
        let _guard = tch::no_grad_guard();
        let pass = || -> Result<f64> {
            let started = Instant::now();
            // Reading a value waits for a GPU to finish.
            policy.predict(&x, &self.ddim.timesteps()[..1], &[0])?.sum(tch::Kind::Float).double_value(&[]);
            Ok(started.elapsed().as_secs_f64())
        };
        pass()?;
        pass()
    }

    /// Guided passes of one latent per iteration: sampled; and trained on (policy forward and backward, reference).
    fn evaluations_per_iteration(&self) -> f64 {
        let config = &self.parts.config;
        let (prompts, steps) = (config.prompts_per_iteration as f64, config.steps as f64);
        // A backward pass costs about two forward ones; the reference adds one forward.
        let trained = 4.0;
        match self.method.pairs {
            PairsFrom::Trajectories => prompts * (2.0 * steps - 1.0 + 2.0 * steps * trained),
            PairsFrom::Steps => {
                let (start, branching) = (config.divert_start_step as f64, steps - config.divert_start_step as f64);
                prompts * (start + 1.0 + (branching - 1.0) * config.candidates as f64 + branching * trained)
            }
        }
    }

    fn expected_hours(&self, seconds: f64, evaluations: f64, total: Option<u64>) -> (f64, String) {
        let config = &self.parts.config;
        let hours = seconds * evaluations / 3600.0;
        let pairs = match self.method.pairs {
            PairsFrom::Trajectories => config.prompts_per_iteration,
            PairsFrom::Steps => config.prompts_per_iteration * (config.steps - config.divert_start_step),
        };
        let updates = pairs.div_ceil(config.pairs_per_update() as u64).max(1);
        let iterations = total.map(|n| n.saturating_sub(self.position.step) as f64 / updates as f64);
        let iterations =
            iterations.or(self.stream.iterations().map(|n| n.saturating_sub(self.position.iteration) as f64));
        let whole = iterations
            .map_or("length unknown".to_string(), |n| format!("at most {} in all", duration(n.ceil() * hours)));
        (hours, whole)
    }
}

/// Hours in a unit that reads well.
fn duration(hours: f64) -> String {
    match hours * 3600.0 {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
