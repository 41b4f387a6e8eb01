//! Parquet files as columns of values and, one at a time, picture cells.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use parquet::basic::Type as Physical;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::serialized_reader::SerializedPageReader;

use crate::error::{Error, Result};
use crate::picture::guarded;

/// Values read at a time: a file that promises more rows than it has costs nothing.
const STRIDE: usize = 8192;
/// The largest compressed column chunk that is believed (parquet's own limit is 2 GiB a page).
const MAX_CHUNK: i64 = 1 << 40;

/// A parquet file that pictures are read from: of its footer only what that needs.
#[derive(Debug)]
pub(crate) struct Shard {
    path: PathBuf,
    groups: Vec<Group>,
}

/// A row group: its first row in the file, its rows, and the two columns of pictures (absent: pictures are files).
#[derive(Debug)]
struct Group {
    first: u64,
    rows: u64,
    pictures: Vec<ColumnChunkMetaData>,
}

/// An open parquet file whose footer has been checked.
pub(crate) struct Table {
    path: PathBuf,
    metadata: ParquetMetaData,
}

/// A column of a row group, absent values as `None`.
pub(crate) enum Cells {
    Texts(Vec<Option<String>>),
    Numbers(Vec<Option<f64>>),
}

impl Table {
    /// Reads the footer. Errors: no parquet file, a cut one, numbers in it that cannot be.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let refuse = |reason: String| Error::format(path, format!("expected a whole parquet file: {reason}"));
        let footer = || ParquetMetaDataReader::new().parse_and_finish(&file).map_err(|e| e.to_string());
        let metadata = guarded(footer).map_err(refuse)?;
        let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
        for group in metadata.row_groups() {
            let sane = |column: &ColumnChunkMetaData| {
                let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
                let size = column.compressed_size();
                start >= 0
                    && column.data_page_offset() >= 0
                    && (0..MAX_CHUNK).contains(&size)
                    && start.saturating_add(size) as u64 <= length
            };
            if group.num_rows() < 0 || !group.columns().iter().all(sane) {
                return Err(refuse("its footer points outside the file".into()));
            }
        }
        Ok(Self { path: path.into(), metadata })
    }

    /// The index of the first of these columns that the file has (`struct.field` for nested ones).
    pub fn column(&self, names: &[&str]) -> Option<usize> {
        let columns = self.metadata.file_metadata().schema_descr().columns();
        let index = |name: &&str| columns.iter().position(|c| c.path().string() == **name && c.max_rep_level() == 0);
        names.iter().find_map(index)
    }

    /// As [`Table::column`], of bytes.
    pub fn bytes_column(&self, names: &[&str]) -> Option<usize> {
        let columns = self.metadata.file_metadata().schema_descr().columns();
        self.column(names).filter(|&index| columns[index].physical_type() == Physical::BYTE_ARRAY)
    }

    /// The names of all columns.
    pub fn names(&self) -> Vec<String> {
        self.metadata.file_metadata().schema_descr().columns().iter().map(|c| c.path().string()).collect()
    }

    /// Row groups.
    pub fn groups(&self) -> usize {
        self.metadata.num_row_groups()
    }

    /// A column of a row group as texts or numbers. Errors: damaged pages, another type.
    pub fn cells(&self, group: usize, column: usize) -> Result<Cells> {
        let meta = &self.metadata.row_groups()[group];
        let cells = guarded(|| self.read_cells(meta.column(column), meta.num_rows() as usize));
        cells.map_err(|reason| {
            let name = meta.column(column).column_path().string();
            Error::format(&self.path, format!("column `{name}` of row group {group}: {reason}"))
        })
    }

    fn read_cells(&self, column: &ColumnChunkMetaData, rows: usize) -> Result<Cells, String> {
        let reader = reader(&self.path, column, rows)?;
        let defined = column.column_descr().max_def_level();
        let cells = match reader {
            ColumnReader::BoolColumnReader(r) => all(r, rows, defined, |v| f64::from(u8::from(*v))).map(Cells::Numbers),
            ColumnReader::Int32ColumnReader(r) => all(r, rows, defined, |v| f64::from(*v)).map(Cells::Numbers),
            ColumnReader::Int64ColumnReader(r) => all(r, rows, defined, |v| *v as f64).map(Cells::Numbers),
            ColumnReader::FloatColumnReader(r) => all(r, rows, defined, |v| f64::from(*v)).map(Cells::Numbers),
            ColumnReader::DoubleColumnReader(r) => all(r, rows, defined, |v| *v).map(Cells::Numbers),
            ColumnReader::ByteArrayColumnReader(r) => {
                let text = |v: &ByteArray| String::from_utf8_lossy(v.data()).into_owned();
                all(r, rows, defined, text).map(Cells::Texts)
            }
            _ => return Err("expected texts or numbers, found another type".into()),
        };
        cells.map_err(|e| e.to_string())
    }

    /// What reading pictures from these columns needs.
    pub fn into_shard(self, pictures: &[usize]) -> Shard {
        let mut first = 0;
        let mut groups = Vec::new();
        for meta in self.metadata.row_groups() {
            let rows = meta.num_rows() as u64;
            groups.push(Group { first, rows, pictures: pictures.iter().map(|&c| meta.column(c).clone()).collect() });
            first += rows;
        }
        Shard { path: self.path, groups }
    }
}

impl Shard {
    /// The file's name.
    pub fn name(&self) -> String {
        self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// A place before the row in one of the two columns of pictures.
    pub fn cursor(&self, place: Place) -> Result<Cursor, String> {
        let (index, _) = self.group(place)?;
        let group = &self.groups[index];
        let column = group.pictures.get(usize::from(place.side)).ok_or("no such column")?;
        match reader(&self.path, column, group.rows as usize)? {
            ColumnReader::ByteArrayColumnReader(reader) => {
                Ok(Cursor { shard: place.shard, side: place.side, group: index, next: 0, reader })
            }
            _ => Err("expected bytes".into()),
        }
    }

    /// The bytes of one picture, read on from `cursor` (of this shard, see [`Shard::continues`]). Pages before it are
    /// passed over unread. Errors: an empty cell, a damaged page; the cursor is then of no more use.
    pub fn read(&self, cursor: &mut Cursor, place: Place) -> Result<Vec<u8>, String> {
        let (_, row) = self.group(place)?;
        let (mut values, mut levels) = (Vec::new(), Vec::new());
        let said = |e: ParquetError| e.to_string();
        let between = (row - cursor.next) as usize;
        if cursor.reader.skip_records(between).map_err(said)? != between {
            return Err("the column ends before this row".into());
        }
        cursor.reader.read_records(1, Some(&mut levels), None, &mut values).map_err(said)?;
        cursor.next = row + 1;
        values.first().map(|bytes: &ByteArray| bytes.data().to_vec()).ok_or_else(|| "the cell is empty".into())
    }

    /// Whether `cursor` stands before `place` in the same row group.
    pub fn continues(&self, cursor: &Cursor, place: Place) -> bool {
        (cursor.shard, cursor.side) == (place.shard, place.side)
            && self.group(place).is_ok_and(|(group, row)| cursor.group == group && cursor.next <= row)
    }

    /// The row group of a row, and the row's number in it.
    fn group(&self, place: Place) -> Result<(usize, u64), String> {
        let row = u64::from(place.row);
        let index = self.groups.partition_point(|group| group.first + group.rows <= row);
        let group = self.groups.get(index).ok_or("no such row")?;
        Ok((index, row - group.first))
    }
}

/// A cell: the index of its file, its row there, and which of the two columns of pictures.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub shard: u32,
    pub row: u32,
    pub side: u8,
}

/// A place in a column of pictures. It holds one page: what comes next there is read without decompressing it again.
pub(crate) struct Cursor {
    shard: u32,
    side: u8,
    group: usize,
    next: u64,
    reader: ColumnReaderImpl<ByteArrayType>,
}

/// The last place in each of the two columns, for whoever reads in order: some writers make pages of hundreds of pictures.
#[derive(Default)]
pub(crate) struct Cursors([Mutex<Option<Cursor>>; 2]);

impl Cursors {
    /// The bytes of a cell. Threads that read at once do not wait for each other. Errors: as [`Shard::read`].
    pub fn read(&self, shards: &[Shard], place: Place) -> Result<Vec<u8>, String> {
        let shard = shards.get(place.shard as usize).ok_or("no such file")?;
        let Ok(mut last) = self.0[usize::from(place.side % 2)].try_lock() else {
            return shard.read(&mut shard.cursor(place)?, place);
        };
        // The old page is let go before a new one is read.
        let known = last.take().filter(|cursor| shard.continues(cursor, place));
        let mut cursor = known.map_or_else(|| shard.cursor(place), Ok)?;
        let bytes = shard.read(&mut cursor, place)?;
        *last = Some(cursor);
        Ok(bytes)
    }
}

impl std::fmt::Debug for Cursors {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Cursors")
    }
}

fn reader(path: &Path, column: &ColumnChunkMetaData, rows: usize) -> Result<ColumnReader, String> {
    // A file of its own: handles that share one position cannot be read by two threads.
    let file = File::open(path).map_err(|e| e.to_string())?;
    let pages = SerializedPageReader::new(Arc::new(file), column, rows, None).map_err(|e| e.to_string())?;
    Ok(get_column_reader(column.column_descr_ptr(), Box::new(pages)))
}

fn all<T: parquet::data_type::DataType, V>(
    mut reader: ColumnReaderImpl<T>,
    rows: usize,
    defined: i16,
    convert: impl Fn(&T::T) -> V,
) -> Result<Vec<Option<V>>, ParquetError> {
    let mut cells = Vec::new();
    while cells.len() < rows {
        let (mut values, mut levels) = (Vec::new(), Vec::new());
        let wanted = STRIDE.min(rows - cells.len());
        let (records, ..) = reader.read_records(wanted, Some(&mut levels), None, &mut values)?;
        if records == 0 {
            return Err(ParquetError::General(format!("expected {rows} values, found {}", cells.len())));
        }
        let mut values = values.iter();
        if defined == 0 {
            cells.extend(values.map(|value| Some(convert(value))));
        } else {
            let cell = |&level: &i16| if level == defined { values.next().map(&convert) } else { None };
            cells.extend(levels.iter().map(cell));
        }
    }
    Ok(cells)
}
