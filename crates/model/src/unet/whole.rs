//! A U-Net whose own weights are trained: full fine-tuning.

use std::collections::BTreeMap;
use std::path::Path;

use seedpo_tensor::{Params, WeightFile};
use tch::{Device, Kind, Tensor};

use super::UNet2DConditionModel;
use crate::config::UNetConfig;
use crate::{Error, Result};

impl UNet2DConditionModel {
    /// The network without its weights: it knows its configuration, device and number type, and predicts nothing.
    /// Errors: [`Error::Config`] where the configuration contradicts itself.
    pub fn without_weights(config: UNetConfig, device: Device, kind: Kind) -> Result<Self> {
        config.validate()?;
        let params = Params::shapes_only();
        Ok(Self::build(config, &params.root(), device).computing_in(kind))
    }

    /// The same network computing in `kind`: weights of another number type are cast where they are used, within the
    /// graph, so that f32 weights are trained in bf16 passes with f32 gradients (mixed precision).
    pub fn computing_in(self, kind: Kind) -> Self {
        Self { compute: Some(kind), ..self }
    }

    /// Whether its own weights are trained: they require gradients.
    pub fn is_trained(&self) -> bool {
        self.parameters.values().any(Tensor::requires_grad)
    }

    /// The same network on other tensors: `each` of its own, by name. It computes in what the tensors are, unless told
    /// otherwise.
    ///
    /// Errors: those of `each`; [`Error::Tensor`] for another shape.
    pub fn with_tensors(&self, mut each: impl FnMut(&str, &Tensor) -> Result<Tensor>) -> Result<Self> {
        let mut kind = self.kind();
        let mut tensors = BTreeMap::new();
        for (name, tensor) in &self.parameters {
            let tensor = each(name, tensor)?;
            kind = tensor.kind();
            tensors.insert(name.clone(), tensor);
        }
        let origin = Path::new("(the weights of another U-Net)");
        Self::new(self.config.clone(), Params::from_tensors(origin, tensors, self.device, kind))
    }

    /// A frozen copy in `kind`: nothing that is trained later changes it.
    pub fn frozen_copy(&self, kind: Kind) -> Result<Self> {
        self.with_tensors(|_, tensor| {
            let tensor = tensor.detach();
            Ok(if tensor.kind() == kind { tensor.copy() } else { tensor.f_to_kind(kind)? })
        })
    }

    /// A copy to train: f32 leaves that require gradients; passes are computed in `kind`.
    pub fn trainable_copy(&self, kind: Kind) -> Result<Self> {
        Ok(self.frozen_copy(Kind::Float)?.computing_in(kind).requiring_gradients())
    }

    /// Marks every weight as one that gradients are wanted for.
    pub fn requiring_gradients(self) -> Self {
        for tensor in self.parameters.values() {
            // The flag is the tensor's, whoever holds it.
            let _ = tensor.set_requires_grad(true);
        }
        self
    }

    /// Takes over the values in `file`, in place, one tensor at a time, cast where the number type differs.
    ///
    /// Errors: [`Error::Tensor`] naming every tensor that is missing, surplus or misshaped; the others have been replaced then.
    pub(crate) fn read_in_place(&self, file: WeightFile) -> Result<()> {
        let places = self.parameters.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        let params = Params::from_file(file, self.device, self.kind()).into_places(places);
        Self::new(self.config.clone(), params).map(drop)
    }

    /// Takes over the values of `other`, in place, cast where the number type differs. Errors: [`Error::Argument`] for
    /// another network, before anything is changed.
    pub fn copy_from(&self, other: &Self) -> Result<()> {
        let _frozen = tch::no_grad_guard();
        let names = self.parameters.keys().chain(other.parameters.keys());
        let shape = |unet: &Self, name| {
            unet.parameters.get(name).map_or_else(|| "none".to_owned(), |tensor| format!("shape {:?}", tensor.size()))
        };
        for name in names {
            let (expected, found) = (shape(self, name), shape(other, name));
            if expected != found {
                return Err(Error::Argument { what: format!("U-Net tensor `{name}`"), expected, found });
            }
        }
        for (name, tensor) in &self.parameters {
            tensor.shallow_clone().f_copy_(&other.parameters[name])?;
        }
        Ok(())
    }
}
