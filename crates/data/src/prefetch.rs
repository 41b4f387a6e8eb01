//! Decoding ahead: pictures of pairs, fitted to the model's size, made on other threads in the order they are asked for.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use image::RgbImage;

use crate::pairs::Pairs;
use crate::report::BadRow;

/// A pair's pictures at the model's size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fitted {
    /// The winner, `size * size * 3` bytes, RGB interleaved, rows from the top.
    pub winner: Vec<u8>,
    /// The loser; absent where only winners were asked for.
    pub loser: Option<Vec<u8>>,
}

impl Fitted {
    /// Reads, decodes and fits the pictures of one pair. Errors: the first picture that cannot be had, with the row it
    /// belongs to.
    pub fn read(pairs: &Pairs, index: usize, size: u32) -> Result<Self, BadRow> {
        let pair = pairs.pair(index);
        let fit = |id| pairs.fitted(id, size).map(RgbImage::into_raw);
        let both = fit(pair.winner).and_then(|winner| {
            let loser = pair.loser.map(fit).transpose()?;
            Ok(Self { winner, loser })
        });
        both.map_err(|bad| bad.of_row(pairs.place(index)))
    }
}

/// Workers that decode pairs ahead. What comes out depends on nothing but the order asked for.
pub struct Prefetch {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    pairs: Arc<Pairs>,
    size: u32,
    /// Pairs that may be decoded and not yet taken.
    ahead: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Pairs asked for and not yet begun.
    waiting: VecDeque<usize>,
    /// Tickets of what was begun and not yet taken, in order.
    begun: VecDeque<(u64, usize)>,
    next_ticket: u64,
    /// What came of it; where it panicked, with what.
    done: HashMap<u64, std::thread::Result<Result<Fitted, BadRow>>>,
    stop: bool,
}

impl Prefetch {
    /// `workers` threads; decoded pairs that wait take at most `bytes`, but one per worker may always be under way.
    pub fn new(pairs: Arc<Pairs>, size: u32, workers: usize, bytes: usize) -> Self {
        let each = 2 * 3 * (size as usize) * (size as usize);
        let ahead = (bytes / each.max(1)).max(workers);
        let shared =
            Arc::new(Shared { pairs, size, ahead, state: Mutex::new(State::default()), changed: Condvar::new() });
        let work = |_| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("decoder".to_owned()).spawn(move || shared.work()).ok()
        };
        // Without a thread of its own everything is decoded where it is taken.
        Self { workers: (0..workers).filter_map(work).collect(), shared }
    }

    /// Adds pairs to what will be taken, in this order.
    pub fn ask(&self, indices: impl IntoIterator<Item = usize>) {
        self.shared.lock().waiting.extend(indices);
        self.shared.changed.notify_all();
    }

    /// The pictures of pair `index`: what was decoded ahead if it was asked for, else decoded here. Pairs are best taken in
    /// the order asked for: what is never taken keeps its room.
    ///
    /// Panics where reading it did, on whichever thread: for an index that is not below [`Pairs::len`].
    pub fn take(&self, index: usize) -> Result<Fitted, BadRow> {
        let mut state = self.shared.lock();
        let Some(&(ticket, _)) = state.begun.iter().find(|(_, begun)| *begun == index) else {
            // No worker has come to it: it is as quick to do it here.
            if let Some(at) = state.waiting.iter().position(|waiting| *waiting == index) {
                state.waiting.remove(at);
            }
            return self.here(state, index);
        };
        loop {
            if let Some(done) = state.done.remove(&ticket) {
                state.begun.retain(|(begun, _)| *begun != ticket);
                drop(state);
                self.shared.changed.notify_all();
                return done.unwrap_or_else(|panicked| resume_unwind(panicked));
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn here(&self, state: MutexGuard<State>, index: usize) -> Result<Fitted, BadRow> {
        drop(state);
        Fitted::read(&self.shared.pairs, index, self.shared.size)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half-done under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        while !state.stop {
            let room = state.begun.len() < self.ahead;
            let Some(index) = (if room { state.waiting.pop_front() } else { None }) else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.begun.push_back((ticket, index));
            drop(state);
            // Whoever takes it would wait for ever for a thread that is gone.
            let fitted = catch_unwind(AssertUnwindSafe(|| Fitted::read(&self.pairs, index, self.size)));
            state = self.lock();
            state.done.insert(ticket, fitted);
            self.changed.notify_all();
        }
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Prefetch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Prefetch").field("workers", &self.workers.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::Options;

    #[test]
    fn a_panic_on_a_worker_reaches_whoever_takes_the_pair() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pairs/pickapic_v1");
        let pairs = Arc::new(Pairs::open(&file, &Options::default()).unwrap());
        let ahead = Prefetch::new(Arc::clone(&pairs), 8, 1, 0);
        ahead.ask([pairs.len(), 0]);
        while ahead.shared.lock().begun.is_empty() {
            std::thread::yield_now();
        }
        assert!(catch_unwind(AssertUnwindSafe(|| ahead.take(pairs.len()))).is_err());
        // The worker goes on.
        while ahead.shared.lock().begun.is_empty() {
            std::thread::yield_now();
        }
        assert!(ahead.take(0).is_ok());
    }
}
