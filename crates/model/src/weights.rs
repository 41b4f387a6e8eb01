//! What a policy has of its own, as training sees it: an adapter on the base's U-Net, or a U-Net in its place.

use std::path::Path;

use seedpo_tensor::{Params, WeightFile};
use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::adapter::Adapter;
use crate::layout::DIFFUSERS;
use crate::model::DiffusionModel;
use crate::unet::UNet2DConditionModel;

/// The weights of a policy, trained or frozen. With [`crate::Policy::of`] they are a policy over a base.
#[derive(Debug)]
pub enum PolicyWeights {
    /// Added to the base's U-Net, which is frozen: a few megabytes.
    Lora(Adapter),
    /// In the place of the base's U-Net: every parameter, gigabytes. Trained ones are f32 and compute in the base's number
    /// type ([`UNet2DConditionModel::computing_in`]).
    Full(Box<UNet2DConditionModel>),
}

impl PolicyWeights {
    /// Takes back what [`Self::save`] wrote, into the memory that the weights have, so that whoever shares it (an optimizer)
    /// sees it too and no second copy is made of whole weights.
    ///
    /// Errors: a file that is missing, damaged or of another network; the weights may be partly replaced then.
    pub fn reload(&self, path: &Path, base: &DiffusionModel) -> Result<()> {
        match self {
            Self::Lora(adapter) => adapter.copy_from(&Adapter::load(path, &base.unet)?),
            Self::Full(unet) => unet.read_in_place(DIFFUSERS.open(path, None)?),
        }
    }

    /// Reads what [`Self::save`] wrote, of the same kind as `like`, as weights to train. Errors: a file that is missing,
    /// damaged, or of another network.
    pub fn load_trained(path: &Path, base: &DiffusionModel, like: FinetuningType) -> Result<Self> {
        Ok(match like {
            FinetuningType::Lora => Self::Lora(Adapter::load(path, &base.unet)?),
            FinetuningType::Full => Self::Full(Box::new(read(path, base)?.requiring_gradients())),
        })
    }

    /// As [`Self::load_trained`], without gradient.
    pub fn load_frozen(path: &Path, base: &DiffusionModel, like: FinetuningType) -> Result<Self> {
        Ok(match like {
            FinetuningType::Lora => Self::Lora(Adapter::load(path, &base.unet)?.detached()),
            FinetuningType::Full => Self::Full(Box::new(read(path, base)?)),
        })
    }

    /// Writes them: a LoRA as the adapter file `path`, whole weights as a folder `path` that diffusers'
    /// `UNet2DConditionModel.from_pretrained` loads, in the number type they have. Errors: those of writing.
    pub fn save(&self, path: &Path) -> Result<()> {
        match self {
            Self::Lora(adapter) => adapter.save(path),
            Self::Full(unet) => unet.save(path, None),
        }
    }

    /// Which of the two they are.
    pub fn finetuning_type(&self) -> FinetuningType {
        match self {
            Self::Lora(_) => FinetuningType::Lora,
            Self::Full(_) => FinetuningType::Full,
        }
    }

    /// The adapter, where it is one.
    pub fn adapter(&self) -> Option<&Adapter> {
        match self {
            Self::Lora(adapter) => Some(adapter),
            Self::Full(_) => None,
        }
    }

    /// Every tensor by the name it has in files, sorted; shallow clones.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        match self {
            Self::Lora(adapter) => adapter.tensors(),
            Self::Full(unet) => unet.parameters().iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect(),
        }
    }

    /// Those of [`Self::tensors`] that an optimizer updates: the ones that require gradients.
    pub fn trainable(&self) -> Vec<(String, Tensor)> {
        self.tensors().into_iter().filter(|(_, tensor)| tensor.requires_grad()).collect()
    }

    /// How many numbers they are.
    pub fn parameter_count(&self) -> usize {
        self.tensors().iter().map(|(_, tensor)| tensor.numel()).sum()
    }

    /// A copy in f32, without gradient: what an average over updates begins with.
    pub fn detached(&self) -> Result<Self> {
        Ok(match self {
            Self::Lora(adapter) => Self::Lora(adapter.detached()),
            Self::Full(unet) => Self::Full(Box::new(unet.frozen_copy(Kind::Float)?.computing_in(unet.kind()))),
        })
    }

    /// The policy as it is now, to be asked later: a copy without gradient; whole weights in the type they compute in.
    pub fn snapshot(&self) -> Result<Self> {
        Ok(match self {
            Self::Lora(adapter) => Self::Lora(adapter.detached()),
            Self::Full(unet) => Self::Full(Box::new(unet.frozen_copy(unet.kind())?)),
        })
    }

    /// The form that samples fastest: a LoRA merged into the base's weights, whole weights in the type they compute in, not
    /// copied where they are in it already. Errors: a LoRA made for another network.
    pub fn merged(&self, base: &DiffusionModel) -> Result<Self> {
        Ok(match self {
            Self::Lora(adapter) => Self::Lora(adapter.merge(&base.unet)?),
            Self::Full(unet) => {
                let kind = unet.kind();
                Self::Full(Box::new(unet.with_tensors(|_, tensor| Ok(tensor.detach().f_to_kind(kind)?))?))
            }
        })
    }

    /// The same on `device`, without gradient; shares the tensors where they are there already.
    pub fn to_device(&self, device: Device) -> Result<Self> {
        Ok(match self {
            Self::Lora(adapter) => Self::Lora(adapter.to_device(device)),
            Self::Full(unet) => {
                let kind = unet.kind();
                let moved = unet.with_tensors(|_, tensor| Ok(tensor.detach().f_to_device(device)?))?;
                Self::Full(Box::new(moved.computing_in(kind)))
            }
        })
    }
}

/// What of a policy is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinetuningType {
    /// An adapter; the base is frozen.
    Lora,
    /// Every parameter of the U-Net.
    Full,
}

impl FinetuningType {
    /// The names, in order.
    pub const NAMES: &[&str] = &["lora", "full"];

    /// The type called `name`; `None` for another name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Lora, Self::Full].into_iter().find(|this| this.name() == name)
    }

    /// Its name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Full => "full",
        }
    }
}

/// A U-Net of the base's configuration from a folder of weights, in their own number type, computing in the base's.
fn read(folder: &Path, base: &DiffusionModel) -> Result<UNet2DConditionModel> {
    let file: WeightFile = DIFFUSERS.open(folder, None)?;
    let kind = file.names().next().and_then(|name| file.kind(name)).unwrap_or(Kind::Float);
    let unet = UNet2DConditionModel::new(base.unet.config().clone(), Params::from_file(file, base.device(), kind))?;
    Ok(unet.computing_in(base.unet.kind()))
}
