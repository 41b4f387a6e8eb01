//! Files of weights in the safetensors format: memory-mapped in, deterministic and atomic out.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor::Metadata};
use tch::{Kind, Tensor};

use crate::files::write_atomic_with;
use crate::{Error, Result};

/// A safetensors file, opened and checked; tensors are copied out one at a time.
pub struct WeightFile {
    path: PathBuf,
    map: Mmap,
    data_start: usize,
    header: Metadata,
    entries: BTreeMap<String, Vec<i64>>,
}

impl std::fmt::Debug for WeightFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WeightFile({}, {} tensors)", self.path.display(), self.entries.len())
    }
}

impl WeightFile {
    /// Opens a file and checks its header: sizes, offsets, dtypes and lengths all agree, whatever the bytes.
    ///
    /// Errors: [`Error::Io`]; [`Error::Format`] for anything that is not a whole safetensors file.
    #[allow(unsafe_code)]
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        if file.metadata().map_err(|e| Error::io(path, e))?.is_dir() {
            return Err(Error::format(path, "expected a safetensors file, found a folder"));
        }
        // SAFETY: the map is read-only and lives as long as `self`; a file changed under us gives wrong numbers, no more.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        let refuse = |e: &dyn std::fmt::Display| {
            Error::format(
                path,
                format!("expected a whole safetensors file, found {} bytes that are none ({e})", map.len()),
            )
        };
        SafeTensors::deserialize(&map).map_err(|e| refuse(&e))?;
        let (length, header) = SafeTensors::read_metadata(&map).map_err(|e| refuse(&e))?;
        let shape = |s: &[usize]| s.iter().map(|&d| d as i64).collect::<Vec<_>>();
        let entries = header.tensors().into_iter().map(|(name, info)| (name, shape(&info.shape))).collect();
        Ok(Self { path: path.to_path_buf(), map, data_start: 8 + length, header, entries })
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of its tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The shape of a tensor, `None` if there is no such tensor.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.entries.get(name).map(Vec::as_slice)
    }

    /// The stored dtype of a tensor, `None` if there is no such tensor or libtorch has no such dtype.
    pub fn kind(&self, name: &str) -> Option<Kind> {
        kind_of(self.header.info(name)?.dtype)
    }

    /// The file's own key-value pairs, sorted.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        self.header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    /// A copy of one tensor, on the CPU, in its stored dtype. Errors: [`Error::Tensors`], naming it.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let problem = |reason: String| Error::Tensors { path: self.path.clone(), problems: vec![reason] };
        let info = self.header.info(name).ok_or_else(|| problem(format!("missing `{name}`")))?;
        let kind = kind_of(info.dtype).ok_or_else(|| {
            problem(format!("`{name}`: dtype {:?} cannot be read; expected a float or integer dtype", info.dtype))
        })?;
        let (start, end) = info.data_offsets;
        let bytes = self.map.get(self.data_start + start..self.data_start + end);
        let bytes = bytes.ok_or_else(|| problem(format!("`{name}`: its bytes lie outside the file")))?;
        Ok(Tensor::f_from_data_size(bytes, &self.entries[name], kind)?)
    }

    /// Copies of all tensors. Errors: as [`WeightFile::tensor`].
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        self.names().map(|name| Ok((name.to_owned(), self.tensor(name)?))).collect()
    }
}

/// The dtypes both sides know, with the format's spelling.
const DTYPES: [(Dtype, Kind, &str); 9] = [
    (Dtype::F32, Kind::Float, "F32"),
    (Dtype::F16, Kind::Half, "F16"),
    (Dtype::BF16, Kind::BFloat16, "BF16"),
    (Dtype::F64, Kind::Double, "F64"),
    (Dtype::I64, Kind::Int64, "I64"),
    (Dtype::I32, Kind::Int, "I32"),
    (Dtype::I16, Kind::Int16, "I16"),
    (Dtype::U8, Kind::Uint8, "U8"),
    (Dtype::BOOL, Kind::Bool, "BOOL"),
];

fn kind_of(dtype: Dtype) -> Option<Kind> {
    DTYPES.iter().find(|(d, ..)| *d == dtype).map(|(_, kind, _)| *kind)
}

fn bytes_of(tensor: &Tensor) -> Result<Cow<'static, [u8]>> {
    let tensor = tensor.f_detach()?.f_to_device(tch::Device::Cpu)?.f_contiguous()?;
    let size = tensor.numel() * tensor.kind().elt_size_in_bytes();
    let mut bytes = vec![0u8; size];
    if size > 0 {
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    }
    Ok(Cow::Owned(bytes))
}

/// Writes tensors as a safetensors file, in one step: the same tensors and metadata give the same bytes.
///
/// Tensors may lie on any device and keep their dtype; one at a time is copied to the CPU.
/// Errors: [`Error::NoSpace`], [`Error::Io`]; then a file that was there before is intact.
pub fn write_weights(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_owned(), serde_json::json!(metadata));
    }
    // The format wants the data aligned to its dtype: wide ones first, names in order within a width.
    let mut order: Vec<(&String, &Tensor)> = tensors.iter().collect();
    order.sort_by_key(|(_, t)| std::cmp::Reverse(t.kind().elt_size_in_bytes()));
    let mut offset = 0;
    for (name, tensor) in &order {
        let spelling = DTYPES.iter().find(|(_, kind, _)| *kind == tensor.kind()).map(|(.., s)| *s);
        let spelling = spelling
            .ok_or_else(|| Error::format(path, format!("`{name}`: dtype {:?} cannot be stored", tensor.kind())))?;
        let end = offset + tensor.numel() * tensor.kind().elt_size_in_bytes();
        let entry = serde_json::json!({"dtype": spelling, "shape": tensor.size(), "data_offsets": [offset, end]});
        header.insert((*name).clone(), entry);
        offset = end;
    }
    let mut text = serde_json::Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut refused = None;
    let written = write_atomic_with(path, |file| {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(&(text.len() as u64).to_le_bytes())?;
        out.write_all(&text)?;
        for (_, tensor) in &order {
            match bytes_of(tensor) {
                Ok(bytes) => out.write_all(&bytes)?,
                Err(e) => {
                    refused = Some(e);
                    return Err(std::io::Error::other("a tensor could not be copied"));
                }
            }
        }
        out.flush()
    });
    refused.map_or(written, Err)
}
