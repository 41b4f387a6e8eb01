//! A folder that appears whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use super::{sync_folder, temporary_name};
use crate::{Error, Result};

/// A folder under a temporary name beside its own, until [`TemporaryFolder::finish`] gives it that. Dropped before, it is
/// removed with all that is in it; what a kill leaves begins with a dot and ends in `.tmp`.
#[derive(Debug)]
pub struct TemporaryFolder {
    path: PathBuf,
    target: PathBuf,
}

impl TemporaryFolder {
    /// Makes an empty one that will become `target`, and the folders above it. Errors: [`Error::Io`], also where `target`
    /// does not end in a name; whether there is something of that name is the caller's to ask.
    pub fn beside(target: &Path) -> Result<Self> {
        if target.file_name().is_none() {
            let reason = "expected the name of a folder to make";
            return Err(Error::io(target, std::io::Error::new(std::io::ErrorKind::InvalidInput, reason)));
        }
        let path = temporary_name(target);
        fs::create_dir_all(&path).map_err(|e| Error::io(target, e))?;
        Ok(Self { path, target: target.into() })
    }

    /// Where it is until it is finished: what belongs into the folder is written there.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name, an empty folder's too. Errors: [`Error::Io`] where anything else has that name, or the file system
    /// refuses; then it is removed.
    pub fn finish(self) -> Result<()> {
        self.rename(&self.target).map_err(|e| Error::io(&self.target, e))
    }

    /// As [`TemporaryFolder::finish`], with another name in the same folder; on an error nothing has changed, and another
    /// name may be tried.
    pub fn rename(&self, target: &Path) -> std::io::Result<()> {
        fs::rename(&self.path, target)?;
        sync_folder(target.parent().unwrap_or(Path::new(".")));
        Ok(())
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        // Once renamed it is no longer there.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn it_has_its_name_when_it_is_whole() {
        let room = tempfile::tempdir().unwrap();
        let target = room.path().join("new/pairs");
        let folder = TemporaryFolder::beside(&target).unwrap();
        fs::write(folder.path().join("a"), b"x").unwrap();
        assert!(!target.exists());
        folder.finish().unwrap();
        assert_eq!((names(&room.path().join("new")), names(&target)), (vec!["pairs".into()], vec!["a".into()]));
    }

    #[test]
    fn nothing_is_left_of_one_that_was_given_up() {
        let room = tempfile::tempdir().unwrap();
        let target = room.path().join("pairs");
        let folder = TemporaryFolder::beside(&target).unwrap();
        fs::write(folder.path().join("a"), b"x").unwrap();
        drop(folder);
        assert!(names(room.path()).is_empty());
        // One that has something in it is not replaced.
        fs::create_dir(&target).unwrap();
        fs::write(target.join("mine"), b"x").unwrap();
        let folder = TemporaryFolder::beside(&target).unwrap();
        assert!(folder.rename(&target).is_err());
        assert!(folder.path().exists());
        assert!(matches!(folder.finish(), Err(Error::Io { .. })));
        assert_eq!((names(room.path()), names(&target)), (vec!["pairs".into()], vec!["mine".into()]));
        assert!(TemporaryFolder::beside(Path::new("/")).is_err());
    }
}
