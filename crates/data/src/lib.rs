//! Preference pairs of pictures, from every layout people have them in (docs/data.md).
//!
//! [`Pairs::open`] tells the layout from the content, reads prompts and labels once, and leaves the pictures where they
//! are: each is read when it is asked for. What it keeps grows by some tens of bytes a pair; pictures never stay.
//! [`Prefetch`] decodes ahead on other threads, in the order it is told, within a bound of bytes. This crate knows no
//! tensors.
//!
//! ```no_run
//! use seedpo_data::{Options, Pairs};
//!
//! let pairs = Pairs::open("pickapic/data".as_ref(), &Options::default())?;
//! println!("{} pairs, {} ties", pairs.len(), pairs.report().ties);
//! let picture = pairs.picture(pairs.pair(0).winner).map_err(|bad| bad.detail);
//! # Ok::<(), seedpo_data::Error>(())
//! ```

mod builder;
mod error;
mod files;
mod folders;
mod human;
mod jpeg;
mod lists;
mod open;
mod pairs;
mod parquet_pairs;
pub mod picture;
mod prefetch;
mod report;
mod rows;
mod table;
mod write;

pub use error::{Error, Result};
pub use files::fingerprint;
pub use pairs::{Options, Pair, Pairs, PictureId};
pub use prefetch::{Fitted, Prefetch};
pub use report::{BadCount, BadRow, Reason, Report};
pub use write::{JudgedPair, PairWriter};
