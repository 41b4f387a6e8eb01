//! What a LoRA file holds, for any layers of a model: read, added up, merged into weights and written.

use std::collections::BTreeMap;
use std::path::Path;

use seedpo_tensor::write_weights;
use tch::{Kind, Tensor};

use super::lora_file::{LoraFile, Unsupported, refuse, shows_sdxl};
use super::network::Network;
use super::{argument, kohya, metadata};
use crate::Result;
use crate::model::DiffusionModel;

/// The pair of one layer.
#[derive(Debug)]
pub struct LoraModule {
    /// A, `[rank, in]`, of a convolution `[rank, in, k, k]`, in the file's dtype.
    pub a: Tensor,
    /// B, `[out, rank]`, of a convolution `[out, rank, 1, 1]`, in the file's dtype.
    pub b: Tensor,
    /// `alpha / rank` (rsLoRA: `alpha / √rank`); 1 where the file says no alpha.
    pub scale: f64,
    /// Whether the file says an alpha.
    pub has_alpha: bool,
}

impl LoraModule {
    /// The rank.
    pub fn rank(&self) -> i64 {
        self.a.size()[0]
    }

    /// Whether all its numbers are finite.
    pub fn is_finite(&self) -> bool {
        [&self.a, &self.b].iter().all(|x| x.isfinite().all().int64_value(&[]) == 1)
    }

    /// What keeps the pair from changing a weight of this shape, in words.
    pub(super) fn misfit(&self, name: &str, weight: &[i64]) -> Option<String> {
        misfit(name, &self.a, &self.b, weight)
    }
}

/// What keeps a pair from changing a weight; shapes are compared without the axes of a 1×1 kernel.
pub(super) fn misfit(name: &str, a: &Tensor, b: &Tensor, weight: &[i64]) -> Option<String> {
    fn inputs(shape: &[i64]) -> &[i64] {
        match shape {
            [_, input, 1, 1] => std::slice::from_ref(input),
            shape => &shape[1..],
        }
    }
    let (a, b) = (a.size(), b.size());
    let rank = a[0];
    if inputs(&a) != inputs(weight) {
        let expected = [&[rank], &weight[1..]].concat();
        return Some(format!("`{name}`, A: expected shape {expected:?}, found {a:?}"));
    }
    (b[0] != weight[0]).then(|| format!("`{name}`, B: expected shape [{}, {rank}], found {b:?}", weight[0]))
}

/// `W + scale B A` in f32, cast back to W's kind; W `[out, in]` or `[out, in, k, k]`, A and B as in [`LoraModule`].
pub(super) fn merged_weight(weight: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    let matrix = |tensor: &Tensor| tensor.f_flatten(1, -1)?.f_to_kind(Kind::Float)?.f_to_device(weight.device());
    let change = (matrix(b)?.f_mm(&matrix(a)?)? * scale).f_reshape(weight.size())?;
    Ok(weight.to_kind(Kind::Float).f_add(&change)?.to_kind(weight.kind()))
}

/// Low-rank changes to layers of a model: of the U-Net (linear layers and convolutions) and of the text encoders.
///
/// Layers are named `unet.<path>`, `text_encoder.<path>` and `text_encoder_2.<path>` by their module path in diffusers
/// and transformers, a text encoder's without `text_model.`.
#[derive(Debug, Default)]
pub struct Lora {
    pub(super) modules: BTreeMap<String, LoraModule>,
}

impl Lora {
    /// Reads a LoRA made by diffusers, peft, kohya's sd-scripts or us, and checks that it fits `model`. `path` is a file,
    /// or a folder as in [`Adapter::load`](super::Adapter::load).
    ///
    /// Errors: as [`LoraFile::open`] and [`LoraFile::into_lora`]; [`crate::Error::Adapter`] naming layers that the model does
    /// not have and wrong shapes, each with expected and found.
    pub fn load(path: &Path, model: &DiffusionModel) -> Result<Self> {
        let lora = LoraFile::open_for(path, &model.unet)?;
        let mut problems: Vec<String> = lora.unsupported.iter().map(Unsupported::describe).collect();
        for (name, module) in &lora.modules {
            match model.layer_weight(name) {
                None => problems.push(format!("`{name}`: expected layers of this model, which has none of this name")),
                Some(weight) => problems.extend(module.misfit(name, &weight.size())),
            }
        }
        lora.into_checked(problems)
    }

    /// The names of the layers that are changed, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.modules.keys().map(String::as_str)
    }

    /// The pair of a layer.
    pub fn module(&self, name: &str) -> Option<&LoraModule> {
        self.modules.get(name)
    }

    /// Writes the layout of diffusers in one step: f32, keys `unet.<path>.lora_A.weight` and `.lora_B.weight` (a text
    /// encoder's layers begin with `text_encoder.text_model.`), alpha and rank in the metadata as diffusers reads them.
    ///
    /// Errors: [`crate::Error::Tensor`] where writing fails, and then a file that was there before is intact.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = BTreeMap::new();
        let mut said: BTreeMap<&str, Vec<metadata::Written>> = BTreeMap::new();
        for (network, path, module) in self.layers() {
            let (path, prefix) = (network.written(path), network.prefix());
            tensors.insert(format!("{prefix}.{path}.lora_A.weight"), float(&module.a));
            tensors.insert(format!("{prefix}.{path}.lora_B.weight"), float(&module.b));
            let written = metadata::Written { path, rank: module.rank(), alpha: alpha(module) };
            said.entry(prefix).or_default().push(written);
        }
        let metadata = [("format", "pt".to_owned()), (metadata::KEY, metadata::to_json(&said))];
        let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Ok(write_weights(path, &tensors, &metadata)?)
    }

    /// Writes the layout of kohya's sd-scripts, which A1111, ComfyUI and diffusers read, in one step: f32, keys
    /// `lora_unet_<path with _>.lora_down.weight`, `.lora_up.weight` and `.alpha`; text encoders' begin with `lora_te_`,
    /// SDXL's with `lora_te1_` and `lora_te2_`. `sdxl` says which, where the layers do not show it.
    ///
    /// Errors: as [`Self::save`]; [`crate::Error::Argument`] where a text encoder's family is open, or another than `sdxl`
    /// says.
    pub fn save_kohya(&self, path: &Path, sdxl: Option<bool>) -> Result<()> {
        let shown = shows_sdxl(&self.modules);
        let family = |sdxl: bool| if sdxl { "SDXL" } else { "Stable Diffusion 1.x or 2.x" };
        let sdxl = match (shown, sdxl) {
            (Some(shown), Some(said)) if shown != said => {
                return Err(argument("family of the LoRA", family(shown), family(said)));
            }
            (None, None) if self.layers().any(|(network, ..)| network != Network::UNet) => {
                let expected = "`sd` or `sdxl` (seedpo adapter convert --family), which kohya's names of the text encoder \
                    depend on";
                return Err(argument("family of the LoRA", expected, "none, and layers that do not show it"));
            }
            (shown, said) => shown.or(said).unwrap_or(false),
        };
        let mut tensors = BTreeMap::new();
        for (network, path, module) in self.layers() {
            let stem = kohya::stem(network, path, sdxl);
            tensors.insert(format!("{stem}.lora_down.weight"), float(&module.a));
            tensors.insert(format!("{stem}.lora_up.weight"), float(&module.b));
            tensors.insert(format!("{stem}.alpha"), Tensor::from(alpha(module) as f32));
        }
        let mut metadata = BTreeMap::from([("ss_network_module".to_owned(), "networks.lora".to_owned())]);
        if let Some(largest) = self.modules.values().max_by_key(|module| module.rank()) {
            metadata.insert("ss_network_dim".to_owned(), largest.rank().to_string());
            metadata.insert("ss_network_alpha".to_owned(), alpha(largest).to_string());
        }
        Ok(write_weights(path, &tensors, &metadata)?)
    }

    fn layers(&self) -> impl Iterator<Item = (Network, &str, &LoraModule)> {
        self.modules.iter().filter_map(|(name, module)| Network::split(name).map(|(net, path)| (net, path, module)))
    }
}

impl LoraFile {
    /// The LoRA, where there are no `problems`.
    pub(super) fn into_checked(self, mut problems: Vec<String>) -> Result<Lora> {
        if problems.is_empty() {
            return self.into_lora(false);
        }
        if let Some(family) = self.family() {
            problems.insert(0, format!("by its shapes, it is made for {family}"));
        }
        Err(refuse(&self.path, problems))
    }
}

impl DiffusionModel {
    /// The weight of the linear layer or convolution of this name (see [`Lora`]).
    fn layer_weight(&self, name: &str) -> Option<&Tensor> {
        let (network, path) = Network::split(name)?;
        let parameters = match network {
            Network::UNet => self.unet.parameters(),
            Network::TextEncoder => self.text_encoder.parameters(),
            Network::TextEncoder2 => self.text_encoder_2.as_ref()?.text_encoder.parameters(),
        };
        let weight = |path: &str| parameters.get(&format!("{path}.weight"));
        weight(path).or_else(|| weight(&network.written(path))).filter(|weight| weight.dim() > 1)
    }

    /// The same model with a LoRA's change in its weights, computed in f32 and cast back. The weights are changed where
    /// they lie: no second copy is made.
    ///
    /// Errors: [`crate::Error::Argument`] where the LoRA was made for another model, and then nothing is changed.
    pub fn merged(self, lora: &Lora) -> Result<Self> {
        let _frozen = tch::no_grad_guard();
        let mut changes = Vec::with_capacity(lora.modules.len());
        for (name, module) in &lora.modules {
            let weight = self.layer_weight(name).ok_or_else(|| argument("LoRA layer", "a layer of the model", name))?;
            if let Some(problem) = module.misfit(name, &weight.size()) {
                return Err(argument("LoRA", "pairs that fit the model", problem));
            }
            changes.push((weight.shallow_clone(), module));
        }
        for (mut weight, LoraModule { a, b, scale, .. }) in changes {
            let merged = merged_weight(&weight, a, b, *scale)?;
            weight.f_copy_(&merged)?;
        }
        Ok(self)
    }
}

fn float(tensor: &Tensor) -> Tensor {
    tensor.detach().to_kind(Kind::Float)
}

/// `scale * rank`: exact for the usual powers of two, within a rounding error otherwise.
fn alpha(module: &LoraModule) -> f64 {
    module.scale * module.rank() as f64
}
