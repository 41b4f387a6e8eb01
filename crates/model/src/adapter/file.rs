//! Adapter files: `pytorch_lora_weights.safetensors`, which diffusers' `load_lora_weights` takes unchanged, and kohya's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use seedpo_tensor::write_weights;
use tch::{Kind, Tensor};

use super::keys::{self, LAYERS_PER_BLOCK};
use super::lora_file::{LoraFile, LoraModule, Unsupported, refuse};
use super::metadata;
use super::{Adapter, Delta};
use crate::unet::UNet2DConditionModel;
use crate::{Error, Result};

/// The file name that diffusers looks for in a folder.
pub const FILE_NAME: &str = "pytorch_lora_weights.safetensors";
/// The same adapter for A1111, ComfyUI and sd-scripts, which training writes beside it.
pub const KOHYA_FILE_NAME: &str = "pytorch_lora_weights_kohya.safetensors";

/// Further names that a folder's adapter may have: peft's own (`adapter_config.json` lies beside it), and torch's.
const OTHER_FILE_NAMES: [&str; 3] = ["adapter_model.safetensors", "pytorch_lora_weights.bin", "adapter_model.bin"];

impl Adapter {
    /// Reads a LoRA made by diffusers, peft, kohya's sd-scripts or us. `path` is the file, or a folder that holds
    /// `pytorch_lora_weights.safetensors`, `adapter_model.safetensors` or one of these as `.bin`.
    ///
    /// The tensors become f32 leaves that require gradients, on the U-Net's device; [`Adapter::detached`] freezes them.
    /// The scale is alpha / rank from the file's `.alpha` tensors or `lora_adapter_metadata` (or peft's
    /// `adapter_config.json` beside it), 1 where there are none.
    ///
    /// Errors: as [`LoraFile::open`] and [`LoraFile::into_adapter`]; [`Error::Adapter`] naming unknown modules and wrong
    /// shapes, each with expected and found.
    pub fn load(path: &Path, unet: &UNet2DConditionModel) -> Result<Self> {
        let layers = unet.config().layers_per_block.first().map_or(LAYERS_PER_BLOCK, |layers| *layers as usize);
        let lora = LoraFile::open_counting(path, layers)?;
        let mut problems: Vec<String> = lora.unsupported.iter().map(Unsupported::describe).collect();
        problems.extend(lora.modules.iter().filter_map(|(path, module)| misfit(path, module, unet)));
        if !problems.is_empty() {
            if let Some(family) = lora.family() {
                problems.insert(0, format!("by its shapes, it is made for {family}"));
            }
            return Err(refuse(&lora.path, problems));
        }
        let mut adapter = lora.into_adapter(false)?;
        for delta in adapter.deltas.values_mut() {
            if let Delta::LowRank { a, b, .. } = delta {
                let leaf = |tensor: &Tensor| tensor.to_device(unet.device()).set_requires_grad(true);
                (*a, *b) = (leaf(a), leaf(b));
            }
        }
        Ok(adapter)
    }

    /// Writes `pytorch_lora_weights.safetensors` (or whatever `path` is called) in one step: f32, keys
    /// `unet.<path>.lora_A.weight` and `.lora_B.weight`, alpha and rank in the metadata as diffusers reads them.
    ///
    /// Errors: [`Error::Adapter`] for an adapter that holds merged weights; [`Error::Tensor`] where writing fails,
    /// and then a file that was there before is intact.
    pub fn save(&self, path: &Path) -> Result<()> {
        let pairs = self.pairs(path)?;
        let modules: Vec<(&str, i64, f64)> = pairs.iter().map(|pair| (pair.module, pair.rank, pair.alpha)).collect();
        let tensors = self.tensors().into_iter().map(|(key, tensor)| (key, tensor.detach().to_kind(Kind::Float)));
        let metadata = [("format", "pt".to_owned()), (metadata::KEY, metadata::to_json(&modules))];
        let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Ok(write_weights(path, &tensors.collect(), &metadata)?)
    }

    /// Writes the layout of kohya's sd-scripts, which A1111, ComfyUI and diffusers read, in one step: f32, keys
    /// `lora_unet_<path with _>.lora_down.weight`, `.lora_up.weight` and `.alpha`.
    ///
    /// Errors: as [`Self::save`].
    pub fn save_kohya(&self, path: &Path) -> Result<()> {
        let mut tensors = BTreeMap::new();
        let pairs = self.pairs(path)?;
        for pair in &pairs {
            let stem = keys::kohya_stem(pair.module);
            let float = |tensor: &Tensor| tensor.detach().to_kind(Kind::Float);
            tensors.insert(format!("{stem}.lora_down.weight"), float(pair.a));
            tensors.insert(format!("{stem}.lora_up.weight"), float(pair.b));
            tensors.insert(format!("{stem}.alpha"), Tensor::from(pair.alpha as f32));
        }
        let mut metadata = BTreeMap::from([("ss_network_module".to_owned(), "networks.lora".to_owned())]);
        if let Some(largest) = pairs.iter().max_by_key(|pair| pair.rank) {
            metadata.insert("ss_network_dim".to_owned(), largest.rank.to_string());
            metadata.insert("ss_network_alpha".to_owned(), largest.alpha.to_string());
        }
        Ok(write_weights(path, &tensors, &metadata)?)
    }

    /// All pairs with rank and alpha. Errors: [`Error::Adapter`] naming `path`, for merged weights.
    fn pairs(&self, path: &Path) -> Result<Vec<Pair<'_>>> {
        let mut pairs = Vec::with_capacity(self.deltas.len());
        for (module, delta) in &self.deltas {
            let Delta::LowRank { a, b, scale } = delta else {
                let problem = format!("`{module}` holds a merged weight; expected a low-rank pair");
                return Err(Error::Adapter { path: path.to_path_buf(), problems: vec![problem] });
            };
            let rank = a.size()[0];
            // alpha = scale * rank is exact for the usual powers of two, within a rounding error otherwise.
            pairs.push(Pair { module, a, b, rank, alpha: scale * rank as f64 });
        }
        Ok(pairs)
    }
}

/// One projection's pair.
struct Pair<'a> {
    module: &'a str,
    a: &'a Tensor,
    b: &'a Tensor,
    rank: i64,
    alpha: f64,
}

/// The adapter file that a path stands for: itself, or the one in a folder (ours or diffusers', else peft's).
pub fn resolve(path: &Path) -> PathBuf {
    if path.is_dir() {
        let names = std::iter::once(FILE_NAME).chain(OTHER_FILE_NAMES);
        let found = names.map(|name| path.join(name)).find(|file| file.is_file());
        return found.unwrap_or_else(|| path.join(FILE_NAME));
    }
    path.to_path_buf()
}

/// What keeps a pair from fitting a U-Net's projection.
fn misfit(path: &str, module: &LoraModule, unet: &UNet2DConditionModel) -> Option<String> {
    let Some(projection) = unet.projections().iter().find(|projection| projection.path == path) else {
        return Some(format!("expected attention projections of this U-Net, found `{path}`"));
    };
    let (inputs, outputs, rank) = (projection.in_features, projection.out_features, module.rank());
    if module.a.size() != [rank, inputs] {
        return Some(format!("`{path}`, A: expected shape [{rank}, {inputs}], found {:?}", module.a.size()));
    }
    (module.b.size() != [outputs, rank])
        .then(|| format!("`{path}`, B: expected shape [{outputs}, {rank}], found {:?}", module.b.size()))
}
