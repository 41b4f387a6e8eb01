//! D3PO's pairs of whole trajectories (docs/methods.md section 4.1).

use seedpo_tensor::NoiseKey;
use tch::Tensor;

use crate::sample::{Walk, check_rows, predict};
use crate::{Cost, Ddim, NoisePredictor, Result, Trajectory, step_noise};

/// Two trajectories of every prompt that start from the same x_T and differ in the noise of their steps.
#[derive(Debug)]
pub struct TrajectoryPair {
    /// The trajectories drawn with candidate 0 and candidate 1, each over the whole batch of prompts.
    pub sides: [Trajectory; 2],
    /// The prompt of each row.
    pub prompts: Vec<usize>,
    /// What both together ran; the sides' own counts are left at 0.
    pub cost: Cost,
}

/// Samples a pair of trajectories per row of `x_t` `[B, C, h, w]`, without gradients.
///
/// `keys` has one key per row; side s draws step i's noise from `keys[row].candidate(s)` at step i + 1
/// ([`step_noise`]). The first step's noise prediction is computed once, since both sides share x_T, timestep and
/// prompt; afterwards both sides run in one pass of 2B rows. Errors: as [`crate::sample()`].
pub fn sample_pair(
    predictor: &dyn NoisePredictor,
    x_t: &Tensor,
    prompts: &[usize],
    ddim: &Ddim,
    keys: &[NoiseKey],
    on_step: &mut dyn FnMut(usize, usize),
) -> Result<TrajectoryPair> {
    check_rows(x_t, prompts)?;
    if keys.len() != prompts.len() {
        return Err(crate::Error::shape("keys", format!("{} entries", prompts.len()), format!("{}", keys.len())));
    }
    let rows = prompts.len();
    let shape = x_t.size()[1..].to_vec();
    let both_prompts: Vec<usize> = prompts.iter().chain(prompts).copied().collect();
    let both_keys: Vec<NoiseKey> = (0..2).flat_map(|side| keys.iter().map(move |key| key.candidate(side))).collect();
    tch::no_grad(|| {
        let x_t = Tensor::f_cat(&[x_t, x_t], 0)?;
        let mut walk = Walk::start(&x_t, ddim)?;
        let mut cost = Cost::default();
        for (step, &timestep) in ddim.timesteps().iter().enumerate() {
            let noise_pred = if step == 0 {
                let once = predict(predictor, &walk.current().narrow(0, 0, rows as i64), timestep, prompts, &mut cost)?;
                Tensor::f_cat(&[&once, &once], 0)?
            } else {
                predict(predictor, walk.current(), timestep, &both_prompts, &mut cost)?
            };
            walk.advance(ddim, timestep, &noise_pred, Some(&step_noise(&both_keys, step, &shape)))?;
            on_step(step + 1, ddim.steps());
        }
        let both = walk.finish()?;
        let side = |s: usize| narrow(&both, (s * rows) as i64, rows as i64);
        Ok(TrajectoryPair { sides: [side(0), side(1)], prompts: prompts.to_vec(), cost })
    })
}

fn narrow(both: &Trajectory, start: i64, rows: i64) -> Trajectory {
    Trajectory {
        latents: both.latents.iter().map(|x| x.narrow(0, start, rows)).collect(),
        timesteps: both.timesteps.clone(),
        log_probs: both.log_probs.as_ref().map(|x| x.narrow(0, start, rows)),
        cost: Cost::default(),
    }
}
