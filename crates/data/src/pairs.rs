//! The pairs of a dataset: an index in memory, pictures where they lie.

use std::path::{Path, PathBuf};

use image::RgbImage;

use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::report::{BadRow, Reason, Report};
use crate::table::{Cursors, Place, Shard};
use crate::{open, picture};

/// Which rows to take.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Only pairs whose both pictures come from a generator whose name contains this, whatever the case; empty = all.
    pub generator: String,
    /// Only the winners, as supervised fine-tuning takes them: a loser may be absent, and a ranking gives its best.
    pub winners_only: bool,
    /// Whether pairs that nobody won are kept, as [`Pair::tie`]; else they are counted and dropped.
    pub ties: bool,
    /// The largest share of bad rows that is passed over, in [0, 1].
    pub bad_rows_limit: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self { generator: String::new(), winners_only: false, ties: false, bad_rows_limit: 0.01 }
    }
}

/// A picture of a dataset, an index below [`Pairs::pictures`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PictureId(pub(crate) u32);

/// One pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair<'a> {
    /// What the pictures are of.
    pub prompt: &'a str,
    /// All their captions, the prompt first, where the row gives several (of rows of a picture each: those that both have);
    /// else none.
    pub captions: &'a [Box<str>],
    /// The preferred picture.
    pub winner: PictureId,
    /// The other one; absent where only winners were asked for.
    pub loser: Option<PictureId>,
    /// Nobody won: "winner" and "loser" are the pictures in the order of the file. Only where [`Options::ties`] keeps them.
    pub tie: bool,
}

/// Where a picture's bytes are.
#[derive(Debug, Clone)]
pub(crate) enum Picture {
    File(Box<Path>),
    /// A cell of a parquet file.
    Cell(Place),
}

/// For a loser or captions: there are none.
pub(crate) const NONE: u32 = u32::MAX;

/// A pair by the indices of its parts; [`NONE`] = no loser, no captions beside the prompt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub prompt: u32,
    pub captions: u32,
    pub winner: u32,
    pub loser: u32,
    pub source: u32,
    pub number: u32,
    pub tie: bool,
    /// Pairs of this prompt as the file counts them, 0 where it does not.
    pub examples: u32,
}

/// The pairs of a dataset, by index in file order. Shared between threads; every picture is read anew.
#[derive(Debug)]
pub struct Pairs {
    pub(crate) path: PathBuf,
    pub(crate) layout: &'static str,
    pub(crate) prompts: Vec<Box<str>>,
    /// The lists of captions of rows that have several.
    pub(crate) captions: Vec<Vec<Box<str>>>,
    pub(crate) pictures: Vec<Picture>,
    pub(crate) rows: Vec<Row>,
    /// Names of the files that rows come from, and what a row is called there (`line`, `row`).
    pub(crate) sources: Vec<(String, &'static str)>,
    pub(crate) shards: Vec<Shard>,
    pub(crate) cursors: Cursors,
    pub(crate) report: Report,
}

impl Pairs {
    /// Opens a file or folder of pairs, in any layout of docs/data.md; which one is told from the content.
    ///
    /// Errors: no such file; a layout that is none of these (what was looked for and found); no pairs at all; more bad
    /// rows than `options` allow, with the list.
    pub fn open(path: &Path, options: &Options) -> Result<Self> {
        let mut builder = Builder::new(options);
        let layout = open::read(path, &mut builder)?;
        let pairs = builder.finish(path, layout);
        if pairs.report.exceeds(options.bad_rows_limit) {
            return Err(Error::too_many_bad(path, &pairs.report, options.bad_rows_limit));
        }
        if pairs.is_empty() {
            let Report { rows, ties, other_generators, .. } = pairs.report;
            let bad = pairs.report.bad_rows();
            let found =
                format!("{rows} rows of {layout}: {ties} ties, {other_generators} of other generators, {bad} bad");
            return Err(Error::format(path, format!("expected at least one pair, found {found}")));
        }
        Ok(pairs)
    }

    /// The number of pairs.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The pair at `index`, which is below [`Pairs::len`].
    pub fn pair(&self, index: usize) -> Pair<'_> {
        let row = self.rows[index];
        let loser = (row.loser != NONE).then_some(PictureId(row.loser));
        let prompt = &self.prompts[row.prompt as usize];
        let captions = self.captions.get(row.captions as usize).map_or(&[][..], Vec::as_slice);
        Pair { prompt, captions, winner: PictureId(row.winner), loser, tie: row.tie }
    }

    /// The index of a pair's prompt among [`Pairs::prompts`].
    pub fn prompt_index(&self, index: usize) -> usize {
        self.rows[index].prompt as usize
    }

    /// The file and line or row that a pair comes from.
    pub fn place(&self, index: usize) -> String {
        let row = self.rows[index];
        let (name, unit) = &self.sources[row.source as usize];
        format!("{name} {unit} {}", row.number)
    }

    /// The different prompts, in order of first appearance.
    pub fn prompts(&self) -> impl ExactSizeIterator<Item = &str> {
        self.prompts.iter().map(AsRef::as_ref)
    }

    /// The factor of each pair, by index, in the loss where every prompt is to count the same: N/(P·n) for a prompt with n
    /// of the N pairs of P prompts. Their mean is 1.
    pub fn prompt_weights(&self) -> Vec<f32> {
        let counts = self.prompt_counts();
        let used = counts.iter().filter(|&&n| n > 0).count();
        let share = self.rows.len() as f64 / used.max(1) as f64;
        self.rows.iter().map(|row| (share / f64::from(counts[row.prompt as usize])) as f32).collect()
    }

    /// How many pairs each pair's prompt has: as the file says (Pick-a-Pic's `num_example_per_prompt`), else as counted.
    pub fn examples_per_prompt(&self) -> Vec<u32> {
        let counts = self.prompt_counts();
        let of = |row: &Row| if row.examples > 0 { row.examples } else { counts[row.prompt as usize] };
        self.rows.iter().map(of).collect()
    }

    fn prompt_counts(&self) -> Vec<u32> {
        let mut counts = vec![0u32; self.prompts.len()];
        self.rows.iter().for_each(|row| counts[row.prompt as usize] += 1);
        counts
    }

    /// What became of the rows.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// What the dataset was taken for, e.g. `Pick-a-Pic parquet`.
    pub fn layout(&self) -> &'static str {
        self.layout
    }

    /// The file or folder it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of pictures that pairs refer to.
    pub fn pictures(&self) -> usize {
        self.pictures.len()
    }

    /// The file a picture is, where it is one of its own.
    pub fn file(&self, id: PictureId) -> Option<&Path> {
        match &self.pictures[id.0 as usize] {
            Picture::File(path) => Some(path),
            Picture::Cell(_) => None,
        }
    }

    /// A picture's bytes as they are stored. Errors: reason and detail of a file or cell that is not there; `place` is
    /// the picture's own.
    pub fn bytes(&self, id: PictureId) -> Result<Vec<u8>, BadRow> {
        let bad = |place: String, detail: String| BadRow { place, reason: Reason::MissingPicture, detail };
        match &self.pictures[id.0 as usize] {
            Picture::File(path) => std::fs::read(path).map_err(|e| bad(path.display().to_string(), e.to_string())),
            Picture::Cell(place) => {
                let cell = picture::guarded(|| self.cursors.read(&self.shards, *place));
                cell.map_err(|e| bad(self.picture_place(id), e))
            }
        }
    }

    /// A picture, decoded. Errors: as [`Pairs::bytes`], or undecodable.
    pub fn picture(&self, id: PictureId) -> Result<RgbImage, BadRow> {
        picture::decode(&self.bytes(id)?).map_err(|detail| self.undecodable(id, detail))
    }

    /// A picture at `size` x `size`, see [`picture::fit`]. Errors: as [`Pairs::picture`], and a thread of pixels.
    pub fn fitted(&self, id: PictureId, size: u32) -> Result<RgbImage, BadRow> {
        picture::fit(&self.picture(id)?, size).map_err(|detail| self.undecodable(id, detail))
    }

    /// Counts pair `index` in `report` as one whose pictures turned out to be bad. Errors: more than the share `limit` of
    /// the rows is bad now, with the list.
    pub fn pass_over(&self, index: usize, bad: BadRow, report: &mut Report, limit: f64) -> Result<()> {
        report.add_bad(bad.of_row(self.place(index)));
        if report.exceeds(limit) {
            return Err(Error::too_many_bad(&self.path, report, limit));
        }
        Ok(())
    }

    fn undecodable(&self, id: PictureId, detail: String) -> BadRow {
        BadRow { place: self.picture_place(id), reason: Reason::Undecodable, detail }
    }

    fn picture_place(&self, id: PictureId) -> String {
        match &self.pictures[id.0 as usize] {
            Picture::File(path) => path.display().to_string(),
            Picture::Cell(Place { shard, row, side }) => {
                format!("{} row {row} picture {side}", self.shards[*shard as usize].name())
            }
        }
    }
}
