//! Adapters: what a policy adds to a frozen base, keyed by module path.

use std::collections::BTreeMap;

use tch::Tensor;

/// What an adapter does to one projection (a linear layer `[out, in]` of an attention).
#[derive(Debug)]
pub enum Delta {
    /// LoRA: `y = W x + scale * B (A x)`, the low-rank part in float32 whatever the base's dtype.
    LowRank {
        /// Down projection A, `[rank, in]`, f32.
        a: Tensor,
        /// Up projection B, `[out, rank]`, f32.
        b: Tensor,
        /// `alpha / rank`.
        scale: f64,
    },
    /// A whole replacement weight W', `[out, in]`, in the base's dtype: the merged form used in rollouts.
    Weight(Tensor),
}

/// A set of [`Delta`]s over one base network, keyed by the projection's diffusers path without the `unet.` prefix,
/// e.g. `mid_block.attentions.0.transformer_blocks.0.attn1.to_q`.
#[derive(Debug)]
pub struct Adapter {
    deltas: BTreeMap<String, Delta>,
}

impl Adapter {
    /// The change to the projection at `path` (no `unet.` prefix), or `None` where the base is used as it is.
    pub fn delta(&self, path: &str) -> Option<&Delta> {
        self.deltas.get(path)
    }
}
