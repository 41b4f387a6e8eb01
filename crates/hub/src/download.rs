//! One file: fetched, taken up again where it broke off, checked, placed in one step.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use sha2::Digest;

use crate::cache::{RepoCache, make_parent};
use crate::client::{Client, Metadata, header};
use crate::{Error, Observer, RepoId, Result};

const BUFFER: usize = 1 << 17;

/// What is fetched, and how far all of it is.
pub struct Job<'a> {
    pub client: &'a Client,
    pub cache: &'a RepoCache,
    pub id: &'a RepoId,
    pub commit: &'a str,
    pub file: &'a str,
    pub metadata: &'a Metadata,
    /// Bytes of the files before this one, and of all.
    pub before: u64,
    pub total: u64,
}

impl Job<'_> {
    /// Makes the file part of the snapshot, from the cache or from the hub.
    pub fn run(&self, observer: &mut dyn Observer) -> Result<()> {
        let blob = self.cache.blob(&self.metadata.etag);
        let _lock = self.cache.lock(&self.metadata.etag)?;
        if !blob.exists() {
            make_parent(&blob)?;
            self.fetch(&blob, observer)?;
        }
        self.cache.link(self.commit, self.file, &self.metadata.etag)
    }

    /// Tries until the file is whole; a try that brought bytes does not count as failed.
    fn fetch(&self, blob: &Path, observer: &mut dyn Observer) -> Result<()> {
        let part = blob.with_file_name(format!("{}.incomplete", self.metadata.etag));
        let config = self.client.config();
        let (mut failed, mut from_scratch) = (0, false);
        loop {
            let before = fs::metadata(&part).map_or(0, |m| m.len());
            let error = match self.attempt(&part, observer) {
                Ok(()) => {
                    if matches!(Sum::new(self.metadata), Sum::None) {
                        let etag = &self.metadata.etag;
                        observer.note(&format!(
                            "{}: not verified: the hub gives no checksum of it (ETag `{etag}`)",
                            self.file
                        ));
                    }
                    return fs::rename(&part, blob).map_err(Error::io(blob));
                }
                Err(error) => error,
            };
            if let Error::Checksum { .. } = error {
                fs::remove_file(&part).map_err(Error::io(&part))?;
                // What was there before may have been wrong, not what came now.
                if before == 0 || std::mem::replace(&mut from_scratch, true) {
                    return Err(error);
                }
                continue;
            }
            let grew = fs::metadata(&part).map_or(0, |m| m.len()) > before;
            failed = if grew { 1 } else { failed + 1 };
            if !error.passing() || failed >= config.tries {
                return Err(error);
            }
            observer.note(&format!("{}: {error}; trying again", self.file));
            std::thread::sleep(config.pause * 2u32.saturating_pow(failed - 1));
        }
    }

    /// One request for what is missing, appended to `part`; then the checksum.
    fn attempt(&self, part: &Path, observer: &mut dyn Observer) -> Result<()> {
        let options = File::options().create(true).truncate(false).read(true).write(true).open(part);
        let mut file = options.map_err(Error::io(part))?;
        let mut sum = Sum::new(self.metadata);
        let mut done = sum.add_all(&mut file).map_err(Error::io(part))?;
        if self.metadata.size.is_some_and(|size| done > size) {
            (sum, done) = (self.restart(&mut file).map_err(Error::io(part))?, 0);
        }
        if done == 0 || self.metadata.size != Some(done) {
            let mut response = self.client.bytes(self.id, self.commit, self.file, done)?;
            let status = response.status().as_u16();
            let starts_here = header(response.headers(), "content-range")
                .is_some_and(|range| range.starts_with(&format!("bytes {done}-")));
            if done > 0 && !(status == 206 && starts_here) {
                (sum, done) = (self.restart(&mut file).map_err(Error::io(part))?, 0);
                if status != 200 {
                    let reason = format!("status {status} to a request for the rest");
                    return Err(Error::Server { url: self.file.to_owned(), reason, passing: true });
                }
            }
            self.copy(response.body_mut().as_reader(), &mut file, &mut sum, &mut done, part, observer)?;
        }
        file.sync_all().map_err(Error::io(part))?;
        sum.check(self.file, &self.metadata.etag)
    }

    fn copy(
        &self,
        mut body: impl Read,
        file: &mut File,
        sum: &mut Sum,
        done: &mut u64,
        part: &Path,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let mut buffer = vec![0; BUFFER];
        let broken = |done: u64, reason: String| {
            let total = self.metadata.size.unwrap_or(done);
            Error::Broken { file: self.file.to_owned(), done, total, reason }
        };
        loop {
            let count = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(broken(*done, error.to_string())),
            };
            let bytes = &buffer[..count];
            file.write_all(bytes).map_err(|error| self.write_error(part, error, *done))?;
            sum.add(bytes);
            *done += count as u64;
            observer.progress(self.file, self.before + *done, self.total);
            if observer.cancelled() {
                return Err(Error::Cancelled { file: self.file.to_owned() });
            }
        }
        match self.metadata.size {
            Some(size) if *done < size => Err(broken(*done, "the connection was closed".to_owned())),
            _ => Ok(()),
        }
    }

    fn write_error(&self, part: &Path, error: io::Error, done: u64) -> Error {
        let folder = part.parent().unwrap_or(part);
        match error.kind() {
            io::ErrorKind::StorageFull => Error::NoSpace {
                folder: folder.to_path_buf(),
                needed: self.total.saturating_sub(self.before + done),
                free: fs4::available_space(folder).unwrap_or(0),
            },
            _ => Error::Io { path: part.to_path_buf(), source: error },
        }
    }

    fn restart(&self, file: &mut File) -> io::Result<Sum> {
        file.set_len(0)?;
        file.rewind()?;
        Ok(Sum::new(self.metadata))
    }
}

/// The checksum that an etag is, by its length.
enum Sum {
    /// Of LFS files.
    Sha256(sha2::Sha256),
    /// git's, of all others: over a header with the length, then the bytes.
    Git(sha1::Sha1),
    /// An etag of another kind says nothing about the bytes.
    None,
}

impl Sum {
    fn new(metadata: &Metadata) -> Self {
        let hex = metadata.etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        match (metadata.etag.len(), metadata.size) {
            (64, _) if hex => Self::Sha256(sha2::Sha256::new()),
            (40, Some(size)) if hex => Self::Git(sha1::Sha1::new_with_prefix(format!("blob {size}\0"))),
            _ => Self::None,
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(sum) => sum.update(bytes),
            Self::Git(sum) => sum.update(bytes),
            Self::None => {}
        }
    }

    /// Adds a file from its beginning and leaves it at its end; gives its length.
    fn add_all(&mut self, file: &mut File) -> io::Result<u64> {
        let (mut buffer, mut length) = (vec![0; BUFFER], 0);
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(length),
                count => {
                    self.add(&buffer[..count]);
                    length += count as u64;
                }
            }
        }
    }

    fn check(self, file: &str, etag: &str) -> Result<()> {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let found = match self {
            Self::Sha256(sum) => hex(&sum.finalize()),
            Self::Git(sum) => hex(&sum.finalize()),
            Self::None => return Ok(()),
        };
        match found.eq_ignore_ascii_case(etag) {
            true => Ok(()),
            false => Err(Error::Checksum { file: file.to_owned(), expected: etag.to_owned(), found }),
        }
    }
}
