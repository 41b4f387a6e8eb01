//! Writing pairs: JSON lines with picture files beside, or parquet in Pick-a-Pic's columns.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::files;
use crate::pairs::{Pair, Pairs, PictureId};
use crate::report::BadRow;

/// Pick-a-Pic's columns that say what a pair is.
const SCHEMA: &str = "message pairs { required binary caption (UTF8); required binary jpg_0; required binary jpg_1; \
    required double label_0; required double label_1; }";
/// A row group is written once its pictures take this many bytes.
const GROUP_BYTES: usize = 32 << 20;

/// A pair to write: both pictures belong to the same dataset.
#[derive(Debug, Clone)]
pub struct JudgedPair<'a> {
    /// What the pictures are of.
    pub prompt: &'a str,
    /// All their captions, as [`Pair::captions`]; empty for the prompt alone.
    pub captions: &'a [Box<str>],
    /// The preferred picture.
    pub winner: PictureId,
    /// The other one.
    pub loser: Option<PictureId>,
    /// What to note beside, in JSON lines only.
    pub notes: Map<String, Value>,
}

impl<'a> From<Pair<'a>> for JudgedPair<'a> {
    /// The pair as it is, nothing noted.
    fn from(Pair { prompt, captions, winner, loser, .. }: Pair<'a>) -> Self {
        Self { prompt, captions, winner, loser, notes: Map::new() }
    }
}

/// Writes pairs to a `.jsonl` or `.parquet` file that appears when it is whole.
pub struct PairWriter {
    target: PathBuf,
    temporary: PathBuf,
    sink: Option<Sink>,
    written: u64,
}

enum Sink {
    /// Lines, and a folder for pictures that are no files yet.
    Lines {
        file: BufWriter<File>,
        pictures: PathBuf,
        temporary: PathBuf,
    },
    Parquet {
        file: SerializedFileWriter<File>,
        group: Group,
    },
}

#[derive(Default)]
struct Group {
    captions: Vec<ByteArray>,
    pictures: [Vec<ByteArray>; 2],
    bytes: usize,
}

impl PairWriter {
    /// Opens a writer for `target`. Errors: another ending than `.jsonl` and `.parquet`, a file that exists, no room.
    pub fn create(target: &Path) -> Result<Self> {
        let ending = files::ending(target);
        if !["jsonl", "parquet"].contains(&ending.as_str()) {
            let reason = format!("expected a name that ends in .jsonl or .parquet, found `.{ending}`");
            return Err(Error::format(target, reason));
        }
        let name = target.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let stem = target.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let pictures = target.with_file_name(format!("{stem}-images"));
        for taken in [target, pictures.as_path()] {
            if taken.exists() {
                return Err(Error::format(taken, "expected a name that is free, found a file; it is not overwritten"));
            }
        }
        if let Some(folder) = target.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        }
        let temporary = target.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
        let file = File::create(&temporary).map_err(|e| Error::io(&temporary, e))?;
        let sink = if ending == "jsonl" {
            let temporary = target.with_file_name(format!(".{stem}-images.{}.tmp", std::process::id()));
            Sink::Lines { file: BufWriter::new(file), pictures, temporary }
        } else {
            let schema = Arc::new(parse_message_type(SCHEMA).map_err(|e| Error::format(target, e.to_string()))?);
            let plain = WriterProperties::builder().set_compression(Compression::SNAPPY).set_dictionary_enabled(false);
            // Small pages, so that any picture is reached by decompressing a MiB or so.
            let plain = plain.set_write_batch_size(1).set_data_page_size_limit(1 << 20);
            let file = SerializedFileWriter::new(file, schema, Arc::new(plain.build()));
            Sink::Parquet { file: file.map_err(|e| Error::format(target, e.to_string()))?, group: Group::default() }
        };
        Ok(Self { target: target.into(), temporary, sink: Some(sink), written: 0 })
    }

    /// Adds a pair. A picture that cannot be had is returned as the bad row it is; nothing is written of its pair.
    pub fn add(&mut self, pairs: &Pairs, pair: &JudgedPair) -> Result<Option<BadRow>> {
        let (number, target) = (self.written, self.target.clone());
        let added = match &mut self.sink {
            Some(Sink::Lines { file, pictures, temporary }) => {
                let folder = Pictures { pictures, temporary };
                add_line(file, &folder, pairs, pair, number, &target)?
            }
            Some(Sink::Parquet { file, group }) => {
                let Some(loser) = pair.loser else {
                    return Err(Error::format(
                        &target,
                        "a parquet file takes pairs, found a winner alone; write .jsonl",
                    ));
                };
                if !pair.captions.is_empty() {
                    let found = format!("a parquet file takes one caption a pair, found several: {:?}", pair.prompt);
                    return Err(Error::format(&target, format!("{found}; write .jsonl")));
                }
                match (pairs.bytes(pair.winner), pairs.bytes(loser)) {
                    (Err(bad), _) | (_, Err(bad)) => Some(bad),
                    (Ok(winner), Ok(loser)) => {
                        group.bytes += winner.len() + loser.len();
                        group.captions.push(pair.prompt.as_bytes().to_vec().into());
                        group.pictures[0].push(winner.into());
                        group.pictures[1].push(loser.into());
                        if group.bytes >= GROUP_BYTES {
                            group.write(file).map_err(|e| Error::format(&target, e.to_string()))?;
                        }
                        None
                    }
                }
            }
            None => None,
        };
        self.written += u64::from(added.is_none());
        Ok(added)
    }

    /// Writes the rest and gives the file its name; returns the number of pairs.
    pub fn finish(mut self) -> Result<u64> {
        let failed = |e: std::io::Error| Error::io(&self.target, e);
        match self.sink.take() {
            Some(Sink::Lines { file, pictures, temporary }) => {
                file.into_inner().map_err(|e| failed(e.into_error()))?.sync_all().map_err(failed)?;
                if temporary.exists() {
                    fs::rename(&temporary, &pictures).map_err(failed)?;
                }
            }
            Some(Sink::Parquet { mut file, mut group }) => {
                let refuse = |e: ParquetError| Error::format(&self.target, e.to_string());
                group.write(&mut file).map_err(refuse)?;
                file.into_inner().map_err(refuse)?.sync_all().map_err(failed)?;
            }
            None => {}
        }
        fs::rename(&self.temporary, &self.target).map_err(failed)?;
        Ok(self.written)
    }
}

impl Drop for PairWriter {
    fn drop(&mut self) {
        if let Some(Sink::Lines { temporary, .. }) = self.sink.take() {
            let _ = fs::remove_dir_all(temporary);
        }
        // After `finish` it is no longer there.
        let _ = fs::remove_file(&self.temporary);
    }
}

impl Group {
    fn write(&mut self, file: &mut SerializedFileWriter<File>) -> Result<(), ParquetError> {
        let Self { captions, pictures: [winners, losers], .. } = std::mem::take(self);
        if captions.is_empty() {
            return Ok(());
        }
        let labels = [vec![1.0; captions.len()], vec![0.0; captions.len()]];
        let mut columns = [captions, winners, losers].into_iter();
        let mut labels = labels.into_iter();
        let mut group = file.next_row_group()?;
        while let Some(mut column) = group.next_column()? {
            match column.untyped() {
                ColumnWriter::ByteArrayColumnWriter(w) => {
                    w.write_batch(&columns.next().unwrap_or_default(), None, None)?;
                }
                ColumnWriter::DoubleColumnWriter(w) => {
                    w.write_batch(&labels.next().unwrap_or_default(), None, None)?;
                }
                _ => return Err(ParquetError::General("a column of a type that is not written".into())),
            }
            column.close()?;
        }
        group.close()?;
        Ok(())
    }
}

/// The folder that cells become files in: its name, and its name until it is whole.
struct Pictures<'a> {
    pictures: &'a Path,
    temporary: &'a Path,
}

fn add_line(
    file: &mut BufWriter<File>,
    folder: &Pictures,
    pairs: &Pairs,
    pair: &JudgedPair,
    number: u64,
    target: &Path,
) -> Result<Option<BadRow>> {
    let prompt = match pair.captions {
        [] => json!(pair.prompt),
        captions => json!(captions),
    };
    let mut line = Map::from_iter([("prompt".to_owned(), prompt)]);
    for (name, id) in [("winner", Some(pair.winner)), ("loser", pair.loser)] {
        let Some(id) = id else { continue };
        let path = match pairs.file(id) {
            Some(path) => relative(path, target),
            None => match pairs.bytes(id) {
                Ok(bytes) => extract(folder, &bytes, &format!("{number:06}-{name}"))?,
                Err(bad) => return Ok(Some(bad)),
            },
        };
        line.insert(name.to_owned(), json!(path));
    }
    line.extend(pair.notes.clone());
    writeln!(file, "{}", Value::Object(line)).map_err(|e| Error::io(target, e))?;
    Ok(None)
}

/// A picture's path from the folder of `target` where it lies below it, else its absolute one.
fn relative(picture: &Path, target: &Path) -> String {
    let whole = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (picture, folder) = (whole(picture), whole(folder));
    picture.strip_prefix(&folder).unwrap_or(&picture).to_string_lossy().into_owned()
}

fn extract(folder: &Pictures, bytes: &[u8], name: &str) -> Result<String> {
    let format = image::guess_format(bytes).ok().and_then(|format| format.extensions_str().first().copied());
    let name = format!("{name}.{}", format.unwrap_or("bin"));
    fs::create_dir_all(folder.temporary).map_err(|e| Error::io(folder.temporary, e))?;
    let path = folder.temporary.join(&name);
    fs::write(&path, bytes).map_err(|e| Error::io(&path, e))?;
    let folder = folder.pictures.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(format!("{folder}/{name}"))
}
