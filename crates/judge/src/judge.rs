//! The trait every judge implements.

use crate::{Error, ImageBatch, Job, Pending, Pictures, Predicted, Result, Statistics};
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

    /// As [`Judge::judge`] for pictures predicted at a `timestep` (0 to 999; 0: finished).
    ///
    /// A judge that does not know timesteps looks at the picture alone, as bytes.
    /// Errors: the judge's own.
    fn judge_step(&self, images: &Predicted, _timestep: i64, prompts: &[&str]) -> Result<Vec<f64>> {
        self.judge(images.bytes()?, prompts)
    }

    /// Begins to score; the scores are waited for when they are needed. Most judges score at once, a
    /// [`BackgroundJudge`](crate::BackgroundJudge) goes on by itself. Errors: when waited for, as [`Judge::score`].
    fn submit(&self, job: Job) -> Pending {
        let prompts: Vec<&str> = job.prompts.iter().map(String::as_str).collect();
        Pending::known(match &job.pictures {
            Pictures::Finished(images) => self.score_batch(images, &prompts),
            Pictures::Predicted(images, timestep) => self.score_predicted(images, *timestep, &prompts),
        })
    }

    /// What the judges within have given so far; empty for a judge that is one.
    fn statistics(&self) -> Vec<Statistics> {
        Vec::new()
    }

    /// As [`Judge::statistics`], of the scores since this was last called.
    fn take_statistics(&self) -> Vec<Statistics> {
        Vec::new()
    }

    /// Leaves the scores since [`Judge::take_statistics`] was last called out of both: they were no part of the work.
    fn forget_statistics(&self) {}

    /// How many judges look at a picture: 1, or for an ensemble those within it.
    fn parts(&self) -> usize {
        1
    }

    /// What each of them gives the pictures, a row per part: from such rows, of one batch or of several joined,
    /// [`Judge::combine`] makes the scores ([`Collected`](crate::Collected) does both). Errors: as [`Judge::score_batch`].
    fn part_scores(&self, images: &ImageBatch, prompts: &[&str]) -> Result<Vec<Vec<f64>>> {
        Ok(vec![self.score_batch(images, prompts)?])
    }

    /// One score per prompt from a row per part, each with a number per prompt.
    ///
    /// Errors: [`Error::ScoreCount`] for another number of rows or of numbers in them, [`Error::NonFinite`].
    fn combine(&self, prompts: &[&str], parts: &[Vec<f64>]) -> Result<Vec<f64>> {
        checked(self.name(), prompts.len(), prompts, || Ok(parts.concat()))
    }

    /// Scores a batch: `images` u8 `[B, H, W, 3]` RGB on any device, `prompts` of length B -> B finite scores.
    ///
    /// Errors: [`Error::Images`] for another shape or element type, [`Error::PromptCount`], [`Error::NonFinite`]
    /// naming the first image and prompt whose score is NaN or infinite, and the judge's own.
    fn score(&self, images: &Tensor, prompts: &[&str]) -> Result<Vec<f64>> {
        self.score_batch(&ImageBatch::from_tensor(images)?, prompts)
    }

    /// As [`Judge::score`], for pictures already on the host.
    fn score_batch(&self, images: &ImageBatch, prompts: &[&str]) -> Result<Vec<f64>> {
        checked(self.name(), images.len(), prompts, || self.judge(images, prompts))
    }

    /// Scores predicted pictures, f32 `[B, 3, H, W]` in [−1, 1], at a timestep. Errors: as [`Judge::score`], and
    /// [`Error::NonFiniteImage`].
    fn score_step(&self, images: &Tensor, timestep: i64, prompts: &[&str]) -> Result<Vec<f64>> {
        self.score_predicted(&Predicted::new(images)?, timestep, prompts)
    }

    /// As [`Judge::score_step`], for pictures already checked.
    fn score_predicted(&self, images: &Predicted, timestep: i64, prompts: &[&str]) -> Result<Vec<f64>> {
        checked(self.name(), images.len(), prompts, || self.judge_step(images, timestep, prompts))
    }
}

/// Runs a judge where there is a prompt for each of `images` pictures, and looks at what comes out.
pub(crate) fn checked(
    name: &str,
    images: usize,
    prompts: &[&str],
    judge: impl FnOnce() -> Result<Vec<f64>>,
) -> Result<Vec<f64>> {
    if images != prompts.len() {
        return Err(Error::PromptCount { judge: name.to_owned(), images, prompts: prompts.len() });
    }
    let scores = judge()?;
    if scores.len() != images {
        return Err(Error::ScoreCount { judge: name.to_owned(), expected: images, found: scores.len() });
    }
    match scores.iter().position(|score| !score.is_finite()) {
        None => Ok(scores),
        Some(index) => Err(Error::NonFinite {
            judge: name.to_owned(),
            index,
            prompt: prompts[index].to_owned(),
            value: scores[index],
        }),
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
