//! The objectives: identities, gradients, closed forms, parity with PyTorch. One binary, so that it links once.

#[path = "../common/mod.rs"]
mod common;

mod denoising;
mod fixture;
mod full;
mod optimum;
mod parity;
mod policy_gradient;
mod pure;
mod step_pairs;
