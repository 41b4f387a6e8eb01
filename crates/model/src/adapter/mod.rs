//! Adapters: what a policy adds to a frozen base, keyed by module path.
//!
//! A base is shared and immutable; a policy is a base plus an [`Adapter`], a reference policy the same base with
//! another adapter or none. Files: [`Adapter::load`], [`Adapter::save`]. An adapter changes layers of the U-Net's
//! transformers; a [`Lora`] is a whole file, which may change text encoders and convolutions too, and is merged into
//! a model's weights ([`crate::DiffusionModel::merged`]).

mod combine;
mod file;
mod inspect;
mod keys;
mod kohya;
mod lora;
mod lora_file;
mod metadata;
mod network;
mod plain_metadata;
mod targets;

use std::collections::BTreeMap;

use seedpo_tensor::{Init, Params};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::unet::UNet2DConditionModel;
use crate::{Error, Result};

pub use file::{FILE_NAME, KOHYA_FILE_NAME, resolve};
pub use inspect::{BlockSummary, LoraSummary};
pub use keys::{Layout, canonical_key};
pub use lora::{Lora, LoraModule};
pub use lora_file::{LoraFile, Unsupported};
pub use network::Network;

/// What an adapter does to one layer `[out, in]` of a transformer. Those of a 1×1 convolution (`proj_in` and `proj_out`
/// of Stable Diffusion 1.x) have two more axes of size 1, as peft's have.
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

/// How a fresh LoRA's A is drawn; B is always 0, so that the policy starts as the base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoraInit {
    /// Normal with standard deviation 1 / rank: peft's `init_lora_weights="gaussian"`, used by SPO and D3PO.
    #[default]
    Gaussian,
    /// Uniform in ±1/√in: peft's default (Kaiming-uniform with a = √5).
    KaimingUniform,
}

/// What a fresh LoRA looks like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank r, 1 or more.
    pub rank: i64,
    /// The delta is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Which layers: a path, or its last parts (`to_q`, `attn2.to_k`, `ff.net.2`), as peft's `target_modules`; or
    /// `attention` (`to_q`, `to_k`, `to_v`, `to_out.0`) and `all-linear` (these, `ff.net.0.proj`, `ff.net.2`, `proj_in`
    /// and `proj_out`: every linear layer of the U-Net's transformers).
    pub targets: Vec<String>,
    /// How A is drawn.
    pub init: LoraInit,
}

impl Default for LoraConfig {
    /// Rank and alpha 4 on q, k, v and out of every attention, Gaussian: SPO's and D3PO's settings.
    fn default() -> Self {
        let targets = targets::ATTENTION.map(str::to_owned).to_vec();
        Self { rank: 4, alpha: 4.0, targets, init: LoraInit::default() }
    }
}

/// A set of [`Delta`]s over one base network, keyed by the layer's diffusers path without the `unet.` prefix,
/// e.g. `mid_block.attentions.0.transformer_blocks.0.attn1.to_q`.
#[derive(Debug)]
pub struct Adapter {
    deltas: BTreeMap<String, Delta>,
}

impl Adapter {
    /// A fresh LoRA for `unet`, f32 on its device, requiring gradients. Every A is a function of `seed` and its path.
    ///
    /// Errors: [`Error::Argument`] for a rank below 1 or above a layer's width, an alpha that is not a finite
    /// number, or a target that no layer matches.
    pub fn lora(unet: &UNet2DConditionModel, config: &LoraConfig, seed: u64) -> Result<Self> {
        check(config)?;
        let params = Params::init(seed, unet.device());
        let mut deltas = BTreeMap::new();
        for projection in targets::select(unet.projections(), &config.targets)? {
            let path = &projection.path;
            let (inputs, outputs) = (projection.in_features, projection.out_features);
            if config.rank > inputs.min(outputs) {
                let expected = format!("at most {}, the width of `{path}`", inputs.min(outputs));
                return Err(argument("LoRA rank", expected, config.rank));
            }
            let init = match config.init {
                LoraInit::Gaussian => Init::Normal(1.0 / config.rank as f64),
                LoraInit::KaimingUniform => Init::Uniform(1.0 / (inputs as f64).sqrt()),
            };
            let at = params.root().sub(path);
            let new = |name, shape: Vec<i64>, init| at.get(name, &shape, init).set_requires_grad(true);
            let a = new("lora_A.weight", projection.shape(config.rank, inputs), init);
            let b = new("lora_B.weight", projection.shape(outputs, config.rank), Init::Zeros);
            deltas.insert(path.clone(), Delta::LowRank { a, b, scale: config.alpha / config.rank as f64 });
        }
        Ok(Self { deltas })
    }

    /// The change to the layer at `path` (no `unet.` prefix), or `None` where the base is used as it is.
    pub fn delta(&self, path: &str) -> Option<&Delta> {
        self.deltas.get(path)
    }

    /// Whether the change to the layer at `path` is one that gradients are wanted for.
    pub(crate) fn trains(&self, path: &str) -> bool {
        match self.delta(path) {
            None => false,
            Some(Delta::LowRank { a, b, .. }) => a.requires_grad() || b.requires_grad(),
            Some(Delta::Weight(weight)) => weight.requires_grad(),
        }
    }

    /// The paths of the layers that are changed, sorted.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.deltas.keys().map(String::as_str)
    }

    /// The merged form, for rollouts: whole weights `W' = W + scale * B A`, computed in f32 and cast back to the
    /// base's dtype, without gradient. The base is not touched.
    ///
    /// Errors: [`Error::Argument`] where `unet` is not the network that the adapter was made for.
    pub fn merge(&self, unet: &UNet2DConditionModel) -> Result<Self> {
        let _frozen = tch::no_grad_guard();
        let mut deltas = BTreeMap::new();
        for (path, delta) in &self.deltas {
            let weight = unet.weight(path)?;
            let merged = match delta {
                Delta::Weight(w) => w.shallow_clone(),
                Delta::LowRank { a, b, scale } => lora::merged_weight(weight, a, b, *scale)?,
            };
            deltas.insert(path.clone(), Delta::Weight(merged));
        }
        Ok(Self { deltas })
    }

    /// What its file holds; shares the tensors.
    ///
    /// Errors: [`Error::Argument`] for an adapter that holds merged weights.
    pub fn to_lora(&self) -> Result<Lora> {
        let module = |(path, delta): (&String, &Delta)| match delta {
            Delta::LowRank { a, b, scale } => {
                let (a, b) = (a.detach(), b.detach());
                Ok((format!("unet.{path}"), LoraModule { a, b, scale: *scale, has_alpha: true }))
            }
            Delta::Weight(_) => Err(argument(&format!("adapter at `{path}`"), "a low-rank pair", "a merged weight")),
        };
        Ok(Lora { modules: self.deltas.iter().map(module).collect::<Result<_>>()? })
    }

    /// Every tensor under the key it has in the adapter file (`unet.<path>.lora_A.weight`, `...lora_B.weight`; a whole
    /// weight is `unet.<path>.weight`), sorted by key; shallow clones.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let mut tensors = Vec::with_capacity(2 * self.deltas.len());
        for (path, delta) in &self.deltas {
            match delta {
                Delta::LowRank { a, b, .. } => {
                    tensors.push((format!("unet.{path}.lora_A.weight"), a.shallow_clone()));
                    tensors.push((format!("unet.{path}.lora_B.weight"), b.shallow_clone()));
                }
                Delta::Weight(w) => tensors.push((format!("unet.{path}.weight"), w.shallow_clone())),
            }
        }
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        tensors
    }

    /// Those of [`tensors`](Self::tensors) that an optimizer updates: the ones that require gradients. In-place
    /// changes to them are changes of the adapter.
    pub fn trainable(&self) -> Vec<(String, Tensor)> {
        self.tensors().into_iter().filter(|(_, tensor)| tensor.requires_grad()).collect()
    }

    /// How many numbers the adapter holds.
    pub fn parameter_count(&self) -> usize {
        self.tensors().iter().map(|(_, tensor)| tensor.numel()).sum()
    }

    /// A snapshot: copies of all tensors, without gradient. What is trained later does not change it.
    pub fn detached(&self) -> Self {
        self.map(|tensor| tensor.detach().copy())
    }

    /// Takes over the values of `other`, in place. Errors: [`Error::Argument`] for an adapter of other layers or ranks.
    pub fn copy_from(&self, other: &Self) -> Result<()> {
        let _frozen = tch::no_grad_guard();
        let (ours, theirs) = (self.tensors(), other.tensors());
        let form =
            |tensors: &[(String, Tensor)]| tensors.iter().map(|(n, t)| (n.clone(), t.size())).collect::<Vec<_>>();
        if form(&ours) != form(&theirs) {
            return Err(argument("adapter", "one of the same layers and ranks", "another"));
        }
        for ((_, mut to), (_, from)) in ours.into_iter().zip(theirs) {
            to.f_copy_(&from)?;
        }
        Ok(())
    }

    /// The same adapter on `device`, without gradient; shares the tensors where they are there already.
    pub fn to_device(&self, device: Device) -> Self {
        self.map(|tensor| tensor.detach().to_device(device))
    }

    /// The same tensors under a second owner: in-place changes to one are changes to both.
    pub fn shallow(&self) -> Self {
        self.map(Tensor::shallow_clone)
    }

    fn map(&self, each: impl Fn(&Tensor) -> Tensor) -> Self {
        let map = |delta: &Delta| match delta {
            Delta::LowRank { a, b, scale } => Delta::LowRank { a: each(a), b: each(b), scale: *scale },
            Delta::Weight(w) => Delta::Weight(each(w)),
        };
        Self { deltas: self.deltas.iter().map(|(path, delta)| (path.clone(), map(delta))).collect() }
    }
}

fn check(config: &LoraConfig) -> Result<()> {
    if config.rank < 1 {
        return Err(argument("LoRA rank", "1 or more", config.rank));
    }
    if !config.alpha.is_finite() {
        return Err(argument("LoRA alpha", "a finite number", config.alpha));
    }
    if config.targets.is_empty() {
        return Err(argument("LoRA targets", "at least one, such as `to_q`", "none"));
    }
    Ok(())
}

fn argument(what: &str, expected: impl Into<String>, found: impl std::fmt::Display) -> Error {
    Error::Argument { what: what.to_owned(), expected: expected.into(), found: found.to_string() }
}
