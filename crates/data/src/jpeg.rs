//! JPEG pictures to the pixels that Pillow finds in them: by libjpeg's own code, as Pillow's.

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::RgbImage;
use mozjpeg::{ColorSpace, Decompress};

use crate::picture::{MAX_BYTES, MAX_SIDE};

/// Decodes a whole JPEG: libjpeg's defaults (integer slow DCT, smooth upsampling), grey and CMYK as Pillow's
/// `convert("RGB")` has them; an orientation in the EXIF data is not looked at, as there.
///
/// Errors: what is wrong with the bytes, sizes beyond [`MAX_SIDE`] and [`MAX_BYTES`], a file that is cut short (which
/// libjpeg by itself fills up with grey).
pub fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    let cut_short = Cell::new(false);
    // libjpeg's C code reports errors by unwinding.
    let decoded = catch_unwind(AssertUnwindSafe(|| whole(Bytes { rest: bytes, ended: &cut_short })));
    match decoded {
        _ if cut_short.get() => Err("expected a whole JPEG picture, found the beginning of one (cut short)".into()),
        Ok(picture) => picture,
        Err(reason) => {
            let reason = reason.downcast_ref::<String>().map_or("the decoder failed", String::as_str);
            Err(format!("JPEG: {}", reason.trim_start_matches("libjpeg fatal error: ")))
        }
    }
}

fn whole(bytes: Bytes<'_>) -> Result<RgbImage, String> {
    let refused = |error: io::Error| format!("JPEG: {error}");
    let header = Decompress::new_reader(bytes).map_err(refused)?;
    let (width, height) = (header.width() as u64, header.height() as u64);
    if width.max(height) > u64::from(MAX_SIDE) || width * height * 3 > MAX_BYTES {
        return Err(format!(
            "expected a picture of at most {MAX_SIDE} pixels a side and {} MiB, found {width} x {height}",
            MAX_BYTES >> 20
        ));
    }
    let inks = header.components().len() == 4;
    let space = if inks { ColorSpace::JCS_CMYK } else { ColorSpace::JCS_RGB };
    let mut started = header.to_colorspace(space).map_err(refused)?;
    let pixels: Vec<u8> = started.read_scanlines().map_err(refused)?;
    started.finish().map_err(refused)?;
    let pixels = if inks { from_inks(&pixels) } else { pixels };
    RgbImage::from_raw(width as u32, height as u32, pixels).ok_or_else(|| "JPEG: rows are missing".to_owned())
}

/// CMYK, stored inverted as Photoshop does and Pillow supposes, to RGB by Pillow's formula in whole numbers.
fn from_inks(pixels: &[u8]) -> Vec<u8> {
    let product = |a: u32, b: u32| {
        let product = a * b + 128;
        ((product >> 8) + product) >> 8
    };
    let rgb = |pixel: &[u8]| {
        let ink = |at: usize| 255 - u32::from(pixel[at]);
        let light = 255 - ink(3);
        [0, 1, 2].map(|at| (light - product(ink(at), light)) as u8)
    };
    pixels.chunks_exact(4).flat_map(rgb).collect()
}

/// A file's bytes. To read on behind the last one is an error, and noted.
struct Bytes<'a> {
    rest: &'a [u8],
    ended: &'a Cell<bool>,
}

impl BufRead for Bytes<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.rest.is_empty() {
            self.ended.set(true);
            // Not `UnexpectedEof`, in the place of which an end is made up.
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(self.rest)
    }

    fn consume(&mut self, count: usize) {
        self.rest = self.rest.get(count..).unwrap_or_default();
    }
}

impl Read for Bytes<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(into)?;
        self.consume(count);
        Ok(count)
    }
}
