//! Reading and writing whole files so that no reader ever sees half of one.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use crate::{Error, Result};

mod temporary_folder;

pub use temporary_folder::TemporaryFolder;

/// The text of a file. Errors: [`Error::Io`], or [`Error::Format`] naming the first byte that is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::format(path, format!("expected UTF-8 text, found byte 0x{:02x} at offset {at}", e.as_bytes()[at]))
    })
}

/// Replaces a file in one step: temporary name, sync, rename. On failure the old file is intact and no other is left.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic_with(path, |file| file.write_all(bytes))
}

/// As [`write_atomic`], with the bytes produced by a closure.
pub fn write_atomic_with(path: &Path, write: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
    let temporary = temporary_name(path);
    let attempt = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        write(&mut file)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    attempt().map_err(|e| {
        let _ = fs::remove_file(&temporary);
        Error::io(path, e)
    })?;
    sync_folder(path.parent().unwrap_or(Path::new(".")));
    Ok(())
}

/// Gives a file, or all files of a folder, a second name: a hard link where the file system can, else a copy. Files that are
/// there already are replaced, each in one step; half-written ones of a killed process are passed over. Errors:
/// [`Error::Io`], [`Error::NoSpace`].
pub fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to).map_err(|e| Error::io(to, e))?;
        for entry in fs::read_dir(from).map_err(|e| Error::io(from, e))? {
            let entry = entry.map_err(|e| Error::io(from, e))?;
            if !is_temporary(&entry.file_name()) {
                link_or_copy(&entry.path(), &to.join(entry.file_name()))?;
            }
        }
        sync_folder(to);
        return Ok(());
    }
    let temporary = temporary_name(to);
    let link = fs::hard_link(from, &temporary).or_else(|_| copy_synced(from, &temporary));
    let renamed = link.and_then(|()| fs::rename(&temporary, to));
    // Where `to` was a link to the same file already, a rename leaves both names.
    let _ = fs::remove_file(&temporary);
    renamed.map_err(|e| Error::io(to, e))
}

/// The name of the file that a run's folder is locked by.
pub const LOCK_FILE: &str = "run.lock";

/// Locks the file `path`, made where it is not there, for as long as the result lives; a killed process holds nothing.
/// `None` where another process holds it. On a file system without locks nothing is locked, and a warning says so. Errors:
/// [`Error::Io`].
pub fn lock(path: &Path) -> Result<Option<File>> {
    let file = fs::OpenOptions::new().create(true).append(true).open(path).map_err(|e| Error::io(path, e))?;
    Ok(taken(path, file.try_lock()).then_some(file))
}

/// Whether a lock was taken, or cannot be.
fn taken(path: &Path, attempt: std::result::Result<(), TryLockError>) -> bool {
    match attempt {
        Ok(()) => true,
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(error)) => {
            tracing::warn!(
                "{}: cannot be locked ({error}): nothing keeps a second process from writing in this folder",
                path.display()
            );
            true
        }
    }
}

/// A copy that a power cut after the return leaves whole.
fn copy_synced(from: &Path, to: &Path) -> std::io::Result<()> {
    let (mut source, mut copy) = (File::open(from)?, File::create(to)?);
    std::io::copy(&mut source, &mut copy)?;
    copy.sync_all()
}

/// Removes what a killed process left half-written in `folder`, and in the folders in it that `within` holds for by name. What
/// cannot be removed stays.
pub fn remove_temporary(folder: &Path, within: &dyn Fn(&str) -> bool) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_temporary(&name) {
            let _ = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        } else if is_folder && name.to_str().is_some_and(within) {
            remove_temporary(&path, &|_| true);
        }
    }
}

/// Whether a name is one of those that files and folders have until they are whole.
fn is_temporary(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with('.') && name.ends_with(".tmp")
}

/// Makes a rename in `folder` last through a power cut, where the system lets folders be synced.
pub fn sync_folder(folder: &Path) {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    if let Ok(handle) = File::open(folder) {
        let _ = handle.sync_all();
    }
}

static CALLS: AtomicU64 = AtomicU64::new(0);

fn temporary_name(path: &Path) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    // Unique per call: two threads may replace the same file at once, and the later rename wins.
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{name}.{}-{call}.tmp", std::process::id()))
}

/// The SHA-256 of a file's bytes, in lower-case hexadecimal.
pub fn sha256_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut digest = Sha256::new();
    let mut block = vec![0u8; 1 << 20];
    loop {
        match file.read(&mut block).map_err(|e| Error::io(path, e))? {
            0 => break,
            n => digest.update(&block[..n]),
        }
    }
    Ok(digest.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linked_folder_has_all_files_and_replaces_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("a"), folder.path().join("b"));
        fs::create_dir_all(from.join("c")).unwrap();
        fs::write(from.join("c/new"), b"new").unwrap();
        for round in 0..2 {
            link_or_copy(&from, &to).unwrap();
            assert_eq!(fs::read(to.join("c/new")).unwrap(), b"new", "round {round}");
            assert_eq!(fs::read_dir(to.join("c")).unwrap().count(), 1, "round {round}");
        }
        // Replacing one name leaves the other.
        write_atomic(&from.join("c/new"), b"newer").unwrap();
        assert_eq!(fs::read(to.join("c/new")).unwrap(), b"new");
        link_or_copy(&from, &to).unwrap();
        assert_eq!(fs::read(to.join("c/new")).unwrap(), b"newer");
        assert!(link_or_copy(&from.join("none"), &to.join("none")).is_err());
    }

    #[test]
    fn a_lock_is_held_by_one_and_let_go_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.lock");
        let held = lock(&path).unwrap();
        assert!(held.is_some() && lock(&path).unwrap().is_none());
        drop(held);
        assert!(lock(&path).unwrap().is_some());
        assert!(lock(&folder.path().join("missing/run.lock")).is_err());
    }

    #[test]
    fn a_file_system_without_locks_is_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let (path, log) = (folder.path().join("run.lock"), folder.path().join("log"));
        let logs = tracing_subscriber::fmt().with_writer(std::sync::Arc::new(File::create(&log).unwrap())).finish();
        tracing::subscriber::with_default(logs, || {
            assert!(taken(&path, Ok(())) && !taken(&path, Err(TryLockError::WouldBlock)));
            assert_eq!(fs::read_to_string(&log).unwrap(), "");
            let refused = std::io::Error::from_raw_os_error(libc::ENOLCK);
            assert!(taken(&path, Err(TryLockError::Error(refused))));
        });
        let said = fs::read_to_string(&log).unwrap();
        assert!(said.contains("WARN") && said.contains("run.lock") && said.contains("locks"), "{said}");
    }

    #[test]
    fn what_a_kill_left_is_neither_linked_nor_kept() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["unet", "history/00000004", "mine"] {
            fs::create_dir_all(at(name)).unwrap();
            for file in [".weights.77-3.tmp", "weights", ".hidden"] {
                fs::write(at(name).join(file), b"x").unwrap();
            }
        }
        fs::create_dir(at(".checkpoint-4.tmp")).unwrap();
        link_or_copy(&at("unet"), &at("copy")).unwrap();
        let names = |name: &str| {
            let entries = fs::read_dir(at(name)).unwrap().flatten();
            let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(names("copy"), [".hidden", "weights"]);
        remove_temporary(folder.path(), &|name| ["unet", "history"].contains(&name));
        assert_eq!(names("."), ["copy", "history", "mine", "unet"]);
        assert_eq!((names("unet"), names("history/00000004")), (names("copy"), names("copy")));
        assert_eq!(names("mine").len(), 3, "a folder that was not named");
    }

    #[test]
    fn a_copy_has_all_bytes_and_replaces_nothing_on_failure() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&from, vec![7; 100_000]).unwrap();
        copy_synced(&from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), vec![7; 100_000]);
        assert!(copy_synced(&folder.path().join("none"), &to).is_err());
        assert_eq!(fs::read(&to).unwrap().len(), 100_000);
    }

    #[test]
    fn an_unwritable_target_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("missing/file.txt");
        assert!(matches!(write_atomic(&target, b"x"), Err(Error::Io { .. })));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_failed_write_keeps_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("file.txt");
        write_atomic(&target, b"old").unwrap();
        let full = || std::io::Error::from_raw_os_error(libc::ENOSPC);
        assert!(matches!(write_atomic_with(&target, |_| Err(full())), Err(Error::NoSpace { .. })));
        assert_eq!(fs::read(&target).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn two_threads_may_replace_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("file.txt");
        let write = |byte: u8| write_atomic(&target, &[byte; 4096]).unwrap();
        std::thread::scope(|scope| {
            for byte in 0..8 {
                scope.spawn(move || (0..20).for_each(|_| write(byte)));
            }
        });
        let bytes = fs::read(&target).unwrap();
        assert!(bytes.len() == 4096 && bytes.iter().all(|b| *b == bytes[0]));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn text_that_is_not_utf8_names_the_byte() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("prompts.txt");
        fs::write(&target, b"a cat\n\xff\xfe").unwrap();
        let message = read_text(&target).unwrap_err().to_string();
        assert!(message.contains("prompts.txt") && message.contains("0xff at offset 6"), "{message}");
    }

    #[test]
    fn sha256_of_known_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("abc");
        fs::write(&target, b"abc").unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_file(&target).unwrap(), expected);
    }
}
