//! Range checks that need no model: each error names the key, what is accepted and what was found.

use super::{TrainConfig, keys};
use crate::best::CheckpointMetric;
use crate::error::{Error, Result};
use crate::guard::GuardAction;
use crate::method::{Method, PairsFrom};
use crate::objective::EntropyForm;
use crate::optimizer::{LrSchedule, Optimizer};
use crate::watch::WatchAction;
use seedpo_model::FinetuningType;
use std::fmt::Debug;

fn require(ok: bool, key: &str, found: impl Debug) -> Result<()> {
    let range = || keys().find(|k| k.name == key).map(|k| k.range).unwrap_or_default().to_string();
    if ok { Ok(()) } else { Err(Error::Setting { key: key.into(), expected: range(), found: format!("{found:?}") }) }
}

impl TrainConfig {
    /// Checks every range and the rules between keys; returns the method and warnings for the user.
    ///
    /// Errors: [`Error::Setting`] for the first key that is out of range.
    pub fn validate(&self) -> Result<(Method, Vec<String>)> {
        let method = self.resolved_method()?;
        self.validate_model_and_prompts(&method)?;
        self.validate_rollout(&method)?;
        self.validate_objective()?;
        self.validate_reference(&method)?;
        self.validate_optimizer()?;
        self.validate_run()?;
        self.validate_guard()?;
        self.validate_watch(&method)?;
        self.validate_checkpoint_metric()?;
        self.validate_policy_gradient(&method)?;
        Ok((method, self.warnings(&method)))
    }

    fn validate_model_and_prompts(&self, method: &Method) -> Result<()> {
        require(!self.model.is_empty(), "model", &self.model)?;
        let file_name_only = !self.name.contains(['/', '\\']) && self.name != "." && self.name != "..";
        require(file_name_only, "name", &self.name)?;
        if method.pairs.from_files() {
            require(!self.pairs_file.is_empty(), "pairs_file", &self.pairs_file)?;
            self.validate_dataset()?;
        } else if self.random_flip {
            let expected = "false: only pictures of a dataset can be mirrored, not the steps that drew a sample".into();
            return Err(Error::Setting { key: "random_flip".into(), expected, found: "true".into() });
        }
        if !self.pairs_file.is_empty() {
            let prompts = self.prompts.is_empty() && self.prompts_file.is_empty();
            require(prompts, "prompts", "prompts beside pairs_file, which has its own")?;
        } else if self.prompts.is_empty() == self.prompts_file.is_empty() {
            let found = if self.prompts.is_empty() { "neither" } else { "both" };
            return Err(Error::Setting {
                key: "prompts".into(),
                expected: "exactly one of `prompts` (at least one prompt) and `prompts_file`".into(),
                found: found.into(),
            });
        }
        if method.pairs.from_files() {
            return Ok(());
        }
        require(!self.judge.is_empty(), "judge", &self.judge)?;
        require(["f32", "bf16"].contains(&self.judge_dtype.as_str()), "judge_dtype", &self.judge_dtype)?;
        let background = ["auto", "on", "off"].contains(&self.judge_background.as_str());
        require(background, "judge_background", &self.judge_background)?;
        require((1..=86400).contains(&self.judge_timeout), "judge_timeout", self.judge_timeout)?;
        require(self.judge_scale.is_finite() && self.judge_scale > 0.0, "judge_scale", self.judge_scale)
    }

    fn validate_dataset(&self) -> Result<()> {
        require(
            ["none", "per-prompt"].contains(&self.pair_weighting.as_str()),
            "pair_weighting",
            &self.pair_weighting,
        )?;
        let empty = self.proportion_empty_prompts;
        require((0.0..1.0).contains(&empty), "proportion_empty_prompts", empty)?;
        require((0.0..=1.0).contains(&self.bad_rows_limit), "bad_rows_limit", self.bad_rows_limit)?;
        require(self.dataloader_num_workers <= 64, "dataloader_num_workers", self.dataloader_num_workers)
    }

    fn validate_rollout(&self, method: &Method) -> Result<()> {
        require((1..=1000).contains(&self.steps), "steps", self.steps)?;
        require(self.eta > 0.0 && self.eta <= 1.0, "eta", self.eta)?;
        require(self.guidance_scale.is_finite() && self.guidance_scale >= 1.0, "guidance_scale", self.guidance_scale)?;
        let sampling = self.sampling_guidance_scale;
        require(sampling == 0.0 || (sampling.is_finite() && sampling >= 1.0), "sampling_guidance_scale", sampling)?;
        require(self.prompts_per_iteration >= 1, "prompts_per_iteration", self.prompts_per_iteration)?;
        require(self.rollout_batch_size >= 1, "rollout_batch_size", self.rollout_batch_size)?;
        if method.pairs == PairsFrom::Steps {
            require((2..=64).contains(&self.candidates), "candidates", self.candidates)?;
            require(self.divert_start_step < self.steps, "divert_start_step", self.divert_start_step)?;
            require((0.0..1.0).contains(&self.threshold), "threshold", self.threshold)?;
        }
        Ok(())
    }

    fn validate_objective(&self) -> Result<()> {
        require(self.beta.is_finite() && self.beta > 0.0, "beta", self.beta)?;
        require(self.entropy.gamma.is_finite() && self.entropy.gamma > -1.0, "entropy.gamma", self.entropy.gamma)?;
        require((0.0..=1.0).contains(&self.safeguard_mu), "safeguard_mu", self.safeguard_mu)?;
        require((0.0..1.0).contains(&self.clip), "clip", self.clip)
    }

    fn validate_reference(&self, method: &Method) -> Result<()> {
        require(self.reference_save_steps >= 1, "reference_save_steps", self.reference_save_steps)?;
        require((0.0..1.0).contains(&self.reference_ema_decay), "reference_ema_decay", self.reference_ema_decay)?;
        if method.pairs != PairsFrom::Winners {
            return Ok(());
        }
        let refuse = |key: &str, why: &str, found: &dyn ToString| {
            let expected = format!("none with pairs = winners: {why}");
            Err(Error::Setting { key: key.into(), expected, found: found.to_string() })
        };
        if self.entropy.gamma != 0.0 {
            let why = "gamma flattens the reference policy, and supervision on winners alone has none";
            return refuse("entropy.gamma", why, &self.entropy.gamma);
        }
        if self.clip > 0.0 {
            return refuse("clip", "there is no likelihood ratio to clip", &self.clip);
        }
        if self.safeguard {
            return refuse("safeguard", "there is no loser whose gradient it could scale", &self.safeguard);
        }
        Ok(())
    }

    fn validate_optimizer(&self) -> Result<()> {
        require(self.learning_rate.is_finite() && self.learning_rate > 0.0, "learning_rate", self.learning_rate)?;
        require((0.0..1.0).contains(&self.adam_beta1), "adam_beta1", self.adam_beta1)?;
        require((0.0..1.0).contains(&self.adam_beta2), "adam_beta2", self.adam_beta2)?;
        require(self.adam_epsilon.is_finite() && self.adam_epsilon > 0.0, "adam_epsilon", self.adam_epsilon)?;
        let decay = self.adam_weight_decay;
        require(decay.is_finite() && decay >= 0.0, "adam_weight_decay", decay)?;
        require(self.max_grad_norm.is_finite() && self.max_grad_norm >= 0.0, "max_grad_norm", self.max_grad_norm)?;
        require((1..=1024).contains(&self.rank), "rank", self.rank)?;
        require(self.lora_alpha.is_finite() && self.lora_alpha >= 0.0, "lora_alpha", self.lora_alpha)?;
        require(!self.lora_targets.is_empty(), "lora_targets", &self.lora_targets)?;
        require(Optimizer::NAMES.contains(&self.optimizer.as_str()), "optimizer", &self.optimizer)?;
        require((0.0..1.0).contains(&self.ema_decay), "ema_decay", self.ema_decay)?;
        if self.finetuning()? == FinetuningType::Full && self.dtype == "f16" {
            let expected =
                "auto, f32 or bf16: gradients of whole weights underflow in f16 (finetuning_type = full)".into();
            return Err(Error::Setting { key: "dtype".into(), expected, found: "f16".into() });
        }
        require(self.lr_num_cycles >= 1, "lr_num_cycles", self.lr_num_cycles)?;
        require(self.lr_power.is_finite() && self.lr_power > 0.0, "lr_power", self.lr_power)?;
        LrSchedule::from_settings(self).map(|_| ())
    }

    fn validate_run(&self) -> Result<()> {
        if self.max_train_steps == 0 && self.num_train_epochs == 0 {
            return Err(Error::Setting {
                key: "max_train_steps".into(),
                expected: "max_train_steps or num_train_epochs above 0, or the run would never end".into(),
                found: "0 for both".into(),
            });
        }
        require(self.train_batch_size >= 1, "train_batch_size", self.train_batch_size)?;
        require(
            self.gradient_accumulation_steps >= 1,
            "gradient_accumulation_steps",
            self.gradient_accumulation_steps,
        )?;
        require(self.seed <= i64::MAX as u64, "seed", self.seed)?;
        let dtypes = ["auto", "f32", "bf16", "f16"];
        require(dtypes.contains(&self.dtype.as_str()), "dtype", &self.dtype)?;
        require(dtypes.contains(&self.vae_dtype.as_str()), "vae_dtype", &self.vae_dtype)?;
        require(self.checkpointing_steps >= 1, "checkpointing_steps", self.checkpointing_steps)?;
        let images = self.validation_images_per_prompt;
        require((1..=64).contains(&images), "validation_images_per_prompt", images)
    }

    fn validate_checkpoint_metric(&self) -> Result<()> {
        let Some(metric) = CheckpointMetric::from_setting(&self.checkpoint_metric)? else { return Ok(()) };
        let refuse =
            |key: &str, expected: String, found: String| Err(Error::Setting { key: key.into(), expected, found });
        if metric == CheckpointMetric::Heldout && self.heldout_judge.is_empty() {
            return refuse("heldout_judge", "a judge, which checkpoint_metric names".into(), "none".into());
        }
        let (previews, every) = (self.validation_steps, self.checkpointing_steps);
        if metric.needs_previews() && (previews == 0 || every % previews != 0) {
            let expected = format!("a divisor of checkpointing_steps ({every}), so that every checkpoint has previews");
            return refuse("validation_steps", expected, previews.to_string());
        }
        Ok(())
    }

    fn validate_policy_gradient(&self, method: &Method) -> Result<()> {
        require(self.advantage_clip.is_finite() && self.advantage_clip > 0.0, "advantage_clip", self.advantage_clip)?;
        require(self.reward_history >= 1, "reward_history", self.reward_history)?;
        let least = self.reward_history_min;
        require((1..=self.reward_history).contains(&least), "reward_history_min", least)?;
        require(self.kl_weight.is_finite() && self.kl_weight >= 0.0, "kl_weight", self.kl_weight)?;
        let alone = matches!(method.pairs, PairsFrom::Samples | PairsFrom::Winners);
        let refuse = |key: &str, expected: &str, found: String| {
            let expected = format!("{expected} with method {}, which has no pairs", method.name);
            Err(Error::Setting { key: key.into(), expected, found })
        };
        if alone && self.safeguard {
            return refuse("safeguard", "false", "true".into());
        }
        if method.pairs == PairsFrom::Samples && self.entropy.gamma != 0.0 {
            return refuse("entropy.gamma", "0", self.entropy.gamma.to_string());
        }
        Ok(())
    }

    fn validate_watch(&self, method: &Method) -> Result<()> {
        let action = WatchAction::by_name(&self.watch)?;
        require(self.watch_patience >= 1, "watch_patience", self.watch_patience)?;
        let errors = self.watch_standard_errors;
        require(errors.is_finite() && errors >= 0.0, "watch_standard_errors", errors)?;
        let drop = self.watch_heldout_drop;
        require(drop.is_finite() && drop >= 0.0, "watch_heldout_drop", drop)?;
        let drop = self.watch_diversity_drop;
        require(drop > 0.0 && drop < 1.0, "watch_diversity_drop", drop)?;
        require(
            self.watch_gamma_step.is_finite() && self.watch_gamma_step > 0.0,
            "watch_gamma_step",
            self.watch_gamma_step,
        )?;
        require(
            self.watch_gamma_max.is_finite() && self.watch_gamma_max >= 0.0,
            "watch_gamma_max",
            self.watch_gamma_max,
        )?;
        if matches!(action, WatchAction::Stop | WatchAction::RaiseGamma) && self.validation_steps == 0 {
            return Err(Error::Setting {
                key: "validation_steps".into(),
                expected: format!("above 0: `watch = {}` looks at previews", self.watch),
                found: "0".into(),
            });
        }
        if action == WatchAction::RaiseGamma && self.entropy.form == EntropyForm::LiteralPower {
            let expected = "flatten with watch = raise-gamma: in the other form a larger γ sharpens".into();
            return Err(Error::Setting { key: "entropy.form".into(), expected, found: "literal-power".into() });
        }
        if action == WatchAction::RaiseGamma && matches!(method.pairs, PairsFrom::Samples | PairsFrom::Winners) {
            let expected = "off, warn or stop: a method without pairs has no γ".into();
            return Err(Error::Setting { key: "watch".into(), expected, found: self.watch.clone() });
        }
        Ok(())
    }

    fn validate_guard(&self) -> Result<()> {
        GuardAction::by_name(&self.guard)?;
        for (key, factor) in
            [("guard_loss_factor", self.guard_loss_factor), ("guard_grad_factor", self.guard_grad_factor)]
        {
            require(factor.is_finite() && factor >= 0.0, key, factor)?;
        }
        require(self.guard_patience >= 1, "guard_patience", self.guard_patience)?;
        require(self.guard_window >= 10, "guard_window", self.guard_window)?;
        require(self.guard_back_off > 0.0 && self.guard_back_off <= 1.0, "guard_back_off", self.guard_back_off)?;
        require(self.guard_cooldown >= 1, "guard_cooldown", self.guard_cooldown)
    }

    fn warnings(&self, method: &Method) -> Vec<String> {
        let mut warnings: Vec<String> = self.entropy.warning().into_iter().collect();
        if self.entropy.form == EntropyForm::LiteralPower && self.entropy.gamma > 0.0 {
            warnings.push("entropy.form = literal-power sharpens the reference as gamma grows".into());
        }
        if method.pairs == PairsFrom::Trajectories && self.train_batch_size > self.prompts_per_iteration {
            warnings.push("train_batch_size is above prompts_per_iteration: updates will have fewer pairs".into());
        }
        let per_update = self.pairs_per_update() as u64;
        if method.pairs.from_files() && per_update > self.prompts_per_iteration {
            warnings.push(format!(
                "an update is to have {per_update} pairs, but an iteration has only prompts_per_iteration = {} of them: \
                 updates will have fewer pairs",
                self.prompts_per_iteration
            ));
        }
        let plausible = method.plausible_beta(self.entropy.gamma).filter(|range| !range.contains(&self.beta));
        if let Some(range) = plausible {
            warnings.push(format!(
                "beta = {} is far from what method {} with likelihood {} is used with: {} to {} (docs/methods.md section 4)",
                self.beta,
                method.name,
                method.likelihood.name(),
                range.start(),
                range.end()
            ));
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> TrainConfig {
        TrainConfig { model: "m".into(), prompts: vec!["a".into()], max_train_steps: 1, ..Default::default() }
    }

    #[test]
    fn defaults_with_a_model_and_a_prompt_are_valid() {
        assert!(good().validate().unwrap().1.is_empty());
    }

    #[test]
    fn each_range_is_checked_and_named() {
        type Spoil = fn(&mut TrainConfig);
        let cases: Vec<(&str, Spoil)> = vec![
            ("model", |c| c.model.clear()),
            ("prompts", |c| c.prompts.clear()),
            ("prompts", |c| c.prompts_file = "p.txt".into()),
            ("name", |c| c.name = "../x".into()),
            ("method", |c| c.method = "orpo".into()),
            ("pairs", |c| c.pairs = "dreams".into()),
            ("likelihood", |c| c.likelihood = "exact".into()),
            ("reference", |c| c.reference = "none".into()),
            ("reference", |c| c.reference = "best".into()),
            ("flipper", |c| c.flipper = "sign".into()),
            ("likelihood", |c| c.pairs = "images".into()),
            ("reference_save_steps", |c| c.reference_save_steps = 0),
            ("reference_ema_decay", |c| c.reference_ema_decay = 1.0),
            ("sampling_guidance_scale", |c| c.sampling_guidance_scale = 0.5),
            ("judge_scale", |c| c.judge_scale = 0.0),
            ("judge_timeout", |c| c.judge_timeout = 0),
            ("steps", |c| c.steps = 0),
            ("eta", |c| c.eta = 0.0),
            ("eta", |c| c.eta = f64::NAN),
            ("guidance_scale", |c| c.guidance_scale = 0.5),
            ("candidates", |c| c.candidates = 1),
            ("divert_start_step", |c| c.divert_start_step = 20),
            ("threshold", |c| c.threshold = 1.5),
            ("beta", |c| c.beta = -1.0),
            ("entropy.gamma", |c| c.entropy.gamma = -1.0),
            ("clip", |c| c.clip = 1.0),
            ("safeguard_mu", |c| c.safeguard_mu = 1.5),
            ("learning_rate", |c| c.learning_rate = f64::INFINITY),
            ("adam_beta2", |c| c.adam_beta2 = 1.0),
            ("rank", |c| c.rank = 0),
            ("optimizer", |c| c.optimizer = "sgd".into()),
            ("ema_decay", |c| c.ema_decay = 1.0),
            ("lr_power", |c| c.lr_power = 0.0),
            ("lr_scheduler", |c| (c.lr_scheduler, c.max_train_steps, c.num_train_epochs) = ("linear".into(), 0, 1)),
            ("max_train_steps", |c| c.max_train_steps = 0),
            ("train_batch_size", |c| c.train_batch_size = 0),
            ("dtype", |c| c.dtype = "fp8".into()),
            ("vae_dtype", |c| c.vae_dtype = "fp16".into()),
            ("checkpointing_steps", |c| c.checkpointing_steps = 0),
            ("checkpoint_metric", |c| c.checkpoint_metric = "speed".into()),
            ("heldout_judge", |c| c.checkpoint_metric = "heldout".into()),
            ("validation_steps", |c| (c.checkpoint_metric, c.validation_steps) = ("reward".into(), 7)),
            ("guard", |c| c.guard = "roll".into()),
            ("guard_back_off", |c| c.guard_back_off = 0.0),
            ("guard_window", |c| c.guard_window = 5),
        ];
        for (key, spoil) in cases {
            let mut config = good();
            spoil(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains(&format!("`{key}`")) && message.contains("expected"), "{key}: {message}");
        }
    }

    #[test]
    fn a_beta_far_from_the_methods_own_warns_with_the_range() {
        let of = |method: &str, beta: f64| {
            let text = format!("method = '{method}'\nbeta = {beta}\nmodel = 'm'\nmax_train_steps = 1");
            let data = if method == "d3po" { "prompts = ['a']" } else { "pairs_file = 'p.jsonl'" };
            let config = TrainConfig::from_layers(format!("{text}\n{data}").parse().unwrap(), "x").unwrap();
            config.validate().unwrap().1
        };
        assert!(of("d3po", 0.1).is_empty() && of("diffusion-dpo", 5000.0).is_empty());
        let warnings = of("d3po", 5000.0);
        assert!(warnings[0].contains("beta = 5000") && warnings[0].contains("0.01 to 10"), "{warnings:?}");
        assert!(of("diffusion-dpo", 0.1)[0].contains("100 to 20000"));
        assert!(of("sft", 1e9).is_empty(), "its loss has no beta");
    }

    #[test]
    fn supervision_refuses_what_it_has_no_use_for() {
        let refused = |line: &str| {
            let text = format!("method = 'sft'\npairs_file = 'p'\nmodel = 'm'\nmax_train_steps = 1\n{line}");
            TrainConfig::from_layers(text.parse().unwrap(), "x").unwrap().validate().unwrap_err().to_string()
        };
        assert!(refused("entropy = { gamma = 1.0 }").contains("supervision on winners alone has none"));
        assert!(refused("clip = 0.1").contains("no likelihood ratio"));
        assert!(refused("safeguard = true").contains("no loser"));
        assert!(refused("reference = 'ema'").contains("compares the policy with nothing"));
        assert!(refused("flipper = 'sign'").contains("no other side"));
    }

    #[test]
    fn sharpening_warns() {
        let mut config = good();
        config.entropy.gamma = -0.5;
        assert_eq!(config.validate().unwrap().1.len(), 1);
    }
}
