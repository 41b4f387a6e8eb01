//! Reading an optimizer's saved state.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};

/// Saved tensors, taken one by one; what is missing, misshaped or left over is named.
pub struct Saved<'p> {
    tensors: BTreeMap<String, Tensor>,
    path: &'p Path,
}

impl<'p> Saved<'p> {
    /// The tensors of a checkpoint; `path` is where they came from, for errors.
    pub fn new(tensors: BTreeMap<String, Tensor>, path: &'p Path) -> Self {
        Self { tensors, path }
    }

    fn refuse(&self, reason: String) -> Error {
        Error::Run { path: self.path.into(), reason }
    }

    /// The number of updates, `steps`.
    pub fn steps(&mut self) -> Result<u64> {
        let found = self.tensors.remove("steps");
        let steps = found.ok_or_else(|| self.refuse("expected tensor `steps`, found none".into()))?;
        let steps = if steps.numel() == 1 { steps.f_int64_value(&[0])? } else { -1 };
        u64::try_from(steps).map_err(|_| self.refuse("`steps`: expected one number, 0 or more".into()))
    }

    /// The f32 tensor called `key`, as a copy of its own on `device`.
    pub fn take(&mut self, key: &str, shape: &[i64], device: Device) -> Result<Tensor> {
        let found = self.tensors.remove(key);
        let tensor = found.ok_or_else(|| self.refuse(format!("expected tensor `{key}`, found none")))?;
        if tensor.size() != shape || tensor.kind() != Kind::Float {
            let (kind, found) = (tensor.kind(), tensor.size());
            return Err(self.refuse(format!("`{key}`: expected f32 {shape:?}, found {kind:?} {found:?}")));
        }
        Ok(tensor.to_device(device).copy())
    }

    /// Refuses tensors that nothing took: those of another optimizer, or of another model.
    pub fn finish(self) -> Result<()> {
        match self.tensors.keys().next() {
            Some(surplus) => Err(self.refuse(format!("unexpected tensor `{surplus}`"))),
            None => Ok(()),
        }
    }
}
