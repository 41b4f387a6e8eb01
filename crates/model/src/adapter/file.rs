//! Adapter files: `pytorch_lora_weights.safetensors`, which diffusers' `load_lora_weights` takes unchanged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use seedpo_tensor::{WeightFile, read_text, write_weights};
use tch::{Kind, Tensor};

use super::keys::{self, Half};
use super::metadata::{self, Metadata};
use super::{Adapter, Delta};
use crate::unet::UNet2DConditionModel;
use crate::{Error, Result};

/// The file name that diffusers looks for in a folder.
pub const FILE_NAME: &str = "pytorch_lora_weights.safetensors";

/// peft's own file name; `adapter_config.json` lies beside it.
const PEFT_FILE_NAME: &str = "adapter_model.safetensors";

/// The two halves of one projection's pair, with the keys they were found under.
#[derive(Default)]
struct Pair {
    a: Option<(String, Tensor)>,
    b: Option<(String, Tensor)>,
}

impl Adapter {
    /// Reads a LoRA made by diffusers, peft or us. `path` is the file, or a folder that holds
    /// `pytorch_lora_weights.safetensors` or `adapter_model.safetensors`.
    ///
    /// The tensors become f32 leaves that require gradients, on the U-Net's device; [`Adapter::detached`] freezes them.
    /// The scale is alpha / rank from the file's `lora_adapter_metadata` (or peft's `adapter_config.json` beside it),
    /// 1 where neither is there.
    ///
    /// Errors: [`Error::Adapter`] listing every unknown module, missing partner and wrong shape, each with expected
    /// and found; [`Error::Config`] for metadata that is malformed or asks for a kind of LoRA we do not have.
    pub fn load(path: &Path, unet: &UNet2DConditionModel) -> Result<Self> {
        let path = &resolve(path);
        let file = WeightFile::open(path)?;
        let metadata = read_metadata(&file)?;
        let mut problems = Vec::new();
        let pairs = collect(&file, unet, &mut problems)?;
        let mut deltas = BTreeMap::new();
        for (module, pair) in pairs {
            match finish(&module, pair, unet, &metadata) {
                Ok(delta) => {
                    deltas.insert(module, delta);
                }
                Err(mut found) => problems.append(&mut found),
            }
        }
        if deltas.is_empty() && problems.is_empty() {
            problems.push("expected LoRA tensors, found none".to_owned());
        }
        match problems.is_empty() {
            true => Ok(Self { deltas }),
            false => Err(Error::Adapter { path: path.clone(), problems }),
        }
    }

    /// Writes `pytorch_lora_weights.safetensors` (or whatever `path` is called) in one step: f32, keys
    /// `unet.<path>.lora_A.weight` and `.lora_B.weight`, alpha and rank in the metadata as diffusers reads them.
    ///
    /// Errors: [`Error::Adapter`] for an adapter that holds merged weights; [`Error::Tensor`] where writing fails,
    /// and then a file that was there before is intact.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut modules = Vec::with_capacity(self.deltas.len());
        for (module, delta) in &self.deltas {
            match delta {
                // alpha = scale * rank is exact for the usual powers of two, within a rounding error otherwise.
                Delta::LowRank { a, scale, .. } => {
                    modules.push((module.as_str(), a.size()[0], scale * a.size()[0] as f64))
                }
                Delta::Weight(_) => {
                    let problem = format!("`{module}` holds a merged weight; expected a low-rank pair");
                    return Err(Error::Adapter { path: path.to_path_buf(), problems: vec![problem] });
                }
            }
        }
        let tensors = self.tensors().into_iter().map(|(key, tensor)| (key, tensor.detach().to_kind(Kind::Float)));
        let metadata = [("format", "pt".to_owned()), (metadata::KEY, metadata::to_json(&modules))];
        let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Ok(write_weights(path, &tensors.collect(), &metadata)?)
    }
}

/// The adapter file that a path stands for: itself, or the one in a folder (ours or diffusers', else peft's).
pub fn resolve(path: &Path) -> PathBuf {
    if path.is_dir() {
        let peft = path.join(PEFT_FILE_NAME);
        return if peft.is_file() && !path.join(FILE_NAME).is_file() { peft } else { path.join(FILE_NAME) };
    }
    path.to_path_buf()
}

fn read_metadata(file: &WeightFile) -> Result<Metadata> {
    if let Some(text) = file.metadata().get(metadata::KEY) {
        return Metadata::parse(file.path(), text, "unet.");
    }
    let beside = file.path().with_file_name("adapter_config.json");
    let is_peft = file.names().any(|name| name.starts_with("base_model.model."));
    match is_peft && beside.is_file() {
        true => Metadata::parse(&beside, &read_text(&beside)?, ""),
        false => Ok(Metadata::default()),
    }
}

/// Sorts a file's tensors into pairs; keys that name no projection of `unet` are noted as problems.
fn collect(
    file: &WeightFile,
    unet: &UNet2DConditionModel,
    problems: &mut Vec<String>,
) -> Result<BTreeMap<String, Pair>> {
    let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
    for key in file.names() {
        let (module, half) = match keys::parse(key) {
            Ok(parsed) => parsed,
            Err(reason) => {
                problems.push(format!("`{key}`: {reason}"));
                continue;
            }
        };
        if !unet.projections().iter().any(|projection| projection.path == module) {
            problems.push(format!("`{key}`: expected an attention projection of this U-Net, found `{module}`"));
            continue;
        }
        let pair = pairs.entry(module).or_default();
        let slot = match half {
            Half::A => &mut pair.a,
            Half::B => &mut pair.b,
        };
        match slot {
            Some((first, _)) => problems.push(format!("`{key}`: the same tensor as `{first}` in another spelling")),
            None => *slot = Some((key.to_owned(), file.tensor(key)?)),
        }
    }
    Ok(pairs)
}

/// One projection's delta, or everything that is wrong with it.
fn finish(
    module: &str,
    pair: Pair,
    unet: &UNet2DConditionModel,
    metadata: &Metadata,
) -> std::result::Result<Delta, Vec<String>> {
    let (a_key, a, b_key, b) = match (pair.a, pair.b) {
        (Some((a_key, a)), Some((b_key, b))) => (a_key, a, b_key, b),
        (Some((key, _)), None) => {
            return Err(vec![format!("`{key}`: its partner, the `lora_B` of {module}, is missing")]);
        }
        (None, Some((key, _))) => {
            return Err(vec![format!("`{key}`: its partner, the `lora_A` of {module}, is missing")]);
        }
        (None, None) => return Err(vec![format!("`{module}`: both halves are missing")]),
    };
    let weight = unet.weight(module).map_err(|e| vec![e.to_string()])?;
    let (outputs, inputs) = (weight.size()[0], weight.size()[1]);
    let rank = a.size().first().copied().unwrap_or(0);
    let mut problems = Vec::new();
    if a.dim() != 2 || a.size()[1] != inputs || rank < 1 {
        problems.push(format!("`{a_key}`: expected shape [rank, {inputs}], found {:?}", a.size()));
    } else if b.size() != [outputs, rank] {
        problems.push(format!("`{b_key}`: expected shape [{outputs}, {rank}], found {:?}", b.size()));
    } else if let Some(said) = metadata.rank(module).filter(|&said| said != rank) {
        problems.push(format!("`{a_key}`: expected rank {said} as the metadata says, found {rank}"));
    }
    for (key, tensor) in [(&a_key, &a), (&b_key, &b)] {
        if !tensor.is_floating_point() {
            problems.push(format!("`{key}`: expected floating-point numbers, found {:?}", tensor.kind()));
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let leaf = |tensor: Tensor| tensor.to_kind(Kind::Float).to_device(unet.device()).set_requires_grad(true);
    Ok(Delta::LowRank { scale: metadata.scale(module, rank), a: leaf(a), b: leaf(b) })
}
