//! Weights in several files, listed in an index (`*.safetensors.index.json`, `*.bin.index.json`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde::Deserialize;

use super::WeightFile;
use crate::{Error, Result, read_text};

#[derive(Deserialize)]
struct Index {
    /// Tensor to file name.
    weight_map: BTreeMap<String, String>,
}

/// Opens every shard that an index names.
///
/// Errors: [`Error::Format`] for an index that is none; [`Error::Io`] for a shard that is not there; [`Error::Tensors`]
/// naming every tensor that a shard lacks, or holds without being listed.
pub(super) fn open(path: &Path) -> Result<WeightFile> {
    let index: Index = serde_json::from_str(&read_text(path)?).map_err(|e| {
        Error::format(path, format!("expected an index of shards (a JSON object with a `weight_map`): {e}"))
    })?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let names: BTreeSet<&String> = index.weight_map.values().collect();
    let mut shards = BTreeMap::new();
    for name in names {
        // A name that leads out of the folder is no shard of this model.
        let plain = matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
        if !plain || name.ends_with(".json") {
            return Err(Error::format(path, format!("expected names of files beside the index, found `{name}`")));
        }
        let shard = folder.join(name);
        if !shard.is_file() {
            return Err(Error::format(shard, format!("no such file, but {} lists it", path.display())));
        }
        shards.insert(name, WeightFile::open(&shard)?);
    }
    let mut problems = Vec::new();
    for (name, shard) in &shards {
        let surplus = shard.names().filter(|tensor| index.weight_map.get(*tensor) != Some(name));
        problems
            .extend(surplus.map(|tensor| format!("surplus `{tensor}` in {name}: the index does not list it there")));
    }
    let mut entries = BTreeMap::new();
    for (tensor, name) in &index.weight_map {
        match shards[name].entries.get(tensor) {
            Some(view) => drop(entries.insert(tensor.clone(), view.clone())),
            None => problems.push(format!("missing `{tensor}`: the index says it is in {name}")),
        }
    }
    match problems.is_empty() {
        true => Ok(WeightFile { path: path.to_path_buf(), entries, metadata: BTreeMap::new() }),
        false => Err(Error::Tensors { path: path.to_path_buf(), problems }),
    }
}
