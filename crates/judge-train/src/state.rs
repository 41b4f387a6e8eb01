//! The network in training, its optimizer and the update it is at; saved in one file.

use std::collections::BTreeMap;
use std::path::Path;

use seedpo_align::optimizer::{AdamW, LrSchedule, clip_grad_norm};
use seedpo_model::ClipModel;
use seedpo_tensor::{Params, WeightFile, write_weights};
use serde_json::{Map, Value};
use tch::{Kind, Tensor};

use crate::{Error, Result, Settings, Start};

/// Before the names of the network's parameters in a checkpoint.
const MODEL: &str = "model.";

/// What training changes.
pub(crate) struct State {
    pub model: ClipModel,
    /// Updates done.
    pub step: u64,
    /// Updates done when it was last saved or loaded.
    saved: Option<u64>,
    leaves: Vec<Tensor>,
    optimizer: AdamW,
    schedule: LrSchedule,
    lr: f64,
    max_grad_norm: f64,
}

impl State {
    /// Takes the parameters over: they are what training changes.
    pub fn new(start: Start, settings: &Settings) -> Result<Self> {
        let device = start.parameters.values().next().map_or(tch::Device::Cpu, Tensor::device);
        let own = |(name, tensor): (String, Tensor)| {
            (name, tensor.detach().to_kind(Kind::Float).contiguous().set_requires_grad(true))
        };
        let named: Vec<(String, Tensor)> = start.parameters.into_iter().map(own).collect();
        let map = named.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        let origin = start.origin.unwrap_or_else(|| "(weights in training)".into());
        let model = ClipModel::new(start.config, Params::from_tensors(origin, map, device, Kind::Float))?;
        let leaves = named.iter().map(|(_, tensor)| tensor.shallow_clone()).collect();
        Ok(Self {
            model,
            step: 0,
            saved: None,
            leaves,
            optimizer: AdamW::new(named, settings.adamw()),
            schedule: settings.learning_rates()?,
            lr: settings.lr,
            max_grad_norm: settings.max_grad_norm,
        })
    }

    /// Adds the gradient of a loss to `sum`, in the order of the parameters; to nothing where it is empty.
    pub fn add_gradient(&self, loss: &Tensor, sum: &mut Vec<Tensor>) -> Result<()> {
        let gradients = Tensor::f_run_backward(&[loss], &self.leaves, false, false)?;
        if sum.is_empty() {
            let whole =
                |(gradient, leaf): (Tensor, &Tensor)| if gradient.defined() { gradient } else { leaf.zeros_like() };
            *sum = gradients.into_iter().zip(&self.leaves).map(whole).collect();
            return Ok(());
        }
        for (sum, gradient) in sum.iter_mut().zip(gradients).filter(|(_, gradient)| gradient.defined()) {
            let _ = sum.f_add_(&gradient)?;
        }
        Ok(())
    }

    /// The error for a number of the next update that is none.
    pub fn not_finite(&self, what: &'static str, value: f64) -> Error {
        Error::NotFinite { step: self.step + 1, what, value, checkpoint: self.saved }
    }

    /// One update; the gradient's norm before clipping and the learning rate. Errors: [`Error::NotFinite`] for a norm
    /// that is no number, with nothing changed.
    pub fn update(&mut self, mut gradients: Vec<Tensor>, logit_scale_limit: Option<f64>) -> Result<(f64, f64)> {
        let norm = clip_grad_norm(&mut gradients, self.max_grad_norm)?;
        if !norm.is_finite() {
            return Err(self.not_finite("gradient's norm", norm));
        }
        let lr = self.lr * self.schedule.factor(self.step);
        self.optimizer.step(&gradients, lr)?;
        if let Some(limit) = logit_scale_limit {
            let _no_grad = tch::no_grad_guard();
            let _ = self.model.logit_scale().shallow_clone().f_clamp_max_(limit)?;
        }
        self.step += 1;
        Ok((norm, lr))
    }

    /// Writes everything to one file, atomically; `identity` is what a resumed run must agree with.
    pub fn save(&mut self, path: &Path, identity: &Map<String, Value>) -> Result<()> {
        let mut tensors = self.optimizer.state();
        let parameters = self.model.parameters().iter();
        tensors.extend(parameters.map(|(name, tensor)| (format!("{MODEL}{name}"), tensor.detach())));
        let metadata = [("step", self.step.to_string()), ("identity", Value::Object(identity.clone()).to_string())];
        let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        write_weights(path, &tensors, &metadata)?;
        self.saved = Some(self.step);
        Ok(())
    }

    /// Takes back what [`State::save`] wrote, bit for bit.
    ///
    /// Errors: [`Error::Setting`] for the first setting that differs; [`Error::Data`] where the file is no checkpoint.
    pub fn load(&mut self, path: &Path, identity: &Map<String, Value>) -> Result<()> {
        let file = WeightFile::open(path)?;
        let metadata = file.metadata();
        compare(path, &metadata, identity)?;
        let step = metadata.get("step").and_then(|step| step.parse().ok());
        let step = step.ok_or_else(|| Error::data(path, "expected `step` in the metadata, found none"))?;
        let mut tensors = file.tensors()?;
        let mut parameters = BTreeMap::new();
        for (name, parameter) in self.model.parameters() {
            let found = tensors.remove(&format!("{MODEL}{name}")).filter(|tensor| tensor.size() == parameter.size());
            let expected = || Error::data(path, format!("expected `{MODEL}{name}` of shape {:?}", parameter.size()));
            parameters.insert(name, found.ok_or_else(expected)?);
        }
        self.optimizer.load_state(tensors, path)?;
        let _no_grad = tch::no_grad_guard();
        for (name, saved) in parameters {
            self.model.parameters()[name].shallow_clone().f_copy_(&saved)?;
        }
        (self.step, self.saved) = (step, Some(step));
        Ok(())
    }
}

/// Holds a checkpoint against what is known by now of the run that would go on from it. Errors: as [`State::load`].
pub(crate) fn check_identity(path: &Path, identity: &Map<String, Value>) -> Result<()> {
    compare(path, &WeightFile::open(path)?.metadata(), identity)
}

fn compare(path: &Path, metadata: &BTreeMap<String, String>, identity: &Map<String, Value>) -> Result<()> {
    let saved: Option<Map<String, Value>> = metadata.get("identity").and_then(|text| serde_json::from_str(text).ok());
    let saved = saved.ok_or_else(|| Error::data(path, "expected a checkpoint of `judge train`, found another file"))?;
    for (key, value) in identity {
        let began = |what: &str| format!("{what} as when this run began ({})", path.display());
        match saved.get(key) {
            Some(then) if then == value => {}
            Some(then) => return Err(Error::setting(key, began(&then.to_string()), value)),
            // A file of the diffusion model.
            None if key.starts_with("model ") => return Err(Error::setting(key, began("no such file"), value)),
            None => {
                let reason = format!(
                    "expected `{key}` in the checkpoint, found none: it is of another version of seedpo; go on with that \
                     one, or start anew with another --out"
                );
                return Err(Error::data(path, reason));
            }
        }
    }
    Ok(())
}
