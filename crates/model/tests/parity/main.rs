//! Parity of U-Net, VAE and text encoder with diffusers 0.38 and transformers 5 on small random models.
//!
//! Tolerances, relative to the largest value of the reference: forward 2e-5 and gradients 1e-4 in f32. Both sides run
//! the same libtorch kernels in a different order of operations, so the difference is a few roundings per layer.

mod configs;
mod networks;
mod sdxl;
mod shapes;
mod tiling;
mod weights;

/// Of network outputs.
const FORWARD: f64 = 2e-5;
/// Of gradients.
const GRADIENT: f64 = 1e-4;
