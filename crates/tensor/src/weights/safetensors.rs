//! Reading safetensors files.

use std::collections::BTreeMap;
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use tch::Kind;

use super::WeightFile;
use super::view::{Mapped, View};
use crate::{Error, Result};

/// The dtypes both sides know, with the format's spelling.
pub(super) const DTYPES: [(Dtype, Kind, &str); 10] = [
    (Dtype::F32, Kind::Float, "F32"),
    (Dtype::F16, Kind::Half, "F16"),
    (Dtype::BF16, Kind::BFloat16, "BF16"),
    (Dtype::F64, Kind::Double, "F64"),
    (Dtype::I64, Kind::Int64, "I64"),
    (Dtype::I32, Kind::Int, "I32"),
    (Dtype::I16, Kind::Int16, "I16"),
    (Dtype::I8, Kind::Int8, "I8"),
    (Dtype::U8, Kind::Uint8, "U8"),
    (Dtype::BOOL, Kind::Bool, "BOOL"),
];

/// Checks the header: sizes, offsets, dtypes and lengths all agree, whatever the bytes.
///
/// Errors: [`Error::Format`] for anything that is not a whole safetensors file.
pub(super) fn open(file: &Arc<Mapped>) -> Result<WeightFile> {
    let (path, bytes) = (file.path(), file.bytes());
    let refuse = |e: &dyn std::fmt::Display| {
        let found = format!("found {} bytes that are none ({e})", bytes.len());
        Error::format(path, format!("expected a whole safetensors file, {found}"))
    };
    SafeTensors::deserialize(bytes).map_err(|e| refuse(&e))?;
    let (length, header) = SafeTensors::read_metadata(bytes).map_err(|e| refuse(&e))?;
    let mut entries = BTreeMap::new();
    for (name, info) in header.tensors() {
        let kind = DTYPES.iter().find(|(dtype, ..)| *dtype == info.dtype).map(|(_, kind, _)| *kind);
        let shape = info.shape.iter().map(|&d| d as i64).collect();
        let (start, end) = info.data_offsets;
        let data = 8 + length;
        let kind = kind.ok_or_else(|| format!("{:?}", info.dtype));
        let view = View::dense(file, data + start, data + end, kind, shape);
        entries.insert(name.clone(), view.map_err(|reason| refuse(&format!("`{name}`: {reason}")))?);
    }
    let metadata = header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    Ok(WeightFile { path: path.to_path_buf(), entries, metadata })
}
