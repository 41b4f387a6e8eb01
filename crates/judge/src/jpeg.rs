//! The size of an image as JPEG: the reward everybody can check with a file manager.

use crate::{Error, ImageBatch, Judge, Result};
use mozjpeg::{ColorSpace, Compress};
use rayon::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// JPEG's own limit on width and height, in pixels (libjpeg's `JPEG_MAX_DIMENSION`).
const MAX_SIDE: usize = 65500;

/// The quality that D3PO and DDPO judge at.
const QUALITY: u8 = 95;

/// Encodes one image as baseline JPEG and returns the file's bytes.
///
/// `pixels`: H·W·3 bytes, RGB. `quality`: 1 to 100. The bytes are those of libjpeg's defaults, hence of Pillow's
/// `save(buffer, "JPEG", quality=quality)`: baseline, 4:2:0, standard Huffman tables, integer slow DCT, JFIF header.
/// A fixture checks the whole file at several sizes.
///
/// Errors: [`Error::Encode`] if a side is 0 or above 65,500, or `pixels` has another length.
pub fn jpeg_bytes(pixels: &[u8], width: usize, height: usize, quality: u8) -> Result<Vec<u8>> {
    let fail = |reason: String| Error::Encode { width, height, reason };
    if width == 0 || height == 0 || width > MAX_SIDE || height > MAX_SIDE {
        return Err(fail(format!("each side must be 1 to {MAX_SIDE} pixels")));
    }
    if pixels.len() != width * height * 3 {
        return Err(fail(format!("expected {} bytes of RGB, found {}", width * height * 3, pixels.len())));
    }
    let encode = || -> std::io::Result<Vec<u8>> {
        let mut compress = Compress::new(ColorSpace::JCS_RGB);
        // Without this mozjpeg optimises (progressive, trellis, Huffman tables of its own) and files shrink.
        compress.set_fastest_defaults();
        compress.set_size(width, height);
        compress.set_quality(f32::from(quality));
        compress.set_optimize_coding(false);
        let mut started = compress.start_compress(Vec::with_capacity(4096))?;
        started.write_scanlines(pixels)?;
        started.finish()
    };
    // libjpeg's C code reports errors by unwinding.
    match catch_unwind(AssertUnwindSafe(encode)) {
        Ok(bytes) => bytes.map_err(|error| fail(error.to_string())),
        Err(_) => Err(fail("the encoder gave up".to_owned())),
    }
}

/// JPEG size as a reward, in decimal kilobytes at quality 95 (D3PO, DDPO).
///
/// Incompressibility is bytes/1000, compressibility its negative. Images are not resized first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JpegSize {
    /// `jpeg-compressibility`: −kB, in (−∞, −0.6].
    Compressibility,
    /// `jpeg-incompressibility`: +kB, in [0.6, ∞).
    Incompressibility,
}

impl Judge for JpegSize {
    fn name(&self) -> &str {
        match self {
            Self::Compressibility => "jpeg-compressibility",
            Self::Incompressibility => "jpeg-incompressibility",
        }
    }

    fn unit(&self) -> &str {
        "kB"
    }

    fn judge(&self, images: &ImageBatch, _prompts: &[&str]) -> Result<Vec<f64>> {
        let sign = if *self == Self::Compressibility { -1.0 } else { 1.0 };
        let (width, height) = (images.width(), images.height());
        let all: Vec<&[u8]> = images.pixels().collect();
        all.par_iter()
            .map(|pixels| Ok(sign * jpeg_bytes(pixels, width, height, QUALITY)?.len() as f64 / 1000.0))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_sizes_are_errors() {
        assert!(matches!(jpeg_bytes(&[], 0, 4, 95), Err(Error::Encode { .. })));
        assert!(matches!(jpeg_bytes(&[0; 11], 2, 2, 95), Err(Error::Encode { .. })));
        let wide = vec![0; 65501 * 3];
        assert!(jpeg_bytes(&wide, 65501, 1, 95).unwrap_err().to_string().contains("65501x1"));
    }

    #[test]
    fn a_black_square_has_its_known_size() {
        assert_eq!(jpeg_bytes(&vec![0; 512 * 512 * 3], 512, 512, 95).unwrap().len(), 4723);
    }
}
