//! Which layout a path is, told from its content.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::{files, folders, human, lists, parquet_pairs};

/// Lists that a folder may hold, the first found is read.
const LISTS: &[&str] = &["pairs.jsonl", "metadata.jsonl", "train.json", "test.json"];

const ACCEPTED: &str = "a list of pairs (.jsonl, .json), parquet files, a folder with pairs.jsonl, metadata.jsonl, \
    train.json or test.json, folders win/ and lose/, or D3PO's prompt.json with json/ and images/ (docs/data.md)";

/// Reads prompts and labels of whatever `path` is; returns the layout's name.
pub(crate) fn read(path: &Path, builder: &mut Builder) -> Result<&'static str> {
    if path.is_dir() { read_folder(path, builder) } else { read_file(path, builder) }
}

fn read_file(path: &Path, builder: &mut Builder) -> Result<&'static str> {
    let start = start_of(path)?;
    if start.starts_with(b"PAR1") {
        parquet_pairs::read(&[path.to_owned()], builder)?;
        return Ok("parquet");
    }
    let text = start.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&start);
    match text.trim_ascii_start().first() {
        Some(b'[') => lists::read(path, false, builder).map(|()| "JSON list"),
        Some(b'{') => lists::read(path, true, builder).map(|()| "JSON lines"),
        // The first line is no object; perhaps others are.
        Some(_) if files::ending(path) == "jsonl" => lists::read(path, true, builder).map(|()| "JSON lines"),
        None => Err(Error::format(path, "expected at least one pair, found an empty file")),
        Some(_) => {
            let first: String = String::from_utf8_lossy(&start).chars().take(16).collect();
            Err(Error::format(path, format!("expected {ACCEPTED}; found a file that begins {first:?}")))
        }
    }
}

fn read_folder(path: &Path, builder: &mut Builder) -> Result<&'static str> {
    if let Some(folders) = folders::find(path) {
        return folders::read(path, &folders, builder).map(|()| "win and lose folders");
    }
    if human::is_one(path) {
        return human::read(path, builder).map(|()| "D3PO human labels");
    }
    if let Some(list) = LISTS.iter().map(|name| path.join(name)).find(|list| list.is_file()) {
        return read_file(&list, builder);
    }
    let shards = files::parquet_files(path)?;
    if !shards.is_empty() {
        return parquet_pairs::read(&shards, builder).map(|()| "parquet");
    }
    let names = files::list(path)?.into_iter().filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned()));
    let found: Vec<String> = names.take(8).collect();
    let found = if found.is_empty() { "nothing".to_owned() } else { found.join(", ") };
    Err(Error::format(path, format!("expected {ACCEPTED}; found {found}")))
}

fn start_of(path: &Path) -> Result<Vec<u8>> {
    let failed = |e| Error::io(path, e);
    let mut start = Vec::new();
    File::open(path).map_err(failed)?.take(4096).read_to_end(&mut start).map_err(failed)?;
    Ok(start)
}
