//! From u8 pictures of any size to what a vision tower takes: resized, cropped or padded, normalised; pixel for pixel
//! what each judge's reference code does.

mod pillow;
mod torch;

use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::{ImageBatch, Result};

pub use pillow::{Window, resize_bicubic};
pub use torch::{padded, step_aware, step_aware_training};

/// Mean and standard deviation of each channel, RGB, for pixels in [0, 1].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalisation {
    /// Means.
    pub mean: [f32; 3],
    /// Standard deviations.
    pub std: [f32; 3],
}

/// CLIP's statistics, which every judge here uses (BLIP's are the same).
pub const CLIP_STATISTICS: Normalisation =
    Normalisation { mean: [0.481_454_66, 0.457_827_5, 0.408_210_73], std: [0.268_629_55, 0.261_302_6, 0.275_777_1] };

impl Normalisation {
    /// `[B, 3, H, W]` in [0, 1] to (x − mean) / std.
    pub fn apply(&self, images: &Tensor) -> Tensor {
        let column = |values: &[f32; 3]| Tensor::from_slice(values).view([1, 3, 1, 1]).to_device(images.device());
        (images - column(&self.mean)) / column(&self.std)
    }
}

/// How a reference implementation brings pictures to a square of S pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preparation {
    /// Transformers' CLIP image processor over Pillow: bicubic with antialias on bytes, shortest edge to S, centre crop
    /// at ⌊(size − S)/2⌋. PickScore, and the aesthetic predictor as D3PO and DDPO use it.
    Processor,
    /// OpenAI's CLIP transform: the same, with the crop at (size − S)/2 rounded half to even. ImageReward, CLIPScore.
    OpenAi,
    /// HPSv2: on floats, longest edge to S, bicubic, black around it; `antialias` as torchvision 0.17 and later do by
    /// default, without as before.
    Padded {
        /// Whether shrinking low-passes.
        antialias: bool,
    },
}

impl Preparation {
    /// Prepared pictures f32 `[B, 3, S, S]` on the CPU, normalised with CLIP's statistics.
    ///
    /// Errors: libtorch's, where memory is short.
    pub fn prepare(self, images: &ImageBatch, side: usize) -> Result<Tensor> {
        Ok(CLIP_STATISTICS.apply(&self.squares(images, side)?))
    }

    /// As [`Self::prepare`], before the normalisation: f32 in [0, 1] but for bicubic overshoot.
    pub fn squares(self, images: &ImageBatch, side: usize) -> Result<Tensor> {
        match self {
            Self::Padded { antialias } => padded(&images.unit()?, side as i64, antialias),
            Self::Processor | Self::OpenAi => self.cropped(images, side),
        }
    }

    fn cropped(self, images: &ImageBatch, side: usize) -> Result<Tensor> {
        let (width, height) = (images.width(), images.height());
        let [columns, rows] = self.windows(width, height, side);
        let all: Vec<&[u8]> = images.pixels().collect();
        let bytes: Vec<u8> =
            all.par_iter().flat_map_iter(|pixels| resize_bicubic(pixels, width, height, columns, rows)).collect();
        let shape = [images.len() as i64, side as i64, side as i64, 3];
        let squares = Tensor::f_from_slice(&bytes)?.f_view(shape)?.f_permute([0, 3, 1, 2])?;
        Ok(squares.f_to_kind(Kind::Float)?.f_contiguous()? / 255.0)
    }

    /// Columns and rows of the middle square of a picture whose short edge becomes S.
    fn windows(self, width: usize, height: usize, side: usize) -> [Window; 2] {
        let short = width.min(height);
        // Python's int(S * long / short): the short edge becomes S exactly.
        let scaled =
            |edge: usize| if edge == short { side } else { (side as f64 * edge as f64 / short as f64) as usize };
        [width, height].map(|edge| {
            let full = scaled(edge);
            Window { full, start: self.offset(full - side), length: side }
        })
    }

    fn offset(self, surplus: usize) -> usize {
        match self {
            Self::OpenAi => half_to_even(surplus),
            _ => surplus / 2,
        }
    }
}

/// The bytes of one picture as [`Preparation::Processor`] resizes and crops it: `side * side * 3`, RGB interleaved, rows from
/// the top. [`Preparation::squares`] are these over 255.
pub fn processor_square(picture: &image::RgbImage, side: usize) -> Vec<u8> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let [columns, rows] = Preparation::Processor.windows(width, height, side);
    resize_bicubic(picture.as_raw(), width, height, columns, rows)
}

/// `round(n / 2)` in Python: halves go to the even neighbour.
fn half_to_even(n: usize) -> usize {
    (n as f64 / 2.0).round_ties_even() as usize
}

impl ImageBatch {
    /// Pixels as f32 `[B, 3, H, W]` in [0, 1] on the CPU.
    pub(crate) fn unit(&self) -> Result<Tensor> {
        let bytes: Vec<u8> = self.pixels().flatten().copied().collect();
        let shape = [self.len() as i64, self.height() as i64, self.width() as i64, 3];
        let floats = Tensor::f_from_slice(&bytes)?.f_view(shape)?.f_permute([0, 3, 1, 2])?.f_to_kind(Kind::Float)?;
        debug_assert_eq!(floats.device(), Device::Cpu);
        Ok(floats.f_contiguous()? / 255.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crops_differ_where_the_surplus_is_odd() {
        assert_eq!([0, 1, 2, 3, 5, 7].map(half_to_even), [0, 0, 1, 2, 2, 4]);
        assert_eq!((Preparation::Processor.offset(3), Preparation::OpenAi.offset(3)), (1, 2));
    }
}
