//! Picture files, found and read.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use image::RgbImage;
use seedpo_evaluate::png::png_texts;

use crate::prompts;

const SUFFIXES: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// A picture file.
#[derive(Debug)]
pub struct PictureFile {
    /// Its pixels.
    pub picture: RgbImage,
    /// The prompt that a PNG carries, if it does: one of ours, or of another tool that is known.
    pub prompt: Option<String>,
}

/// Reads a picture file. Errors: unreadable, not a PNG, JPEG or WebP, or too large; names the file.
pub fn read(path: &Path) -> Result<PictureFile> {
    let bytes = std::fs::read(path).with_context(|| format!("{}: could not be read", path.display()))?;
    let picture = seedpo_data::picture::decode(&bytes).map_err(|reason| anyhow!("{}: {reason}", path.display()))?;
    let prompt = prompts::in_texts(&png_texts(&bytes));
    Ok(PictureFile { picture, prompt })
}

/// The picture files that a list of files and folders stands for, sorted within each folder.
///
/// Errors: a path that does not exist, a folder without pictures, or an empty list.
pub fn find(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in paths {
        if !path.is_dir() {
            ensure!(path.exists(), "{}: no such file or folder", path.display());
            found.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).with_context(|| format!("{}: could not be listed", path.display()))?;
        let mut inside: Vec<PathBuf> =
            entries.filter_map(|e| e.ok().map(|e| e.path())).filter(|p| is_picture(p)).collect();
        if inside.is_empty() {
            bail!("{}: expected pictures ({}), found none", path.display(), SUFFIXES.join(", "));
        }
        inside.sort();
        found.extend(inside);
    }
    ensure!(!found.is_empty(), "expected at least one picture, found none");
    Ok(found)
}

fn is_picture(path: &Path) -> bool {
    let suffix = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    let grid = path.file_name().is_some_and(|name| name == GRID);
    suffix.is_some_and(|s| SUFFIXES.contains(&s.as_str())) && path.is_file() && !grid
}

/// The name of the overview that `seedpo sample` writes beside its pictures; it is no picture to score.
pub const GRID: &str = "grid.png";

#[cfg(test)]
mod tests {
    use super::*;
    use seedpo_evaluate::png::write_png;
    use seedpo_tensor::{Device, Kind, Tensor};

    #[test]
    fn pictures_are_found_and_read() {
        let folder = tempfile::tempdir().unwrap();
        let picture = Tensor::arange(2 * 3 * 3, (Kind::Uint8, Device::Cpu)).reshape([2, 3, 3]);
        for name in ["b.png", "a.png", GRID] {
            write_png(&folder.path().join(name), &picture, &[("prompt", "café ☕")]).unwrap();
        }
        std::fs::write(folder.path().join("notes.txt"), "no picture").unwrap();
        let found = find(&[folder.path().to_path_buf()]).unwrap();
        assert_eq!(found, [folder.path().join("a.png"), folder.path().join("b.png")]);
        let first = read(&found[0]).unwrap();
        assert_eq!((first.picture.dimensions(), first.prompt.as_deref()), ((3, 2), Some("café ☕")));
        assert_eq!(*first.picture.as_raw(), (0..18).collect::<Vec<u8>>());
        assert!(find(&[folder.path().join("none")]).is_err() && find(&[]).is_err());
    }
}
