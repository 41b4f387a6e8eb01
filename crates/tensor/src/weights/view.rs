//! Memory-mapped files, and tensors as strided views into them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::{Mmap, UncheckedAdvice};
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// A whole file in memory, read as it is touched.
pub(super) struct Mapped {
    path: PathBuf,
    map: Mmap,
}

impl Mapped {
    /// Errors: [`Error::Io`]; [`Error::Format`] for a folder.
    #[allow(unsafe_code)]
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        if file.metadata().map_err(|e| Error::io(path, e))?.is_dir() {
            return Err(Error::format(path, "expected a file of weights, found a folder"));
        }
        // SAFETY: the map is read-only and lives as long as `self`; a file changed under us gives wrong numbers, no more.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        Ok(Arc::new(Self { path: path.to_path_buf(), map }))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Gives the pages of a range back, so that a file read once does not count as memory in use.
    #[allow(unsafe_code)]
    fn release(&self, start: usize, length: usize) {
        // SAFETY: the map is shared, read-only and backed by the file: pages dropped here are read again when touched.
        // A system that refuses merely keeps them.
        let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, length) };
    }
}

/// The dtype of stored numbers: one of libtorch's, or the name of one that cannot be read.
pub(super) type StoredKind = std::result::Result<Kind, String>;

/// A tensor within a file: where its numbers lie, not the numbers.
#[derive(Clone)]
pub(super) struct View {
    file: Arc<Mapped>,
    /// Of the first element, in bytes.
    start: usize,
    pub kind: StoredKind,
    pub shape: Vec<i64>,
    /// In elements.
    strides: Vec<i64>,
}

/// A part of a stored tensor, or the same numbers in another shape; see
/// [`WeightFile::rearranged`](super::WeightFile::rearranged).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The tensor as it is.
    Whole,
    /// `count` entries of the first axis, from `start` on.
    Rows {
        /// The first of them.
        start: i64,
        /// How many.
        count: i64,
    },
    /// A matrix `[a, b]` as `[b, a]`.
    Transposed,
    /// The same elements in the same order, with this shape.
    Shaped(Vec<i64>),
}

impl View {
    /// A row-major tensor whose bytes begin at `start`. Errors: a reason, where it does not lie within `limit`.
    pub fn dense(
        file: &Arc<Mapped>,
        start: usize,
        limit: usize,
        kind: StoredKind,
        shape: Vec<i64>,
    ) -> std::result::Result<Self, String> {
        let strides = dense_strides(&shape);
        Self::strided(file, start, limit, kind, shape, strides)
    }

    /// A tensor of any non-negative strides. Errors: a reason, where an element lies outside of `start..limit`, or where
    /// there are more elements than a file of this size could hold.
    pub fn strided(
        file: &Arc<Mapped>,
        start: usize,
        limit: usize,
        kind: StoredKind,
        shape: Vec<i64>,
        strides: Vec<i64>,
    ) -> std::result::Result<Self, String> {
        let view = Self { file: file.clone(), start, kind, shape, strides };
        let outside = || format!("shape {:?} with strides {:?} does not fit its bytes", view.shape, view.strides);
        if view.shape.len() != view.strides.len() || view.shape.iter().chain(&view.strides).any(|n| *n < 0) {
            return Err(outside());
        }
        let size = view.element_size();
        let count = view.shape.iter().try_fold(1i64, |n, d| n.checked_mul(*d)).ok_or_else(outside)?;
        let span = view.span().ok_or_else(outside)?;
        let end = usize::try_from(span).ok().and_then(|n| n.checked_mul(size)).and_then(|n| n.checked_add(start));
        let held = file.bytes().len();
        if end.is_none_or(|end| end > limit.min(held)) || count as u128 * size as u128 > held as u128 {
            return Err(outside());
        }
        Ok(view)
    }

    /// The file it lies in.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    fn element_size(&self) -> usize {
        self.kind.as_ref().map_or(1, |kind| kind.elt_size_in_bytes())
    }

    /// From the first element to the last, in elements; `None` where that overflows.
    fn span(&self) -> Option<i64> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        let reach = |sum: i64, (d, s): (&i64, &i64)| sum.checked_add((d - 1).checked_mul(*s)?);
        self.shape.iter().zip(&self.strides).try_fold(1i64, reach)
    }

    /// A part of it. Errors: a reason, where there is no such part.
    pub fn part(mut self, part: &Part) -> std::result::Result<Self, String> {
        let found = format!("found shape {:?}", self.shape);
        match part {
            Part::Whole => {}
            Part::Rows { start, count } => {
                let rows = self.shape.first().copied().unwrap_or(0);
                let end = start.checked_add(*count);
                if *start < 0 || *count < 0 || end.is_none_or(|end| end > rows) {
                    return Err(format!("expected rows {start} to {start} + {count}, {found}"));
                }
                self.start += (*start * self.strides[0]) as usize * self.element_size();
                self.shape[0] = *count;
            }
            Part::Transposed => {
                if self.shape.len() != 2 {
                    return Err(format!("expected a matrix, {found}"));
                }
                self.shape.reverse();
                self.strides.reverse();
            }
            Part::Shaped(shape) => {
                let elements = |shape: &[i64]| shape.iter().product::<i64>();
                if elements(shape) != elements(&self.shape) || self.strides != dense_strides(&self.shape) {
                    return Err(format!("expected elements of shape {shape:?}, {found}"));
                }
                self.strides = dense_strides(shape);
                self.shape = shape.clone();
            }
        }
        Ok(self)
    }

    /// A copy of the numbers, on the CPU, row-major, in the stored dtype. Errors: a reason.
    pub fn read(&self) -> std::result::Result<Tensor, String> {
        self.read_in(self.stored()?)
    }

    /// As [`View::read`], in `kind`: the file's numbers are converted as they are read, with no copy in between.
    #[allow(unsafe_code)]
    pub fn read_in(&self, kind: Kind) -> std::result::Result<Tensor, String> {
        let stored = self.stored()?;
        let torch = |e: tch::TchError| e.to_string();
        let span = self.span().unwrap_or(0);
        let length = span as usize * stored.elt_size_in_bytes();
        let bytes = self.file.bytes().get(self.start..self.start + length).ok_or("its bytes lie outside the file")?;
        if span == 0 {
            return Tensor::f_zeros(&self.shape, (kind, Device::Cpu)).map_err(torch);
        }
        let aligned = bytes.as_ptr().align_offset(stored.elt_size_in_bytes()) == 0;
        let tensor = match aligned {
            // SAFETY: `bytes` are all that shape and strides reach (`span`), and outlive the tensor, which is only read from.
            true => unsafe { Tensor::f_from_blob(bytes.as_ptr(), &self.shape, &self.strides, stored, Device::Cpu) },
            false => Tensor::f_from_data_size(bytes, &[span], stored)
                .and_then(|flat| flat.f_as_strided(&self.shape, &self.strides, 0)),
        };
        let copied = tensor.and_then(|numbers| {
            let mut copy = Tensor::f_empty(&self.shape, (kind, Device::Cpu))?;
            copy.f_copy_(&numbers)?;
            Ok(copy)
        });
        self.file.release(self.start, length);
        copied.map_err(torch)
    }

    fn stored(&self) -> std::result::Result<Kind, String> {
        self.kind.clone().map_err(|name| {
            format!("numbers of dtype {name} cannot be read; expected a float, integer or boolean dtype")
        })
    }
}

fn dense_strides(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1i64; shape.len()];
    for axis in (0..shape.len().saturating_sub(1)).rev() {
        strides[axis] = strides[axis + 1].saturating_mul(shape[axis + 1].max(1));
    }
    strides
}
