//! Reading an optimizer's saved state.

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

/// A saved state as it is checked and taken back; what is missing, misshaped or left over is named.
pub(super) struct Saved<'s> {
    state: SavedState<'s>,
    path: &'s Path,
    expected: BTreeSet<String>,
}

impl<'s> Saved<'s> {
    /// `path` is where the state came from, for errors.
    pub fn new(state: SavedState<'s>, path: &'s Path) -> Self {
        Self { state, path, expected: BTreeSet::new() }
    }

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
    pub fn steps(&mut self) -> Result<u64> {
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
    pub fn expect(&mut self, key: &str, shape: &[i64]) -> Result<()> {
        let (kind, found) = self.find(key)?;
        if kind != Some(Kind::Float) || found != shape {
            let kind = kind.map_or_else(|| "another dtype".to_owned(), |kind| format!("{kind:?}"));
            return Err(self.refuse(format!("`{key}`: expected f32 {shape:?}, found {kind} {found:?}")));
        }
        Ok(())
    }

    /// Refuses tensors that nothing expected: those of another optimizer, or of another model.
    pub fn finish(&self) -> Result<()> {
        let surplus = |name: &&str| !self.expected.contains(*name);
        let surplus = match &self.state {
            SavedState::File(file) => file.names().find(surplus),
            SavedState::Tensors(tensors) => tensors.keys().map(String::as_str).find(surplus),
        };
        surplus.map_or(Ok(()), |name| Err(self.refuse(format!("unexpected tensor `{name}`"))))
    }

    /// Copies the tensor `key` into `target`, wherever that lies.
    pub fn copy_into(&self, key: &str, target: &Tensor) -> Result<()> {
        let _guard = tch::no_grad_guard();
        target.shallow_clone().f_copy_(&self.tensor(key)?)?;
        Ok(())
    }
}
