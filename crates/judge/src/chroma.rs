//! Chroma: how much of a picture is coloured, and how strongly.

use crate::{ImageBatch, Judge, Result};

/// Mean over the pixels of max − min of R, G and B, in per cent: 0 for greys, 100 for a page of one pure colour. A larger
/// subject on white has more of it, and a more saturated one. The rule by which `seedpo judge synthetic` prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chroma;

/// Chroma of RGB bytes, interleaved, in per cent; 0 for none.
pub fn chroma(rgb: &[u8]) -> f64 {
    let one = |pixel: &[u8]| u64::from(pixel[0].max(pixel[1]).max(pixel[2]) - pixel[0].min(pixel[1]).min(pixel[2]));
    let total: u64 = rgb.chunks_exact(3).map(one).sum();
    total as f64 / 2.55 / (rgb.len() / 3).max(1) as f64
}

impl Judge for Chroma {
    fn name(&self) -> &str {
        "chroma"
    }

    fn unit(&self) -> &str {
        "%"
    }

    fn judge(&self, images: &ImageBatch, _prompts: &[&str]) -> Result<Vec<f64>> {
        Ok(images.pixels().map(chroma).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greys_have_none_and_pure_colours_all() {
        assert_eq!(chroma(&[7, 7, 7, 255, 255, 255]), 0.0);
        assert!((chroma(&[255, 0, 0]) - 100.0).abs() < 1e-12);
        assert!((chroma(&[255, 0, 0, 255, 255, 255]) - 50.0).abs() < 1e-12);
        assert!((chroma(&[51, 102, 0]) - 40.0).abs() < 1e-12);
        assert_eq!(chroma(&[]), 0.0);
    }
}
