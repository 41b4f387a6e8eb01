//! DDIM steps and log-probabilities, guidance, trajectories and step-wise branching.
//!
//! Everything here runs a [`NoisePredictor`]: a policy with its prompts and guidance scale ([`GuidedPolicy`]), or a
//! closed form in tests. No function of this crate that samples keeps gradients; [`Ddim::transition`] does, since
//! the objectives differentiate through its mean.

pub mod branch;
pub mod cost;
pub mod ddim;
pub mod error;
pub mod noise;
pub mod pair;
pub mod predictor;
pub mod sample;
pub mod sampler;

pub use branch::{BranchOptions, Branching, Scorer, Scores, StepPair, StepRecord, branch};
pub use cost::Cost;
pub use ddim::{Ddim, Transition};
pub use error::{BoxError, Error, Result};
pub use noise::{initial_noise, step_noise};
pub use pair::{TrajectoryPair, sample_pair};
pub use predictor::{GuidedPolicy, NoisePredictor, OutputPredictor, Pullback};
pub use sample::{Trajectory, sample};
pub use sampler::{Sampler, SamplerKind, draw};
