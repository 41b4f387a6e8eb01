//! A case file: input tensors whose shapes are checked by name, and settings.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use seedpo_tensor::{Kind, Tensor, WeightFile};

use super::settings::CaseSettings;

const INTEGERS: [Kind; 5] = [Kind::Int64, Kind::Int, Kind::Int16, Kind::Int8, Kind::Uint8];

/// A case, open for reading.
pub struct Case {
    file: WeightFile,
    what: String,
    settings: String,
}

impl Case {
    /// Opens a case. Errors: not a whole safetensors file, or no `what` in its metadata.
    pub fn open(path: &Path) -> Result<Self> {
        let file = WeightFile::open(path).context("--case")?;
        let mut metadata = file.metadata();
        let what = metadata.remove("what");
        let what = what.with_context(|| {
            format!("case {}: expected the string `what` in its metadata, found none", path.display())
        })?;
        let settings = metadata.remove("settings").unwrap_or_else(|| "{}".to_owned());
        Ok(Self { file, what, settings })
    }

    /// Which stage to run.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The settings, of which only `known` ones may be there.
    pub fn settings(&self, known: &[&'static str]) -> Result<CaseSettings> {
        CaseSettings::parse(&self.settings, known)
    }

    /// A path from the settings: from the working folder, or else from the case's folder.
    pub fn path(&self, written: &str) -> PathBuf {
        let beside = self.file.path().parent().map(|folder| folder.join(written));
        match beside {
            Some(beside) if !Path::new(written).exists() && beside.exists() => beside,
            _ => PathBuf::from(written),
        }
    }

    /// Whether the case holds this tensor.
    pub fn has(&self, name: &str) -> bool {
        self.file.shape(name).is_some()
    }

    /// A float tensor as f32, whose shape is written as in `docs/`: names stand for sizes and must agree everywhere,
    /// numbers are themselves.
    pub fn float(&self, name: &str, shape: &[&'static str], sizes: &Sizes) -> Result<Tensor> {
        let tensor = self.checked(name, shape, sizes)?;
        if !tensor.is_floating_point() {
            bail!("tensor `{name}`: expected a float dtype, found {:?}", tensor.kind());
        }
        Ok(tensor.f_to_kind(Kind::Float)?)
    }

    /// As [`Self::float`], of integers too.
    pub fn number(&self, name: &str, shape: &[&'static str], sizes: &Sizes) -> Result<Tensor> {
        let tensor = self.checked(name, shape, sizes)?;
        if !tensor.is_floating_point() && !INTEGERS.contains(&tensor.kind()) {
            bail!("tensor `{name}`: expected a float or integer dtype, found {:?}", tensor.kind());
        }
        Ok(tensor.f_to_kind(Kind::Float)?)
    }

    /// An integer tensor as i64, with each value in `0..below`.
    pub fn integer(&self, name: &str, shape: &[&'static str], sizes: &Sizes, below: i64) -> Result<Tensor> {
        let tensor = self.checked(name, shape, sizes)?;
        if !INTEGERS.contains(&tensor.kind()) {
            bail!("tensor `{name}`: expected dtype i64, found {:?}", tensor.kind());
        }
        let tensor = tensor.f_to_kind(Kind::Int64)?;
        let (low, high) = (tensor.min().int64_value(&[]), tensor.max().int64_value(&[]));
        if low < 0 || high >= below {
            bail!("tensor `{name}`: expected values from 0 to {}, found {low} to {high}", below - 1);
        }
        Ok(tensor)
    }

    /// A `u8` tensor.
    pub fn bytes(&self, name: &str, shape: &[&'static str], sizes: &Sizes) -> Result<Tensor> {
        let tensor = self.checked(name, shape, sizes)?;
        match tensor.kind() {
            Kind::Uint8 => Ok(tensor),
            other => bail!("tensor `{name}`: expected dtype u8, found {other:?}"),
        }
    }

    fn checked(&self, name: &str, shape: &[&'static str], sizes: &Sizes) -> Result<Tensor> {
        let Some(found) = self.file.shape(name) else {
            let there: Vec<&str> = self.file.names().collect();
            bail!("tensor `{name}`: expected {}, found none (the case holds: {})", written(shape), listed(&there));
        };
        sizes.check(name, shape, found)?;
        Ok(self.file.tensor(name)?)
    }
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() { "no tensors".to_owned() } else { names.join(", ") }
}

fn written(shape: &[&str]) -> String {
    format!("[{}]", shape.join(", "))
}

/// The sizes that names in shapes stand for.
#[derive(Default)]
pub struct Sizes(RefCell<BTreeMap<&'static str, i64>>);

impl Sizes {
    /// Sizes that the model fixes.
    pub fn of(known: &[(&'static str, i64)]) -> Self {
        Self(RefCell::new(known.iter().copied().collect()))
    }

    /// The same sizes and one more.
    pub fn and(&self, name: &'static str, size: i64) -> Self {
        let mut known = self.0.borrow().clone();
        known.insert(name, size);
        Self(RefCell::new(known))
    }

    fn check(&self, name: &str, shape: &[&'static str], found: &[i64]) -> Result<()> {
        let mut known = self.0.borrow_mut();
        let fits = shape.len() == found.len()
            && shape.iter().zip(found).all(|(dimension, &size)| match dimension.parse::<i64>() {
                Ok(fixed) => fixed == size,
                Err(_) => *known.entry(dimension).or_insert(size) == size,
            })
            && found.iter().all(|&size| size > 0);
        if fits {
            return Ok(());
        }
        let fixed: Vec<String> =
            shape.iter().filter_map(|d| known.get(d).map(|size| format!("{d} = {size}"))).collect();
        let with = if fixed.is_empty() { String::new() } else { format!(" with {}", fixed.join(", ")) };
        bail!("tensor `{name}`: expected {}{with}; found {found:?}", written(shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_must_agree_across_tensors() {
        let sizes = Sizes::of(&[("C", 4)]);
        sizes.check("latents", &["B", "C", "h", "w"], &[2, 4, 8, 8]).unwrap();
        let message = sizes.check("timestep", &["B"], &[3]).unwrap_err().to_string();
        assert_eq!(message, "tensor `timestep`: expected [B] with B = 2; found [3]");
        assert!(sizes.check("images", &["B", "3"], &[2, 4]).is_err());
        assert!(sizes.check("x", &["B", "n"], &[2, 0]).is_err());
    }
}
