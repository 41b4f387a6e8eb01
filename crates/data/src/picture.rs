//! Bytes to pixels, with limits, and pixels to the size a model takes.

use std::cell::Cell;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::imageops::{self, FilterType};
use image::{ImageFormat, ImageReader, Limits, RgbImage};

use crate::jpeg;

/// The longest side a picture may have, in pixels.
pub const MAX_SIDE: u32 = 16_384;
/// How many times as long as wide a picture may be: scaled by its shorter side, a longer one would fill the memory.
const MAX_ASPECT: u32 = 64;
/// What decoding one picture may allocate, in bytes: a 10,000 x 10,000 picture fits.
pub(crate) const MAX_BYTES: u64 = 512 << 20;

thread_local! {
    static DECODING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside a decoder: a panic there is a bad row, not the end of the program.
pub fn is_decoding() -> bool {
    DECODING.get()
}

/// Runs a decoder. Decoders are other people's code on anyone's bytes: where one of them panics, that is an error.
pub(crate) fn guarded<T>(decoder: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let before = DECODING.replace(true);
    let decoded = catch_unwind(AssertUnwindSafe(decoder));
    DECODING.set(before);
    decoded.unwrap_or_else(|_| Err("the decoder failed on these bytes".into()))
}

/// Decodes a PNG, JPEG or WebP picture, a JPEG to the pixels that Pillow finds in it. A header that promises more than [`MAX_SIDE`] or half a GiB is refused before
/// anything is allocated. Errors: what is wrong with the bytes.
pub fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    guarded(|| decode_unguarded(bytes))
}

fn decode_unguarded(bytes: &[u8]) -> Result<RgbImage, String> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    match reader.format() {
        None => return Err("expected a PNG, JPEG or WebP picture, found other bytes".into()),
        Some(ImageFormat::Jpeg) => return jpeg::decode(bytes),
        Some(_) => {}
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_BYTES);
    let mut reader = reader;
    reader.limits(limits);
    let picture = reader.decode().map_err(|e| e.to_string())?.to_rgb8();
    if picture.width() == 0 || picture.height() == 0 {
        return Err("expected a picture, found one without pixels".into());
    }
    Ok(picture)
}

/// A picture's width and height from its header alone. Errors: what is wrong with the bytes.
pub fn dimensions(bytes: &[u8]) -> Result<(u32, u32), String> {
    guarded(|| {
        let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
        reader.into_dimensions().map_err(|e| e.to_string())
    })
}

/// The picture at `size` x `size`, RGB interleaved: the shorter side scaled to `size` with antialiased bilinear
/// filtering, the middle of the longer one kept, as torchvision's `Resize` and `CenterCrop` do in the diffusers
/// training scripts (equal to Pillow's within one level: it rounds between its two passes, we do not).
/// Errors: a picture more than 64 times as long as wide.
pub fn fit(picture: &RgbImage, size: u32) -> Result<RgbImage, String> {
    let (width, height) = picture.dimensions();
    let shorter = width.min(height).max(1);
    if width.max(height) / shorter > MAX_ASPECT {
        return Err(format!("expected a picture at most {MAX_ASPECT} times as long as wide, found {width} x {height}"));
    }
    // torchvision cuts the longer side's fraction off.
    let scaled = |side: u32| ((u64::from(side) * u64::from(size) / u64::from(shorter)) as u32).max(size);
    let (wide, high) = (scaled(width), scaled(height));
    guarded(|| {
        let resized;
        let whole = if (wide, high) == (width, height) {
            picture
        } else {
            resized = imageops::resize(picture, wide, high, FilterType::Triangle);
            &resized
        };
        Ok(imageops::crop_imm(whole, offset(wide, size), offset(high, size), size, size).to_image())
    })
}

/// Python's `round((side - size) / 2)`: halves to the even number.
fn offset(side: u32, size: u32) -> u32 {
    let twice = side - size;
    let half = twice / 2;
    if twice % 2 == 1 && half % 2 == 1 { half + 1 } else { half }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_rounded_as_python_does() {
        assert_eq!([4u32, 5, 6, 7, 8, 9, 11].map(|side| offset(side, 4)), [0, 0, 1, 2, 2, 2, 4]);
    }

    #[test]
    fn a_decoder_that_panics_is_an_error() {
        let failed = guarded::<()>(|| panic!("a decoder's bug"));
        assert!(failed.is_err() && !is_decoding());
        assert!(guarded(|| Ok(is_decoding())).unwrap());
        // One within another: what comes after it is still within the outer one.
        assert!(guarded(|| guarded(|| Ok(())).and(Ok(is_decoding()))).unwrap() && !is_decoding());
    }

    #[test]
    fn a_thread_of_pixels_is_refused() {
        assert!(fit(&RgbImage::new(1, 65), 512).unwrap_err().contains("1 x 65"));
        assert_eq!(fit(&RgbImage::new(64, 1), 16).unwrap().dimensions(), (16, 16));
    }

    /// A PNG header that promises 60,000 x 60,000 pixels must be refused by its size, not by running out of memory.
    #[test]
    fn huge_promises_are_refused() {
        let mut bytes = Vec::new();
        let small = RgbImage::from_pixel(2, 2, image::Rgb([1, 2, 3]));
        small.write_to(&mut Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
        for side in [60_000u32, 15_000] {
            let mut huge = bytes.clone();
            huge[16..20].copy_from_slice(&side.to_be_bytes());
            huge[20..24].copy_from_slice(&side.to_be_bytes());
            assert!(decode(&huge).is_err());
        }
        assert_eq!(decode(&bytes).unwrap(), small);
        assert!(decode(b"not a picture").unwrap_err().contains("PNG") && decode(b"").is_err());
        assert!(decode(&bytes[..40]).is_err());
    }
}
