//! Grids of images as PNG.

use std::path::Path;

use seedpo_tensor::write_atomic;
use tch::{Kind, Tensor};

use crate::{Error, Result};

/// Writes images f32 `[N, 3, H, W]` in [-1, 1] (clamped) as one PNG, `columns` to a row, two white pixels between.
///
/// Errors: the file cannot be written.
pub fn write_grid(path: &Path, images: &Tensor, columns: usize) -> Result<()> {
    let (count, _, height, width) = images.size4()?;
    let columns = (columns.max(1) as i64).min(count.max(1));
    let rows = (count + columns - 1) / columns;
    const GAP: i64 = 2;
    let canvas = [rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3];
    let grid = Tensor::ones(canvas, (Kind::Float, images.device())) * 255.0;
    let bytes = ((images.clamp(-1.0, 1.0) + 1.0) * 127.5).round().permute([0, 2, 3, 1]);
    for i in 0..count {
        let (top, left) = (GAP + i / columns * (height + GAP), GAP + i % columns * (width + GAP));
        grid.narrow(0, top, height).narrow(1, left, width).copy_(&bytes.get(i));
    }
    let pixels = Vec::<u8>::try_from(grid.to_kind(Kind::Uint8).reshape([-1]))?;
    let image = image::RgbImage::from_raw(canvas[1] as u32, canvas[0] as u32, pixels)
        .ok_or_else(|| Error::data(path, "the grid's pixels do not fill it"))?;
    let mut png = std::io::Cursor::new(Vec::new());
    image
        .write_to(&mut png, image::ImageFormat::Png)
        .map_err(|e| Error::data(path, format!("cannot encode the grid: {e}")))?;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|e| seedpo_tensor::Error::io(parent, e))?;
    }
    Ok(write_atomic(path, png.get_ref())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_holds_its_images() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/grid.png");
        let images = Tensor::cat(
            &[
                Tensor::ones([1, 3, 4, 4], (Kind::Float, tch::Device::Cpu)) * -2.0,
                Tensor::zeros([2, 3, 4, 4], (Kind::Float, tch::Device::Cpu)),
            ],
            0,
        );
        write_grid(&path, &images, 2).unwrap();
        let grid = image::open(&path).unwrap().to_rgb8();
        assert_eq!(grid.dimensions(), (14, 14));
        assert_eq!(
            (grid.get_pixel(2, 2).0, grid.get_pixel(8, 2).0, grid.get_pixel(2, 8).0),
            ([0; 3], [128; 3], [128; 3])
        );
        assert_eq!((grid.get_pixel(0, 0).0, grid.get_pixel(9, 9).0), ([255; 3], [255; 3]));
    }
}
