//! The emoji as training data: images on white, and the words that go with each.
//!
//! The folder is an unpacked `emoji-datasource-google` (npm): `emoji.json` and `img/google/64/*.png`; keywords come
//! from `keywords.json` (npm `emojilib`) where it is there. `scripts/fetch_emoji.py` makes it.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use tch::Tensor;

use crate::captions::{Words, clean};
use crate::{Error, Result};

/// One line of `emoji.json`, of which only these keys are read.
#[derive(Debug, Deserialize)]
struct Entry {
    name: Option<String>,
    unified: String,
    image: String,
    short_names: Vec<String>,
    category: String,
    subcategory: String,
    #[serde(default = "yes")]
    has_img_google: bool,
}

fn yes() -> bool {
    true
}

/// One emoji: what it is called and where it belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emoji {
    /// The name in plain words, lower case: `red apple`.
    pub name: String,
    /// The group the dataset puts it in: `food-fruit`.
    pub subcategory: String,
    /// The image's file name.
    pub file: String,
    /// Everything it may be called, by kind.
    pub words: Words,
}

/// All emoji of a folder that have an image, in the order of `emoji.json`.
#[derive(Debug)]
pub struct Dataset {
    /// What each is.
    pub emoji: Vec<Emoji>,
    /// u8 `[N, 3, S, S]`, composited on white.
    pub images: Tensor,
}

impl Dataset {
    /// Reads a folder; every image must have `size` × `size` pixels.
    ///
    /// Errors: [`Error::Data`] naming the file, what was expected and what was found.
    pub fn read(folder: &Path, size: i64) -> Result<Self> {
        let path = folder.join("emoji.json");
        if !path.is_file() {
            let reason = "no emoji.json in this folder; `make emoji` fetches the data into .emoji/";
            return Err(Error::data(folder, reason));
        }
        let text = seedpo_tensor::read_text(&path)?;
        let entries: Vec<Entry> = serde_json::from_str(&text)
            .map_err(|e| Error::data(&path, format!("not the list of emoji expected: {e}")))?;
        let keywords = read_keywords(&folder.join("keywords.json"))?;
        let (mut emoji, mut pixels) = (Vec::new(), Vec::new());
        for entry in entries.into_iter().filter(|e| e.has_img_google) {
            pixels.extend(read_image(&folder.join("img/google/64").join(&entry.image), size)?);
            emoji.push(describe(entry, &keywords));
        }
        if emoji.is_empty() {
            return Err(Error::data(&path, "expected at least one emoji with has_img_google, found none"));
        }
        let images =
            Tensor::f_from_slice(&pixels)?.f_reshape([-1, size, size, 3])?.f_permute([0, 3, 1, 2])?.contiguous();
        Ok(Self { emoji, images })
    }

    /// How many emoji there are.
    pub fn len(&self) -> usize {
        self.emoji.len()
    }

    /// Whether there is none (never after [`Dataset::read`]).
    pub fn is_empty(&self) -> bool {
        self.emoji.is_empty()
    }

    /// The images of these indices as f32 `[B, 3, S, S]` in [-1, 1].
    pub fn batch(&self, indices: &[i64]) -> Tensor {
        self.images.index_select(0, &Tensor::from_slice(indices)).to_kind(tch::Kind::Float) / 127.5 - 1.0
    }
}

fn describe(entry: Entry, keywords: &HashMap<String, Vec<String>>) -> Emoji {
    let short: Vec<String> = entry.short_names.iter().map(|s| clean(s)).filter(|s| !s.is_empty()).collect();
    let name = entry.name.as_deref().map(clean).filter(|n| !n.is_empty());
    let name = name.or_else(|| short.first().cloned()).unwrap_or_else(|| entry.unified.to_lowercase());
    let found = keywords.get(&character(&entry.unified)).map(Vec::as_slice).unwrap_or_default();
    let words = Words {
        short,
        // A single letter is what remains of a smiley such as `:D`.
        keywords: found.iter().map(|k| clean(k)).filter(|k| k.chars().count() > 1).collect(),
        groups: groups(&entry.subcategory, &entry.category),
    };
    Emoji { name, subcategory: entry.subcategory, file: entry.image, words }
}

/// `animal-mammal` in `Animals & Nature` gives `animal`, `mammal` and `animals and nature`.
fn groups(subcategory: &str, category: &str) -> Vec<String> {
    let parts = subcategory.split('-').map(clean).chain([clean(category)]);
    parts.filter(|part| part.chars().any(char::is_alphabetic)).collect()
}

/// The characters that `1F600-FE0F` stands for, without the variation selector.
fn character(unified: &str) -> String {
    let code = |hex: &str| u32::from_str_radix(hex, 16).ok().and_then(char::from_u32);
    unified.split('-').filter_map(code).filter(|&c| c != '\u{fe0f}').collect()
}

/// `keywords.json`: an object of emoji to lists of words; absent is empty.
fn read_keywords(path: &Path) -> Result<HashMap<String, Vec<String>>> {
    if !path.is_file() {
        return Ok(HashMap::new());
    }
    let text = seedpo_tensor::read_text(path)?;
    let words: HashMap<String, Vec<String>> = serde_json::from_str(&text)
        .map_err(|e| Error::data(path, format!("not an object of emoji to lists of keywords: {e}")))?;
    Ok(words.into_iter().map(|(k, v)| (k.replace('\u{fe0f}', ""), v)).collect())
}

/// The pixels of a PNG on white, RGB row by row.
fn read_image(path: &Path, size: i64) -> Result<Vec<u8>> {
    let image = image::open(path).map_err(|e| Error::data(path, format!("cannot read this image: {e}")))?.to_rgba8();
    if i64::from(image.width()) != size || i64::from(image.height()) != size {
        let reason = format!("expected {size} x {size} pixels, found {} x {}", image.width(), image.height());
        return Err(Error::data(path, reason));
    }
    let over_white = |p: &image::Rgba<u8>| {
        let [r, g, b, a] = p.0;
        let blend = |c: u8| ((u32::from(c) * u32::from(a) + 255 * (255 - u32::from(a)) + 127) / 255) as u8;
        [blend(r), blend(g), blend(b)]
    };
    Ok(image.pixels().flat_map(over_white).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixtures() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/emoji")
    }

    #[test]
    fn a_folder_gives_images_on_white_and_their_words() {
        let data = Dataset::read(&fixtures(), 64).unwrap();
        assert_eq!(data.len(), 6);
        assert_eq!(data.images.size(), [6, 3, 64, 64]);
        let apple = data.emoji.iter().position(|e| e.name == "red apple").unwrap();
        let Emoji { words, subcategory, .. } = &data.emoji[apple];
        assert_eq!(subcategory, "food-fruit");
        assert_eq!(words.short, ["apple"]);
        assert_eq!(words.groups, ["food", "fruit", "food and drink"]);
        assert!(words.keywords.contains(&"fruit".to_owned()), "{:?}", words.keywords);
        let image = data.batch(&[apple as i64]);
        assert_eq!(image.double_value(&[0, 0, 0, 0]), 1.0, "the transparent corner is white");
        let (red, green) = (image.double_value(&[0, 0, 40, 24]), image.double_value(&[0, 1, 40, 24]));
        assert!(red > 0.5 && green < 0.0, "the apple is red: {red} {green}");
    }

    #[test]
    fn bad_folders_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = Dataset::read(folder.path(), 64).unwrap_err().to_string();
        assert!(error.contains("make emoji"), "{error}");
        std::fs::write(folder.path().join("emoji.json"), "{}").unwrap();
        let error = Dataset::read(folder.path(), 64).unwrap_err().to_string();
        assert!(error.contains("emoji.json") && error.contains("list of emoji"), "{error}");
        let error = Dataset::read(&fixtures(), 32).unwrap_err().to_string();
        assert!(error.contains("expected 32 x 32 pixels, found 64 x 64"), "{error}");
    }
}
