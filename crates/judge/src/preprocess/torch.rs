//! Preparations that resize floats with torch's own kernels.

use tch::Tensor;

use super::CLIP_STATISTICS;
use crate::{Error, Result};

const MAX_ASPECT: i64 = 256;

/// HPSv2's `ResizeMaxSize`: pixels in [0, 1], `[B, 3, H, W]`, to `[B, 3, S, S]`, longest edge S, bicubic, zeros around.
///
/// The result is not clamped: bicubic overshoot is kept, as there. The short edge keeps at least one pixel.
pub fn padded(images: &Tensor, side: i64, antialias: bool) -> Result<Tensor> {
    let (_, _, height, width) = images.size4()?;
    let scale = side as f64 / height.max(width) as f64;
    // Python's round: halves to even.
    let scaled = |edge: i64| ((edge as f64 * scale).round_ties_even() as i64).max(1);
    let (rows, columns) = (scaled(height), scaled(width));
    let resized = match (height.max(width) == side, antialias) {
        (true, _) => images.shallow_clone(),
        (_, true) => images.f_internal_upsample_bicubic2d_aa([rows, columns], false, None, None)?,
        (_, false) => images.f_upsample_bicubic2d([rows, columns], false, None, None)?,
    };
    let (down, across) = (side - rows, side - columns);
    Ok(resized.f_constant_pad_nd([across / 2, across - across / 2, down / 2, down - down / 2])?)
}

/// The step-aware preference model's preparation of decoded images `[B, 3, H, W]` in [−1, 1] (clamped after resizing):
/// shortest edge to S by bicubic without antialias, centre crop, [0, 1], CLIP's statistics; `[B, 3, S, S]`.
///
/// Source: SPO's scoring path; sizes round half up, the crop's offset half to even. Errors: [`Error::Images`] for pictures
/// more than 256 times as long as wide, which scaled would fill the memory.
pub fn step_aware(images: &Tensor, side: i64) -> Result<Tensor> {
    let (_, _, height, width) = images.size4()?;
    if height.max(width) > MAX_ASPECT * height.min(width) {
        let expected = "pictures at most 256 times as long as wide";
        return Err(Error::Images { expected, found: format!("{width} x {height} pixels") });
    }
    let scale = side as f64 / height.min(width) as f64;
    let scaled = |edge: i64| (edge as f64 * scale + 0.5) as i64;
    let (rows, columns) = (scaled(height), scaled(width));
    let resized = images.f_upsample_bicubic2d([rows, columns], false, None, None)?;
    let offset = |edge: i64| ((edge - side) as f64 / 2.0).round_ties_even() as i64;
    let square = resized.f_narrow(2, offset(rows), side)?.f_narrow(3, offset(columns), side)?;
    Ok(CLIP_STATISTICS.apply(&(square / 2.0 + 0.5).clamp(0.0, 1.0).to_kind(tch::Kind::Float)))
}

/// How the step-aware preference model was *trained* to see decoded images `[B, 3, H, W]` in [−1, 1]: to [0, 1] and clamped
/// first, then straight to S x S without a crop (bicubic, no antialias), clamped again, CLIP's statistics.
///
/// Equal to [`step_aware`] for square images but for what is clamped before resizing. Source: SPO's SPM trainer.
pub fn step_aware_training(images: &Tensor, side: i64) -> Result<Tensor> {
    let unit = (images / 2.0 + 0.5).clamp(0.0, 1.0).to_kind(tch::Kind::Float);
    let resized = unit.f_upsample_bicubic2d([side, side], false, None, None)?;
    Ok(CLIP_STATISTICS.apply(&resized.clamp(0.0, 1.0)))
}
