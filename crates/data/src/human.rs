//! D3PO's human labels: n pictures per prompt, a number for each from one or more annotators.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::builder::{Builder, Place, Ranked};
use crate::error::{Error, Result};
use crate::files;
use crate::pairs::Picture;
use crate::report::Reason;
use crate::rows::{as_number, shown};

/// Folders of pictures, the sampling script's own first, then the public data's.
const PICTURES: &[&str] = &["images", "all_img"];

/// Whether `folder` holds such labels.
pub(crate) fn is_one(folder: &Path) -> bool {
    folder.join("prompt.json").is_file() && label_files(folder).is_ok_and(|files| !files.is_empty())
}

/// An annotator's rows: numbers per prompt, or what is wrong with the row.
type Labels = Vec<Result<Vec<f64>, String>>;

/// Reads prompts and labels: `prompt.json` is a list of N prompts, every file of labels one annotator's N lists of n
/// numbers, higher being better; they are averaged over annotators, and rows beyond the shortest file are not read.
/// Picture k of prompt j is number n·j + k in `images/` (or `all_img/`), five digits.
pub(crate) fn read(folder: &Path, builder: &mut Builder) -> Result<()> {
    let prompts = texts(&folder.join("prompt.json"))?;
    let label_files = label_files(folder)?;
    let annotators = label_files.iter().map(|path| labels(path)).collect::<Result<Vec<_>>>()?;
    let shortest = annotators.iter().map(Vec::len).min().unwrap_or(0).min(prompts.len());
    let per_prompt = annotators.iter().flatten().flatten().map(Vec::len).max().unwrap_or(0);
    let pictures = PICTURES.iter().map(|name| folder.join(name)).find(|path| path.is_dir());
    let pictures =
        pictures.ok_or_else(|| Error::format(folder, "expected a folder `images` or `all_img`, found neither"))?;
    let source = builder.source(&label_files[0], "entry");
    for (row, prompt) in prompts.iter().take(shortest).enumerate() {
        let place = Place { source, number: row as u32 + 1 };
        let scores = mean(&annotators, row, per_prompt).map_err(|detail| (Reason::NoLabel, detail));
        let used = scores.and_then(|scores| {
            let ids = (0..per_prompt).map(|k| {
                let name = format!("{:05}", per_prompt * row + k);
                let found = files::spellings(&pictures, &name).find(|file| file.is_file());
                let missing = || (Reason::MissingPicture, format!("picture {name} is not in {}", pictures.display()));
                found.map(|file| builder.picture(Picture::File(file.into()))).ok_or_else(missing)
            });
            let ids = ids.collect::<Result<Vec<_>, _>>()?;
            builder.ranking(place, &Ranked { prompt, pictures: &ids, scores: &scores, generators: None })
        });
        builder.row(place, used);
    }
    Ok(())
}

/// One file per annotator: all of `json/`, or `data.json`.
fn label_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("data.json");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let folder = folder.join("json");
    let files = if folder.is_dir() { files::list(&folder)? } else { Vec::new() };
    Ok(files.into_iter().filter(|path| files::ending(path) == "json").collect())
}

fn mean(annotators: &[Labels], row: usize, per_prompt: usize) -> Result<Vec<f64>, String> {
    let mut sums = vec![0.0; per_prompt];
    for labels in annotators {
        let numbers = labels[row].as_ref().map_err(Clone::clone)?;
        if numbers.len() != per_prompt {
            return Err(format!("expected {per_prompt} labels, found {}", numbers.len()));
        }
        sums.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += number);
    }
    Ok(sums.into_iter().map(|sum| sum / annotators.len() as f64).collect())
}

fn list(path: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::format(path, format!("expected a JSON list: {e}")))
}

fn texts(path: &Path) -> Result<Vec<String>> {
    let text = |(i, value): (usize, &Value)| {
        let refuse = || Error::format(path, format!("entry {}: expected a prompt, found {}", i + 1, shown(value)));
        value.as_str().map(str::to_owned).ok_or_else(refuse)
    };
    list(path)?.iter().enumerate().map(text).collect()
}

fn labels(path: &Path) -> Result<Labels> {
    let numbers = |value: &Value| {
        let found: Option<Vec<f64>> = value.as_array().and_then(|list| list.iter().map(as_number).collect());
        found.ok_or_else(|| format!("expected a list of numbers, found {}", shown(value)))
    };
    Ok(list(path)?.iter().map(numbers).collect())
}
