//! From decoded pictures to what a vision tower takes: first to small squares of bytes, one picture at a time, so that no
//! picture stays in its full size; then to tensors.

use image::{RgbImage, imageops};
use seedpo_judge::{CLIP_STATISTICS, Window, processor_square, resize_bicubic};
use seedpo_tensor::NoiseKey;
use tch::{Kind, Tensor};

use crate::Result;

/// A random part of a picture, as OpenCLIP's augmentation takes it (torchvision's `RandomResizedCrop`).
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Crop {
    /// The least share of the picture's area, in (0, 1]; 1 takes the whole picture as judging does.
    pub least_area: f64,
}

/// The range of a crop's width to height.
const ASPECT: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0];

impl Crop {
    /// The bytes of a random part of the picture by this key, resized straight to S; without a crop those of the whole as
    /// [`processor_square`] makes them.
    pub(crate) fn square(self, picture: &RgbImage, side: usize, key: NoiseKey) -> Vec<u8> {
        if self.least_area >= 1.0 {
            return processor_square(picture, side);
        }
        let (width, height) = (f64::from(picture.width()), f64::from(picture.height()));
        let draw = |i: u64, from: f64, to: f64| from + (to - from) * key.candidate(i).uniform();
        let area = width * height * draw(0, self.least_area, 1.0);
        let aspect = draw(1, ASPECT[0].ln(), ASPECT[1].ln()).exp();
        let edge = |ideal: f64, whole: f64| ideal.round().clamp(1.0, whole);
        let (wide, high) = (edge((area * aspect).sqrt(), width), edge((area / aspect).sqrt(), height));
        let (left, top) = (draw(2, 0.0, width - wide + 1.0), draw(3, 0.0, height - high + 1.0));
        let (left, top) = ((left as u32).min((width - wide) as u32), (top as u32).min((height - high) as u32));
        let part = imageops::crop_imm(picture, left, top, wide as u32, high as u32).to_image();
        let window = Window { full: side, start: 0, length: side };
        resize_bicubic(part.as_raw(), wide as usize, high as usize, window, window)
    }
}

/// Squares of S pixels as one u8 `[B, S, S, 3]`.
pub(crate) fn stacked<'s>(squares: impl Iterator<Item = &'s Vec<u8>>, side: usize) -> Result<Tensor> {
    let (bytes, side) = (squares.flatten().copied().collect::<Vec<u8>>(), side as i64);
    Ok(Tensor::f_from_slice(&bytes)?.f_view([-1, side, side, 3])?)
}

/// Bytes `[B, S, S, 3]` as vision towers take them, f32 `[B, 3, S, S]`: normalised with CLIP's statistics.
pub(crate) fn normalised(bytes: &Tensor) -> Result<Tensor> {
    Ok(CLIP_STATISTICS.apply(&unit(bytes)?))
}

/// Bytes `[B, R, R, 3]` as SPO's trainer feeds them to the autoencoder, f32 `[B, 3, R, R]` in [−1, 1].
pub(crate) fn for_autoencoder(bytes: &Tensor) -> Result<Tensor> {
    Ok(unit(bytes)? * 2.0 - 1.0)
}

fn unit(bytes: &Tensor) -> Result<Tensor> {
    Ok(bytes.f_permute([0, 3, 1, 2])?.f_to_kind(Kind::Float)?.f_contiguous()? / 255.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use seedpo_judge::{ImageBatch, Preparation};

    fn picture(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 6) as u8, (y * 8) as u8, 7]))
    }

    fn cropped(picture: &RgbImage, least_area: f64, key: u64) -> Tensor {
        let square = Crop { least_area }.square(picture, 16, NoiseKey::new(1, "crop").prompt(key));
        normalised(&stacked([square].iter(), 16).unwrap()).unwrap()
    }

    #[test]
    fn crops_are_parts_of_the_picture() {
        let picture = picture(40, 30);
        let whole = normalised(&stacked([processor_square(&picture, 16)].iter(), 16).unwrap()).unwrap();
        assert_eq!(cropped(&picture, 1.0, 0), whole);
        assert_eq!(cropped(&picture, 0.3, 1), cropped(&picture, 0.3, 1));
        assert_ne!(cropped(&picture, 0.3, 1), cropped(&picture, 0.3, 2));
        for key in 0..50 {
            let one = cropped(&picture, 0.2, key);
            assert_eq!(one.size(), [1, 3, 16, 16]);
            // Red grows to the right, green downwards, blue is the same everywhere.
            let range = |channel: i64| {
                let values = one.select(1, channel);
                values.max().double_value(&[]) - values.min().double_value(&[])
            };
            assert!(range(0) > 0.5 && range(1) > 0.5 && range(2) < 1e-5, "{key}");
        }
    }

    /// By way of bytes, bit for bit what judging does.
    #[test]
    fn squares_are_what_judges_see() {
        let pictures = [picture(40, 30), picture(17, 64), picture(16, 16), picture(5, 9)];
        let bytes =
            stacked(pictures.iter().map(|one| processor_square(one, 16)).collect::<Vec<_>>().iter(), 16).unwrap();
        let batches = pictures.each_ref().map(ImageBatch::from_rgb);
        let whole = |one: &dyn Fn(&ImageBatch) -> Tensor| Tensor::cat(&batches.each_ref().map(one), 0);
        assert_eq!(normalised(&bytes).unwrap(), whole(&|one| Preparation::Processor.prepare(one, 16).unwrap()));
        let squares = whole(&|one| Preparation::Processor.squares(one, 16).unwrap());
        assert_eq!(for_autoencoder(&bytes).unwrap(), squares * 2.0 - 1.0);
    }
}
