//! How colourful an image is.

use crate::{ImageBatch, Judge, Result};
use rayon::prelude::*;

/// Colourfulness M of one image; `pixels`: H·W·3 bytes, RGB.
///
/// With rg = R − G and yb = (R + G)/2 − B over all pixels: M = √(σ_rg² + σ_yb²) + 0.3·√(μ_rg² + μ_yb²), population
/// deviations. 0 for any grey image, about 30 for an averagely coloured photograph, about 100 for an extremely
/// colourful one. 0 for no pixels.
///
/// Source: Hasler and Süsstrunk, "Measuring colourfulness in natural images", 2003, equations 1 to 4 (the M̂⁽³⁾ metric).
pub fn colourfulness(pixels: &[u8]) -> f64 {
    // Integer sums (of 2·yb, to stay integer) are exact, so the result does not depend on the order of pixels.
    let (mut rg_sum, mut rg_squares, mut yb_sum, mut yb_squares) = (0i64, 0i64, 0i64, 0i64);
    for pixel in pixels.chunks_exact(3) {
        let [red, green, blue] = [i64::from(pixel[0]), i64::from(pixel[1]), i64::from(pixel[2])];
        let (rg, yb) = (red - green, red + green - 2 * blue);
        rg_sum += rg;
        rg_squares += rg * rg;
        yb_sum += yb;
        yb_squares += yb * yb;
    }
    let count = (pixels.len() / 3) as f64;
    if count == 0.0 {
        return 0.0;
    }
    let (rg_mean, yb_mean) = (rg_sum as f64 / count, yb_sum as f64 / (2.0 * count));
    let rg_variance = rg_squares as f64 / count - rg_mean * rg_mean;
    let yb_variance = yb_squares as f64 / (4.0 * count) - yb_mean * yb_mean;
    // Cancellation can leave a variance of zero a hair below it.
    (rg_variance + yb_variance).max(0.0).sqrt() + 0.3 * rg_mean.hypot(yb_mean)
}

/// The `colourfulness` judge: see [`colourfulness`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Colourfulness;

impl Judge for Colourfulness {
    fn name(&self) -> &str {
        "colourfulness"
    }

    fn unit(&self) -> &str {
        "M"
    }

    fn judge(&self, images: &ImageBatch, _prompts: &[&str]) -> Result<Vec<f64>> {
        let all: Vec<&[u8]> = images.pixels().collect();
        Ok(all.par_iter().map(|pixels| colourfulness(pixels)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grey_is_colourless_and_one_colour_is_its_mean() {
        assert_eq!(colourfulness(&[7, 7, 7, 200, 200, 200]), 0.0);
        // Pure red: rg = 255, yb = 127.5, no spread.
        assert!((colourfulness(&[255, 0, 0].repeat(5)) - 0.3 * 255.0f64.hypot(127.5)).abs() < 1e-9);
        assert_eq!(colourfulness(&[]), 0.0);
    }

    #[test]
    fn red_and_green_halves_by_hand() {
        // rg = ±255: mean 0, deviation 255; yb = 127.5 both: mean 127.5, deviation 0.
        let pixels = [255, 0, 0, 0, 255, 0];
        assert!((colourfulness(&pixels) - (255.0 + 0.3 * 127.5)).abs() < 1e-9);
    }
}
