//! Pillow's bicubic resize of bytes, bit for bit.

/// Which part of a resized axis is wanted: `length` pixels from `start` of `full`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Pixels of the whole resized axis.
    pub full: usize,
    /// The first one wanted.
    pub start: usize,
    /// How many are wanted; `start + length <= full`.
    pub length: usize,
}

/// Fractional bits of Pillow's integer weights.
const PRECISION: u32 = 32 - 8 - 2;

/// The source pixels that one pixel is made of, and their weights.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Resizes H·W·3 bytes of RGB to `columns.full` by `rows.full` and returns the window of it: bytes, row by row.
///
/// Equal to `Image.resize((columns.full, rows.full), Image.BICUBIC)` of Pillow 13 followed by a crop: a = −0.5, support
/// widened when shrinking, one axis after the other with bytes in between, 22-bit integer weights; an axis of unchanged
/// size is left alone. Only what the window needs is computed, so a picture of extreme proportions costs no more.
pub fn resize_bicubic(pixels: &[u8], width: usize, height: usize, columns: Window, rows: Window) -> Vec<u8> {
    debug_assert_eq!(pixels.len(), width * height * 3);
    let (across, down) = (taps(width, columns), taps(height, rows));
    // Pillow 13's choice; before 13 columns always came first, which differs for pictures over twice as tall as wide.
    let lost = |before: usize, after: usize| before as i64 - after as i64;
    let rows_first = rows.full < height && lost(height, rows.full) > 2 * lost(width, columns.full);
    if rows_first {
        let (narrow, first, length) = needed(pixels, width, &across);
        let low: Vec<u8> = down.iter().flat_map(|taps| blend_rows(&narrow, length * 3, 0, taps)).collect();
        low.chunks_exact(length * 3).flat_map(|row| blend_pixels(row, first, &across)).collect()
    } else {
        let first = down.first().map_or(0, |taps| taps.first);
        let end = down.last().map_or(0, |taps| taps.first + taps.weights.len());
        let source = pixels.chunks_exact(width * 3).skip(first).take(end - first);
        let narrow: Vec<u8> = source.flat_map(|row| blend_pixels(row, 0, &across)).collect();
        down.iter().flat_map(|taps| blend_rows(&narrow, columns.length * 3, first, taps)).collect()
    }
}

/// The columns that `taps` look at, copied out: their bytes, the first one's index and how many they are.
fn needed(pixels: &[u8], width: usize, taps: &[Taps]) -> (Vec<u8>, usize, usize) {
    let first = taps.first().map_or(0, |taps| taps.first);
    let end = taps.last().map_or(0, |taps| taps.first + taps.weights.len());
    let part = pixels.chunks_exact(width * 3).flat_map(|row| &row[first * 3..end * 3]).copied().collect();
    (part, first, end - first)
}

/// One row of the output's columns; `offset` is the column that the row begins with.
fn blend_pixels(row: &[u8], offset: usize, taps: &[Taps]) -> Vec<u8> {
    let mut out = Vec::with_capacity(taps.len() * 3);
    for Taps { first, weights } in taps {
        let mut sums = [1i32 << (PRECISION - 1); 3];
        for (pixel, weight) in row[(first - offset) * 3..].chunks_exact(3).zip(weights) {
            for (sum, byte) in sums.iter_mut().zip(pixel) {
                *sum += i32::from(*byte) * weight;
            }
        }
        out.extend(sums.map(clip));
    }
    out
}

/// One row of the output, of rows of `stride` bytes; `offset` is the row that `narrow` begins with.
fn blend_rows(narrow: &[u8], stride: usize, offset: usize, taps: &Taps) -> Vec<u8> {
    let mut sums = vec![1i32 << (PRECISION - 1); stride];
    for (row, weight) in narrow[(taps.first - offset) * stride..].chunks_exact(stride).zip(&taps.weights) {
        for (sum, byte) in sums.iter_mut().zip(row) {
            *sum += i32::from(*byte) * weight;
        }
    }
    sums.into_iter().map(clip).collect()
}

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

fn taps(input: usize, window: Window) -> Vec<Taps> {
    let one = |index: usize| {
        if input == window.full {
            return Taps { first: index, weights: vec![1 << PRECISION] };
        }
        let scale = input as f64 / window.full as f64;
        let stretch = scale.max(1.0);
        let (support, centre) = (2.0 * stretch, (index as f64 + 0.5) * scale);
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(input);
        let inverse = 1.0 / stretch;
        let raw: Vec<f64> = (first..end).map(|at| cubic((at as f64 - centre + 0.5) * inverse)).collect();
        let total: f64 = raw.iter().sum();
        let norm = if total == 0.0 { 1.0 } else { 1.0 / total };
        let fixed = |weight: f64| (weight * norm * f64::from(1 << PRECISION) + 0.5f64.copysign(weight * norm)) as i32;
        Taps { first, weights: raw.into_iter().map(fixed).collect() }
    };
    (window.start..window.start + window.length).map(one).collect()
}

/// Keys' cubic convolution kernel with a = −0.5.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}
