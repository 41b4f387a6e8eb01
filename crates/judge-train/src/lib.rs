//! Training judges (docs/judges.md, "Training a judge"): CLIPs from captioned pictures, preference models from pairs
//! (PickScore's loss), and step-aware preference models from noised pairs (SPO's recipe).
//!
//! One engine ([`run()`]) for all: a [`Task`] says what a batch is, what its loss is and how held-out data is judged.

mod bytes;
mod captions;
mod contrastive;
mod error;
mod export;
mod heldout;
mod noising;
pub mod objective;
mod pictures;
mod preference;
mod presets;
mod run;
mod settings;
mod source;
mod split;
mod start;
mod state;
mod synthetic;

pub use captions::{Captions, EmojiCaptions, FileCaptions};
pub use contrastive::Contrastive;
pub use error::{Error, Result};
pub use export::export;
pub use heldout::Heldout;
pub use noising::{Draws, Noising};
pub use pictures::Crop;
pub use preference::{PairBatch, Preference};
pub use presets::{PRESETS, Preset};
pub use run::{Finished, Run, Task, run};
pub use settings::{Part, Settings};
pub use source::{Loaded, Source, Unreadable};
pub use split::part_of;
pub use start::{Sizes, Start};
pub use synthetic::{Written, write_pairs};
