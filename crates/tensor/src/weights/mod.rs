//! Files of weights: safetensors and torch pickles, memory-mapped in; safetensors out.

mod pickle;
mod safetensors;
mod shards;
mod view;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tch::{Kind, Tensor};

use crate::{Error, Result};
use view::{Mapped, View};

pub use view::Part;
pub use write::{write_weights, write_weights_in};

/// Named tensors in one file or several, opened and checked; they are copied out one at a time.
///
/// The files are memory-mapped: opening reads headers only, and a tensor's bytes are read once, when it is asked for.
pub struct WeightFile {
    path: PathBuf,
    entries: BTreeMap<String, View>,
    metadata: BTreeMap<String, String>,
}

impl std::fmt::Debug for WeightFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WeightFile({}, {} tensors)", self.path.display(), self.entries.len())
    }
}

impl WeightFile {
    /// Opens a file of weights, whatever it is called: a safetensors file; a file that `torch.save` wrote (`.bin`, `.ckpt`,
    /// `.pt`, `.pth`), whose pickle is read without executing anything in it; or a `.json` index of shards of either kind.
    ///
    /// A torch checkpoint's tensors are those of its `state_dict`, where it has one; tensors in nested dictionaries are
    /// named by their path, joined by dots.
    ///
    /// Errors: [`Error::Io`]; [`Error::Format`] for anything that is not a whole file of these, or a pickle that asks for
    /// code to be run; [`Error::Tensors`] where shards do not hold what their index says.
    pub fn open(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|e| e == "json") {
            return shards::open(path);
        }
        let file = Mapped::open(path)?;
        if pickle::is_torch(file.bytes()) { pickle::open(&file) } else { safetensors::open(&file) }
    }

    /// Where the file lies; of shards, their index.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that its tensors lie in, sorted: itself, or its shards.
    pub fn paths(&self) -> BTreeSet<&Path> {
        self.entries.values().map(View::path).collect()
    }

    /// ` (in <file>)` for a tensor that lies in a shard, for errors; else nothing.
    pub(crate) fn shard(&self, name: &str) -> String {
        let place = self.entries.get(name).map(View::path).filter(|place| *place != self.path);
        place.and_then(Path::file_name).map_or_else(String::new, |name| format!(" (in {})", name.to_string_lossy()))
    }

    /// The names of its tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The shape of a tensor, `None` if there is no such tensor.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.entries.get(name).map(|view| view.shape.as_slice())
    }

    /// The stored dtype of a tensor, `None` if there is no such tensor or libtorch has no such dtype.
    pub fn kind(&self, name: &str) -> Option<Kind> {
        self.entries.get(name)?.kind.as_ref().ok().copied()
    }

    /// The file's own key-value pairs, sorted; of a torch file, the texts and integers of its outermost dictionary.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        self.metadata.clone()
    }

    /// A copy of one tensor, on the CPU, in its stored dtype. Errors: [`Error::Tensors`], naming it.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        self.read(name, View::read)
    }

    fn read(&self, name: &str, read: impl Fn(&View) -> std::result::Result<Tensor, String>) -> Result<Tensor> {
        let view = self.entries.get(name).ok_or_else(|| self.problem(format!("missing `{name}`")))?;
        read(view).map_err(|reason| self.problem(format!("`{name}`: {reason}")))
    }

    /// As [`WeightFile::tensor`], in `kind`: converted as it is read, so that there is no second copy.
    pub fn tensor_in(&self, name: &str, kind: Kind) -> Result<Tensor> {
        self.read(name, |view| view.read_in(kind))
    }

    /// Copies of all tensors. Errors: as [`WeightFile::tensor`].
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        self.names().map(|name| Ok((name.to_owned(), self.tensor(name)?))).collect()
    }

    /// The same tensors, or parts of them, under other names; nothing is read or copied.
    ///
    /// `arrange` is given each name and shape, and answers with the names and parts that it becomes: none leaves it out.
    /// Errors: [`Error::Tensors`], naming every part that does not exist and every name given twice.
    pub fn rearranged(&self, mut arrange: impl FnMut(&str, &[i64]) -> Vec<(String, Part)>) -> Result<Self> {
        let mut entries = BTreeMap::new();
        let mut problems = Vec::new();
        for (name, view) in &self.entries {
            for (new_name, part) in arrange(name, &view.shape) {
                match view.clone().part(&part) {
                    Err(reason) => problems.push(format!("`{name}`: {reason}")),
                    Ok(_) if entries.contains_key(&new_name) => {
                        problems.push(format!("`{name}`: stands for `{new_name}`, which another tensor does too"));
                    }
                    Ok(view) => drop(entries.insert(new_name, view)),
                }
            }
        }
        match problems.is_empty() {
            true => Ok(Self { path: self.path.clone(), entries, metadata: self.metadata.clone() }),
            false => Err(Error::Tensors { path: self.path.clone(), problems }),
        }
    }

    fn problem(&self, reason: String) -> Error {
        Error::Tensors { path: self.path.clone(), problems: vec![reason] }
    }
}
