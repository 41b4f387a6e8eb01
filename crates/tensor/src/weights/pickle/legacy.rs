//! The format before torch 1.6: five pickles (magic number, version, system, the object, storage keys), then the storages.

use std::collections::BTreeMap;
use std::ops::Range;

use super::value::{Graph, Id, Node, Storage};
use super::{Contents, machine};

/// 0x1950a86a20f9469cfc6c, the number that the first pickle holds, in the bytes of protocol 2 and later.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const VERSION: i64 = 1001;

pub(super) fn is_legacy(bytes: &[u8]) -> bool {
    // Protocol 4 and later put a frame before the number.
    bytes.first() == Some(&0x80) && bytes[..bytes.len().min(32)].windows(MAGIC.len()).any(|window| window == MAGIC)
}

pub(super) fn open(bytes: &[u8]) -> Result<Contents, String> {
    let magic = machine::read(bytes, 0)?;
    let version = machine::read(bytes, magic.end)?;
    if !matches!(version.graph.node(version.root), Node::Int(VERSION)) {
        return Err(format!("expected version {VERSION} of the format, found another"));
    }
    let system = machine::read(bytes, version.end)?;
    let little = system.graph.entry(system.root, "little_endian");
    if little.is_some_and(|id| matches!(system.graph.node(id), Node::Int(0))) {
        return Err("expected little-endian numbers, found big-endian ones".to_owned());
    }
    let object = machine::read(bytes, system.end)?;
    let keys = machine::read(bytes, object.end)?;
    let storages = storages(bytes, &object.graph, &keys)?;
    Ok(Contents { graph: object.graph, root: object.root, storages })
}

/// Each storage in the order of the keys: its number of elements (8 bytes), then the elements.
fn storages(bytes: &[u8], graph: &Graph, keys: &machine::Pickle) -> Result<BTreeMap<String, Range<usize>>, String> {
    let declared: BTreeMap<&str, &Storage> = graph.storages().map(|s| (s.key.as_str(), s)).collect();
    let Node::List(list) = keys.graph.node(keys.root) else {
        return Err("expected a list of storage keys".to_owned());
    };
    let mut at = keys.end;
    let mut ranges = BTreeMap::new();
    for key in list {
        let key = name(&keys.graph, *key)?;
        let storage = declared.get(key.as_str()).ok_or_else(|| format!("storage `{key}` belongs to no tensor"))?;
        let size = storage.kind.as_ref().map_err(|kind| format!("storage `{key}`: {kind} cannot be read"))?;
        let length = bytes.get(at..at.saturating_add(8)).and_then(|b| b.try_into().ok()).map(i64::from_le_bytes);
        let length = length.ok_or_else(|| format!("storage `{key}` is cut off"))?;
        if length != storage.count {
            return Err(format!("storage `{key}`: expected {} elements, found {length}", storage.count));
        }
        let start = at + 8;
        let end =
            usize::try_from(length).ok().and_then(|n| n.checked_mul(size.elt_size_in_bytes())?.checked_add(start));
        let end = end.filter(|end| *end <= bytes.len());
        at = end.ok_or_else(|| format!("storage `{key}` of {length} elements is cut off"))?;
        ranges.insert(key, start..at);
    }
    Ok(ranges)
}

fn name(graph: &Graph, key: Id) -> Result<String, String> {
    graph.key_name(key).ok_or_else(|| "expected storage keys as texts".to_owned())
}
