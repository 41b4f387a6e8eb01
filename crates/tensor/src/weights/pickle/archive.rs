//! The zip archive that torch writes since 1.6: `<name>/data.pkl`, and one entry for each storage.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::ops::Range;

use zip::{CompressionMethod, ZipArchive};

use super::{Contents, machine};

pub(super) fn is_archive(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06")
}

pub(super) fn open(bytes: &[u8]) -> Result<Contents, String> {
    let entries = entries(bytes)?;
    let pickles: Vec<&str> = entries.keys().filter_map(|name| root_of(name)).collect();
    let [root] = pickles[..] else {
        return Err(format!("expected one data.pkl in the archive, found {}", pickles.len()));
    };
    if let Some(order) = entries.get(&format!("{root}byteorder")).filter(|range| bytes[(*range).clone()] != *b"little")
    {
        let found = String::from_utf8_lossy(&bytes[order.clone()][..order.len().min(16)]);
        return Err(format!("expected little-endian numbers, found byte order `{found}`"));
    }
    let pickle = &bytes[entries[&format!("{root}data.pkl")].clone()];
    let machine::Pickle { graph, root: value, .. } = machine::read(pickle, 0)?;
    let prefix = format!("{root}data/");
    let storages =
        entries.iter().filter_map(|(name, range)| Some((name.strip_prefix(&prefix)?.to_owned(), range.clone())));
    Ok(Contents { graph, root: value, storages: storages.collect() })
}

/// `name/` of `name/data.pkl`; empty where it lies at the top.
fn root_of(name: &str) -> Option<&str> {
    name.strip_suffix("data.pkl")
        .filter(|root| root.is_empty() || root.ends_with('/') && root.matches('/').count() == 1)
}

/// Where the bytes of each entry lie; torch stores them uncompressed.
fn entries(bytes: &[u8]) -> Result<BTreeMap<String, Range<usize>>, String> {
    let damaged = |e: zip::result::ZipError| format!("expected a whole zip archive: {e}");
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(damaged)?;
    let mut entries = BTreeMap::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(damaged)?;
        let name = entry.name().map_err(damaged)?.into_owned();
        if entry.compression() != CompressionMethod::Stored {
            return Err(format!("expected entries without compression, found `{name}` compressed"));
        }
        let start = entry.data_start().and_then(|start| usize::try_from(start).ok());
        let end = start.and_then(|start| start.checked_add(usize::try_from(entry.size()).ok()?));
        match (start, end) {
            (Some(start), Some(end)) if end <= bytes.len() => drop(entries.insert(name, start..end)),
            _ => return Err(format!("the archive's entry `{name}` lies outside of the file")),
        }
    }
    Ok(entries)
}
