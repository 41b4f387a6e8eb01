//! Collects pairs and counts while a layout is read.

use std::collections::HashMap;
use std::path::Path;

use crate::pairs::{NONE, Options, Pairs, Picture, Row};
use crate::report::{BadRow, Reason, Report};
use crate::table::{Cursors, Shard};

/// Where a row comes from: an index into the sources, and its number there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub source: u32,
    pub number: u32,
}

/// What a row says, pictures already registered. Scores: higher is better.
pub(crate) struct Ranked<'a> {
    pub prompt: &'a str,
    pub pictures: &'a [u32],
    pub scores: &'a [f64],
    /// The generator of each picture, where known.
    pub generators: Option<&'a [String]>,
}

/// A row's fault.
pub(crate) type Fault = (Reason, String);

pub(crate) struct Builder<'a> {
    options: &'a Options,
    prompts: Vec<Box<str>>,
    prompt_ids: HashMap<Box<str>, u32>,
    captions: Vec<Vec<Box<str>>>,
    caption_ids: HashMap<Vec<String>, u32>,
    pictures: Vec<Picture>,
    rows: Vec<Row>,
    sources: Vec<(String, &'static str)>,
    shards: Vec<Shard>,
    report: Report,
}

impl<'a> Builder<'a> {
    pub fn new(options: &'a Options) -> Self {
        Self {
            options,
            prompts: Vec::new(),
            prompt_ids: HashMap::new(),
            captions: Vec::new(),
            caption_ids: HashMap::new(),
            pictures: Vec::new(),
            rows: Vec::new(),
            sources: Vec::new(),
            shards: Vec::new(),
            report: Report::default(),
        }
    }

    /// Names a file that rows come from; `unit` is what a row is called there.
    pub fn source(&mut self, path: &Path, unit: &'static str) -> u32 {
        let name = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
        self.sources.push((name, unit));
        self.sources.len() as u32 - 1
    }

    /// Adds a parquet file; returns its index.
    pub fn shard(&mut self, shard: Shard) -> u32 {
        self.shards.push(shard);
        self.shards.len() as u32 - 1
    }

    /// Registers a picture.
    pub fn picture(&mut self, picture: Picture) -> u32 {
        self.pictures.push(picture);
        self.pictures.len() as u32 - 1
    }

    /// Counts a row, which then is either used or bad.
    pub fn row(&mut self, place: Place, used: Result<(), Fault>) {
        self.report.rows += 1;
        self.fault(place, used);
    }

    /// Counts a row as bad that was counted as a row before.
    pub fn fault(&mut self, place: Place, used: Result<(), Fault>) {
        if let Err((reason, detail)) = used {
            let (name, unit) = &self.sources[place.source as usize];
            self.report.add_bad(BadRow { place: format!("{name} {unit} {}", place.number), reason, detail });
        }
    }

    /// A picture that is preferred to another, or to none.
    pub fn pair(&mut self, place: Place, prompt: &str, winner: u32, loser: Option<u32>) -> Result<(), Fault> {
        let loser = match loser {
            _ if self.options.winners_only => None,
            None => return Err((Reason::NoLoser, "only a winner; this method needs a loser too".into())),
            loser => loser,
        };
        let prompt = self.prompt(prompt)?;
        let Place { source, number } = place;
        let loser = loser.unwrap_or(NONE);
        self.rows.push(Row { prompt, captions: NONE, winner, loser, source, number, tie: false, examples: 0 });
        Ok(())
    }

    /// All pairs of a ranking whose scores differ, the first picture of each in file order; ties are counted. Where only
    /// winners are wanted: its best pictures.
    pub fn ranking(&mut self, place: Place, ranked: &Ranked) -> Result<(), Fault> {
        let Ranked { prompt, pictures, scores, .. } = ranked;
        if pictures.len() != scores.len() || pictures.len() < 2 {
            let detail = format!(
                "expected at least two pictures and a label each, found {} and {}",
                pictures.len(),
                scores.len()
            );
            return Err((Reason::WrongType, detail));
        }
        if let Some(bad) = scores.iter().find(|score| !score.is_finite()) {
            return Err((Reason::NoLabel, format!("expected a number as label, found {bad}")));
        }
        let wanted: Vec<bool> = (0..pictures.len()).map(|at| self.wanted(ranked, at)).collect();
        let best = scores.iter().zip(&wanted).filter(|(_, wanted)| **wanted).map(|(score, _)| *score);
        let best = best.fold(f64::NEG_INFINITY, f64::max);
        let mut won = vec![false; pictures.len()];
        for first in 0..pictures.len() {
            for second in first + 1..pictures.len() {
                if !(wanted[first] && wanted[second]) {
                    self.report.other_generators += 1;
                } else if scores[first] == scores[second] {
                    self.report.ties += 1;
                    if self.options.ties && !self.options.winners_only {
                        self.pair(place, prompt, pictures[first], Some(pictures[second]))?;
                        if let Some(row) = self.rows.last_mut() {
                            row.tie = true;
                        }
                    }
                } else {
                    let (winner, loser) =
                        if scores[first] > scores[second] { (first, second) } else { (second, first) };
                    if !self.options.winners_only {
                        self.pair(place, prompt, pictures[winner], Some(pictures[loser]))?;
                    } else if scores[winner] == best && !std::mem::replace(&mut won[winner], true) {
                        self.pair(place, prompt, pictures[winner], None)?;
                    }
                }
            }
        }
        self.prompt(prompt).map(|_| ())
    }

    /// Notes how many pairs of its prompt the file counts, for the rows from index `first` on.
    pub fn examples(&mut self, first: usize, examples: u32) {
        self.rows.iter_mut().skip(first).for_each(|row| row.examples = examples);
    }

    /// Pairs so far.
    pub fn pairs(&self) -> usize {
        self.rows.len()
    }

    /// Whether a picture of a ranking is by the generator asked for.
    fn wanted(&self, ranked: &Ranked, at: usize) -> bool {
        let asked = self.options.generator.to_lowercase();
        let by = ranked.generators.and_then(|names| names.get(at));
        asked.is_empty() || by.is_some_and(|name| name.to_lowercase().contains(&asked))
    }

    /// Notes the captions of the rows from index `first` on, whose prompt is the first of them.
    pub fn captioned(&mut self, first: usize, captions: Vec<String>) {
        if first < self.rows.len() {
            let id = self.captions(captions);
            self.rows.iter_mut().skip(first).for_each(|row| row.captions = id);
        }
    }

    /// Notes the captions of the rows from index `first` on where each picture has its own, if it has several: a pair's are
    /// those that both pictures have.
    pub fn captioned_by_picture(&mut self, first: usize, captions: &HashMap<u32, Vec<String>>) {
        for at in first..self.rows.len() {
            let Row { winner, loser, .. } = self.rows[at];
            let Some(mut shared) = captions.get(&winner).cloned() else { continue };
            if loser != NONE {
                shared.retain(|caption| captions.get(&loser).is_some_and(|of_loser| of_loser.contains(caption)));
            }
            self.rows[at].captions = self.captions(shared);
        }
    }

    /// The index of a list of captions; of one alone there is none.
    fn captions(&mut self, captions: Vec<String>) -> u32 {
        if captions.len() < 2 {
            return NONE;
        }
        if let Some(&id) = self.caption_ids.get(&captions) {
            return id;
        }
        let id = self.captions.len() as u32;
        self.captions.push(captions.iter().map(|caption| caption.as_str().into()).collect());
        self.caption_ids.insert(captions, id);
        id
    }

    fn prompt(&mut self, prompt: &str) -> Result<u32, Fault> {
        if prompt.trim().is_empty() {
            return Err((Reason::NoPrompt, "the prompt is empty".into()));
        }
        if let Some(&id) = self.prompt_ids.get(prompt) {
            return Ok(id);
        }
        let id = self.prompts.len() as u32;
        self.prompts.push(prompt.into());
        self.prompt_ids.insert(prompt.into(), id);
        Ok(id)
    }

    pub fn finish(self, path: &Path, layout: &'static str) -> Pairs {
        let Self { prompts, captions, pictures, rows, sources, shards, mut report, .. } = self;
        report.pairs = rows.len() as u64;
        let cursors = Cursors::default();
        Pairs { path: path.into(), layout, prompts, captions, pictures, rows, sources, shards, cursors, report }
    }
}
