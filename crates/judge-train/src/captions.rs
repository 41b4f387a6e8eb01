//! Captioned pictures: of files, or the emoji.

use std::path::Path;

use image::RgbImage;
use seedpo_data::{Options, Pairs};
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
    fn picture(&self, index: usize) -> Result<RgbImage>;

    /// The picture to train on; of several looks one is drawn by the key. Errors: as [`Captions::picture`].
    fn look(&self, index: usize, _key: NoiseKey) -> Result<RgbImage> {
        self.picture(index)
    }
}

/// A dataset of files (docs/data.md: an imagefolder with `metadata.jsonl`; of pairs the winners); of several
/// captions one is drawn each time.
#[derive(Debug)]
pub struct FileCaptions {
    pairs: Pairs,
}

impl FileCaptions {
    /// Opens it. Errors: as [`Pairs::open`].
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
        let title = self.pairs.pair(index).prompt;
        let several = self.pairs.captions(title);
        several.get(key.below(several.len())).map_or(title, AsRef::as_ref).to_owned()
    }

    fn picture(&self, index: usize) -> Result<RgbImage> {
        let picture = self.pairs.picture(self.pairs.pair(index).winner);
        picture.map_err(|bad| Error::data(self.pairs.path(), bad.to_string()))
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

    fn picture(&self, index: usize) -> Result<RgbImage> {
        Ok(self.pictures[index].clone())
    }

    fn look(&self, index: usize, key: NoiseKey) -> Result<RgbImage> {
        Ok(vary(&self.pictures[index], key))
    }
}
