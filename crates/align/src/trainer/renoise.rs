//! Sampled pairs under the denoising-error likelihood: what was judged is noised anew (docs/methods.md section 4.6).

use super::samples::{Pairs, Samples};
use super::stream::Slot;
use crate::error::Result;
use crate::objective::{PairBatch, PairLatents, Preference};
use seedpo_model::DiffusionModel;
use seedpo_tensor::NoiseKey;
use tch::Tensor;

/// Two clean latents `[C, h, w]`, one preferred, with the t and the key of the ε that both get.
struct Judged {
    clean: [Tensor; 2],
    timestep: i64,
    noise: NoiseKey,
    prompt: usize,
}

/// The samples with their pairs noised: the candidates' x̂0 at the timestep they were drawn at, the trajectories' ends
/// at a uniform one. Keyed by pass and prompt. Pairs without a winner are left out.
pub fn renoised(samples: Samples, slots: &[Slot], model: &DiffusionModel, seed: u64) -> Result<Samples> {
    let key = |purpose: &'static str, prompt: usize| {
        NoiseKey::new(seed, purpose).epoch(slots[prompt].pass).prompt(slots[prompt].prompt as u64)
    };
    let judged: Vec<Judged> = match &samples.pairs {
        Pairs::Images(_) | Pairs::Samples(_) => return Ok(samples),
        Pairs::Steps(pairs) => {
            let of = |pair: &seedpo_rollout::StepPair| Judged {
                clean: pair.pred_x0.each_ref().map(Tensor::shallow_clone),
                timestep: pair.timestep,
                noise: key("image-noise", pair.prompt).step(pair.timestep as u64),
                prompt: pair.prompt,
            };
            pairs.iter().map(of).collect()
        }
        Pairs::Trajectories(pair, preferences) => {
            let decided = preferences.iter().enumerate().filter(|(_, preference)| preference.decided());
            let of = |(row, preference): (usize, &Preference)| {
                let (prompt, second) = (pair.prompts[row], usize::from(*preference == Preference::Second));
                let end = |side: usize| pair.sides[side].final_latents().get(row as i64);
                let timestep = key("image-timestep", prompt).below(model.schedule.num_train_timesteps as usize);
                Judged {
                    clean: [end(second), end(1 - second)],
                    timestep: timestep as i64,
                    noise: key("image-noise", prompt),
                    prompt,
                }
            };
            decided.map(of).collect()
        }
    };
    if judged.is_empty() {
        return Ok(Samples { pairs: Pairs::Steps(Vec::new()), ..samples });
    }
    let stack = |tensors: Vec<Tensor>| Tensor::f_stack(&tensors, 0);
    let side = |s: usize| stack(judged.iter().map(|pair| pair.clean[s].shallow_clone()).collect());
    let (winners, losers) = (side(0)?, side(1)?);
    let noise = stack(judged.iter().map(|pair| pair.noise.normal(&pair.clean[0].size())).collect())?;
    let timesteps: Vec<i64> = judged.iter().map(|pair| pair.timestep).collect();
    let noise = noise.to_device(winners.device());
    let latents = PairLatents::noised(&model.schedule, &winners, &losers, noise, &timesteps)?;
    let prompts: Vec<usize> = judged.iter().map(|pair| pair.prompt).collect();
    let batch = PairBatch { latents, decided: vec![true; prompts.len()], timesteps, prompts, weights: None };
    Ok(Samples { pairs: Pairs::Images(batch), ..samples })
}
