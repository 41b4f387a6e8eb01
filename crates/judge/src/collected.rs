//! Scores of pictures that come in several batches.

use crate::{ImageBatch, Judge, Result};

/// A judge's view of pictures of any sizes, batch by batch, and in the end their scores: those that one batch of all would
/// have had, also where the judge compares the pictures of a prompt with each other.
pub struct Collected<'j> {
    judge: &'j dyn Judge,
    /// A row per part of the judge.
    parts: Vec<Vec<f64>>,
}

impl<'j> Collected<'j> {
    /// Nothing yet.
    pub fn new(judge: &'j dyn Judge) -> Self {
        Self { judge, parts: vec![Vec::new(); judge.parts()] }
    }

    /// Looks at a batch. Errors: as [`Judge::score_batch`]; the batch is left out then.
    pub fn add(&mut self, images: &ImageBatch, prompts: &[&str]) -> Result<()> {
        let parts = self.judge.part_scores(images, prompts)?;
        for (row, more) in self.parts.iter_mut().zip(parts) {
            row.extend(more);
        }
        Ok(())
    }

    /// One score per picture, in the order they came; `prompts` are those of all pictures. Errors: as [`Judge::combine`].
    pub fn scores(&self, prompts: &[&str]) -> Result<Vec<f64>> {
        self.judge.combine(prompts, &self.parts)
    }
}
