//! The settings as they take effect, and what they will cost.

use super::Trainer;
use crate::error::Result;
use crate::method::PairsFrom;
use crate::observer::EffectiveSettings;
use seedpo_model::Policy;
use seedpo_rollout::{GuidedPolicy, NoisePredictor, initial_noise};
use seedpo_tensor::NoiseKey;
use std::time::Instant;
use tch::{Kind, Tensor};

const GIB: f64 = (1u64 << 30) as f64;

/// Seconds per latent.
#[derive(Clone, Copy)]
struct Timings {
    /// A guided pass without gradients.
    sample: f64,
    /// Forward and backward.
    train: f64,
}

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
            PairsFrom::Images => format!("{} of image files", self.parts.image_pairs.len()),
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
        let pairs = match self.method.pairs {
            PairsFrom::Trajectories => "trajectory pairs",
            PairsFrom::Steps => "step pairs",
            PairsFrom::Images => "image pairs",
        };
        line("batch", format!("{per_update} {pairs} per update, {} at once", self.pairs_at_once()));
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
        let timings = self.dry_run()?;
        let (iteration, whole) = self.expected_hours(timings, total);
        lines.push(("time expected".into(), format!("{} per iteration; {whole}", duration(iteration))));
        let memory = seedpo_tensor::memory::peak_rss_bytes() as f64 / GIB;
        lines.push((
            "memory expected".into(),
            format!("{memory:.2} GiB or more (peak of one forward and backward pass)"),
        ));
        Ok(EffectiveSettings {
            lines,
            warnings: self.warnings.clone(),
            start_step: self.position.step,
            total_steps: total,
        })
    }

    /// Pairs of one step each that run at once; D3PO's are joined over steps.
    fn pairs_at_once(&self) -> usize {
        let config = &self.parts.config;
        let steps = if self.method.pairs == PairsFrom::Trajectories { config.steps as usize } else { 1 };
        config.micro_batch().min(config.pairs_per_update() * steps)
    }

    fn images_per_prompt(&self) -> usize {
        if self.method.pairs == PairsFrom::Steps { 1 } else { 2 }
    }

    /// Updates of the whole run where the settings fix it. SPO's number of pairs is known only afterwards.
    fn total_steps(&self) -> Option<u64> {
        let config = &self.parts.config;
        let by_epochs = self.stream.iterations().filter(|_| self.method.pairs != PairsFrom::Steps);
        let by_epochs = by_epochs.map(|n| n * config.prompts_per_iteration.div_ceil(config.pairs_per_update() as u64));
        match config.max_train_steps {
            0 => by_epochs,
            max => Some(by_epochs.map_or(max, |n| n.min(max))),
        }
    }

    /// Times what the run is made of, per latent: a guided pass without gradients, and one forward and backward with
    /// as many latents as a micro-batch has. Gradients are thrown away.
    fn dry_run(&mut self) -> Result<Timings> {
        let rows = self.pairs_at_once() * self.images_per_prompt();
        let model = self.parts.model;
        let conditioning = self.embeddings.conditioning(model, &[self.parts.prompts[0].as_str()])?;
        let policy = Policy::new(model, Some(&self.adapter));
        let policy = GuidedPolicy::new(policy, &conditioning, self.parts.config.guidance_scale);
        let keys: Vec<NoiseKey> = (0..rows).map(|i| NoiseKey::new(0, "timing").prompt(i as u64)).collect();
        let x = initial_noise(&keys, &self.latent_shape).to_device(model.device());
        let policy = policy.with_checkpointing(self.parts.config.gradient_checkpointing);
        let timesteps = vec![self.ddim.timesteps()[0]; rows];
        // Reading a value waits for a GPU to finish.
        let pass = |rows: usize| -> Result<Tensor> {
            let noise_pred = policy.predict(&x.narrow(0, 0, rows as i64), &timesteps[..rows], &vec![0; rows])?;
            Ok(noise_pred.square().sum(Kind::Float))
        };
        // The first pass pays for set-up.
        tch::no_grad(|| pass(1))?.double_value(&[]);
        let started = Instant::now();
        tch::no_grad(|| pass(1))?.double_value(&[]);
        let sample = started.elapsed().as_secs_f64();
        let started = Instant::now();
        let loss = pass(rows)?;
        let parameters: Vec<&Tensor> = self.optimizer.parameters().iter().map(|(_, parameter)| parameter).collect();
        let gradients = Tensor::f_run_backward(&[loss], &parameters, false, false)?;
        for gradient in gradients {
            gradient.sum(Kind::Float).double_value(&[]);
        }
        Ok(Timings { sample, train: started.elapsed().as_secs_f64() / rows as f64 })
    }

    /// Hours of one iteration.
    fn iteration_hours(&self, timings: Timings) -> f64 {
        let config = &self.parts.config;
        let (prompts, steps) = (config.prompts_per_iteration as f64, config.steps as f64);
        let (sampled, trained) = match self.method.pairs {
            PairsFrom::Trajectories => (2.0 * steps - 1.0, 2.0 * steps),
            PairsFrom::Images => (0.0, 2.0),
            PairsFrom::Steps => {
                let branching = steps - config.divert_start_step as f64;
                let before = config.divert_start_step as f64 + 1.0;
                (before + (branching - 1.0) * config.candidates as f64, branching)
            }
        };
        // Each latent trained on also needs a pass of the reference.
        prompts * (sampled * timings.sample + trained * (timings.train + timings.sample)) / 3600.0
    }

    fn expected_hours(&self, timings: Timings, total: Option<u64>) -> (f64, String) {
        let config = &self.parts.config;
        let hours = self.iteration_hours(timings);
        let pairs = match self.method.pairs {
            PairsFrom::Trajectories | PairsFrom::Images => config.prompts_per_iteration,
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
