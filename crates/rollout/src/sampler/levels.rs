//! Which timesteps and noise levels σ = √((1−ᾱ)/ᾱ) a sampler visits.

use seedpo_model::config::{BetaSchedule, TimestepSpacing};
use seedpo_model::schedule::NoiseSchedule;

/// ρ of Karras et al. 2022.
const RHO: f64 = 7.0;

/// A timestep, fractional under some spacings, and the noise level at it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    pub timestep: f64,
    pub sigma: f64,
}

/// How a family of schedulers counts timesteps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Counting {
    /// Where the folder names none.
    pub default_spacing: TimestepSpacing,
    /// Spaces `steps + 1` timesteps and leaves the lowest out (DPM-Solver).
    pub one_more: bool,
    /// Whole timesteps only.
    pub whole: bool,
}

impl Counting {
    /// The spacing used for `schedule`.
    pub fn spacing(&self, schedule: &NoiseSchedule) -> TimestepSpacing {
        schedule.timestep_spacing.unwrap_or(self.default_spacing)
    }

    /// `steps` timesteps, descending; equal to diffusers' `set_timesteps`, which also keeps them in f32 at most.
    pub fn timesteps(&self, schedule: &NoiseSchedule, steps: usize) -> Vec<f64> {
        let (total, offset) = (schedule.num_train_timesteps, schedule.steps_offset);
        let spaced = steps + usize::from(self.one_more);
        let at = |i: usize| {
            let place = (spaced - 1 - i) as f64;
            match self.spacing(schedule) {
                TimestepSpacing::Linspace if spaced == 1 => 0.0,
                TimestepSpacing::Linspace => place * ((total - 1) as f64 / (spaced - 1) as f64),
                TimestepSpacing::Leading => place * (total / spaced as i64) as f64 + offset as f64,
                TimestepSpacing::Trailing => {
                    (total as f64 - i as f64 * (total as f64 / steps as f64)).round_ties_even() - 1.0
                }
            }
        };
        (0..steps).map(|i| if self.whole { at(i).round_ties_even() } else { f64::from(at(i) as f32) }).collect()
    }
}

/// The σ of every training timestep, ascending, f32 as diffusers computes them.
#[derive(Debug)]
pub struct Table {
    sigmas: Vec<f64>,
    logs: Vec<f64>,
}

impl Table {
    pub fn new(schedule: &NoiseSchedule) -> Self {
        let sigmas: Vec<f32> = schedule
            .alphas_cumprod
            .iter()
            .map(|&alpha| {
                // diffusers: 0, of a zero terminal signal-to-noise ratio, is the smallest f16 here, and σ stays finite.
                let alpha = if alpha == 0.0 { f32::exp2(-24.0) } else { alpha as f32 };
                ((1.0 - alpha) / alpha).sqrt()
            })
            .collect();
        Self {
            logs: sigmas.iter().map(|sigma| f64::from(sigma.ln())).collect(),
            sigmas: sigmas.into_iter().map(f64::from).collect(),
        }
    }

    /// Lowest and highest σ.
    pub fn ends(&self) -> (f64, f64) {
        (self.sigmas[0], self.sigmas[self.sigmas.len() - 1])
    }

    /// σ at a timestep, between two of the table by linear interpolation; its ends beyond them (`numpy.interp`).
    pub fn sigma(&self, timestep: f64) -> f64 {
        let last = self.sigmas.len() - 1;
        let low = timestep.clamp(0.0, last as f64).floor() as usize;
        let high = (low + 1).min(last);
        let part = timestep.clamp(0.0, last as f64) - low as f64;
        self.sigmas[low] + (self.sigmas[high] - self.sigmas[low]) * part
    }

    /// The timestep of a σ, by linear interpolation of log σ (diffusers' `_sigma_to_t`).
    pub fn timestep(&self, sigma: f64) -> f64 {
        let log = sigma.max(1e-10).ln();
        let last = self.logs.len() - 1;
        if last == 0 {
            return 0.0;
        }
        let low = self.logs.partition_point(|&l| l <= log).saturating_sub(1).min(last - 1);
        let part = ((self.logs[low] - log) / (self.logs[low] - self.logs[low + 1])).clamp(0.0, 1.0);
        low as f64 + part
    }

    /// `steps` levels from σ `high` down to `low`, evenly spaced in σ^(1/ρ).
    pub fn karras(&self, (low, high): (f64, f64), steps: usize) -> Vec<Level> {
        let (min, max) = (low.powf(1.0 / RHO), high.powf(1.0 / RHO));
        let at = |i: usize| if steps == 1 { 0.0 } else { i as f64 / (steps - 1) as f64 };
        (0..steps)
            .map(|i| (max + at(i) * (min - max)).powf(RHO))
            .map(|sigma| Level { timestep: self.timestep(sigma), sigma })
            .collect()
    }
}

/// DPM-Solver's timesteps are whole: rounded, but cut off under the cosine schedule.
pub fn whole(timestep: f64, schedule: &NoiseSchedule) -> f64 {
    match schedule.beta_schedule {
        BetaSchedule::SquaredcosCapV2 => timestep.trunc(),
        _ => timestep.round_ties_even(),
    }
}
