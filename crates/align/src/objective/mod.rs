//! What a method minimises: preferences, likelihood ratios, the self-entropy term, and the pairwise loss.
//!
//! [`pairwise_loss`] is pure arithmetic on log-likelihoods; [`step_pair`] feeds it from the U-Net. The trainer and
//! `seedpo probe` both go through [`accumulate_step_pairs`], so what the probe shows is what training does.

pub mod advantage;
pub mod entropy;
pub mod flipper;
pub mod likelihood;
pub mod loss;
pub mod pairs;
mod policy_gradient;
pub mod preference;
pub mod probe;
pub mod safeguard;
pub mod step_pair;

pub use advantage::RewardHistory;
pub use entropy::{EntropyForm, SelfEntropy};
pub use flipper::Flipper;
pub use likelihood::{Side, denoising_error};
pub use loss::{Clip, LossOutput, Objective, pairwise_loss, supervised_loss};
pub use pairs::{PairBatch, PairLatents};
pub use preference::Preference;
pub use probe::{ProbeLoss, ProbeLossSettings, pair_tensors, probe_loss, takes_steps};
pub use step_pair::{accumulate_step_pairs, step_pair_loss};
