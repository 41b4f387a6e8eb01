//! Preview pictures: the same prompts and noise every time, so that grids of different updates can be compared.

use super::Trainer;
use super::rollout::{Interruptible, decode};
use crate::error::{Error, Result};
use crate::metrics::{Heldout, MemberScores, PreviewMetrics, Record, summary};
use crate::observer::{Observer, Phase, Preview};
use seedpo_judge::{ImageBatch, Judge, to_u8};
use seedpo_model::Policy;
use seedpo_rollout::{Ddim, GuidedPolicy, NoisePredictor, Trajectory, initial_noise, sample};
use seedpo_tensor::NoiseKey;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use tch::{Kind, Tensor};

/// Training prompts that stand in where no validation prompts are set.
const DEFAULT_PROMPTS: usize = 4;

impl Trainer<'_> {
    /// Draws, judges and records previews of the policy as it stands, unless previews are off or exist for this update.
    pub(super) fn preview(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<()> {
        let step = self.position.step;
        if self.parts.config.validation_steps == 0 {
            return Ok(());
        }
        if self.previewed == Some(step) {
            // A kill may have come between the previews and the finding.
            return self.watch(observer);
        }
        let started = Instant::now();
        let prompts = self.validation_prompts();
        let copies = self.parts.config.validation_images_per_prompt as usize;
        let Drawn { images, latents, kl } = self.preview_images(&prompts, copies, observer, stop)?;
        let texts: Vec<&str> = prompts.iter().flat_map(|p| std::iter::repeat_n(p.as_str(), copies)).collect();
        let batch = ImageBatch::from_tensor(&images)?;
        // Only these pictures.
        MemberScores::take(self.parts.judge);
        let scores = self.parts.judge.score_batch(&batch, &texts)?;
        let judges = MemberScores::take(self.parts.judge);
        let score = |judge: &&dyn Judge| {
            let scores = judge.score_batch(&batch, &texts)?;
            Ok((judge.name().to_string(), Heldout { mean: summary(&scores)[0], scores }))
        };
        let heldout = self.parts.heldout.iter().map(score).collect::<Result<Vec<_>>>()?;
        let folder = self.parts.run.path();
        let preview = Preview {
            step,
            prompts: &prompts,
            images_per_prompt: copies,
            images: &images,
            scores: &scores,
            latents: &latents,
            folder,
        };
        let measured = observer.on_preview(&preview).map_err(Error::Observer)?;
        let [reward_mean, reward_std, ..] = summary(&scores);
        let metrics = PreviewMetrics {
            step,
            reward_mean,
            reward_std,
            scores,
            judges,
            heldout_mean: heldout.first().map(|(_, judge)| judge.mean),
            heldout: heldout.into_iter().collect(),
            kl_to_reference: kl,
            measured,
            seconds: started.elapsed().as_secs_f64(),
        };
        self.parts.run.append(&Record::Preview(metrics.clone()))?;
        self.previewed = Some(step);
        observer.on_preview_metrics(&metrics).map_err(Error::Observer)?;
        self.watch(observer)
    }

    pub(super) fn validation_prompts(&self) -> Vec<String> {
        match self.parts.config.validation_prompts.as_slice() {
            // Pairs of one prompt may follow one another.
            [] => {
                let mut first: Vec<String> = Vec::new();
                for prompt in &self.parts.prompts {
                    if first.len() < DEFAULT_PROMPTS && !first.contains(prompt) {
                        first.push(prompt.clone());
                    }
                }
                first
            }
            given => given.to_vec(),
        }
    }

    /// Deterministic DDIM (η = 0) from noise keyed by prompt and copy.
    fn preview_images(
        &mut self,
        prompts: &[String],
        copies: usize,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Drawn> {
        let (config, model) = (&self.parts.config, self.parts.model);
        let ddim = Ddim::for_training(&model.schedule, config.steps as usize, 0.0)?;
        let texts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        let conditioning = self.embeddings.conditioning(model, &texts)?;
        let merged = self.weights.merged(model)?;
        let guided = |weights| GuidedPolicy::new(Policy::of(model, weights), &conditioning, config.sampling_guidance());
        // A run that compares with nothing may have no base.
        let has_base = !model.unet.parameters().is_empty();
        let (predictor, reference) = (Interruptible { inner: guided(Some(&merged)), stop }, guided(None));
        let rows: Vec<(usize, usize)> =
            (0..prompts.len()).flat_map(|p| (0..copies).map(move |copy| (p, copy))).collect();
        let chunk = config.rollout_batch_size as usize;
        let total = rows.len().div_ceil(chunk) * ddim.steps();
        let (mut images, mut latents, mut kl) = (Vec::new(), Vec::new(), Vec::new());
        for (i, part) in rows.chunks(chunk).enumerate() {
            let key =
                |&(p, copy): &(usize, usize)| NoiseKey::new(config.seed, "preview").prompt(p as u64).epoch(copy as u64);
            let keys: Vec<NoiseKey> = part.iter().map(key).collect();
            let x_t = initial_noise(&keys, &self.latent_shape).to_device(model.device());
            let of: Vec<usize> = part.iter().map(|&(p, _)| p).collect();
            let mut on_step = |done: usize, _: usize| observer.on_phase(Phase::Preview, i * ddim.steps() + done, total);
            let trajectory = sample(&predictor, &x_t, &of, &ddim, &mut |_| None, &mut on_step)?;
            images.push(to_u8(&decode(model, trajectory.final_latents(), chunk)?)?);
            latents.push(trajectory.final_latents().flatten(1, -1));
            let first: Vec<usize> = (0..part.len()).filter(|&row| part[row].1 == 0).collect();
            if has_base && !first.is_empty() {
                kl.push((self.step_kl(&predictor, &reference, &trajectory, &of, &first)?, first.len()));
            }
        }
        let prompts = kl.iter().map(|(_, count)| count).sum::<usize>().max(1);
        let kl = has_base.then(|| kl.iter().map(|(mean, count)| mean * *count as f64).sum::<f64>() / prompts as f64);
        Ok(Drawn { images: Tensor::f_cat(&images, 0)?, latents: Tensor::f_cat(&latents, 0)?, kl })
    }

    /// Mean per-element KL of the policy's step to the initial policy's on `rows` of a trajectory, at a few of its steps.
    fn step_kl(
        &self,
        policy: &dyn NoisePredictor,
        reference: &dyn NoisePredictor,
        trajectory: &Trajectory,
        prompts: &[usize],
        rows: &[usize],
    ) -> Result<f64> {
        let _frozen = tch::no_grad_guard();
        let steps = trajectory.timesteps.len();
        let every = steps.div_ceil(KL_STEPS);
        let prompts: Vec<usize> = rows.iter().map(|&row| prompts[row]).collect();
        let index = Tensor::from_slice(&rows.iter().map(|&row| row as i64).collect::<Vec<_>>());
        let mut sum = 0.0;
        let chosen: Vec<usize> = (0..steps).step_by(every).collect();
        for &step in &chosen {
            let latents = &trajectory.latents[step];
            let latents = latents.f_index_select(0, &index.to_device(latents.device()))?;
            let timesteps = vec![trajectory.timesteps[step]; rows.len()];
            let transition = |predictor: &dyn NoisePredictor| {
                self.ddim.transition(&timesteps, &latents, &predictor.predict(&latents, &timesteps, &prompts)?)
            };
            sum += transition(policy)?.kl(&transition(reference)?)?.mean(Kind::Double).double_value(&[]);
        }
        Ok(sum / chosen.len() as f64)
    }
}

/// Steps of a preview's trajectory at which its KL to the reference is measured, at most.
const KL_STEPS: usize = 4;

/// Preview pictures and what is measured on the way.
struct Drawn {
    /// u8 `[P·N, H, W, 3]`.
    images: Tensor,
    /// Clean, f32 `[P·N, C·h·w]`.
    latents: Tensor,
    /// Per-element KL of one step to the initial policy, on the first picture of each prompt, where there is one.
    kl: Option<f64>,
}
