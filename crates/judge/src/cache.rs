//! Embeddings already computed.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use tch::Tensor;

use crate::Result;

/// Rows by key; the oldest give way.
pub(crate) struct Cache<K> {
    rows: RefCell<Rows<K>>,
    capacity: usize,
}

struct Rows<K> {
    known: HashMap<K, Tensor>,
    order: VecDeque<K>,
}

impl<K: Hash + Eq + Clone> Cache<K> {
    pub fn new(capacity: usize) -> Self {
        Self { rows: RefCell::new(Rows { known: HashMap::new(), order: VecDeque::new() }), capacity }
    }

    /// One row per key, stacked; `compute` is given the positions, each key once, whose rows are not known, and answers
    /// with their rows in that order.
    pub fn rows(&self, keys: &[K], compute: impl FnOnce(&[usize]) -> Result<Tensor>) -> Result<Tensor> {
        let mut fresh: HashMap<&K, usize> = HashMap::new();
        let mut missing = Vec::new();
        for (at, key) in keys.iter().enumerate() {
            if !self.rows.borrow().known.contains_key(key) && !fresh.contains_key(key) {
                fresh.insert(key, missing.len());
                missing.push(at);
            }
        }
        let computed = if missing.is_empty() { None } else { Some(compute(&missing)?) };
        let row = |key: &K| match (fresh.get(key), &computed) {
            (Some(at), Some(computed)) => computed.get(*at as i64),
            _ => self.rows.borrow().known[key].shallow_clone(),
        };
        let stacked = Tensor::stack(&keys.iter().map(row).collect::<Vec<_>>(), 0);
        if let Some(computed) = &computed {
            self.keep(missing.iter().enumerate().map(|(row, at)| (keys[*at].clone(), computed.get(row as i64).copy())));
        }
        Ok(stacked)
    }

    fn keep(&self, added: impl Iterator<Item = (K, Tensor)>) {
        let mut rows = self.rows.borrow_mut();
        for (key, row) in added {
            rows.known.insert(key.clone(), row);
            rows.order.push_back(key);
            if rows.order.len() > self.capacity
                && let Some(oldest) = rows.order.pop_front()
            {
                rows.known.remove(&oldest);
            }
        }
    }
}

impl<K> std::fmt::Debug for Cache<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cache({} rows)", self.rows.borrow().order.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_computed_once_and_the_oldest_leave() {
        let cache = Cache::new(2);
        let mut asked = Vec::new();
        let mut ask = |keys: &[&'static str]| {
            let rows = cache.rows(keys, |missing| {
                asked.extend(missing.iter().map(|at| keys[*at]));
                Ok(Tensor::from_slice(&missing.iter().map(|at| keys[*at].len() as i64).collect::<Vec<_>>())
                    .view([-1, 1]))
            });
            Vec::<i64>::try_from(rows.unwrap().view(-1)).unwrap()
        };
        assert_eq!(ask(&["a", "bb", "a"]), [1, 2, 1]);
        assert_eq!(ask(&["bb", "ccc"]), [2, 3]);
        assert_eq!(ask(&["a", "ccc"]), [1, 3]);
        assert_eq!(asked, ["a", "bb", "ccc", "a"]);
    }
}
