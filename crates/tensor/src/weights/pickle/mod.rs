//! Files written by `torch.save`: the zip archive of torch 1.6 and later, and the stream of pickles before it.
//!
//! A pickle is a program for a small stack machine, and Python's own reader lets that program call anything. Here nothing
//! is ever called: the few functions that torch uses to describe tensors are understood (`calls.rs`), functions that
//! run code are refused by name, and whatever else a file asks to construct becomes a value without content.
//!
//! Written here because the readers that exist (pytorch-reader 0.22, candle's) refuse dictionaries whose keys are classes,
//! which Lightning wrote into the checkpoints of Stable Diffusion 1.x, or keep where a tensor lies to themselves.

mod archive;
mod calls;
mod legacy;
mod machine;
mod value;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::WeightFile;
use super::view::{Mapped, View};
use crate::{Error, Result};
use value::{Graph, Id, LONGEST_NAME, Node, Storage, TensorNode};

/// Nesting of dictionaries in a checkpoint; torch's own have three levels or so.
const DEEPEST: usize = 32;
/// Entries looked at, and tensors and dictionaries among them: shared dictionaries could otherwise be walked without end.
const MOST_ENTRIES: usize = 4_000_000;
const MOST_TENSORS: usize = 200_000;

/// Whether the bytes begin as one of torch's two formats does.
pub(super) fn is_torch(bytes: &[u8]) -> bool {
    archive::is_archive(bytes) || legacy::is_legacy(bytes)
}

/// Opens a file of which [`is_torch`] holds. Errors: [`Error::Format`] with what was expected and found.
pub(super) fn open(file: &Arc<Mapped>) -> Result<WeightFile> {
    let bytes = file.bytes();
    let opened = if archive::is_archive(bytes) { archive::open(bytes) } else { legacy::open(bytes) };
    let named = opened.and_then(|contents| Ok((contents.tensors(file)?, contents.metadata())));
    match named {
        Ok((entries, _)) if entries.is_empty() => {
            let hint = "save the model's state_dict() rather than the model itself";
            Err(Error::format(file.path(), format!("expected tensors in a dictionary, found none; {hint}")))
        }
        Ok((entries, metadata)) => Ok(WeightFile { path: file.path().to_path_buf(), entries, metadata }),
        Err(reason) => Err(Error::format(file.path(), format!("not a readable torch file: {reason}"))),
    }
}

/// A file taken apart: the pickled values, and where each storage's bytes lie.
struct Contents {
    graph: Graph,
    root: Id,
    storages: BTreeMap<String, Range<usize>>,
}

impl Contents {
    /// The tensors by name: those of `state_dict` where the root has one.
    fn tensors(&self, file: &Arc<Mapped>) -> std::result::Result<BTreeMap<String, View>, String> {
        let mut found = BTreeMap::new();
        let mut root = self.root;
        for _ in 0..DEEPEST {
            match self.graph.entry(root, "state_dict") {
                Some(inner) if matches!(self.graph.node(inner), Node::Dict(_)) => root = inner,
                _ => break,
            }
        }
        let mut walk = vec![(root, String::new(), 0)];
        let (mut entries_seen, mut named) = (0, 0);
        while let Some((id, path, depth)) = walk.pop() {
            if depth > DEEPEST || path.len() > LONGEST_NAME {
                return Err(format!("expected at most {DEEPEST} nested dictionaries, found more at `{path:.80}`"));
            }
            match self.graph.node(id) {
                Node::Tensor(tensor) => {
                    let view = self.view(file, tensor).map_err(|reason| format!("`{path}`: {reason}"))?;
                    found.insert(path, view);
                }
                Node::Dict(entries) => {
                    entries_seen += entries.len();
                    for (key, value) in entries.iter().filter(|(_, value)| self.graph.may_hold_tensors(*value)) {
                        let Some(name) = self.graph.key_name(*key) else { continue };
                        let path = if path.is_empty() { name } else { format!("{path}.{name}") };
                        named += 1;
                        if entries_seen > MOST_ENTRIES || named > MOST_TENSORS {
                            return Err(format!("expected at most {MOST_TENSORS} tensors, found more"));
                        }
                        walk.push((*value, path, depth + 1));
                    }
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// The root's own texts and integers, such as Lightning's `global_step`.
    fn metadata(&self) -> BTreeMap<String, String> {
        let Node::Dict(entries) = self.graph.node(self.root) else { return BTreeMap::new() };
        entries.iter().filter_map(|(key, id)| Some((self.graph.key_name(*key)?, self.graph.key_name(*id)?))).collect()
    }

    fn view(&self, file: &Arc<Mapped>, tensor: &TensorNode) -> std::result::Result<View, String> {
        let Storage { key, kind, .. } = &tensor.storage;
        let kind = tensor.kind.as_ref().unwrap_or(kind);
        let size = kind.as_ref().map_or(1, |kind| kind.elt_size_in_bytes());
        let range = self.storages.get(key).ok_or_else(|| format!("its storage `{key}` is not in the file"))?;
        let offset = usize::try_from(tensor.offset).ok().and_then(|n| n.checked_mul(size)?.checked_add(range.start));
        let start = offset.ok_or_else(|| format!("its offset {} lies outside of storage `{key}`", tensor.offset))?;
        View::strided(file, start, range.end, kind.clone(), tensor.shape.clone(), tensor.strides.clone())
            .map_err(|reason| format!("{reason} (storage `{key}` of {} bytes)", range.len()))
    }
}
