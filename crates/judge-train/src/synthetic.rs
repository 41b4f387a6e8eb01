//! Preference pairs whose rule is known: emoji at several sizes and saturations, and now and then another emoji.
//!
//! The rule: a picture of the prompt is preferred to one of something else; else that with the higher [`chroma`], the
//! larger and more saturated subject. Chromas within [`TIE`] of each other are ties.

use std::fs;
use std::path::Path;

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};
use seedpo_judge::chroma;
use seedpo_tensor::files::TemporaryFolder;
use seedpo_tensor::{Error as TensorError, NoiseKey, write_atomic};
use serde_json::json;

use crate::captions::{Captions, EmojiCaptions};
use crate::split::part_of;
use crate::{Error, Result};

/// Pictures of each emoji.
const VARIANTS: usize = 6;
/// Pairs of each emoji with another one.
const MISMATCHES: usize = 2;
/// Pairs of pictures of another emoji, neither of which shows the prompt: without them chroma is learned as how well a
/// known emoji can be made out, which tells nothing about unknown ones.
const NEITHER: usize = 4;
/// The relative difference of chroma below which nobody wins.
const TIE: f64 = 0.1;
/// The range of an emoji's side as a share of the page.
const SCALES: [f64; 2] = [0.35, 1.0];
/// Another emoji is taken from the same of so many parts, so that training on parts stays apart.
const PARTS: u64 = 2;

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Pairs, ties included.
    pub pairs: usize,
    /// Ties.
    pub ties: usize,
}

/// Writes `pairs.jsonl` and `images/` into a folder that is not there yet and appears when it is whole.
///
/// Errors: [`Error::Data`] where the folder exists; files that cannot be written.
pub fn write_pairs(folder: &Path, emoji: &EmojiCaptions, seed: u64) -> Result<Written> {
    if folder.exists() {
        return Err(Error::data(folder, "expected a folder that is not there yet, found one; it is not overwritten"));
    }
    let temporary = TemporaryFolder::beside(folder)?;
    let images = temporary.path().join("images");
    fs::create_dir_all(&images).map_err(|e| TensorError::io(&images, e))?;
    let mut chromas = Vec::with_capacity(emoji.len());
    for index in 0..emoji.len() {
        let picture = emoji.picture(index).map_err(|bad| Error::data(folder, bad.to_string()))?;
        let one = |variant: usize| -> Result<f64> {
            let key = NoiseKey::new(seed, "synthetic look").prompt(index as u64).candidate(variant as u64);
            let varied = vary(&picture, key);
            let path = images.join(name(index, variant));
            varied.save(&path).map_err(|e| Error::data(&path, e.to_string()))?;
            Ok(chroma(varied.as_raw()))
        };
        chromas.push((0..VARIANTS).map(one).collect::<Result<Vec<f64>>>()?);
    }
    let mut list = List { emoji, chromas: &chromas, lines: String::new(), written: Written::default() };
    let parts: Vec<u64> = (0..emoji.len()).map(|index| part_of(&emoji.title(index), PARTS)).collect();
    for index in 0..emoji.len() {
        for variant in 0..VARIANTS {
            list.add(index, (index, variant), (index, (variant + 1) % VARIANTS));
        }
        for extra in 0..MISMATCHES + NEITHER {
            let key = NoiseKey::new(seed, "synthetic other").prompt(index as u64).candidate(extra as u64);
            let start = key.below(emoji.len());
            let mut others = (0..emoji.len()).map(|step| (start + step) % emoji.len());
            let Some(other) = others.find(|&o| o != index && parts[o] == parts[index]) else { continue };
            let variant = key.step(1).below(VARIANTS);
            let second = if extra < MISMATCHES { (index, extra) } else { (other, (variant + 1) % VARIANTS) };
            list.add(index, (other, variant), second);
        }
    }
    write_atomic(&temporary.path().join("pairs.jsonl"), list.lines.as_bytes())?;
    let written = list.written;
    temporary.finish()?;
    Ok(written)
}

/// The list under way.
struct List<'a> {
    emoji: &'a EmojiCaptions,
    chromas: &'a [Vec<f64>],
    lines: String,
    written: Written,
}

impl List<'_> {
    /// Adds a pair of pictures, each an emoji and its variant, for the prompt of emoji `prompt`.
    fn add(&mut self, prompt: usize, first: (usize, usize), second: (usize, usize)) {
        let chroma = |(index, variant): (usize, usize)| self.chromas[index][variant];
        let label = match (first.0 == prompt, second.0 == prompt) {
            (true, false) => 1.0,
            (false, true) => 0.0,
            _ => label(chroma(first), chroma(second)),
        };
        let prompt = self.emoji.title(prompt);
        let [first, second] = [first, second].map(|(index, variant)| file(index, variant));
        let line = json!({"prompt": prompt, "image_0": first, "image_1": second, "label_0": label});
        self.lines.push_str(&format!("{line}\n"));
        self.written.pairs += 1;
        self.written.ties += usize::from(label == 0.5);
    }
}

fn name(index: usize, variant: usize) -> String {
    format!("{index:04}-{variant}.png")
}

fn file(index: usize, variant: usize) -> String {
    format!("images/{}", name(index, variant))
}

/// 1 where the first chroma is higher, 0 the second, ½ where neither is by [`TIE`] of the higher.
fn label(first: f64, second: f64) -> f64 {
    if (first - second).abs() <= TIE * first.max(second) { 0.5 } else { f64::from(u8::from(first > second)) }
}

/// The picture smaller, paler and anywhere on a white page of its own size.
pub(crate) fn vary(picture: &RgbImage, key: NoiseKey) -> RgbImage {
    let draw = |step: u64, from: f64, to: f64| from + (to - from) * key.step(step).uniform();
    let (width, height) = picture.dimensions();
    let (scale, saturation) = (draw(1, SCALES[0], SCALES[1]), draw(2, 0.0, 1.0));
    let side = |whole: u32| ((f64::from(whole) * scale).round() as u32).clamp(1, whole);
    let (wide, high) = (side(width), side(height));
    let mut small = imageops::resize(picture, wide, high, FilterType::CatmullRom);
    for pixel in small.pixels_mut() {
        let [r, g, b] = pixel.0.map(f64::from);
        let grey = 0.299 * r + 0.587 * g + 0.114 * b;
        pixel.0 = [r, g, b].map(|value| (grey + (value - grey) * saturation).round().clamp(0.0, 255.0) as u8);
    }
    let mut page = RgbImage::from_pixel(width, height, Rgb([255; 3]));
    let place = |step: u64, free: u32| (key.step(step).uniform() * f64::from(free + 1)) as i64;
    imageops::replace(&mut page, &small, place(3, width - wide), place(4, height - high));
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use seedpo_data::{Options, Pairs};

    #[test]
    fn pairs_follow_the_rule() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pretrain/tests/fixtures/emoji");
        let emoji = EmojiCaptions::read(&data).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("pairs");
        let written = write_pairs(&folder, &emoji, 3).unwrap();
        let options = Options { ties: true, ..Options::default() };
        let pairs = Pairs::open(&folder.join("pairs.jsonl"), &options).unwrap();
        assert_eq!((pairs.len(), pairs.report().ties as usize), (written.pairs, written.ties));
        assert!(written.pairs >= 6 * VARIANTS && written.ties < written.pairs / 2);
        let owner = |id| pairs.file(id).unwrap().file_name().unwrap().to_string_lossy()[..4].parse::<usize>().unwrap();
        let mut mismatches = 0;
        for index in 0..pairs.len() {
            let pair = pairs.pair(index);
            let (winner, loser) = (pair.winner, pair.loser.unwrap());
            let [high, low] = [winner, loser].map(|id| chroma(pairs.picture(id).unwrap().as_raw()));
            if owner(loser) != owner(winner) {
                mismatches += 1;
                assert_eq!(emoji.title(owner(winner)), pair.prompt);
            } else if pair.tie {
                assert!((high - low).abs() <= TIE * high.max(low));
            } else {
                assert!(high > low * (1.0 + TIE / 2.0), "{high} {low}");
            }
        }
        assert!(mismatches > 0);
        let again = write_pairs(&folder, &emoji, 3).unwrap_err().to_string();
        assert!(again.contains("not there yet"), "{again}");
    }
}
