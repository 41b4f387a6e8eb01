//! Lists of JSON objects: a line each, or a JSON array; metadata of an `imagefolder`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserializer;
use serde::de::{SeqAccess, Visitor};
use serde_json::Value;

use crate::builder::{Builder, Fault, Place, Ranked};
use crate::error::{Error, Result};
use crate::pairs::Picture;
use crate::report::Reason;
use crate::rows::{self, Said};

/// The longest line that is read.
const MAX_LINE: u64 = 16 << 20;

/// Pictures of a prompt that wait to be compared with each other.
struct Waiting {
    prompt: String,
    pictures: Vec<u32>,
    scores: Vec<f64>,
    /// The first one's.
    place: Place,
}

/// Reads the objects of one list.
struct Reader<'b, 'o> {
    builder: &'b mut Builder<'o>,
    source: u32,
    folders: Vec<PathBuf>,
    /// In order of appearance.
    waiting: Vec<Waiting>,
    /// Where in `waiting` a prompt is.
    of_prompt: HashMap<String, usize>,
    /// The captions of waiting pictures that have several.
    captions: HashMap<u32, Vec<String>>,
}

/// Reads a list, whose pictures lie relative to its own folder or one of the usual ones beside it.
pub(crate) fn read(path: &Path, lines: bool, builder: &mut Builder) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    let stem = path.file_stem().map(|stem| folder.join(stem));
    let beside = ["images", "train", "test"].map(|name| folder.join(name));
    let mut folders = vec![folder];
    folders.extend(stem.into_iter().chain(beside).filter(|folder| folder.is_dir()));
    let source = builder.source(path, if lines { "line" } else { "entry" });
    let (waiting, of_prompt, captions) = Default::default();
    let mut reader = Reader { builder, source, folders, waiting, of_prompt, captions };
    if lines {
        reader.lines(path)?
    } else {
        reader.array(path)?
    }
    reader.compare_waiting();
    Ok(())
}

impl Reader<'_, '_> {
    fn lines(&mut self, path: &Path) -> Result<()> {
        let mut file = BufReader::new(File::open(path).map_err(|e| Error::io(path, e))?);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let read = file.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).map_err(|e| Error::io(path, e))?;
            if read == 0 {
                break;
            }
            if read as u64 == MAX_LINE {
                return Err(Error::format(path, format!("line {number}: expected at most 16 MiB, found more")));
            }
            let text = line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&line);
            if !text.trim_ascii().is_empty() {
                let value = serde_json::from_slice(text).map_err(|e| (Reason::WrongType, format!("no JSON: {e}")));
                self.row(number, value);
            }
        }
        Ok(())
    }

    /// One element of the array at a time, so that a large file is never in memory as a whole.
    fn array(&mut self, path: &Path) -> Result<()> {
        let file = BufReader::new(File::open(path).map_err(|e| Error::io(path, e))?);
        let mut parser = serde_json::Deserializer::from_reader(file);
        parser.deserialize_seq(Elements(self)).map_err(|e| Error::format(path, format!("expected a JSON list: {e}")))
    }

    fn row(&mut self, number: u32, value: Result<Value, Fault>) {
        let place = Place { source: self.source, number };
        let used = value.and_then(|value| self.use_row(place, &value));
        self.builder.row(place, used);
    }

    fn use_row(&mut self, place: Place, value: &Value) -> Result<(), Fault> {
        let (captions, said) = rows::read(value)?;
        let first = self.builder.pairs();
        self.use_said(place, &captions, said)?;
        self.builder.captioned(first, captions);
        Ok(())
    }

    fn use_said(&mut self, place: Place, captions: &[String], said: Said) -> Result<(), Fault> {
        // A row without any is refused where it is read.
        let prompt = captions.first().map_or("", String::as_str);
        match said {
            Said::Pair { winner, loser } => {
                let winner = self.picture(&winner)?;
                let loser = loser.map(|loser| self.picture(&loser)).transpose()?;
                self.builder.pair(place, prompt, winner, loser)
            }
            Said::Ranking { pictures, scores, generators } => {
                let pictures = pictures.iter().map(|name| self.picture(name)).collect::<Result<Vec<_>, _>>()?;
                let generators = generators.as_deref();
                self.builder.ranking(place, &Ranked { prompt, pictures: &pictures, scores: &scores, generators })
            }
            Said::Single { picture, score: None } => {
                let picture = self.picture(&picture)?;
                self.builder.pair(place, prompt, picture, None)
            }
            Said::Single { picture, score: Some(score) } => {
                let picture = self.picture(&picture)?;
                if captions.len() > 1 {
                    self.captions.insert(picture, captions.to_vec());
                }
                self.wait(place, prompt, picture, score);
                Ok(())
            }
        }
    }

    /// Keeps a picture until all of its prompt are known.
    fn wait(&mut self, place: Place, prompt: &str, picture: u32, score: f64) {
        if let Some(&at) = self.of_prompt.get(prompt) {
            self.waiting[at].pictures.push(picture);
            self.waiting[at].scores.push(score);
        } else {
            self.of_prompt.insert(prompt.to_owned(), self.waiting.len());
            let (prompt, pictures, scores) = (prompt.to_owned(), vec![picture], vec![score]);
            self.waiting.push(Waiting { prompt, pictures, scores, place });
        }
    }

    fn picture(&mut self, name: &str) -> Result<u32, Fault> {
        let found = self.folders.iter().map(|folder| folder.join(name)).find(|file| file.is_file());
        let file = found.ok_or_else(|| (Reason::MissingPicture, format!("`{name}`: no such file")))?;
        Ok(self.builder.picture(Picture::File(file.into())))
    }

    /// Pictures that came in rows of their own are compared with those of the same prompt.
    fn compare_waiting(&mut self) {
        for Waiting { prompt, pictures, scores, place } in std::mem::take(&mut self.waiting) {
            let first = self.builder.pairs();
            let ranked = Ranked { prompt: &prompt, pictures: &pictures, scores: &scores, generators: None };
            let compared = if pictures.len() == 1 {
                self.builder.pair(place, &prompt, pictures[0], None)
            } else {
                self.builder.ranking(place, &ranked)
            };
            self.builder.captioned_by_picture(first, &self.captions);
            if compared.is_err() {
                self.builder.fault(place, compared);
            }
        }
    }
}

struct Elements<'r, 'b, 'o>(&'r mut Reader<'b, 'o>);

impl<'de> Visitor<'de> for Elements<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        formatter.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> std::result::Result<(), A::Error> {
        for number in 1.. {
            match sequence.next_element::<Value>()? {
                Some(value) => self.0.row(number, Ok(value)),
                None => break,
            }
        }
        Ok(())
    }
}
