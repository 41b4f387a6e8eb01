//! Pick-a-Pic and its likes: parquet files of captions, two pictures and labels.

use std::path::{Path, PathBuf};

use crate::builder::{Builder, Fault, Place, Ranked};
use crate::error::{Error, Result};
use crate::files::{DOWNLOADED, picture_named};
use crate::pairs::Picture;
use crate::report::Reason;
use crate::table::{Cells, Place as Cell, Table};

const CAPTION: &[&str] = &["caption", "prompt", "text"];
const PICTURES: [&[&str]; 2] = [
    &["jpg_0", "jpg_0.bytes", "image_0.bytes", "image_0", "winner.bytes", "winner", "chosen.bytes", "chosen"],
    &["jpg_1", "jpg_1.bytes", "image_1.bytes", "image_1", "loser.bytes", "loser", "rejected.bytes", "rejected"],
];
/// Columns whose name says which picture won.
const DECIDED: &[&str] = &["winner", "chosen"];
const UIDS: [&str; 2] = ["image_0_uid", "image_1_uid"];
const URLS: [&str; 2] = ["image_0_url", "image_1_url"];

/// Reads the labels of all files; their pictures stay where they are.
pub(crate) fn read(files: &[PathBuf], builder: &mut Builder) -> Result<()> {
    files.iter().try_for_each(|file| read_file(file, builder))
}

/// Columns of one row group that say what a row is; absent columns are empty.
struct Rows {
    captions: Vec<Option<String>>,
    labels: [Vec<Option<f64>>; 2],
    has_label: Vec<Option<f64>>,
    are_different: Vec<Option<f64>>,
    examples: Vec<Option<f64>>,
    best: Vec<Option<String>>,
    uids: [Vec<Option<String>>; 2],
    urls: [Vec<Option<String>>; 2],
    models: [Vec<Option<String>>; 2],
    rows: usize,
}

fn read_file(path: &Path, builder: &mut Builder) -> Result<()> {
    let table = Table::open(path)?;
    let missing =
        |what: &str| Error::format(path, format!("expected {what}, found the columns {}", table.names().join(", ")));
    let caption = table.column(CAPTION).ok_or_else(|| missing("a column `caption` (or `prompt`, `text`)"))?;
    let pictures = PICTURES.iter().map(|names| table.bytes_column(names)).collect::<Option<Vec<_>>>();
    let decided = pictures.as_ref().is_some_and(|columns| {
        let name = &table.names()[columns[0]];
        DECIDED.contains(&name.split('.').next().unwrap_or_default())
    });
    let downloaded = URLS.iter().chain(&UIDS).any(|name| table.column(&[name]).is_some());
    if pictures.is_none() && !downloaded {
        return Err(missing("picture bytes `jpg_0` and `jpg_1`, or `image_0_url` and `image_1_url`"));
    }
    if !decided && table.column(&["label_0"]).is_none() && table.column(&["best_image_uid"]).is_none() {
        return Err(missing("labels `label_0` (and `label_1`) or `best_image_uid`"));
    }
    let source = builder.source(path, "row");
    let groups = (0..table.groups()).map(|group| rows(&table, group, caption)).collect::<Result<Vec<_>>>()?;
    let in_cells = pictures.is_some();
    let shard = builder.shard(table.into_shard(&pictures.unwrap_or_default()));
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    let mut number = 0;
    for group in groups {
        for row in 0..group.rows {
            let place = Place { source, number };
            let used = sides(&group, row, in_cells.then_some(shard), number, &folder)
                .and_then(|sides| use_row(builder, place, &group, row, sides, decided));
            builder.row(place, used);
            number += 1;
        }
    }
    Ok(())
}

/// The two pictures of a row: cells of the file, or files downloaded from the row's urls.
fn sides(group: &Rows, row: usize, shard: Option<u32>, number: u32, folder: &Path) -> Result<[Picture; 2], Fault> {
    let side = |side: usize| match shard {
        Some(shard) => Ok(Picture::Cell(Cell { shard, row: number, side: side as u8 })),
        None => {
            let text = |column: &[Option<String>]| column.get(row).cloned().flatten();
            let (uid, url) = (text(&group.uids[side]), text(&group.urls[side]));
            let of_url = url.as_deref().and_then(|url| url.split(['?', '#']).next()?.rsplit('/').next());
            let found = [uid.as_deref(), of_url].into_iter().flatten().find_map(|name| picture_named(folder, name));
            let name = uid.as_deref().or(url.as_deref()).unwrap_or("no uid and no url");
            let detail = || {
                let beside = DOWNLOADED.join("`, `");
                format!("`{name}`: no such picture beside the file or in its folder `{beside}`")
            };
            found.map(|file| Picture::File(file.into())).ok_or_else(|| (Reason::MissingPicture, detail()))
        }
    };
    Ok([side(0)?, side(1)?])
}

fn use_row(
    builder: &mut Builder,
    place: Place,
    group: &Rows,
    row: usize,
    sides: [Picture; 2],
    decided: bool,
) -> Result<(), Fault> {
    let prompt = group.captions.get(row).and_then(Option::as_deref);
    let prompt = prompt.ok_or_else(|| (Reason::NoPrompt, "the caption is empty".to_owned()))?;
    let scores = if decided { [1.0, 0.0] } else { label(group, row)? };
    let models = [0, 1].map(|side| group.models[side].get(row).cloned().flatten());
    let models: Option<Vec<String>> = models.into_iter().collect();
    let pictures = sides.map(|side| builder.picture(side));
    let first = builder.pairs();
    builder.ranking(place, &Ranked { prompt, pictures: &pictures, scores: &scores, generators: models.as_deref() })?;
    if let Some(examples) = group.examples.get(row).copied().flatten().filter(|n| *n >= 1.0) {
        builder.examples(first, examples as u32);
    }
    Ok(())
}

/// Scores of both pictures: 1 and 0, or ½ each for a tie.
fn label(group: &Rows, row: usize) -> Result<[f64; 2], Fault> {
    let number = |column: &[Option<f64>]| column.get(row).copied().flatten();
    let none = |detail: String| (Reason::NoLabel, detail);
    if number(&group.has_label) == Some(0.0) {
        return Err(none("has_label is false".into()));
    }
    let tie = number(&group.are_different) == Some(0.0);
    match (number(&group.labels[0]), number(&group.labels[1])) {
        (Some(first), _) if ![0.0, 0.5, 1.0].contains(&first) => {
            Err(none(format!("label_0: expected 0, 0.5 or 1, found {first}")))
        }
        (Some(first), Some(second)) if first + second != 1.0 => {
            Err(none(format!("expected label_0 + label_1 = 1, found {first} and {second}")))
        }
        (Some(_), _) if tie => Ok([0.5; 2]),
        (Some(first), _) => Ok([first, 1.0 - first]),
        (None, _) => {
            let text = |column: &[Option<String>]| column.get(row).cloned().flatten();
            let best = text(&group.best).ok_or_else(|| none("neither label_0 nor best_image_uid".into()))?;
            match [0, 1].map(|side| text(&group.uids[side]).as_ref() == Some(&best)) {
                [true, false] => Ok([1.0, 0.0]),
                [false, true] => Ok([0.0, 1.0]),
                _ if ["", "none", "tie"].contains(&best.as_str()) => Ok([0.5; 2]),
                _ => Err(none(format!("best_image_uid `{best}` is neither picture's"))),
            }
        }
    }
}

fn rows(table: &Table, group: usize, caption: usize) -> Result<Rows> {
    let texts = |names: &[&str]| -> Result<Vec<Option<String>>> {
        match table.column(names).map(|column| table.cells(group, column)).transpose()? {
            Some(Cells::Texts(texts)) => Ok(texts),
            _ => Ok(Vec::new()),
        }
    };
    let numbers = |name: &str| -> Result<Vec<Option<f64>>> {
        match table.column(&[name]).map(|column| table.cells(group, column)).transpose()? {
            Some(Cells::Numbers(numbers)) => Ok(numbers),
            _ => Ok(Vec::new()),
        }
    };
    // A caption column of another type leaves every row without a prompt.
    let (captions, rows) = match table.cells(group, caption)? {
        Cells::Texts(texts) => {
            let rows = texts.len();
            (texts, rows)
        }
        Cells::Numbers(numbers) => (Vec::new(), numbers.len()),
    };
    Ok(Rows {
        captions,
        labels: [numbers("label_0")?, numbers("label_1")?],
        has_label: numbers("has_label")?,
        are_different: numbers("are_different")?,
        examples: numbers("num_example_per_prompt")?,
        best: texts(&["best_image_uid"])?,
        uids: [texts(&UIDS[..1])?, texts(&UIDS[1..])?],
        urls: [texts(&URLS[..1])?, texts(&URLS[1..])?],
        models: [texts(&["model_0"])?, texts(&["model_1"])?],
        rows,
    })
}
