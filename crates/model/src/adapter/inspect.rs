//! What a LoRA file does, in numbers.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::lora::LoraModule;
use super::lora_file::LoraFile;
use super::network::Network;

/// What an adapter changes in one of the U-Net's blocks, or in a text encoder.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BlockSummary {
    /// Layers changed.
    pub modules: usize,
    /// The Frobenius norm of all its changes `scale * B A` together.
    pub norm: f64,
    /// The largest of them.
    pub largest: f64,
}

/// A LoRA file's contents in numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraSummary {
    /// Numbers in all A and B.
    pub parameters: usize,
    /// How many layers have each rank.
    pub ranks: BTreeMap<i64, usize>,
    /// How many layers have each alpha, as text; `none` where the file says none (scale 1).
    pub alphas: BTreeMap<String, usize>,
    /// How many layers of each kind there are, e.g. `attn2.to_k`.
    pub targets: BTreeMap<String, usize>,
    /// How many layers have each dtype.
    pub kinds: BTreeMap<String, usize>,
    /// By block, e.g. `up_blocks.1`, `text_encoder`.
    pub blocks: BTreeMap<String, BlockSummary>,
    /// Layers that hold NaN or infinite numbers.
    pub not_finite: Vec<String>,
    /// Layers whose B is all 0: they change nothing.
    pub without_effect: usize,
}

impl LoraFile {
    /// The file's contents in numbers.
    pub fn summary(&self) -> LoraSummary {
        let _frozen = tch::no_grad_guard();
        let mut summary = LoraSummary {
            parameters: 0,
            ranks: BTreeMap::new(),
            alphas: BTreeMap::new(),
            targets: BTreeMap::new(),
            kinds: BTreeMap::new(),
            blocks: BTreeMap::new(),
            not_finite: Vec::new(),
            without_effect: 0,
        };
        for (path, module) in &self.modules {
            let rank = module.rank();
            let alpha = if module.has_alpha { format!("{}", module.scale * rank as f64) } else { "none".to_owned() };
            summary.parameters += module.a.numel() + module.b.numel();
            *summary.ranks.entry(rank).or_default() += 1;
            *summary.alphas.entry(alpha).or_default() += 1;
            *summary.targets.entry(target(path)).or_default() += 1;
            *summary.kinds.entry(format!("{:?}", module.a.kind())).or_default() += 1;
            if !module.is_finite() {
                summary.not_finite.push(path.clone());
                continue;
            }
            let double = |tensor: &Tensor| tensor.flatten(1, -1).to_kind(Kind::Double);
            let (a, b) = (double(&module.a), double(&module.b));
            let norm = norm(module, &a, &b);
            summary.without_effect += usize::from(norm == 0.0);
            let block = summary.blocks.entry(block(path)).or_default();
            block.modules += 1;
            block.norm = block.norm.hypot(norm);
            block.largest = block.largest.max(norm);
        }
        summary
    }
}

/// `‖scale B A‖`, from the small Gram matrices: `‖B A‖² = tr(BᵀB A Aᵀ)`.
fn norm(module: &LoraModule, a: &Tensor, b: &Tensor) -> f64 {
    let square = (b.tr().mm(b) * a.mm(&a.tr())).sum(Kind::Double).double_value(&[]);
    module.scale.abs() * square.max(0.0).sqrt()
}

/// `up_blocks.1` of `unet.up_blocks.1.attentions.0...`, `mid_block` of the middle's, a text encoder's own name.
fn block(name: &str) -> String {
    let Some((Network::UNet, path)) = Network::split(name) else {
        return name.split('.').next().unwrap_or(name).to_owned();
    };
    let words = if path.starts_with("down_blocks.") || path.starts_with("up_blocks.") { 2 } else { 1 };
    path.split('.').take(words).collect::<Vec<_>>().join(".")
}

/// `attn2.to_out.0` of a whole name: what follows the number of the innermost block.
fn target(name: &str) -> String {
    let markers = [".transformer_blocks.", ".attentions.", ".resnets.", ".layers.", "_blocks."];
    let after = |marker: &str| name.rsplit_once(marker)?.1.split_once('.').map(|(_, rest)| rest);
    let within = || name.split_once('.').map_or(name, |(_, path)| path);
    markers.into_iter().find_map(after).unwrap_or_else(within).to_owned()
}
