//! Captioned pictures: of files, or the emoji.

use std::path::Path;

use image::RgbImage;
use seedpo_data::{BadRow, Options, Pairs};
use seedpo_pretrain::Dataset;
use seedpo_pretrain::captions::CaptionMix;
use seedpo_pretrain::dataset::Emoji;
use seedpo_tensor::NoiseKey;
use tch::Tensor;

use crate::synthetic::vary;
use crate::{Error, Result};

/// Pictures with captions, by index.
pub trait Captions: Send + Sync {
    /// How many.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is held out together, e.g. all captions of one picture.
    fn group(&self, index: usize) -> String;

    /// The caption that held-out pictures are judged by.
    fn title(&self, index: usize) -> String;

    /// A caption to train on; one of several is drawn by the key.
    fn caption(&self, index: usize, key: NoiseKey) -> String;

    /// The picture. Errors: it cannot be read or decoded.
    fn picture(&self, index: usize) -> Result<RgbImage, BadRow>;

    /// The picture to train on; of several looks one is drawn by the key. Errors: as [`Captions::picture`].
    fn look(&self, index: usize, _key: NoiseKey) -> Result<RgbImage, BadRow> {
        self.picture(index)
    }

    /// The dataset, by whose indices pictures are counted, where they are read from one and may be unreadable.
    fn pairs(&self) -> Option<&Pairs> {
        None
    }
}

/// A dataset of files (docs/data.md: an imagefolder with `metadata.jsonl`; of pairs the winners); of several
/// captions one is drawn each time.
#[derive(Debug)]
pub struct FileCaptions {
    pairs: Pairs,
}

impl FileCaptions {
    /// Opens it; at most the share `bad_rows_limit` of its rows, in [0, 1], may be bad. Errors: as [`Pairs::open`].
    pub fn open(path: &Path, bad_rows_limit: f64) -> Result<Self> {
        let options = Options { winners_only: true, bad_rows_limit, ..Options::default() };
        Ok(Self { pairs: Pairs::open(path, &options)? })
    }
}

impl Captions for FileCaptions {
    fn len(&self) -> usize {
        self.pairs.len()
    }

    fn group(&self, index: usize) -> String {
        let file = self.pairs.file(self.pairs.pair(index).winner).and_then(Path::file_name);
        file.map_or_else(|| self.pairs.place(index), |name| name.to_string_lossy().into_owned())
    }

    fn title(&self, index: usize) -> String {
        self.pairs.pair(index).prompt.to_owned()
    }

    fn caption(&self, index: usize, key: NoiseKey) -> String {
        let pair = self.pairs.pair(index);
        match pair.captions {
            [] => pair.prompt.to_owned(),
            several => several[key.below(several.len())].to_string(),
        }
    }

    fn picture(&self, index: usize) -> Result<RgbImage, BadRow> {
        self.pairs.picture(self.pairs.pair(index).winner)
    }

    fn pairs(&self) -> Option<&Pairs> {
        Some(&self.pairs)
    }
}

/// The emoji (`make emoji`): a name, now and then a short name, a keyword or a group of each; trained on at every size,
/// saturation and place.
#[derive(Debug)]
pub struct EmojiCaptions {
    emoji: Vec<Emoji>,
    pictures: Vec<RgbImage>,
}

const MIX: CaptionMix = CaptionMix { empty: 0.0, short: 0.25, keyword: 0.10, group: 0.05 };
/// Height and width of an emoji in pixels.
const EMOJI_SIZE: i64 = 64;

impl EmojiCaptions {
    /// Reads the data folder. Errors: as [`Dataset::read`].
    pub fn read(folder: &Path) -> Result<Self> {
        let data = Dataset::read(folder, EMOJI_SIZE)?;
        let side = EMOJI_SIZE as u32;
        let one = |index: usize| {
            let bytes: Tensor = data.images.get(index as i64).permute([1, 2, 0]).contiguous().view([-1]);
            let bytes = Vec::<u8>::try_from(&bytes)?;
            RgbImage::from_raw(side, side, bytes).ok_or_else(|| Error::data(folder, "a picture of another size"))
        };
        let pictures = (0..data.len()).map(one).collect::<Result<_>>()?;
        Ok(Self { emoji: data.emoji, pictures })
    }
}

impl Captions for EmojiCaptions {
    fn len(&self) -> usize {
        self.emoji.len()
    }

    fn group(&self, index: usize) -> String {
        self.title(index)
    }

    fn title(&self, index: usize) -> String {
        self.emoji[index].name.clone()
    }

    fn caption(&self, index: usize, key: NoiseKey) -> String {
        MIX.draw(&self.emoji[index], key)
    }

    fn picture(&self, index: usize) -> Result<RgbImage, BadRow> {
        Ok(self.pictures[index].clone())
    }

    fn look(&self, index: usize, key: NoiseKey) -> Result<RgbImage, BadRow> {
        Ok(vary(&self.pictures[index], key))
    }
}
