//! Preference pairs of image files: which of two pictures of a prompt is the better one.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::{Kind, Tensor};

use crate::error::{Error, Result};

/// Two pictures of one prompt, one of them preferred.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePair {
    /// What both are pictures of.
    pub prompt: String,
    /// The preferred picture's file.
    pub winner: PathBuf,
    /// The other's.
    pub loser: PathBuf,
}

/// The spellings of each field, the first one ours.
const PROMPT: &[&str] = &["prompt", "caption"];
const WINNER: &[&str] = &["winner", "win", "chosen"];
const LOSER: &[&str] = &["loser", "lose", "rejected"];

/// Reads a JSONL file of pairs: each line an object with `prompt` (or `caption`), `winner` (`win`, `chosen`) and `loser`
/// (`lose`, `rejected`), pictures as paths relative to the file's folder. Ties are not written: they teach nothing.
///
/// Errors: [`Error::Prompts`] naming the line; a picture that does not exist; no pairs.
pub fn read_image_pairs(path: &Path) -> Result<Vec<ImagePair>> {
    let refuse = |reason: String| Error::Prompts { path: path.into(), reason };
    let text = seedpo_tensor::files::read_text(path)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut pairs = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let at = |reason: String| refuse(format!("line {}: {reason}", i + 1));
        let value: Value = serde_json::from_str(line).map_err(|e| at(e.to_string()))?;
        let field = |names: &[&str]| {
            let found = names.iter().find_map(|name| value.get(name)?.as_str());
            found
                .map(str::to_owned)
                .ok_or_else(|| at(format!("expected a text `{}`, found {value}", names.join("` or `"))))
        };
        let picture = |names: &[&str]| {
            let file = folder.join(field(names)?);
            if file.is_file() { Ok(file) } else { Err(at(format!("`{}`: no such file", file.display()))) }
        };
        pairs.push(ImagePair { prompt: field(PROMPT)?, winner: picture(WINNER)?, loser: picture(LOSER)? });
    }
    if pairs.is_empty() { Err(refuse("expected at least one pair, found none".into())) } else { Ok(pairs) }
}

/// A picture as the autoencoder takes it, f32 `[1, 3, size, size]` in [-1, 1]: the shorter side scaled to `size` with
/// antialiased bilinear filtering, the middle of the longer one kept, as the diffusers training scripts do.
///
/// Errors: [`Error::Input`] naming a file that is no PNG, JPEG or WebP picture.
pub fn read_image(path: &Path, size: i64) -> Result<Tensor> {
    let refuse = |found: String| Error::Input {
        what: path.display().to_string(),
        expected: "a PNG, JPEG or WebP picture".into(),
        found,
    };
    let bytes = std::fs::read(path).map_err(|e| refuse(e.to_string()))?;
    let picture = image::load_from_memory(&bytes).map_err(|e| refuse(e.to_string()))?.to_rgb8();
    let (width, height) = (i64::from(picture.width()), i64::from(picture.height()));
    let pixels = Tensor::from_slice(picture.as_raw()).reshape([1, height, width, 3]).permute([0, 3, 1, 2]);
    let pixels = pixels.to_kind(Kind::Float);
    let shorter = height.min(width).max(1);
    let scaled = |side: i64| (side * size + shorter / 2) / shorter;
    let pixels = if shorter == size {
        pixels
    } else {
        // Rounded to whole levels, as a resized picture has.
        pixels
            .f_internal_upsample_bilinear2d_aa([scaled(height), scaled(width)], false, None, None)?
            .round()
            .clamp(0., 255.)
    };
    let [_, _, height, width] = pixels.size()[..] else { return Err(refuse("no picture".into())) };
    let middle = pixels.narrow(2, (height - size) / 2, size).narrow(3, (width - size) / 2, size);
    Ok((middle / 127.5 - 1.0).contiguous())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_faults_are_named_by_line() {
        let folder = tempfile::tempdir().unwrap();
        for (name, side) in [("a.png", 8), ("b.png", 12)] {
            image::RgbImage::from_pixel(side, 8, image::Rgb([255, 0, 128])).save(folder.path().join(name)).unwrap();
        }
        let file = folder.path().join("pairs.jsonl");
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            read_image_pairs(&file).map_err(|e| e.to_string())
        };
        let good = r#"{"prompt": "x", "winner": "a.png", "loser": "b.png"}"#;
        let pairs = read(&format!("{good}\n\n{}", good.replace("winner", "chosen").replace("loser", "lose"))).unwrap();
        assert_eq!((pairs.len(), &pairs[0]), (2, &pairs[1]));
        assert!(read(&format!("{good}\n{}", good.replace("a.png", "c.png"))).unwrap_err().contains("line 2"));
        assert!(read(r#"{"prompt": "x", "loser": "b.png"}"#).unwrap_err().contains("`winner` or `win`"));
        assert!(read("{").unwrap_err().contains("line 1") && read("").unwrap_err().contains("at least one pair"));
        for pair in [&pairs[0].winner, &pairs[0].loser] {
            let image = read_image(pair, 4).unwrap();
            assert_eq!(image.size(), [1, 3, 4, 4]);
            assert!(
                (image.amax(2, false).amax(2, false) - Tensor::from_slice(&[1.0f32, -1.0, 128.0 / 127.5 - 1.0]))
                    .abs()
                    .max()
                    .double_value(&[])
                    < 1e-6
            );
        }
        assert!(read_image(&file, 4).unwrap_err().to_string().contains("pairs.jsonl"));
    }
}
