//! The losses, as functions of the towers' features.

use seedpo_judge::normalised;
use tch::{Kind, Tensor};

/// OpenCLIP keeps the logit scale at most here: exp = 100.
pub const MAX_LOGIT_SCALE: f64 = 4.605_170_185_988_092;

/// exp(logit scale) · cosine of every row of `left` `[B, P]` with every row of `right` `[C, P]`: `[B, C]` f32.
pub fn logits(left: &Tensor, right: &Tensor, logit_scale: &Tensor) -> Tensor {
    normalised(left).matmul(&normalised(right).transpose(0, 1)) * logit_scale.to_kind(Kind::Float).exp()
}

/// exp(logit scale) · cosine, row by row: `[B]` f32.
pub fn scores(images: &Tensor, texts: &Tensor, logit_scale: &Tensor) -> Tensor {
    (normalised(images) * normalised(texts)).sum_dim_intlist(-1, false, None) * logit_scale.to_kind(Kind::Float).exp()
}

/// CLIP's symmetric InfoNCE of `images` and `texts` `[B, P]`, row i belonging to row i: the mean of the cross entropies
/// over rows and over columns, in nats. Equal to transformers' `clip_loss`.
pub fn contrastive(images: &Tensor, texts: &Tensor, logit_scale: &Tensor) -> Tensor {
    let logits = logits(texts, images, logit_scale);
    let own = |dim| logits.log_softmax(dim, Kind::Float).diagonal(0, 0, 1).mean(Kind::Float);
    (own(0) + own(1)) * -0.5
}

/// PickScore's loss: Σ w · (two-way cross entropy of the pair's softmaxed scores with (label, 1 − label) + tie · ln ½).
///
/// `images` are the features of both pictures, `[B, P]` each; `label_0` f32 `[B]`, 1 where the first is preferred, 0 the
/// second, ½ for a tie, whose loss is 0 where both scores are equal; `weights` f32 `[B]` sum to 1 over the update's pairs
/// ([`prompt_weights`]). Source: PickScore's `CLIPCriterion` (without negatives from the batch), SPO's `SPMCriterion`.
pub fn preference(
    images: [&Tensor; 2],
    texts: &Tensor,
    logit_scale: &Tensor,
    label_0: &Tensor,
    weights: &Tensor,
) -> Tensor {
    let pair = Tensor::stack(&images.map(|side| scores(side, texts, logit_scale)), -1).log_softmax(-1, Kind::Float);
    let cross_entropy: Tensor = label_0 * pair.select(1, 0) + (1.0 - label_0) * pair.select(1, 1);
    let tie = label_0.eq(0.5).to_kind(Kind::Float) * 0.5f64.ln();
    ((tie - cross_entropy) * weights).sum(Kind::Float)
}

/// The weights of an update's pairs, in their order: 1 / (pairs of its prompt) each, divided by the sum of them all. A 0
/// counts as 1.
pub fn prompt_weights(examples_per_prompt: &[u32]) -> Vec<f32> {
    let weights: Vec<f64> = examples_per_prompt.iter().map(|&n| 1.0 / f64::from(n.max(1))).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| (weight / total) as f32).collect()
}
