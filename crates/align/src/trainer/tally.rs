//! Adding up what the batches of one update report.

use crate::error::{Error, Result};
use crate::objective::{LossOutput, PairBatch};
use tch::{Kind, Tensor};

/// Sums over the pairs of an update.
#[derive(Debug, Default)]
pub struct Tally {
    /// Pairs added.
    pub pairs: f64,
    loss: f64,
    margin: f64,
    correct: f64,
    log_ratio: [f64; 2],
    ratio: f64,
    clipped: f64,
    kl: f64,
    loser_scale: f64,
    flip: Option<f64>,
}

/// The means of a [`Tally`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Means {
    /// Mean loss.
    pub loss: f64,
    /// Mean margin.
    pub margin: f64,
    /// Share of positive margins, 0 counting one half.
    pub accuracy: f64,
    /// Mean log-ratio of winners and losers.
    pub log_ratio: [f64; 2],
    /// Mean ratio of both sides.
    pub ratio: f64,
    /// Share of clipped ratios.
    pub clip_fraction: f64,
    /// Mean per-element KL of a step to the reference.
    pub kl: f64,
    /// Mean of what the safeguard multiplied the losers' gradients by.
    pub loser_scale: f64,
    /// Mean of the flipper's s, where there is one.
    pub flip: Option<f64>,
}

impl Tally {
    /// Adds a batch, all of whose pairs have a winner. `texts` are the prompts the batch refers to.
    ///
    /// Errors: [`Error::NonFinite`] naming quantity, denoising timestep and prompt of the first bad pair.
    pub fn add(&mut self, batch: &PairBatch, output: &LossOutput, texts: &[&str]) -> Result<()> {
        let sum = |t: &Tensor| t.sum(Kind::Double).double_value(&[]);
        for (what, values) in [("loss", &output.per_pair), ("margin", &output.margin)] {
            let values = Vec::<f64>::try_from(values.to_kind(Kind::Double))?;
            if let Some(bad) = values.iter().position(|v| !v.is_finite()) {
                let (t, prompt) = (batch.timesteps[bad], texts[batch.prompts[bad]]);
                let what = format!("the {what} at timestep {t} of prompt {prompt:?}");
                return Err(Error::NonFinite { what, value: values[bad] });
            }
        }
        self.pairs += batch.len() as f64;
        self.loss += sum(&output.per_pair);
        self.margin += sum(&output.margin);
        self.correct += sum(&output.margin.gt(0.0)) + 0.5 * sum(&output.margin.eq(0.0));
        if let Some(signs) = &output.signs {
            *self.flip.get_or_insert(0.0) += sum(signs);
        }
        for side in 0..2 {
            self.log_ratio[side] += sum(&output.ratios[side].log());
            self.ratio += sum(&output.ratios[side]) / 2.0;
            self.clipped += sum(&output.clipped[side]) / 2.0;
            self.kl += sum(&output.kl[side]) / 2.0;
        }
        self.loser_scale += sum(&output.loser_scale);
        Ok(())
    }

    /// The means; zeros if nothing was added.
    pub fn means(&self) -> Means {
        let n = self.pairs.max(1.0);
        Means {
            loss: self.loss / n,
            margin: self.margin / n,
            accuracy: self.correct / n,
            log_ratio: self.log_ratio.map(|v| v / n),
            ratio: self.ratio / n,
            clip_fraction: self.clipped / n,
            kl: self.kl / n,
            loser_scale: self.loser_scale / n,
            flip: self.flip.map(|sum| sum / n),
        }
    }
}
