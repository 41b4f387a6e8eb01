//! Plain trajectories.

use tch::{Kind, Tensor};

use crate::{Cost, Ddim, Error, NoisePredictor, Result};

/// The path of a batch of latents from noise to clean.
#[derive(Debug)]
pub struct Trajectory {
    /// x at every stage, T+1 tensors `[B, C, h, w]` f32: `latents[i]` is the input of step i, the last one is clean.
    pub latents: Vec<Tensor>,
    /// The timestep of each step, T entries, descending.
    pub timesteps: Vec<i64>,
    /// Log-probability of each step under the policy that sampled it, `[B, T]` f32 nats; `None` for deterministic steps.
    pub log_probs: Option<Tensor>,
    /// What the rollout ran.
    pub cost: Cost,
}

impl Trajectory {
    /// The clean latents x_0, `[B, C, h, w]` f32, scaled as the U-Net sees them.
    pub fn final_latents(&self) -> &Tensor {
        // Invariant: every constructor starts with x_T, so there is always one.
        &self.latents[self.latents.len() - 1]
    }
}

/// Samples from `x_t` `[B, C, h, w]` to clean latents, one U-Net pass per step, without gradients.
///
/// `prompts` names the prompt of each row. `noise(step)` gives the noise `[B, C, h, w]` of step 0, 1, ...; `None` takes
/// the mean (right for η = 0). `on_step(done, total)` is called after each step. Errors: [`Error::Shape`], and what the
/// predictor refuses.
pub fn sample(
    predictor: &dyn NoisePredictor,
    x_t: &Tensor,
    prompts: &[usize],
    ddim: &Ddim,
    noise: &mut dyn FnMut(usize) -> Option<Tensor>,
    on_step: &mut dyn FnMut(usize, usize),
) -> Result<Trajectory> {
    check_rows(x_t, prompts)?;
    tch::no_grad(|| {
        let mut walk = Walk::start(x_t, ddim)?;
        let mut cost = Cost::default();
        for (step, &timestep) in ddim.timesteps().iter().enumerate() {
            let noise_pred = predict(predictor, walk.current(), timestep, prompts, &mut cost)?;
            walk.advance(ddim, timestep, &noise_pred, noise(step).as_ref())?;
            on_step(step + 1, ddim.steps());
        }
        Ok(Trajectory { cost, ..walk.finish()? })
    })
}

/// One prediction for rows that share their timestep, counted.
pub(crate) fn predict(
    predictor: &dyn NoisePredictor,
    latents: &Tensor,
    timestep: i64,
    prompts: &[usize],
    cost: &mut Cost,
) -> Result<Tensor> {
    cost.count(prompts.len(), predictor.branches());
    predictor.predict(latents, &vec![timestep; prompts.len()], prompts)
}

pub(crate) fn check_rows(latents: &Tensor, prompts: &[usize]) -> Result<()> {
    let size = latents.size();
    if size.len() < 2 || size[0] as usize != prompts.len() || prompts.is_empty() {
        let expected = format!("[{}, C, h, w], a row per prompt and at least one", prompts.len());
        return Err(Error::shape("latents", expected, format!("{size:?}")));
    }
    Ok(())
}

/// A trajectory under construction.
pub(crate) struct Walk {
    pub(crate) trajectory: Trajectory,
    log_probs: Vec<Tensor>,
}

impl Walk {
    pub(crate) fn start(x_t: &Tensor, ddim: &Ddim) -> Result<Self> {
        let latents = vec![x_t.f_to_kind(Kind::Float)?];
        let timesteps = ddim.timesteps().to_vec();
        Ok(Self {
            trajectory: Trajectory { latents, timesteps, log_probs: None, cost: Cost::default() },
            log_probs: Vec::new(),
        })
    }

    pub(crate) fn current(&self) -> &Tensor {
        self.trajectory.final_latents()
    }

    pub(crate) fn advance(
        &mut self,
        ddim: &Ddim,
        timestep: i64,
        noise_pred: &Tensor,
        noise: Option<&Tensor>,
    ) -> Result<()> {
        let transition = ddim.transition(&[timestep], self.current(), noise_pred)?;
        let next = transition.sample(noise)?;
        if transition.sigmas().iter().all(|&sigma| sigma > 0.0) {
            self.log_probs.push(transition.log_prob(&next)?);
        }
        self.trajectory.latents.push(next);
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<Trajectory> {
        if self.log_probs.len() == self.trajectory.timesteps.len() {
            self.trajectory.log_probs = Some(Tensor::f_stack(&self.log_probs, 1)?);
        }
        Ok(self.trajectory)
    }
}
