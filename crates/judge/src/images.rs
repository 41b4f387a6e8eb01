//! Images on their way to a judge: u8 RGB, checked once.

use std::cell::OnceCell;

use crate::{Error, Result};
use image::RgbImage;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

/// A batch of equally sized u8 RGB images in host memory.
#[derive(Debug, Clone)]
pub struct ImageBatch {
    pixels: Vec<u8>,
    count: usize,
    width: usize,
    height: usize,
}

impl ImageBatch {
    /// Copies a u8 `[B, H, W, 3]` tensor from any device.
    ///
    /// Errors: [`Error::Images`] for another element type or shape, or empty images.
    pub fn from_tensor(images: &Tensor) -> Result<Self> {
        let expected = "u8 [B, H, W, 3] with H, W >= 1";
        let found = || format!("{:?} {:?}", images.kind(), images.size());
        let [count, height, width, 3] = images.size()[..] else {
            return Err(Error::Images { expected, found: found() });
        };
        if images.kind() != Kind::Uint8 || height < 1 || width < 1 {
            return Err(Error::Images { expected, found: found() });
        }
        let flat = images.f_to_device(Device::Cpu)?.f_contiguous()?.f_view([-1])?;
        let pixels = Vec::<u8>::try_from(&flat)?;
        Ok(Self { pixels, count: count as usize, width: width as usize, height: height as usize })
    }

    /// Copies decoded pictures of one size. Errors: [`Error::Images`] for none, for several sizes and for empty pictures.
    pub fn from_pictures(pictures: &[&RgbImage]) -> Result<Self> {
        let sizes = || pictures.iter().map(|picture| picture.dimensions());
        match sizes().next() {
            Some((width, height)) if width > 0 && height > 0 && sizes().all(|size| size == (width, height)) => {
                let pixels = pictures.iter().map(|picture| picture.as_raw().as_slice()).collect::<Vec<_>>().concat();
                Ok(Self { pixels, count: pictures.len(), width: width as usize, height: height as usize })
            }
            _ => {
                let found = format!("{:?} (width, height)", sizes().collect::<Vec<_>>());
                Err(Error::Images { expected: "pictures of one size, of at least one pixel", found })
            }
        }
    }

    /// One decoded picture of at least one pixel.
    pub fn from_rgb(picture: &RgbImage) -> Self {
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        Self { pixels: picture.as_raw().clone(), count: 1, width, height }
    }

    /// A digest of each image, its size included: what it is known by in caches.
    pub(crate) fn digests(&self) -> Vec<[u8; 32]> {
        let size = [self.width, self.height].map(|edge| (edge as u64).to_le_bytes()).concat();
        self.pixels().map(|pixels| Sha256::new().chain_update(&size).chain_update(pixels).finalize().into()).collect()
    }

    /// The images at these positions.
    pub(crate) fn select(&self, positions: &[usize]) -> Self {
        let all: Vec<&[u8]> = self.pixels().collect();
        let pixels = positions.iter().flat_map(|at| all[*at]).copied().collect();
        Self { pixels, count: positions.len(), width: self.width, height: self.height }
    }

    /// Images in the batch.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether the batch holds no image.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The images, each as H·W·3 bytes, rows from the top, RGB interleaved.
    pub fn pixels(&self) -> std::slice::ChunksExact<'_, u8> {
        self.pixels.chunks_exact(self.width * self.height * 3)
    }
}

/// Pictures a model predicts on its way: checked once, turned into bytes at most once, however many judges look at them.
#[derive(Debug)]
pub struct Predicted {
    images: Tensor,
    bytes: OnceCell<ImageBatch>,
}

impl Predicted {
    /// Of float `[B, 3, H, W]` in [−1, 1], on any device. Errors: [`Error::Images`], [`Error::NonFiniteImage`].
    pub fn new(images: &Tensor) -> Result<Self> {
        Ok(Self { images: check_finite(images)?, bytes: OnceCell::new() })
    }

    /// f32 `[B, 3, H, W]`, on the device they came from.
    pub fn images(&self) -> &Tensor {
        &self.images
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.images.size()[0] as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same pictures once more; nothing is copied but the bytes, where there are any.
    pub fn share(&self) -> Self {
        Self { images: self.images.shallow_clone(), bytes: self.bytes.clone() }
    }

    /// The pictures as bytes, see [`to_u8`]. Errors: [`Error::Images`] for empty pictures.
    pub fn bytes(&self) -> Result<&ImageBatch> {
        match self.bytes.get() {
            Some(bytes) => Ok(bytes),
            None => {
                let bytes = ImageBatch::from_tensor(&quantised(&self.images)?)?;
                Ok(self.bytes.get_or_init(|| bytes))
            }
        }
    }
}

/// Decoded images f32 `[B, 3, H, W]` in [−1, 1] -> u8 `[B, H, W, 3]` on the CPU, as D3PO and DDPO hand them to a
/// judge: x/2 + ½, clamped to [0, 1], times 255, rounded half to even. Values outside [−1, 1] are clamped.
///
/// Errors: [`Error::Images`] for another shape or an integer tensor; [`Error::NonFiniteImage`].
/// Source: d3po and ddpo-pytorch `jpeg_incompressibility`; torch's `round` is half to even.
pub fn to_u8(images: &Tensor) -> Result<Tensor> {
    quantised(&check_finite(images)?)
}

fn quantised(images: &Tensor) -> Result<Tensor> {
    let unit = ((images / 2.0) + 0.5).clamp(0.0, 1.0);
    let bytes = (unit * 255.0).round().clamp(0.0, 255.0).to_kind(Kind::Uint8);
    Ok(bytes.f_to_device(Device::Cpu)?.f_permute([0, 2, 3, 1])?.f_contiguous()?)
}

/// Float images `[B, 3, H, W]` as f32, on their device. Errors: [`Error::Images`], [`Error::NonFiniteImage`].
fn check_finite(images: &Tensor) -> Result<Tensor> {
    let size = images.size();
    if size.len() != 4 || size[1] != 3 || !images.is_floating_point() {
        return Err(Error::Images {
            expected: "float [B, 3, H, W] in [-1, 1]",
            found: format!("{:?} {size:?}", images.kind()),
        });
    }
    let images = images.f_detach()?.f_to_kind(Kind::Float)?;
    if size[0] > 0 {
        let finite = images.f_isfinite()?.f_flatten(1, -1)?.f_all_dim(1, false)?;
        let finite = Vec::<bool>::try_from(&finite.f_to_device(Device::Cpu)?)?;
        if let Some(index) = finite.iter().position(|finite| !finite) {
            return Err(Error::NonFiniteImage { index });
        }
    }
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_pixel(value: f32) -> Tensor {
        Tensor::from_slice(&[value, value, value]).view([1, 3, 1, 1])
    }

    #[test]
    fn rounds_half_to_even_and_clamps() {
        // Levels whose product with 255 is an exact half in f32; half away from zero would give 127 and 129.
        for (level, expected) in [(126.5f32, 126), (127.5, 128), (128.5, 128)] {
            let unit = level / 255.0;
            assert_eq!(unit * 255.0, level, "not an exact half: the case tests nothing");
            let bytes = to_u8(&one_pixel(unit * 2.0 - 1.0)).unwrap();
            assert_eq!(bytes.int64_value(&[0, 0, 0, 0]), expected, "level {level}");
        }
        for (value, expected) in [(-40.0, 0), (-1.0, 0), (1.0, 255), (1.001, 255), (40.0, 255), (0.9929, 254)] {
            assert_eq!(to_u8(&one_pixel(value)).unwrap().int64_value(&[0, 0, 0, 0]), expected, "value {value}");
        }
        assert_eq!(to_u8(&one_pixel(0.0)).unwrap().int64_value(&[0, 0, 0, 0]), 128);
    }

    #[test]
    fn every_byte_survives_the_trip() {
        let bytes: Vec<u8> = (0..=255).collect();
        let images = Tensor::from_slice(&bytes).view([1, 1, 16, 16]).repeat([2, 3, 1, 1]);
        let floats = images.to_kind(Kind::Float) / 127.5 - 1.0;
        let back = to_u8(&floats).unwrap();
        assert_eq!(back.size(), [2, 16, 16, 3]);
        assert!(back == images.permute([0, 2, 3, 1]));
    }

    #[test]
    fn channels_move_last() {
        let image = Tensor::from_slice(&[1.0f32, -1.0, 0.0]).view([1, 3, 1, 1]).repeat([1, 1, 2, 2]);
        let bytes = to_u8(&image).unwrap();
        assert_eq!(Vec::<u8>::try_from(bytes.view([-1]).slice(0, 0, 3, 1)).unwrap(), [255, 0, 128]);
    }

    #[test]
    fn wrong_tensors_are_named() {
        let text = to_u8(&Tensor::zeros([1, 4, 2, 2], (Kind::Float, Device::Cpu))).unwrap_err().to_string();
        assert!(text.contains("[B, 3, H, W]") && text.contains("[1, 4, 2, 2]"), "{text}");
        let text = ImageBatch::from_tensor(&Tensor::zeros([1, 2, 2, 3], (Kind::Float, Device::Cpu))).unwrap_err();
        assert!(text.to_string().contains("Float"), "{text}");
        for size in [&[2, 2, 3][..], &[1, 2, 2, 4], &[1, 0, 2, 3]] {
            let images = Tensor::zeros(size, (Kind::Uint8, Device::Cpu));
            assert!(matches!(ImageBatch::from_tensor(&images), Err(Error::Images { .. })), "{size:?}");
        }
        let mut images = Tensor::zeros([3, 3, 2, 2], (Kind::Float, Device::Cpu));
        let _ = images.get(2).fill_(f64::NAN);
        images = images.shallow_clone();
        assert!(matches!(to_u8(&images), Err(Error::NonFiniteImage { index: 2 })));
    }

    #[test]
    fn pictures_of_one_size_make_a_batch() {
        let picture =
            |width, height, first| RgbImage::from_fn(width, height, |x, y| image::Rgb([first, x as u8, y as u8]));
        let batch = ImageBatch::from_pictures(&[&picture(3, 2, 7), &picture(3, 2, 8)]).unwrap();
        assert_eq!((batch.len(), batch.width(), batch.height()), (2, 3, 2));
        assert_eq!(batch.pixels().nth(1).unwrap()[..9], [8, 0, 0, 8, 1, 0, 8, 2, 0]);
        for wrong in [vec![], vec![picture(3, 2, 0), picture(2, 3, 0)], vec![picture(0, 2, 0)]] {
            let wrong: Vec<&RgbImage> = wrong.iter().collect();
            assert!(matches!(ImageBatch::from_pictures(&wrong), Err(Error::Images { .. })), "{wrong:?}");
        }
    }

    #[test]
    fn non_contiguous_tensors_are_read_in_order() {
        let tensor = Tensor::arange(2 * 3 * 4 * 5, (Kind::Uint8, Device::Cpu)).view([2, 3, 4, 5]);
        let batch = ImageBatch::from_tensor(&tensor.permute([0, 2, 3, 1])).unwrap();
        assert_eq!((batch.len(), batch.height(), batch.width()), (2, 4, 5));
        assert_eq!(batch.pixels().next().unwrap()[..4], [0, 20, 40, 1]);
    }
}
