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
        let columns = Columns::read(output)?;
        for (what, values) in [("loss", columns.get(0)), ("margin", columns.get(1))] {
            if let Some(bad) = values.iter().position(|v| !v.is_finite()) {
                let (t, prompt) = (batch.timesteps[bad], texts[batch.prompts[bad]]);
                let what = format!("the {what} at timestep {t} of prompt {prompt:?}");
                return Err(Error::NonFinite { what, value: values[bad] });
            }
        }
        let sum = |column: usize| columns.get(column).iter().sum::<f64>();
        self.pairs += batch.len() as f64;
        self.loss += sum(0);
        self.margin += sum(1);
        let right = |margin: &f64| if *margin > 0.0 { 1.0 } else { 0.5 * f64::from(u8::from(*margin == 0.0)) };
        self.correct += columns.get(1).iter().map(right).sum::<f64>();
        self.loser_scale += sum(2);
        for side in 0..2 {
            let log_ratios = columns.get(3 + side);
            self.log_ratio[side] += log_ratios.iter().sum::<f64>();
            self.ratio += log_ratios.iter().map(|r| r.exp()).sum::<f64>() / 2.0;
            self.clipped += sum(5 + side) / 2.0;
            self.kl += sum(7 + side) / 2.0;
        }
        if output.signs.is_some() {
            *self.flip.get_or_insert(0.0) += sum(9);
        }
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

/// What a batch reports, fetched from its device at once, column by column.
struct Columns {
    values: Vec<f64>,
    rows: usize,
}

impl Columns {
    fn read(output: &LossOutput) -> Result<Self> {
        let [ratio_w, ratio_l] = &output.log_ratios;
        let ([cut_w, cut_l], [kl_w, kl_l]) = (&output.clipped, &output.kl);
        let columns =
            [&output.per_pair, &output.margin, &output.loser_scale, ratio_w, ratio_l, cut_w, cut_l, kl_w, kl_l];
        let columns: Vec<Tensor> =
            columns.into_iter().chain(&output.signs).map(|column| column.to_kind(Kind::Double)).collect();
        let values = Vec::<f64>::try_from(Tensor::f_stack(&columns, 0)?.f_view([-1])?)?;
        Ok(Self { values, rows: output.pairs() })
    }

    fn get(&self, column: usize) -> &[f64] {
        &self.values[column * self.rows..(column + 1) * self.rows]
    }
}
