//! Samplers for looking and evaluating: DDIM, Euler, Euler ancestral, DPM++ 2M.
//!
//! Each is a table of numbers, since each of their steps is linear in the latents, the clean latents that the model's
//! output implies, those of the step before, and fresh noise. One loop walks all of them. They equal diffusers 0.38
//! with the folder's scheduler configuration (`from_config`), step by step.

mod kind;
mod levels;
mod options;
mod stage;

use seedpo_model::config::TimestepSpacing;
use seedpo_model::schedule::NoiseSchedule;
use tch::{Kind, Tensor};

use crate::sample::check_rows;
use crate::{Error, OutputPredictor, Result};
use levels::{Counting, Level, Table, whole};
use stage::Stage;

pub use kind::SamplerKind;

/// A sampler with a fixed number of steps over a noise schedule.
#[derive(Clone, Debug)]
pub struct Sampler {
    kind: SamplerKind,
    init_noise_sigma: f64,
    stages: Vec<Stage>,
}

impl Sampler {
    /// A sampler of `steps` steps. `eta` in [0, 1] is the noise of DDIM's steps and must be 0 for the others.
    ///
    /// The folder says `timestep_spacing`, `steps_offset`, `set_alpha_to_one` and `prediction_type`; where it is silent
    /// about the spacing, DDIM counts `leading`, the others `linspace`. Errors: [`Error::Setting`], also where noise is
    /// predicted at a timestep whose ᾱ is 0.
    pub fn new(kind: SamplerKind, schedule: &NoiseSchedule, steps: usize, eta: f64) -> Result<Self> {
        let total = schedule.num_train_timesteps;
        if steps == 0 || steps as i64 > total {
            return Err(Error::setting("steps", format!("1 to {total}"), steps));
        }
        if !(0.0..=1.0).contains(&eta) || (eta > 0.0 && kind != SamplerKind::Ddim) {
            return Err(Error::setting("eta", "a number in [0, 1], and 0 for samplers other than ddim", eta));
        }
        let levels = levels(kind, schedule, steps);
        check_levels(&levels, total, steps)?;
        let stages: Vec<Stage> = match kind {
            SamplerKind::Ddim => ddim_stages(&levels, schedule, steps, eta),
            _ => {
                let sigma = |i: usize| levels.get(i).map_or(0.0, |level| level.sigma);
                let output = schedule.prediction_type;
                let stage = |i: usize| match kind {
                    SamplerKind::DpmPlusPlus2M | SamplerKind::DpmPlusPlus2MKarras => {
                        let before = if i == 0 || i + 1 == steps { None } else { Some(sigma(i - 1)) };
                        Stage::dpm_solver(levels[i], sigma(i + 1), before, output)
                    }
                    _ => Stage::euler(levels[i], sigma(i + 1), kind == SamplerKind::EulerAncestral, output),
                };
                (0..steps).map(stage).collect()
            }
        };
        check_signal(&stages)?;
        Ok(Self { kind, init_noise_sigma: init_noise_sigma(kind, schedule, &levels), stages })
    }

    /// Which sampler this is.
    pub fn kind(&self) -> SamplerKind {
        self.kind
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.stages.len()
    }

    /// The timesteps the U-Net is asked at, descending; fractional under some spacings.
    pub fn timesteps(&self) -> impl Iterator<Item = f64> {
        self.stages.iter().map(|stage| stage.timestep)
    }

    /// What unit noise is multiplied by to become the first latents.
    pub fn init_noise_sigma(&self) -> f64 {
        self.init_noise_sigma
    }

    /// Whether step `step` adds noise.
    pub fn draws_noise(&self, step: usize) -> bool {
        self.stages.get(step).is_some_and(|stage| stage.noise != 0.0)
    }

    /// Starts from unit noise x_T `[B, C, h, w]`.
    pub fn start(&self, x_t: &Tensor) -> Result<Walk<'_>> {
        let latents = x_t.f_to_kind(Kind::Float)? * self.init_noise_sigma;
        Ok(Walk { sampler: self, step: 0, latents, previous_x0: None })
    }
}

/// Latents on their way through a [`Sampler`].
#[derive(Debug)]
pub struct Walk<'a> {
    sampler: &'a Sampler,
    step: usize,
    latents: Tensor,
    previous_x0: Option<Tensor>,
}

impl Walk<'_> {
    /// The latents reached, `[B, C, h, w]` f32; clean once [`Walk::request`] is `None`.
    pub fn latents(&self) -> &Tensor {
        &self.latents
    }

    /// What the U-Net is asked next: its input (latents, scaled) and the timestep. `None` after the last step.
    pub fn request(&self) -> Option<(Tensor, f64)> {
        let stage = self.sampler.stages.get(self.step)?;
        Some((&self.latents * stage.input, stage.timestep))
    }

    /// Takes one step with the U-Net's output and, where the step draws noise, unit noise, both shaped as the latents.
    ///
    /// Errors: [`Error::Shape`] for another shape, missing noise, or a step after the last.
    pub fn advance(&mut self, output: &Tensor, noise: Option<&Tensor>) -> Result<()> {
        let size = self.latents.size();
        let Some(stage) = self.sampler.stages.get(self.step) else {
            return Err(Error::shape("steps", format!("{}", self.sampler.steps()), "one more"));
        };
        if output.size() != size {
            return Err(Error::shape("output", format!("{size:?} as latents"), format!("{:?}", output.size())));
        }
        let output = output.f_to_kind(Kind::Float)?.f_to_device(self.latents.device())?;
        let x0 = &self.latents * stage.x0_from_latents + output * stage.x0_from_output;
        let mut next = &self.latents * stage.latents + &x0 * stage.x0;
        if let Some(previous) = self.previous_x0.as_ref().filter(|_| stage.previous_x0 != 0.0) {
            next += previous * stage.previous_x0;
        }
        if stage.noise != 0.0 {
            match noise.filter(|noise| noise.size() == size) {
                Some(noise) => next += noise.f_to_device(self.latents.device())?.f_to_kind(Kind::Float)? * stage.noise,
                None => {
                    let found = noise.map_or("none".to_owned(), |noise| format!("{:?}", noise.size()));
                    return Err(Error::shape("noise", format!("{size:?} as latents"), found));
                }
            }
        }
        (self.latents, self.previous_x0, self.step) = (next, Some(x0), self.step + 1);
        Ok(())
    }
}

/// Draws clean latents `[B, C, h, w]` f32 from unit noise `x_t`, one U-Net pass a step, without gradients.
///
/// `prompts` names the prompt of each row; `noise(step)` is asked for the steps that draw noise only (step 0 is the
/// first; see [`crate::step_noise`]); `on_step(done, total)` is called after each step. Errors: [`Error::Shape`], and
/// what the predictor refuses.
pub fn draw(
    predictor: &dyn OutputPredictor,
    x_t: &Tensor,
    prompts: &[usize],
    sampler: &Sampler,
    noise: &mut dyn FnMut(usize) -> Tensor,
    on_step: &mut dyn FnMut(usize, usize),
) -> Result<Tensor> {
    check_rows(x_t, prompts)?;
    tch::no_grad(|| {
        let mut walk = sampler.start(x_t)?;
        while let Some((input, timestep)) = walk.request() {
            let output = predictor.output(&input, timestep, prompts)?;
            let noise = sampler.draws_noise(walk.step).then(|| noise(walk.step));
            walk.advance(&output, noise.as_ref())?;
            on_step(walk.step, sampler.steps());
        }
        Ok(walk.latents)
    })
}

const DDIM: Counting = Counting { default_spacing: TimestepSpacing::Leading, one_more: false, whole: true };
const EULER: Counting = Counting { default_spacing: TimestepSpacing::Linspace, one_more: false, whole: false };
const DPM_SOLVER: Counting = Counting { default_spacing: TimestepSpacing::Linspace, one_more: true, whole: true };

fn counting(kind: SamplerKind) -> Counting {
    match kind {
        SamplerKind::Ddim => DDIM,
        SamplerKind::Euler | SamplerKind::EulerKarras | SamplerKind::EulerAncestral => EULER,
        SamplerKind::DpmPlusPlus2M | SamplerKind::DpmPlusPlus2MKarras => DPM_SOLVER,
    }
}

fn levels(kind: SamplerKind, schedule: &NoiseSchedule, steps: usize) -> Vec<Level> {
    let table = Table::new(schedule);
    let plain = || -> Vec<Level> {
        let timesteps = counting(kind).timesteps(schedule, steps);
        timesteps.into_iter().map(|timestep| Level { timestep, sigma: table.sigma(timestep) }).collect()
    };
    match kind {
        SamplerKind::EulerKarras => {
            let plain = plain();
            table.karras((plain[steps - 1].sigma, plain[0].sigma), steps)
        }
        SamplerKind::DpmPlusPlus2MKarras => {
            let karras = table.karras(table.ends(), steps);
            karras.into_iter().map(|l| Level { timestep: whole(l.timestep, schedule), ..l }).collect()
        }
        _ => plain(),
    }
}

/// Refuses step counts at which noise levels repeat or leave the schedule.
fn check_levels(levels: &[Level], total: i64, steps: usize) -> Result<()> {
    let falling = levels.windows(2).all(|pair| pair[1].sigma < pair[0].sigma);
    let inside = levels.iter().all(|level| level.timestep >= 0.0 && level.timestep < total as f64);
    match falling && inside {
        true => Ok(()),
        false => {
            let expected = format!("fewer steps: the schedule's {total} timesteps are too few for this sampler");
            Err(Error::setting("steps", expected, steps))
        }
    }
}

/// Refuses steps at which the model's output does not tell the picture: noise predicted where there is nothing else.
fn check_signal(stages: &[Stage]) -> Result<()> {
    match stages.iter().find(|stage| !(stage.x0_from_latents.is_finite() && stage.x0_from_output.is_finite())) {
        None => Ok(()),
        Some(stage) => {
            let expected = format!(
                "v_prediction or sample: at timestep {}, a step of this sampler, the rescaled betas (`rescale_betas_zero_snr`) \
                 leave nothing of the picture, which the noise alone does not tell; `timestep_spacing` leading in \
                 scheduler_config.json begins below it",
                stage.timestep
            );
            Err(Error::setting("prediction_type", expected, "epsilon"))
        }
    }
}

/// Equal to the property of the same name of diffusers' schedulers.
fn init_noise_sigma(kind: SamplerKind, schedule: &NoiseSchedule, levels: &[Level]) -> f64 {
    let highest = levels[0].sigma;
    match (kind, counting(kind).spacing(schedule)) {
        (SamplerKind::Ddim | SamplerKind::DpmPlusPlus2M | SamplerKind::DpmPlusPlus2MKarras, _) => 1.0,
        (_, TimestepSpacing::Leading) => highest.hypot(1.0),
        (_, TimestepSpacing::Linspace | TimestepSpacing::Trailing) => highest,
    }
}

fn ddim_stages(levels: &[Level], schedule: &NoiseSchedule, steps: usize, eta: f64) -> Vec<Stage> {
    let stride = schedule.num_train_timesteps / steps as i64;
    let stage = |level: &Level| {
        let timestep = level.timestep as i64;
        let (alpha, next) = (schedule.alpha_cumprod(timestep), schedule.alpha_cumprod(timestep - stride));
        Stage::ddim(level.timestep, alpha, next, eta, schedule.prediction_type)
    };
    levels.iter().map(stage).collect()
}
