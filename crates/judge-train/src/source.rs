//! Batches, loaded one update ahead on a thread of their own.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use seedpo_data::{BadRow, Pairs};
use seedpo_pretrain::state::batch_indices;

use crate::{Error, Result, Settings};

/// Where the batches of updates come from. What an update gets depends on its number alone.
pub trait Source: Send + Sync {
    /// What one pass works on.
    type Batch: Send + 'static;

    /// What an update wants, for the sentence that says that it has none of it.
    const NEEDS: &'static str;

    /// Update `update`, from 0.
    fn load(&self, update: u64) -> Result<Loaded<Self::Batch>>;

    /// The dataset that pictures are read from, some of which may turn out to be unreadable; `None` for pictures in memory.
    fn pairs(&self) -> Option<&Pairs>;
}

/// What was loaded for an update.
pub struct Loaded<B> {
    /// As many as gradients are accumulated of, or fewer where pictures cannot be had; none of them empty.
    pub batches: Vec<B>,
    /// Examples that were left out.
    pub unreadable: Vec<Unreadable>,
}

/// An example that a picture cannot be had of.
pub struct Unreadable {
    /// Its index in the dataset.
    pub index: usize,
    /// Which picture, and why.
    pub why: BadRow,
}

impl Unreadable {
    /// The row of the dataset that it is in, as a bad one.
    pub(crate) fn row(self, pairs: &Pairs) -> BadRow {
        let Self { index, why } = self;
        BadRow { detail: format!("{}: {}", why.place, why.detail), place: pairs.place(index), ..why }
    }
}

/// In which order examples are visited: every epoch a permutation of its own, updates running across epochs.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    examples: Vec<usize>,
    seed: u64,
    batch: usize,
    accumulation: usize,
}

impl Order {
    pub fn new(examples: Vec<usize>, settings: &Settings) -> Self {
        Self { examples, seed: settings.seed, batch: settings.batch, accumulation: settings.accumulation }
    }

    /// The examples of an update, by batches.
    pub fn batches(&self, update: u64) -> Vec<Vec<usize>> {
        let count = self.batch * self.accumulation;
        let places = batch_indices(self.seed, "judge order", self.examples.len(), update, count);
        let examples: Vec<usize> = places.into_iter().map(|place| self.examples[place as usize]).collect();
        examples.chunks(self.batch).map(<[usize]>::to_vec).collect()
    }
}

/// Loads the batches of updates in order, while the one before is trained on.
pub(crate) struct Ahead<B> {
    loaded: Receiver<Result<Loaded<B>>>,
}

impl<B: Send + 'static> Ahead<B> {
    /// Loads from update `first` up to, not with, `end`.
    pub fn start<S: Source<Batch = B> + 'static>(source: Arc<S>, first: u64, end: u64) -> Self {
        let (sender, loaded) = sync_channel(1);
        // It ends when all is loaded, or when nobody listens any more. Pictures are decoded on rayon's threads.
        std::thread::spawn(move || {
            tch::set_num_threads(1);
            for update in first..end {
                let loaded = source.load(update);
                let failed = loaded.is_err();
                if sender.send(loaded).is_err() || failed {
                    break;
                }
            }
        });
        Self { loaded }
    }

    /// The next update's batches.
    pub fn next(&self) -> Result<Loaded<B>> {
        self.loaded.recv().map_err(|_| Error::Loader)?
    }
}
