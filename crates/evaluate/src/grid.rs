//! Many images as one, for previews.

use crate::{Error, Result};
use tch::{Device, Kind, Tensor};

/// How [`grid`] lays images out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GridOptions {
    /// Images per row; at least 1.
    pub columns: usize,
    /// Every pixel becomes a square of this many; at least 1. See [`GridOptions::for_size`].
    pub scale: usize,
    /// White pixels between images and around them, after scaling.
    pub margin: usize,
}

impl GridOptions {
    /// Options that make images of `height` × `width` pixels at least 128 pixels on their shorter side, with a margin
    /// of 8.
    pub fn for_size(columns: usize, height: usize, width: usize) -> Self {
        Self { columns, scale: 128usize.div_ceil(height.min(width).max(1)), margin: 8 }
    }
}

/// Lays N images u8 `[N, H, W, 3]` out row by row on white: u8 `[H', W', 3]`. With `columns` images per prompt and
/// prompts in order, each row shows one prompt.
///
/// Errors: [`Error::Shape`] for another shape, no images, or zero columns or scale.
pub fn grid(images: &Tensor, options: &GridOptions) -> Result<Tensor> {
    let wrong =
        |expected: &str, found: String| Error::Shape { what: "image grid", expected: expected.to_owned(), found };
    let [count, height, width, 3] = images.size()[..] else {
        return Err(wrong("u8 [N, H, W, 3]", format!("{:?} {:?}", images.kind(), images.size())));
    };
    if images.kind() != Kind::Uint8 || count < 1 || height < 1 || width < 1 {
        return Err(wrong("u8 [N, H, W, 3] with N, H, W >= 1", format!("{:?} {:?}", images.kind(), images.size())));
    }
    if options.columns == 0 || options.scale == 0 {
        return Err(wrong("columns and scale of at least 1", format!("{options:?}")));
    }
    let (scale, margin) = (options.scale as i64, options.margin as i64);
    let columns = (options.columns as i64).min(count);
    let rows = (count + columns - 1) / columns;
    let large = images
        .f_to_device(Device::Cpu)?
        .f_repeat_interleave_self_int(scale, 1, None)?
        .f_repeat_interleave_self_int(scale, 2, None)?;
    let (step_y, step_x) = (height * scale + margin, width * scale + margin);
    let sheet =
        Tensor::f_full([rows * step_y + margin, columns * step_x + margin, 3], 255, (Kind::Uint8, Device::Cpu))?;
    for index in 0..count {
        let (y, x) = (margin + index / columns * step_y, margin + index % columns * step_x);
        sheet.f_narrow(0, y, height * scale)?.f_narrow(1, x, width * scale)?.f_copy_(&large.f_get(index)?)?;
    }
    Ok(sheet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_land_in_their_cells_on_white() {
        let images = Tensor::arange(3, (Kind::Uint8, Device::Cpu)).view([3, 1, 1, 1]).repeat([1, 2, 4, 3]);
        let sheet = grid(&images, &GridOptions { columns: 2, scale: 3, margin: 5 }).unwrap();
        assert_eq!(sheet.size(), [2 * (6 + 5) + 5, 2 * (12 + 5) + 5, 3]);
        let at = |y: i64, x: i64| sheet.int64_value(&[y, x, 1]);
        assert_eq!([at(5, 5), at(10, 16), at(5, 22), at(16, 5), at(21, 16)], [0, 0, 1, 2, 2]);
        // Margins, the gap, and the empty fourth cell.
        assert_eq!([at(0, 0), at(5, 4), at(5, 17), at(11, 5), at(16, 22), at(26, 38)], [255; 6]);
    }

    #[test]
    fn small_images_become_visible() {
        assert_eq!(GridOptions::for_size(4, 64, 64).scale, 2);
        assert_eq!(GridOptions::for_size(4, 16, 64).scale, 8);
        assert_eq!(GridOptions::for_size(4, 512, 512).scale, 1);
        assert_eq!(GridOptions::for_size(4, 0, 0).scale, 128);
    }

    #[test]
    fn bad_input_is_an_error() {
        let images = Tensor::zeros([2, 4, 4, 3], (Kind::Uint8, Device::Cpu));
        let options = GridOptions { columns: 9, scale: 1, margin: 0 };
        assert_eq!(grid(&images, &options).unwrap().size(), [4, 8, 3]);
        assert!(grid(&images, &GridOptions { columns: 0, ..options }).is_err());
        assert!(grid(&images, &GridOptions { scale: 0, ..options }).is_err());
        assert!(grid(&images.narrow(0, 0, 0), &options).is_err());
        assert!(grid(&images.to_kind(Kind::Float), &options).is_err());
        assert!(grid(&images.get(0), &options).is_err());
    }
}
