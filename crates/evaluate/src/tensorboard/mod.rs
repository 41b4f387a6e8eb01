//! TensorBoard event files: scalars, images and text, written record by record and cut back on resume.

mod proto;
mod record;

use crate::png::encode_png;
use crate::{Error, Result};
use seedpo_tensor::write_atomic;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use tch::Tensor;

/// TensorBoard finds event files by this part of their name.
const PREFIX: &str = "events.out.tfevents.";
const FILE_VERSION: &str = "brain.Event:2";

/// One record of an event file.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Seconds since 1970.
    pub wall_time: f64,
    /// The update it belongs to.
    pub step: i64,
    /// `brain.Event:2` in the first record of a file, else none.
    pub file_version: Option<String>,
    /// Tag and value of everything logged in this record.
    pub values: Vec<(String, EventValue)>,
}

/// A logged value.
#[derive(Debug, Clone, PartialEq)]
pub enum EventValue {
    /// A point of a curve.
    Scalar(f32),
    /// A PNG image.
    Image {
        /// Height in pixels.
        height: u32,
        /// Width in pixels.
        width: u32,
        /// The PNG file's bytes.
        png: Vec<u8>,
    },
    /// Markdown text.
    Text(String),
}

/// Writes one event file; every call appends one whole record, so a killed run loses at most the record under way.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
    path: PathBuf,
}

impl EventWriter {
    /// Starts a new event file `events.out.tfevents.<seconds>.<process>.seedpo` in `folder`, which must exist.
    ///
    /// Errors: [`Error::File`].
    pub fn create(folder: &Path) -> Result<Self> {
        let seconds = wall_time().floor();
        let path = folder.join(format!("{PREFIX}{seconds:010}.{}.seedpo", std::process::id()));
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|source| seedpo_tensor::Error::io(&path, source))?;
        let mut writer = Self { file, path };
        let header = Event { file_version: Some(FILE_VERSION.to_owned()), ..writer.event(0, Vec::new()) };
        writer.append(&header)?;
        Ok(writer)
    }

    /// Continues the newest event file of `folder` after update `last_step`: records of later updates and a tail that
    /// a killed run left half-written are dropped from all event files there. Starts a new file if there is none.
    ///
    /// Errors: [`Error::File`].
    pub fn resume(folder: &Path, last_step: i64) -> Result<Self> {
        let files = event_files(folder)?;
        for path in &files {
            let bytes = read(path)?;
            let keeps = |data: &&[u8]| proto::decode(data).is_some_and(|event| event.step <= last_step);
            let kept: Vec<u8> = record::split(&bytes).into_iter().filter(keeps).flat_map(record::frame).collect();
            if kept != bytes {
                write_atomic(path, &kept)?;
            }
        }
        // A file whose very first record was cut off would lack its version: start afresh beside it.
        let Some(path) = files.into_iter().next_back().filter(|path| fs::metadata(path).is_ok_and(|m| m.len() > 0))
        else {
            return Self::create(folder);
        };
        let file =
            OpenOptions::new().append(true).open(&path).map_err(|source| seedpo_tensor::Error::io(&path, source))?;
        Ok(Self { file, path })
    }

    /// The file being written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Logs points of curves at one update, as f32; NaN and infinities are logged as they are. Tags such as
    /// `reward/mean` are grouped by their first part.
    ///
    /// Errors: [`Error::File`], e.g. no space left.
    pub fn scalars(&mut self, step: i64, values: &[(&str, f64)]) -> Result<()> {
        let values = values.iter().map(|(tag, value)| ((*tag).to_owned(), EventValue::Scalar(*value as f32))).collect();
        let event = self.event(step, values);
        self.append(&event)
    }

    /// Logs one image, u8 `[H, W, 3]`. Errors: those of [`encode_png`], and [`Error::File`].
    pub fn image(&mut self, step: i64, tag: &str, image: &Tensor) -> Result<()> {
        let png = encode_png(image, &[])?;
        let size = image.size();
        let value = EventValue::Image { height: size[0] as u32, width: size[1] as u32, png };
        let event = self.event(step, vec![(tag.to_owned(), value)]);
        self.append(&event)
    }

    /// Logs Markdown text. Errors: [`Error::File`].
    pub fn text(&mut self, step: i64, tag: &str, text: &str) -> Result<()> {
        let event = self.event(step, vec![(tag.to_owned(), EventValue::Text(text.to_owned()))]);
        self.append(&event)
    }

    /// Waits until everything logged is on the disk. Errors: [`Error::File`].
    pub fn sync(&mut self) -> Result<()> {
        Ok(self.file.sync_data().map_err(|source| seedpo_tensor::Error::io(&self.path, source))?)
    }

    fn event(&self, step: i64, values: Vec<(String, EventValue)>) -> Event {
        Event { wall_time: wall_time(), step, file_version: None, values }
    }

    fn append(&mut self, event: &Event) -> Result<()> {
        let record = record::frame(&proto::encode(event));
        Ok(self.file.write_all(&record).map_err(|source| seedpo_tensor::Error::io(&self.path, source))?)
    }
}

/// The events of a file up to the first cut-off or damaged record.
///
/// Errors: [`Error::File`]; [`Error::Format`] if a record is whole but no event, or the file is not empty and holds no
/// whole record.
pub fn read_events(path: &Path) -> Result<Vec<Event>> {
    let bytes = read(path)?;
    let records = record::split(&bytes);
    let format = |reason: String| Error::Format { path: path.to_path_buf(), reason };
    if records.is_empty() && !bytes.is_empty() {
        return Err(format("expected a TensorBoard event file, found no whole record".to_owned()));
    }
    records
        .iter()
        .enumerate()
        .map(|(index, data)| proto::decode(data).ok_or_else(|| format(format!("record {index} is no event"))))
        .collect()
}

/// The event files of a folder, oldest first.
///
/// Errors: [`Error::File`] if the folder cannot be listed.
pub fn event_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect()
    };
    let mut files = list().map_err(|source| seedpo_tensor::Error::io(folder, source))?;
    files.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX)));
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    Ok(fs::read(path).map_err(|source| seedpo_tensor::Error::io(path, source))?)
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn steps(path: &Path) -> Vec<i64> {
        read_events(path).unwrap().iter().map(|event| event.step).collect()
    }

    #[test]
    fn what_is_logged_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path()).unwrap();
        let image = Tensor::arange(4 * 6 * 3, (Kind::Uint8, Device::Cpu)).view([4, 6, 3]);
        writer.scalars(3, &[("reward/mean", 1.5), ("loss", f64::INFINITY)]).unwrap();
        writer.image(3, "samples", &image).unwrap();
        writer.text(4, "settings", "**γ** = 1").unwrap();
        writer.sync().unwrap();
        let events = read_events(writer.path()).unwrap();
        assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
        assert!(events[0].wall_time > 1e9);
        assert_eq!(
            events[1].values,
            [
                ("reward/mean".to_owned(), EventValue::Scalar(1.5)),
                ("loss".to_owned(), EventValue::Scalar(f32::INFINITY))
            ]
        );
        let (tag, EventValue::Image { height, width, png }) = &events[2].values[0] else { panic!("no image") };
        assert_eq!((tag.as_str(), *height, *width, png[1..4].to_vec()), ("samples", 4, 6, b"PNG".to_vec()));
        assert_eq!(events[3].values[0].1, EventValue::Text("**γ** = 1".to_owned()));
        assert_eq!(events[3].step, 4);
    }

    #[test]
    fn resume_drops_later_updates_and_a_torn_tail() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path()).unwrap();
        for step in 1..=6 {
            writer.scalars(step, &[("loss", step as f64)]).unwrap();
        }
        let path = writer.path().to_path_buf();
        drop(writer);
        let mut torn = fs::read(&path).unwrap();
        torn.truncate(torn.len() - 5);
        fs::write(&path, &torn).unwrap();
        assert_eq!(steps(&path), [0, 1, 2, 3, 4, 5]);
        let mut writer = EventWriter::resume(folder.path(), 3).unwrap();
        assert_eq!(writer.path(), path);
        writer.scalars(4, &[("loss", 44.0)]).unwrap();
        assert_eq!(steps(&path), [0, 1, 2, 3, 4]);
        assert_eq!(read_events(&path).unwrap()[4].values[0].1, EventValue::Scalar(44.0));
        // Nothing to drop: the torn tail alone goes, the rest stays byte for byte.
        let whole = fs::read(&path).unwrap();
        fs::write(&path, [&whole[..], b"torn"].concat()).unwrap();
        drop(EventWriter::resume(folder.path(), 99).unwrap());
        assert_eq!(fs::read(&path).unwrap(), whole);
    }

    #[test]
    fn resume_without_a_usable_file_starts_one() {
        let folder = tempfile::tempdir().unwrap();
        drop(EventWriter::resume(folder.path(), 5).unwrap());
        let files = event_files(folder.path()).unwrap();
        assert_eq!(files.len(), 1);
        fs::write(&files[0], b"garbage").unwrap();
        let mut writer = EventWriter::resume(folder.path(), 5).unwrap();
        writer.scalars(6, &[("loss", 1.0)]).unwrap();
        assert_eq!(steps(writer.path()), [0, 6]);
    }

    #[test]
    fn files_that_are_no_event_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, b"not an event file at all").unwrap();
        assert!(read_events(&path).unwrap_err().to_string().contains("event file"));
        fs::write(&path, record::frame(&[0xff])).unwrap();
        assert!(read_events(&path).unwrap_err().to_string().contains("record 0"));
        assert!(EventWriter::create(&folder.path().join("absent")).is_err());
    }
}
