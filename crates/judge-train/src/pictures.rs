//! From decoded pictures to what a vision tower takes.

use image::{RgbImage, imageops};
use rayon::prelude::*;
use seedpo_judge::{CLIP_STATISTICS, ImageBatch, Preparation, Window, resize_bicubic};
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
    /// f32 `[1, 3, S, S]` of one picture: a random part of it by this key, resized straight to S.
    fn prepare(self, picture: &RgbImage, side: usize, key: NoiseKey) -> Result<Tensor> {
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
        let bytes = resize_bicubic(part.as_raw(), wide as usize, high as usize, window, window);
        let square = Tensor::f_from_slice(&bytes)?.f_view([1, side as i64, side as i64, 3])?.f_permute([0, 3, 1, 2])?;
        Ok(CLIP_STATISTICS.apply(&(square.f_to_kind(Kind::Float)?.f_contiguous()? / 255.0)))
    }
}

/// f32 `[B, 3, S, S]` as PickScore's processor prepares pictures of any size.
pub(crate) fn prepared(pictures: &[RgbImage], side: usize) -> Result<Tensor> {
    stacked(pictures, |_, picture| Ok(Preparation::Processor.prepare(&ImageBatch::from_rgb(picture), side)?))
}

/// As [`prepared`], of a random part of each picture; without a crop the whole of it.
pub(crate) fn cropped(pictures: &[RgbImage], side: usize, crop: Crop, keys: &[NoiseKey]) -> Result<Tensor> {
    if crop.least_area >= 1.0 {
        return prepared(pictures, side);
    }
    stacked(pictures, |row, picture| crop.prepare(picture, side, keys[row]))
}

/// f32 `[B, 3, R, R]` in [−1, 1], as SPO's trainer feeds pictures to the autoencoder: CLIP's resize and crop, to R pixels.
pub(crate) fn for_autoencoder(pictures: &[RgbImage], resolution: usize) -> Result<Tensor> {
    stacked(pictures, |_, picture| {
        Ok(Preparation::Processor.squares(&ImageBatch::from_rgb(picture), resolution)? * 2.0 - 1.0)
    })
}

/// The pictures prepared side by side on all cores, in their order.
fn stacked(pictures: &[RgbImage], one: impl Fn(usize, &RgbImage) -> Result<Tensor> + Sync) -> Result<Tensor> {
    let parts = pictures.par_iter().enumerate().map(|(row, picture)| one(row, picture));
    Ok(Tensor::f_cat(&parts.collect::<Result<Vec<_>>>()?, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crops_are_parts_of_the_picture() {
        let picture = RgbImage::from_fn(40, 30, |x, y| image::Rgb([x as u8 * 6, y as u8 * 8, 7]));
        let key = |i| NoiseKey::new(1, "crop").prompt(i);
        let whole = prepared(std::slice::from_ref(&picture), 16).unwrap();
        let crop = |least_area, i| cropped(std::slice::from_ref(&picture), 16, Crop { least_area }, &[key(i)]).unwrap();
        assert_eq!(crop(1.0, 0), whole);
        assert_eq!(crop(0.3, 1), crop(0.3, 1));
        assert_ne!(crop(0.3, 1), crop(0.3, 2));
        for i in 0..50 {
            let one = crop(0.2, i);
            assert_eq!(one.size(), [1, 3, 16, 16]);
            // Red grows to the right, green downwards, blue is the same everywhere.
            let range = |channel: i64| {
                let values = one.select(1, channel);
                values.max().double_value(&[]) - values.min().double_value(&[])
            };
            assert!(range(0) > 0.5 && range(1) > 0.5 && range(2) < 1e-5, "{i}");
        }
    }
}
