//! An optimizer's state: its moments by name and the count of its updates, `steps`, out and in again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use seedpo_tensor::WeightFile;
use tch::{Kind, Tensor};

use crate::error::{Error, Result};

/// Where the tensors of a saved state are.
#[derive(Debug)]
pub enum SavedState<'s> {
    /// In memory.
    Tensors(BTreeMap<String, Tensor>),
    /// In a file, from which one at a time is read.
    File(&'s WeightFile),
}

impl From<BTreeMap<String, Tensor>> for SavedState<'_> {
    fn from(tensors: BTreeMap<String, Tensor>) -> Self {
        Self::Tensors(tensors)
    }
}

impl<'s> From<&'s WeightFile> for SavedState<'s> {
    fn from(file: &'s WeightFile) -> Self {
        Self::File(file)
    }
}

/// Bytes of f32 `moments`.
pub(super) fn bytes<'m>(moments: impl Iterator<Item = (String, &'m Tensor)>) -> u64 {
    moments.map(|(_, moment)| 4 * moment.numel() as u64).sum()
}

/// The state that `moments` after so many `steps` are, sharing their memory.
pub(super) fn state<'m>(steps: u64, moments: impl Iterator<Item = (String, &'m Tensor)>) -> BTreeMap<String, Tensor> {
    let mut state = BTreeMap::from([("steps".to_string(), Tensor::from_slice(&[steps as i64]))]);
    state.extend(moments.map(|(key, moment)| (key, moment.detach())));
    state
}

/// Takes a state into the memory that `moments` have, one at a time; gives `steps`. `path` is where it came from, for errors.
///
/// Errors: [`Error::Run`] naming the first tensor that is missing, surplus or misshaped, before anything is changed; those of
/// reading, which may leave the moments of neither.
pub(super) fn load<'m, M: Iterator<Item = (String, &'m Tensor)>>(
    moments: impl Fn() -> M,
    state: SavedState<'_>,
    path: &Path,
) -> Result<u64> {
    let mut saved = Saved { state, path, expected: BTreeSet::new() };
    let steps = saved.steps()?;
    moments().try_for_each(|(key, moment)| saved.expect(&key, &moment.size()))?;
    saved.finish()?;
    moments().try_for_each(|(key, moment)| saved.copy_into(&key, moment))?;
    Ok(steps)
}

/// Sets `moments` to what they are before the first update.
pub(super) fn clear<'m>(moments: impl Iterator<Item = (String, &'m Tensor)>) {
    let _guard = tch::no_grad_guard();
    moments.for_each(|(_, moment)| drop(moment.shallow_clone().zero_()));
}

/// A saved state as it is checked and taken back; what is missing, misshaped or left over is named.
struct Saved<'s> {
    state: SavedState<'s>,
    path: &'s Path,
    expected: BTreeSet<String>,
}

impl Saved<'_> {
    fn refuse(&self, reason: String) -> Error {
        Error::Run { path: self.path.into(), reason }
    }

    fn missing(&self, key: &str) -> Error {
        self.refuse(format!("expected tensor `{key}`, found none"))
    }

    fn tensor(&self, key: &str) -> Result<Tensor> {
        match &self.state {
            SavedState::File(file) => Ok(file.tensor(key)?),
            SavedState::Tensors(tensors) => {
                tensors.get(key).map(Tensor::shallow_clone).ok_or_else(|| self.missing(key))
            }
        }
    }

    /// The number of updates, `steps`.
    fn steps(&mut self) -> Result<u64> {
        self.find("steps")?;
        let found = self.tensor("steps")?;
        let steps = if found.numel() == 1 { found.f_reshape([1])?.f_int64_value(&[0])? } else { -1 };
        u64::try_from(steps).map_err(|_| self.refuse("`steps`: expected one number, 0 or more".into()))
    }

    /// Notes that there is to be a tensor `key`; gives its dtype, where libtorch has one, and its shape.
    fn find(&mut self, key: &str) -> Result<(Option<Kind>, Vec<i64>)> {
        let found = match &self.state {
            SavedState::File(file) => file.shape(key).map(|shape| (file.kind(key), shape.to_vec())),
            SavedState::Tensors(tensors) => tensors.get(key).map(|tensor| (Some(tensor.kind()), tensor.size())),
        };
        self.expected.insert(key.to_owned());
        found.ok_or_else(|| self.missing(key))
    }

    /// Refuses a state without an f32 tensor `key` of this shape.
    fn expect(&mut self, key: &str, shape: &[i64]) -> Result<()> {
        let (kind, found) = self.find(key)?;
        if kind != Some(Kind::Float) || found != shape {
            let kind = kind.map_or_else(|| "another dtype".to_owned(), |kind| format!("{kind:?}"));
            return Err(self.refuse(format!("`{key}`: expected f32 {shape:?}, found {kind} {found:?}")));
        }
        Ok(())
    }

    /// Refuses tensors that nothing expected: those of another optimizer, or of another model.
    fn finish(&self) -> Result<()> {
        let surplus = |name: &&str| !self.expected.contains(*name);
        let surplus = match &self.state {
            SavedState::File(file) => file.names().find(surplus),
            SavedState::Tensors(tensors) => tensors.keys().map(String::as_str).find(surplus),
        };
        surplus.map_or(Ok(()), |name| Err(self.refuse(format!("unexpected tensor `{name}`"))))
    }

    /// Copies the tensor `key` into `target`, wherever that lies.
    fn copy_into(&self, key: &str, target: &Tensor) -> Result<()> {
        let _guard = tch::no_grad_guard();
        target.shallow_clone().f_copy_(&self.tensor(key)?)?;
        Ok(())
    }
}
