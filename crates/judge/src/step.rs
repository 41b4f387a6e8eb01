//! Any judge as the judge of a denoising step.

use crate::{Error, Job, Judge, Pending, Pictures, Predicted, Result};
use std::error::Error as StdError;
use tch::Tensor;

/// What turns predicted clean latents x̂0 `[B, C, h, w]` (scaled, as the U-Net sees them) into images f32
/// `[B, 3, H, W]` in [−1, 1]; the VAE's decoder in practice.
type Decode<'a> = Box<dyn Fn(&Tensor) -> std::result::Result<Tensor, Box<dyn StdError + Send + Sync>> + 'a>;

/// A [`Judge`] of images used as SPO's step judge: it sees the image the model predicts at each step, x̂0 decoded.
///
/// This is the "any judge applied to x̂0" of docs/methods.md section 4.3; a step-aware preference model also looks at
/// the timestep, which an ordinary judge ignores.
pub struct StepJudge<'a> {
    judge: &'a dyn Judge,
    decode: Decode<'a>,
}

impl<'a> StepJudge<'a> {
    /// Wraps `judge`; `decode` maps x̂0 `[B, C, h, w]` to images f32 `[B, 3, H, W]` in [−1, 1] (clamped here).
    pub fn new<F, E>(judge: &'a dyn Judge, decode: F) -> Self
    where
        F: Fn(&Tensor) -> std::result::Result<Tensor, E> + 'a,
        E: Into<Box<dyn StdError + Send + Sync>>,
    {
        Self { judge, decode: Box::new(move |latents| decode(latents).map_err(Into::into)) }
    }

    /// The wrapped judge's name.
    pub fn name(&self) -> &str {
        self.judge.name()
    }

    /// The wrapped judge's unit.
    pub fn unit(&self) -> &str {
        self.judge.unit()
    }

    /// Scores predicted clean latents: `pred_x0` `[B, C, h, w]`, their common `timestep` (0 to 999, 0 for finished
    /// images), one prompt each -> B finite scores, higher is better. Runs without gradients.
    ///
    /// Errors: [`Error::Decode`] if the decoder fails, [`Error::NonFiniteImage`], and those of [`Judge::score`].
    pub fn score(&self, pred_x0: &Tensor, timestep: i64, prompts: &[&str]) -> Result<Vec<f64>> {
        self.submit(pred_x0, timestep, prompts)?.wait()
    }

    /// As [`StepJudge::score`], not waiting for a judge that works in the background.
    pub fn submit(&self, pred_x0: &Tensor, timestep: i64, prompts: &[&str]) -> Result<Pending> {
        let _no_grad = tch::no_grad_guard();
        let images = (self.decode)(pred_x0).map_err(|source| Error::Decode { timestep, source })?;
        Ok(self.judge.submit(Job::new(Pictures::Predicted(Predicted::new(&images)?, timestep), prompts)))
    }
}

impl std::fmt::Debug for StepJudge<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("StepJudge").field("judge", &self.judge.name()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Colourfulness, JpegSize, to_u8};
    use tch::{Device, Kind};

    fn upscale(latents: &Tensor) -> std::result::Result<Tensor, tch::TchError> {
        latents.f_slice(1, 0, 3, 1)?.f_repeat_interleave_self_int(8, 2, None)?.f_repeat_interleave_self_int(8, 3, None)
    }

    #[test]
    fn equals_the_judge_on_the_decoded_image() {
        tch::manual_seed(5);
        let latents = Tensor::randn([3, 4, 4, 4], (Kind::Float, Device::Cpu));
        let prompts = ["a", "b", "c"];
        for judge in [&JpegSize::Compressibility as &dyn Judge, &Colourfulness] {
            let direct = judge.score(&to_u8(&upscale(&latents).unwrap()).unwrap(), &prompts).unwrap();
            let step = StepJudge::new(judge, upscale);
            assert_eq!(step.score(&latents, 501, &prompts).unwrap(), direct);
            assert_eq!(step.name(), judge.name());
        }
    }

    #[test]
    fn failures_name_their_place() {
        let step = StepJudge::new(&Colourfulness, |_: &Tensor| Err::<Tensor, _>("no decoder"));
        let latents = Tensor::zeros([1, 4, 2, 2], (Kind::Float, Device::Cpu));
        let text = step.score(&latents, 41, &["a"]).unwrap_err().to_string();
        assert!(text.contains("timestep 41") && text.contains("no decoder"), "{text}");
        let step = StepJudge::new(&Colourfulness, upscale);
        let diverged = latents.f_full_like(f64::NAN).unwrap();
        assert!(matches!(step.score(&diverged, 1, &["a"]), Err(Error::NonFiniteImage { index: 0 })));
    }
}
