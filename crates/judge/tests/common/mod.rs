//! Pictures and weights by the formulas of `python/fixtures/formula.py`.
#![allow(dead_code, reason = "every test binary uses its part")]

pub mod cases;

use std::path::{Path, PathBuf};

use tch::Tensor;

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn uniform(name: &str, count: usize) -> Vec<f32> {
    let key = name.bytes().fold(2_166_136_261u32, |h, byte| (h ^ u32::from(byte)).wrapping_mul(16_777_619));
    let one = |index: u32| {
        let mut h = index.wrapping_mul(0x9E37_79B1).wrapping_add(key);
        h ^= h >> 16;
        h = h.wrapping_mul(0x85EB_CA6B);
        h ^= h >> 13;
        h = h.wrapping_mul(0xC2B2_AE35);
        h ^= h >> 16;
        (h >> 8) as f32 / (1u32 << 24) as f32 - 0.5
    };
    (0..count as u32).map(one).collect()
}

/// What a tensor of this name holds.
pub fn weight(name: &str, shape: &[i64]) -> Tensor {
    let count = shape.iter().product::<i64>() as usize;
    if name.ends_with("logit_scale") {
        return Tensor::from_slice(&[3.912023f32]).reshape(shape);
    }
    let (gain, offset) = match shape {
        [] | [_] => {
            let norm = ["norm", "ln_", "LayerNorm"].iter().any(|part| name.contains(part)) && name.ends_with("weight");
            (0.4, if norm { 1.0 } else { 0.0 })
        }
        _ => ((2.0 * (3.0 / shape[1..].iter().product::<i64>() as f64).sqrt()) as f32, 0.0),
    };
    let values: Vec<f32> = uniform(name, count).into_iter().map(|u| u * gain + offset).collect();
    Tensor::from_slice(&values).reshape(shape)
}

/// u8 `[1, H, W, 3]`.
pub fn picture(height: usize, width: usize, seed: usize) -> Tensor {
    let mut bytes = Vec::with_capacity(height * width * 3);
    for y in 0..height as u64 {
        for x in 0..width as u64 {
            for c in 0..3u64 {
                let mixed = (y * 73_856_093) ^ (x * 19_349_663) ^ (c * 83_492_791) ^ (seed as u64 * 40_503);
                let noise = (mixed.wrapping_mul(2_654_435_761) % (1 << 32)) >> 26;
                let block = (y / 5 + x / 7 + c + seed as u64) % 2 * (190 - 17 * (seed as u64 % 8));
                bytes.push((block + noise) as u8);
            }
        }
    }
    Tensor::from_slice(&bytes).view([1, height as i64, width as i64, 3])
}
