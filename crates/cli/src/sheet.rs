//! Preview sheets: a run's pictures of one moment in a single PNG, with all that is needed to take it apart again.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use seedpo_align::Preview;
use seedpo_evaluate::grid::{GridOptions, grid};
use seedpo_evaluate::png::{read_png, write_png};
use seedpo_tensor::Tensor;
use serde::{Deserialize, Serialize};

/// The text chunk that describes a sheet.
const KEYWORD: &str = "seedpo-previews";

/// What a sheet shows and how it is laid out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Layout {
    /// Updates applied.
    pub step: u64,
    /// One row each.
    pub prompts: Vec<String>,
    /// Pictures in a row.
    pub images_per_prompt: usize,
    /// The judge's score of each picture, row by row.
    pub scores: Vec<f64>,
    /// Height and width of one picture in pixels.
    pub size: (usize, usize),
    /// Side of the square that stands for one pixel.
    pub scale: usize,
    /// Pixels between pictures and around them.
    pub margin: usize,
}

/// A sheet, read back.
#[derive(Debug)]
pub struct Sheet {
    /// What it shows.
    pub layout: Layout,
    /// The pictures, `u8` `[H, W, 3]` each, row by row.
    pub pictures: Vec<Tensor>,
}

/// Writes `samples/step-<step>.png` of a run folder; gives the sheet's pixels.
pub fn write(folder: &Path, preview: &Preview) -> Result<Tensor> {
    let (_, height, width, _) = preview.images.size4()?;
    let (height, width) = (height as usize, width as usize);
    let options = GridOptions::for_size(preview.images_per_prompt, height, width);
    let layout = Layout {
        step: preview.step,
        prompts: preview.prompts.to_vec(),
        images_per_prompt: preview.images_per_prompt,
        scores: preview.scores.to_vec(),
        size: (height, width),
        scale: options.scale,
        margin: options.margin,
    };
    let sheet = grid(preview.images, &options)?;
    let samples = folder.join("samples");
    std::fs::create_dir_all(&samples).with_context(|| format!("{}: could not be made", samples.display()))?;
    let path = samples.join(format!("step-{:06}.png", preview.step));
    write_png(&path, &sheet, &[(KEYWORD, &serde_json::to_string(&layout)?)])?;
    Ok(sheet)
}

/// Takes a sheet apart. Errors: no PNG, or not one of ours; names the file.
pub fn read(path: &Path) -> Result<Sheet> {
    let png = read_png(path)?;
    let text = png.texts.iter().find(|(keyword, _)| keyword == KEYWORD).map(|(_, text)| text);
    let text = text.with_context(|| format!("{}: expected a preview sheet of seedpo", path.display()))?;
    let layout: Layout = serde_json::from_str(text).with_context(|| format!("{}: its layout", path.display()))?;
    let count = layout.prompts.len() * layout.images_per_prompt;
    let fits = layout.scores.len() == count && layout.scale > 0;
    let pictures = (0..count).map(|index| cut(&png.image, &layout, index)).collect::<Result<Vec<_>>>();
    let pictures = pictures.with_context(|| format!("{}: its pixels do not fit its layout", path.display()))?;
    ensure!(fits, "{}: its scores do not fit its layout", path.display());
    Ok(Sheet { layout, pictures })
}

/// One picture of a sheet, back at its own size: every `scale`-th pixel.
fn cut(sheet: &Tensor, layout: &Layout, index: usize) -> Result<Tensor> {
    let Layout { images_per_prompt: columns, size: (height, width), scale, margin, .. } = *layout;
    let start = |place: usize, side: usize| (margin + place * (side * scale + margin)) as i64;
    let (top, left) = (start(index / columns, height), start(index % columns, width));
    let part = |tensor: &Tensor, dim: i64, start: i64, side: usize| {
        tensor.f_narrow(dim, start, (side * scale) as i64)?.f_slice(dim, None, None, scale as i64)
    };
    Ok(part(&part(sheet, 0, top, height)?, 1, left, width)?.contiguous())
}

/// The sheets of a run folder, first and last in time; the same one twice where there is only one.
pub fn first_and_last(folder: &Path) -> Result<Option<(PathBuf, PathBuf)>> {
    let samples = folder.join("samples");
    let Ok(entries) = std::fs::read_dir(&samples) else { return Ok(None) };
    let is_sheet = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.starts_with("step-") && name.ends_with(".png")
    };
    let mut sheets: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).filter(is_sheet).collect();
    sheets.sort();
    Ok(sheets.first().cloned().zip(sheets.last().cloned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use seedpo_tensor::{Device, Kind};

    #[test]
    fn a_sheet_comes_apart_into_the_same_pictures() {
        let folder = tempfile::tempdir().unwrap();
        let images = Tensor::arange(6 * 5 * 4 * 3, (Kind::Int64, Device::Cpu)).remainder(251).to_kind(Kind::Uint8);
        let images = images.reshape([6, 5, 4, 3]);
        let prompts = ["a café ☕".to_owned(), "b".to_owned()];
        let scores = [0.5, 1.0, 2.0, 3.0, 4.0, 5.25];
        for step in [20, 0] {
            let preview = Preview {
                step,
                prompts: &prompts,
                images_per_prompt: 3,
                images: &images,
                latents: &images,
                scores: &scores,
                folder: folder.path(),
            };
            assert_eq!(write(folder.path(), &preview).unwrap().size()[2], 3);
        }
        let (first, last) = first_and_last(folder.path()).unwrap().unwrap();
        let sheet = read(&last).unwrap();
        assert_eq!((sheet.layout.step, sheet.layout.scores), (20, scores.to_vec()));
        assert_eq!(sheet.layout.prompts, prompts);
        for (index, picture) in sheet.pictures.iter().enumerate() {
            assert_eq!(*picture, images.get(index as i64), "picture {index}");
        }
        assert_eq!(read(&first).unwrap().layout.step, 0);
        write_png(&first, &images.get(0), &[]).unwrap();
        assert!(read(&first).unwrap_err().to_string().contains("preview sheet"));
    }
}
