//! The cache's layout: `models--<user>--<repo>/{blobs/<etag>, snapshots/<commit>/<file>, refs/<revision>}`, locks in
//! `.locks/models--<user>--<repo>/<etag>.lock`.

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use fs4::fs_std::FileExt;

use crate::{Error, RepoId, Result};

/// One repository's part of the cache.
#[derive(Debug)]
pub struct RepoCache {
    folder: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    /// Nothing is made yet.
    pub fn new(cache: &Path, id: &RepoId) -> Self {
        let name = id.folder_name();
        Self { folder: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    /// The commit that a revision stood for when it was last asked for; a commit's hash is itself.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.folder.join("refs").join(safe(revision)?)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Remembers the commit of a branch or tag. Errors: [`Error::Io`].
    pub fn remember(&self, revision: &str, commit: &str) -> Result<()> {
        if let (false, Some(revision)) = (revision == commit, safe(revision)) {
            let path = self.folder.join("refs").join(revision);
            if fs::read_to_string(&path).is_ok_and(|text| text == commit) {
                return Ok(());
            }
            make_parent(&path)?;
            let temporary = temporary(&path);
            fs::write(&temporary, commit).and_then(|()| fs::rename(&temporary, &path)).map_err(Error::io(&path))?;
        }
        Ok(())
    }

    /// The folder of a commit's files.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Every file of a snapshot that is whole (its blob is there), by its path in the repository, sorted.
    pub fn files(&self, commit: &str) -> Vec<String> {
        let root = self.snapshot(commit);
        let (mut found, mut open) = (Vec::new(), vec![root.clone()]);
        while let Some(folder) = open.pop() {
            for path in fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
                if path.is_dir() {
                    open.push(path);
                } else if path.is_file()
                    && let Ok(inside) = path.strip_prefix(&root)
                {
                    found.push(
                        inside.components().map(|c| c.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/"),
                    );
                }
            }
        }
        found.sort();
        found
    }

    /// Where the bytes of an etag are kept; the caller has checked that it is a plain name.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Waits for the file's lock. `None` where the file system has no locks: then two processes may download twice.
    pub fn lock(&self, etag: &str) -> Result<Option<File>> {
        let path = self.locks.join(format!("{etag}.lock"));
        make_parent(&path)?;
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(Error::io(&path))?;
        Ok(FileExt::lock_exclusive(&file).is_ok().then_some(file))
    }

    /// Puts a file of a snapshot where it belongs: a relative link to its blob, a copy where there are no links.
    pub fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let pointer = self.snapshot(commit).join(file);
        if pointer.exists() {
            return Ok(());
        }
        make_parent(&pointer)?;
        let up = "../".repeat(2 + file.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        // A link to a blob that has gone would be in the way.
        let _ = fs::remove_file(&pointer);
        match symlink(&target, &pointer) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(_) => copy(&self.blob(etag), &pointer),
        }
    }
}

#[cfg(unix)]
fn symlink(target: &Path, pointer: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, pointer)
}

#[cfg(not(unix))]
fn symlink(_target: &Path, _pointer: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

fn copy(blob: &Path, pointer: &Path) -> Result<()> {
    let temporary = temporary(pointer);
    let copied = fs::copy(blob, &temporary).and_then(|_| fs::rename(&temporary, pointer));
    copied.map_err(Error::io(pointer))
}

/// A name beside `path` that nobody else uses.
fn temporary(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    path.with_extension(format!("{}-{count}.tmp", std::process::id()))
}

/// Makes the folder a file is to lie in.
pub fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(Error::io(parent))
}

/// A whole commit hash.
pub fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A relative path without detours: what may be joined to a folder of ours.
pub fn safe(path: &str) -> Option<&Path> {
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    let fine = !path.is_empty() && !path.contains('\\') && Path::new(path).components().all(plain);
    fine.then(|| Path::new(path))
}
