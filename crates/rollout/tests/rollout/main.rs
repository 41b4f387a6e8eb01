//! Rollouts against diffusers, closed forms, and plain re-implementations. One binary, so that it links once.

#[path = "../../../align/tests/common/mod.rs"]
mod common;

mod batches;
mod branch;
mod ddim;
mod pair;
mod samplers;
mod sdxl;
mod toy;
