//! Objectives, pair sources, reference policies, the trainer, checkpoints and resume.
//!
//! A method is data on four axes ([`Method`]); [`TrainConfig`] is every setting of a run; the trainer has one loop for
//! all methods and tells an [`Observer`] what happens.

pub mod best;
pub mod checkpoint;
mod choice;
pub mod config;
mod error;
pub mod forecast;
pub mod guard;
mod method;
pub mod metrics;
pub mod objective;
pub mod observer;
pub mod optimizer;
mod prompts;
pub mod run_dir;
pub mod store;
pub mod trainer;
pub mod watch;

pub use checkpoint::{ADAPTER_FILE, Checkpoint, Position, Role, UNET_FOLDER};
pub use config::TrainConfig;
pub use error::{Error, Result};
pub use forecast::Forecast;
pub use method::{Likelihood, METHODS, Method, PairsFrom, ReferencePolicy, Shaping};
pub use metrics::{GuardEvent, Heldout, MemberScores, PreviewMetrics, Record, UpdateMetrics, WatchEvent};
pub use observer::{EffectiveSettings, Observer, ObserverError, Phase, Preview, Silent};
pub use prompts::{load_prompts, read_prompts};
pub use run_dir::RunDir;
pub use trainer::{Finished, Parts, Trainer};
