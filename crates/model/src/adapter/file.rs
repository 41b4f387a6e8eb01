//! Adapter files: `pytorch_lora_weights.safetensors`, which diffusers' `load_lora_weights` takes unchanged, and kohya's.

use std::path::{Path, PathBuf};

use tch::{Kind, Tensor};

use super::keys::LAYERS_PER_BLOCK;
use super::lora::Lora;
use super::lora_file::{LoraFile, Unsupported};
use super::{Adapter, Delta};
use crate::unet::{Projection, UNet2DConditionModel};
use crate::{Error, Result};

/// The file name that diffusers looks for in a folder.
pub const FILE_NAME: &str = "pytorch_lora_weights.safetensors";
/// The same adapter for A1111, ComfyUI and sd-scripts, which training writes beside it.
pub const KOHYA_FILE_NAME: &str = "pytorch_lora_weights_kohya.safetensors";

/// Further names that a folder's adapter may have: peft's own (`adapter_config.json` lies beside it), and torch's.
const OTHER_FILE_NAMES: [&str; 3] = ["adapter_model.safetensors", "pytorch_lora_weights.bin", "adapter_model.bin"];

impl Adapter {
    /// Reads a LoRA made by diffusers, peft, kohya's sd-scripts or us that changes nothing but what runs unmerged:
    /// the layers of the U-Net's transformers. `path` is the file, or a folder that holds
    /// `pytorch_lora_weights.safetensors`, `adapter_model.safetensors` or one of these as `.bin`.
    ///
    /// The tensors become f32 leaves that require gradients, on the U-Net's device; [`Adapter::detached`] freezes them.
    /// The scale is alpha / rank from the file's `.alpha` tensors or its metadata (`lora_adapter_metadata`, plain `alpha` and
    /// `rank`, or peft's `adapter_config.json` beside it), 1 where there are none.
    ///
    /// Errors: as [`LoraFile::open`] and [`LoraFile::into_lora`]; [`Error::Adapter`] naming other layers and wrong
    /// shapes, each with expected and found.
    pub fn load(path: &Path, unet: &UNet2DConditionModel) -> Result<Self> {
        let file = LoraFile::open_for(path, unet)?;
        let mut problems: Vec<String> = file.unsupported.iter().map(Unsupported::describe).collect();
        let mut others = Vec::new();
        for (name, module) in &file.modules {
            match projection(unet, name) {
                None => others.push(name),
                Some(p) => problems.extend(module.misfit(name, &p.shape(p.out_features, p.in_features))),
            }
        }
        if let Some(first) = others.first() {
            let count = others.len();
            problems.push(format!(
                "expected layers of this U-Net's transformers, found {count} other layer(s) such as `{first}`; \
                 `seedpo sample --adapter` applies a whole file, `seedpo adapter merge --model` writes a model with it"
            ));
        }
        file.into_checked(problems)?.into_adapter(unet)
    }

    /// Writes `pytorch_lora_weights.safetensors` (or whatever `path` is called) in one step: f32, keys
    /// `unet.<path>.lora_A.weight` and `.lora_B.weight`, alpha and rank in the metadata as diffusers reads them.
    ///
    /// Errors: [`Error::Adapter`] for an adapter that holds merged weights; [`Error::Tensor`] where writing fails,
    /// and then a file that was there before is intact.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.lora_for(path)?.save(path)
    }

    /// As [`Self::save`] in kohya's layout: [`Lora::save_kohya`].
    pub fn save_kohya(&self, path: &Path) -> Result<()> {
        self.lora_for(path)?.save_kohya(path, None)
    }

    fn lora_for(&self, path: &Path) -> Result<Lora> {
        let refused = |e: Error| Error::Adapter { path: path.to_path_buf(), problems: vec![e.to_string()] };
        self.to_lora().map_err(refused)
    }
}

impl Lora {
    /// The adapter that a policy runs with: f32 leaves that require gradients, on the U-Net's device.
    ///
    /// Errors: [`Error::Argument`] for a layer that does not run unmerged, or is not the U-Net's.
    pub fn into_adapter(self, unet: &UNet2DConditionModel) -> Result<Adapter> {
        let mut deltas = std::collections::BTreeMap::new();
        for (name, module) in self.modules {
            let wrong = |found: &str| super::argument("adapter", "layers of this U-Net's transformers", found);
            let p = projection(unet, &name).ok_or_else(|| wrong(&name))?;
            if let Some(problem) = module.misfit(&name, &p.shape(p.out_features, p.in_features)) {
                return Err(wrong(&problem));
            }
            let leaf = |tensor: &Tensor, shape: Vec<i64>| -> Result<Tensor> {
                let tensor = tensor.detach().f_to_kind(Kind::Float)?.f_reshape(shape)?.f_to_device(unet.device())?;
                Ok(tensor.set_requires_grad(true))
            };
            let rank = module.rank();
            let a = leaf(&module.a, p.shape(rank, p.in_features))?;
            let b = leaf(&module.b, p.shape(p.out_features, rank))?;
            deltas.insert(p.path.clone(), Delta::LowRank { a, b, scale: module.scale });
        }
        Ok(Adapter { deltas })
    }

    /// Whether every layer is one that runs unmerged, so that [`Self::into_adapter`] takes it.
    pub fn runs_unmerged(&self, unet: &UNet2DConditionModel) -> bool {
        self.names().all(|name| projection(unet, name).is_some())
    }
}

impl LoraFile {
    /// As [`LoraFile::open`], where original block numbers count by the U-Net's residual blocks per level.
    pub(super) fn open_for(path: &Path, unet: &UNet2DConditionModel) -> Result<Self> {
        let layers = unet.config().layers_per_block.first().map_or(LAYERS_PER_BLOCK, |layers| *layers as usize);
        Self::open_counting(path, layers)
    }
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

/// The layer of this whole name, if it runs unmerged.
fn projection<'a>(unet: &'a UNet2DConditionModel, name: &str) -> Option<&'a Projection> {
    let path = name.strip_prefix("unet.")?;
    unet.projections().iter().find(|projection| projection.path == path)
}
