//! Which key draws which noise: one key per row, so that no draw depends on the batch.

use seedpo_tensor::NoiseKey;
use tch::Tensor;

/// x_T for a batch, `[B, ..shape]` f32 on the CPU: row i is drawn from `keys[i]` at step 0, candidate 0.
///
/// `shape` is that of one latent, `[C, h, w]`.
pub fn initial_noise(keys: &[NoiseKey], shape: &[i64]) -> Tensor {
    stack(keys.iter().map(|key| key.step(0).candidate(0)), shape)
}

/// The noise of sampler step `step` (0 is the first), `[B, ..shape]`: row i from `keys[i]` at step `step + 1`, with
/// the candidate number the key already has.
pub fn step_noise(keys: &[NoiseKey], step: usize, shape: &[i64]) -> Tensor {
    stack(keys.iter().map(|key| key.step(step as u64 + 1)), shape)
}

fn stack(keys: impl Iterator<Item = NoiseKey>, shape: &[i64]) -> Tensor {
    let rows: Vec<Tensor> = keys.map(|key| key.normal(shape)).collect();
    if rows.is_empty() {
        let mut empty = vec![0i64];
        empty.extend_from_slice(shape);
        return Tensor::zeros(empty, (tch::Kind::Float, tch::Device::Cpu));
    }
    Tensor::stack(&rows, 0)
}
