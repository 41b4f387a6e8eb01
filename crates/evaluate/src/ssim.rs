//! Structural similarity with exact integer window sums.

use crate::{Error, Result};

/// Window side, in pixels.
const WINDOW: usize = 7;
/// Pixels of a window.
const AREA: f64 = (WINDOW * WINDOW) as f64;
/// (K1·255)² and (K2·255)² of Wang et al. 2004, K1 = 0.01, K2 = 0.03.
const C1: f64 = (0.01 * 255.0) * (0.01 * 255.0);
const C2: f64 = (0.03 * 255.0) * (0.03 * 255.0);

/// An image with the window sums that every comparison with it needs.
pub(crate) struct Prepared<'a> {
    pixels: &'a [u8],
    height: usize,
    width: usize,
    sums: Vec<u32>,
    squares: Vec<u32>,
}

impl<'a> Prepared<'a> {
    /// `pixels`: H·W·3 bytes. Errors: [`Error::Shape`] if a side is under 7 pixels.
    pub fn new(pixels: &'a [u8], height: usize, width: usize) -> Result<Self> {
        if height < WINDOW || width < WINDOW {
            return Err(Error::Shape {
                what: "SSIM",
                expected: format!("images of at least {WINDOW}x{WINDOW} pixels"),
                found: format!("{width}x{height}"),
            });
        }
        let sums = window_sums(height, width, |i| u32::from(pixels[i]));
        let squares = window_sums(height, width, |i| u32::from(pixels[i]) * u32::from(pixels[i]));
        Ok(Self { pixels, height, width, sums, squares })
    }

    /// Mean SSIM with another image of the same size; 1 for equal images, range [−1, 1].
    pub fn ssim(&self, other: &Prepared) -> f64 {
        let (left, right) = (self.pixels, other.pixels);
        let products = window_sums(self.height, self.width, |i| u32::from(left[i]) * u32::from(right[i]));
        let unbias = AREA / (AREA - 1.0);
        let total: f64 = (0..products.len())
            .map(|i| {
                let (mean_l, mean_r) = (f64::from(self.sums[i]) / AREA, f64::from(other.sums[i]) / AREA);
                let variance_l = unbias * (f64::from(self.squares[i]) / AREA - mean_l * mean_l);
                let variance_r = unbias * (f64::from(other.squares[i]) / AREA - mean_r * mean_r);
                let covariance = unbias * (f64::from(products[i]) / AREA - mean_l * mean_r);
                (2.0 * mean_l * mean_r + C1) * (2.0 * covariance + C2)
                    / ((mean_l * mean_l + mean_r * mean_r + C1) * (variance_l + variance_r + C2))
            })
            .sum();
        total / products.len() as f64
    }
}

/// Sums of `value(pixel index)` over every 7×7 window that fits, per channel: `[(H−6)·(W−6)·3]`.
/// At most 49·255² < 2³², so u32 holds them exactly.
fn window_sums(height: usize, width: usize, value: impl Fn(usize) -> u32) -> Vec<u32> {
    let stride = width * 3;
    let mut columns = vec![0u32; stride];
    for row in 0..WINDOW - 1 {
        for (x, column) in columns.iter_mut().enumerate() {
            *column += value(row * stride + x);
        }
    }
    let mut sums = Vec::with_capacity((height - WINDOW + 1) * (width - WINDOW + 1) * 3);
    for row in WINDOW - 1..height {
        for (x, column) in columns.iter_mut().enumerate() {
            *column += value(row * stride + x);
        }
        let mut window = [0u32; 3];
        for x in 0..stride {
            window[x % 3] += columns[x];
            if x >= WINDOW * 3 {
                window[x % 3] -= columns[x - WINDOW * 3];
            }
            if x >= (WINDOW - 1) * 3 {
                sums.push(window[x % 3]);
            }
        }
        for (x, column) in columns.iter_mut().enumerate() {
            *column -= value((row + 1 - WINDOW) * stride + x);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(height: usize, width: usize, values: &[u8]) -> Vec<u32> {
        let mut sums = Vec::new();
        for y in 0..=height - WINDOW {
            for x in 0..=width - WINDOW {
                for c in 0..3 {
                    let cell = |dy: usize, dx: usize| u32::from(values[((y + dy) * width + x + dx) * 3 + c]);
                    sums.push(
                        (0..WINDOW).flat_map(|dy| (0..WINDOW).map(move |dx| (dy, dx))).map(|(a, b)| cell(a, b)).sum(),
                    );
                }
            }
        }
        sums
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn sliding_sums_equal_naive_ones(height in 7usize..14, width in 7usize..14, seed in any::<u32>()) {
            let values: Vec<u8> = (0..height * width * 3)
                .map(|i| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect();
            prop_assert_eq!(window_sums(height, width, |i| u32::from(values[i])), naive(height, width, &values));
        }

        #[test]
        fn symmetric_bounded_and_one_on_itself(left in prop::collection::vec(any::<u8>(), 8 * 9 * 3), right in prop::collection::vec(any::<u8>(), 8 * 9 * 3)) {
            let (a, b) = (Prepared::new(&left, 8, 9).unwrap(), Prepared::new(&right, 8, 9).unwrap());
            prop_assert!((a.ssim(&a) - 1.0).abs() < 1e-12);
            prop_assert_eq!(a.ssim(&b), b.ssim(&a));
            prop_assert!(a.ssim(&b).abs() <= 1.0 + 1e-12);
        }
    }

    #[test]
    fn tiny_images_are_refused() {
        let text = Prepared::new(&[0; 6 * 9 * 3], 6, 9).err().unwrap().to_string();
        assert!(text.contains("9x6"), "{text}");
    }
}
