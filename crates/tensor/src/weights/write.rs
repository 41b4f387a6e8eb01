//! Writing safetensors files: deterministic and atomic.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;

use tch::{Kind, Tensor};

use super::safetensors::DTYPES;
use crate::files::write_atomic_with;
use crate::{Error, Result};

fn bytes_of(tensor: &Tensor, kind: Kind) -> Result<Cow<'static, [u8]>> {
    let tensor = tensor.f_detach()?.f_to_kind(kind)?.f_to_device(tch::Device::Cpu)?.f_contiguous()?;
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
    write_weights_in(path, tensors, metadata, None)
}

/// As [`write_weights`], each tensor as `storage` where that is given; one at a time is converted.
pub fn write_weights_in(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
    storage: Option<Kind>,
) -> Result<()> {
    let stored = |tensor: &Tensor| storage.unwrap_or_else(|| tensor.kind());
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_owned(), serde_json::json!(metadata));
    }
    // The format wants the data aligned to its dtype: wide ones first, names in order within a width.
    let mut order: Vec<(&String, &Tensor)> = tensors.iter().collect();
    order.sort_by_key(|(_, t)| std::cmp::Reverse(stored(t).elt_size_in_bytes()));
    let mut offset = 0;
    for (name, tensor) in &order {
        let kind = stored(tensor);
        let spelling = DTYPES.iter().find(|(_, known, _)| *known == kind).map(|(.., s)| *s);
        let spelling =
            spelling.ok_or_else(|| Error::format(path, format!("`{name}`: dtype {kind:?} cannot be stored")))?;
        let end = offset + tensor.numel() * kind.elt_size_in_bytes();
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
            match bytes_of(tensor, stored(tensor)) {
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
