//! Files: listing folders, finding pictures by name, telling whether a dataset is still the same.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Endings of picture files.
pub(crate) const ENDINGS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];
/// Folders beside a parquet file in which downloaded pictures are looked for.
pub(crate) const DOWNLOADED: [&str; 2] = ["images", "downloaded"];
/// Files up to this size are hashed whole.
const WHOLE: u64 = 1 << 30;

/// The entries of a folder, sorted by name; hidden ones are left out.
pub(crate) fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(|e| Error::io(folder, e))?.path());
    }
    paths.retain(|path| path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with('.')));
    paths.sort();
    Ok(paths)
}

/// A file's ending in lower case.
pub(crate) fn ending(path: &Path) -> String {
    path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// The picture files of a folder, sorted.
pub(crate) fn pictures(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = list(folder)?;
    paths.retain(|path| ENDINGS.contains(&ending(path).as_str()));
    Ok(paths)
}

/// The picture called `name`, with its ending or without, in `folder` or in one of [`DOWNLOADED`] there.
pub(crate) fn picture_named(folder: &Path, name: &str) -> Option<PathBuf> {
    if name.is_empty() {
        return None;
    }
    let folders = std::iter::once(folder.to_owned()).chain(DOWNLOADED.iter().map(|inner| folder.join(inner)));
    folders.flat_map(|folder| spellings(&folder, name)).find(|file| file.is_file())
}

/// `folder/name` as it is, and with each picture ending.
pub(crate) fn spellings(folder: &Path, name: &str) -> impl Iterator<Item = PathBuf> + use<> {
    let plain = folder.join(name);
    let (folder, name) = (folder.to_owned(), name.to_owned());
    std::iter::once(plain).chain(ENDINGS.into_iter().map(move |ending| folder.join(format!("{name}.{ending}"))))
}

/// The parquet files that a folder holds, itself or one level below, sorted.
pub(crate) fn parquet_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in list(folder)? {
        let inner = if path.is_dir() { list(&path)? } else { vec![path] };
        found.extend(inner.into_iter().filter(|path| path.is_file() && ending(path) == "parquet"));
    }
    Ok(found)
}

/// SHA-256, in hexadecimal, of what tells whether a dataset is the one a run began with: a file's bytes (above 1 GiB its
/// size and its last MiB, where parquet keeps its index); for a folder the names and sizes of all files in it.
///
/// Pictures themselves are not hashed: a list of pairs stands for them. Errors: what cannot be read.
pub fn fingerprint(path: &Path) -> Result<String> {
    let mut digest = Sha256::new();
    if path.is_dir() {
        add_folder(path, path, &mut digest)?
    } else {
        add_file(path, &mut digest)?
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn add_folder(root: &Path, folder: &Path, digest: &mut Sha256) -> Result<()> {
    for path in list(folder)? {
        if path.is_dir() {
            add_folder(root, &path, digest)?;
        } else {
            let size = fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
            let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            digest.update(name.as_bytes());
            digest.update([0]);
            digest.update(size.to_le_bytes());
        }
    }
    Ok(())
}

fn add_file(path: &Path, digest: &mut Sha256) -> Result<()> {
    let failed = |e| Error::io(path, e);
    let mut file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if size > WHOLE {
        digest.update(size.to_le_bytes());
        file.seek(SeekFrom::End(-(1 << 20))).map_err(failed)?;
    }
    let mut block = vec![0; 1 << 16];
    loop {
        match file.read(&mut block).map_err(failed)? {
            0 => return Ok(()),
            read => digest.update(&block[..read]),
        }
    }
}
