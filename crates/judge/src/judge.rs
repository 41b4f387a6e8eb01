//! The trait every judge implements.

use crate::{Error, ImageBatch, Result};
use tch::Tensor;

/// Scores images for prompts; higher is always better.
///
/// Implement [`Judge::name`], [`Judge::unit`] and [`Judge::judge`]; call [`Judge::score`], which checks what goes in
/// and what comes out.
pub trait Judge: Send {
    /// The name users write in a configuration, e.g. `jpeg-compressibility`.
    fn name(&self) -> &str;

    /// The unit of a score, e.g. `kB`, for axes and tables.
    fn unit(&self) -> &str;

    /// One score per image, in order; called by [`Judge::score`] with as many prompts as images.
    ///
    /// Errors: whatever the judge itself meets.
    fn judge(&self, images: &ImageBatch, prompts: &[&str]) -> Result<Vec<f64>>;

    /// Scores a batch: `images` u8 `[B, H, W, 3]` RGB on any device, `prompts` of length B -> B finite scores.
    ///
    /// Errors: [`Error::Images`] for another shape or element type, [`Error::PromptCount`], [`Error::NonFinite`]
    /// naming the first image and prompt whose score is NaN or infinite, and the judge's own.
    fn score(&self, images: &Tensor, prompts: &[&str]) -> Result<Vec<f64>> {
        let images = ImageBatch::from_tensor(images)?;
        if images.len() != prompts.len() {
            return Err(Error::PromptCount {
                judge: self.name().to_owned(),
                images: images.len(),
                prompts: prompts.len(),
            });
        }
        let scores = self.judge(&images, prompts)?;
        if scores.len() != images.len() {
            return Err(Error::ScoreCount {
                judge: self.name().to_owned(),
                expected: images.len(),
                found: scores.len(),
            });
        }
        match scores.iter().position(|score| !score.is_finite()) {
            None => Ok(scores),
            Some(index) => Err(Error::NonFinite {
                judge: self.name().to_owned(),
                index,
                prompt: prompts[index].to_owned(),
                value: scores[index],
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    /// Returns what it was told to.
    struct Fixed(Vec<f64>);

    impl Judge for Fixed {
        fn name(&self) -> &str {
            "fixed"
        }
        fn unit(&self) -> &str {
            "1"
        }
        fn judge(&self, _: &ImageBatch, _: &[&str]) -> Result<Vec<f64>> {
            Ok(self.0.clone())
        }
    }

    fn images(count: i64) -> Tensor {
        Tensor::zeros([count, 2, 2, 3], (Kind::Uint8, Device::Cpu))
    }

    #[test]
    fn non_finite_scores_name_image_and_prompt() {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let error = Fixed(vec![1.0, value]).score(&images(2), &["a cat", "a red apple"]).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("image 1") && text.contains("a red apple") && text.contains("fixed"), "{text}");
        }
    }

    #[test]
    fn counts_must_agree() {
        assert!(matches!(
            Fixed(vec![0.0; 2]).score(&images(2), &["one"]),
            Err(Error::PromptCount { images: 2, prompts: 1, .. })
        ));
        assert!(matches!(
            Fixed(vec![0.0]).score(&images(2), &["one", "two"]),
            Err(Error::ScoreCount { expected: 2, found: 1, .. })
        ));
        assert_eq!(Fixed(vec![]).score(&images(0), &[]).unwrap(), Vec::<f64>::new());
    }
}
