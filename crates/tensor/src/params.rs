//! Where a network's tensors come from: a file, read strictly, or fresh initial values.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::{Error, NoiseKey, Result, WeightFile};

/// How a fresh tensor is filled; ignored when the values come from a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
    /// All this number.
    Constant(f64),
    /// Uniform in [-bound, bound].
    Uniform(f64),
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
}

enum Source {
    File(WeightFile),
    Map(BTreeMap<String, Tensor>),
    Fresh { seed: u64 },
    Shapes,
}

/// The tensors a network is built from. A constructor asks for each by name and shape; [`Params::finish`] then names
/// every tensor that was missing, surplus or misshaped, all in one error.
pub struct Params {
    origin: PathBuf,
    source: Source,
    device: Device,
    kind: Kind,
    /// Tensors that take the values, by name.
    places: BTreeMap<String, Tensor>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    given: BTreeMap<String, Tensor>,
    shapes: BTreeMap<String, Vec<i64>>,
    problems: Vec<String>,
}

impl Params {
    /// From an opened file; each tensor is moved to `device` and cast to `kind` as it is asked for.
    pub fn from_file(file: WeightFile, device: Device, kind: Kind) -> Self {
        Self::new(file.path().to_path_buf(), Source::File(file), device, kind)
    }

    /// From tensors in memory; `origin` is the file that errors name.
    pub fn from_tensors(
        origin: impl Into<PathBuf>,
        tensors: BTreeMap<String, Tensor>,
        device: Device,
        kind: Kind,
    ) -> Self {
        Self::new(origin.into(), Source::Map(tensors), device, kind)
    }

    /// Fresh f32 values; each depends on `seed` and the tensor's name only, not on the order of construction.
    pub fn init(seed: u64, device: Device) -> Self {
        Self::new(PathBuf::from("(fresh weights)"), Source::Fresh { seed }, device, Kind::Float)
    }

    /// No values at all: records the names and shapes a network asks for, to count or list them without memory.
    pub fn shapes_only() -> Self {
        Self::new(PathBuf::from("(shapes)"), Source::Shapes, Device::Cpu, Kind::Float)
    }

    fn new(origin: PathBuf, source: Source, device: Device, kind: Kind) -> Self {
        Self { origin, source, device, kind, places: BTreeMap::new(), state: RefCell::default() }
    }

    /// Puts stored values into `places`, by name, and hands these out: a network that is read again needs no second copy of
    /// itself. Where something does not fit, those before it have been replaced.
    pub fn into_places(self, places: BTreeMap<String, Tensor>) -> Self {
        Self { places, ..self }
    }

    /// The path of the network itself.
    pub fn root(&self) -> ParamPath<'_> {
        ParamPath { params: self, prefix: String::new() }
    }

    /// Where the tensors are put.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The names and shapes asked for so far.
    pub fn asked_shapes(&self) -> BTreeMap<String, Vec<i64>> {
        self.state.borrow().shapes.clone()
    }

    /// All tensors handed out, by name. Errors: [`Error::Tensors`] listing every one that did not fit.
    pub fn finish(self) -> Result<BTreeMap<String, Tensor>> {
        self.finish_ignoring(|_| false)
    }

    /// As [`Params::finish`]; surplus tensors for which `ignore` holds (buffers some versions save) are let pass.
    pub fn finish_ignoring(self, ignore: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Tensor>> {
        let State { given, shapes, mut problems } = self.state.into_inner();
        let stored: Vec<&str> = match &self.source {
            Source::File(file) => file.names().collect(),
            Source::Map(map) => map.keys().map(String::as_str).collect(),
            Source::Fresh { .. } | Source::Shapes => Vec::new(),
        };
        let surplus = stored.into_iter().filter(|name| !shapes.contains_key(*name) && !ignore(name));
        let shard = |name| if let Source::File(file) = &self.source { file.shard(name) } else { String::new() };
        problems.extend(surplus.map(|name| format!("surplus `{name}`: the model has no such tensor{}", shard(name))));
        if problems.is_empty() { Ok(given) } else { Err(Error::Tensors { path: self.origin, problems }) }
    }

    fn has(&self, name: &str) -> bool {
        match &self.source {
            Source::File(file) => file.shape(name).is_some(),
            Source::Map(map) => map.contains_key(name),
            Source::Fresh { .. } | Source::Shapes => false,
        }
    }

    fn get(&self, name: String, shape: &[i64], init: Init) -> Tensor {
        let mut state = self.state.borrow_mut();
        state.shapes.insert(name.clone(), shape.to_vec());
        let tensor = self.lookup(&name, shape, init).unwrap_or_else(|problem| {
            state.problems.push(problem);
            Tensor::zeros([0], (self.kind, self.device))
        });
        state.given.insert(name, tensor.shallow_clone());
        tensor
    }

    /// In the kind wanted, unless it is converted on its way to a place of its own.
    fn read(&self, file: &WeightFile, name: &str) -> Result<Tensor> {
        let here = self.device == Device::Cpu && self.places.is_empty();
        if here { file.tensor_in(name, self.kind) } else { file.tensor(name) }
    }

    fn lookup(&self, name: &str, shape: &[i64], init: Init) -> std::result::Result<Tensor, String> {
        let stored = match &self.source {
            Source::Shapes => return Ok(Tensor::zeros([0], (self.kind, self.device))),
            Source::Fresh { seed } => return Ok(fresh(*seed, name, shape, init).to_device(self.device)),
            Source::File(file) => match file.shape(name) {
                Some(found) if found == shape => self.read(file, name).map_err(|e| format!("`{name}`: {e}"))?,
                Some(found) => {
                    return Err(format!("`{name}`: expected shape {shape:?}, found {found:?}{}", file.shard(name)));
                }
                None => return Err(format!("missing `{name}`: expected shape {shape:?}")),
            },
            Source::Map(map) => match map.get(name) {
                Some(tensor) if tensor.size() == shape => tensor.shallow_clone(),
                Some(tensor) => return Err(format!("`{name}`: expected shape {shape:?}, found {:?}", tensor.size())),
                None => return Err(format!("missing `{name}`: expected shape {shape:?}")),
            },
        };
        let put = match self.places.get(name) {
            Some(place) if place.size() != shape => {
                return Err(format!("`{name}`: expected a place of shape {shape:?}, found {:?}", place.size()));
            }
            Some(place) => {
                let (_frozen, mut place) = (tch::no_grad_guard(), place.shallow_clone());
                place.f_copy_(&stored).map(|()| place)
            }
            None => stored.f_to_device(self.device).and_then(|t| t.f_to_kind(self.kind)),
        };
        put.map_err(|e| format!("`{name}`: {e}"))
    }
}

fn fresh(seed: u64, name: &str, shape: &[i64], init: Init) -> Tensor {
    let options = (Kind::Float, Device::Cpu);
    let digest = Sha256::digest(name.as_bytes());
    let mut id = [0u8; 8];
    id.copy_from_slice(&digest[..8]);
    let key = NoiseKey::new(seed, "init").prompt(u64::from_le_bytes(id));
    match init {
        Init::Zeros => Tensor::zeros(shape, options),
        Init::Ones => Tensor::ones(shape, options),
        Init::Constant(value) => Tensor::full(shape, value, options),
        Init::Normal(std) => key.normal(shape) * std,
        // Φ(z) of a standard normal z is uniform in (0, 1).
        Init::Uniform(bound) => ((key.normal(shape) * std::f64::consts::FRAC_1_SQRT_2).erf()) * bound,
    }
}

/// A place in a network's tree of names, as in `down_blocks.0.resnets.1`.
#[derive(Clone)]
pub struct ParamPath<'a> {
    params: &'a Params,
    prefix: String,
}

impl ParamPath<'_> {
    /// The path of a part.
    pub fn sub(&self, part: impl std::fmt::Display) -> Self {
        Self { params: self.params, prefix: self.join(&part.to_string()) }
    }

    /// The full dotted name of this place.
    pub fn name(&self) -> &str {
        &self.prefix
    }

    /// Whether the source holds a tensor of this name (always false for fresh weights).
    pub fn has(&self, name: &str) -> bool {
        self.params.has(&self.join(name))
    }

    /// The tensor of this name. One that is missing or misshaped is noted for [`Params::finish`], which must be called.
    pub fn get(&self, name: &str, shape: &[i64], init: Init) -> Tensor {
        self.params.get(self.join(name), shape, init)
    }

    fn join(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_misfit_is_named_at_once() {
        let tensor = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        let stored = [
            ("a.weight", tensor(&[2, 3])),
            ("b.weight", tensor(&[4])),
            ("extra", tensor(&[1])),
            ("pos_ids", tensor(&[1])),
        ];
        let stored = stored.into_iter().map(|(n, t)| (n.to_owned(), t)).collect();
        let params = Params::from_tensors("model.safetensors", stored, Device::Cpu, Kind::Float);
        let _ = params.root().sub("a").get("weight", &[2, 3], Init::Zeros);
        let _ = params.root().sub("b").get("weight", &[5], Init::Zeros);
        let _ = params.root().sub("c").get("weight", &[6], Init::Zeros);
        let message = params.finish_ignoring(|n| n == "pos_ids").unwrap_err().to_string();
        for part in
            ["model.safetensors", "`b.weight`: expected shape [5], found [4]", "missing `c.weight`", "surplus `extra`"]
        {
            assert!(message.contains(part), "{message}");
        }
        assert!(!message.contains("a.weight") && !message.contains("pos_ids"), "{message}");
    }

    #[test]
    fn values_are_put_where_a_network_has_them_already() {
        let number = |value: f64, kind| Tensor::full([2], value, (kind, Device::Cpu));
        let place = number(0.0, Kind::Float).set_requires_grad(true);
        let stored =
            BTreeMap::from([("a".to_owned(), number(3.0, Kind::Double)), ("b".into(), number(4.0, Kind::Float))]);
        let read = |place: &Tensor, shape: &[i64]| {
            let copies = stored.iter().map(|(name, tensor)| (name.clone(), tensor.copy())).collect();
            let params = Params::from_tensors("x.safetensors", copies, Device::Cpu, Kind::Float)
                .into_places(BTreeMap::from([("a".to_owned(), place.shallow_clone())]));
            let (a, b) = (params.root().get("a", &[2], Init::Zeros), params.root().get("b", shape, Init::Zeros));
            params.finish().map(|_| (a, b))
        };
        let (a, b) = read(&place, &[2]).unwrap();
        assert!(a.data_ptr() == place.data_ptr() && place.requires_grad());
        assert_eq!((place.double_value(&[1]), b.double_value(&[1])), (3.0, 4.0));
        let message = read(&number(0.0, Kind::Float).repeat([2]), &[2]).unwrap_err().to_string();
        assert!(message.contains("`a`: expected a place of shape [2], found [4]"), "{message}");
    }

    #[test]
    fn fresh_values_depend_on_name_and_seed_only() {
        let (one, two) = (Params::init(1, Device::Cpu), Params::init(1, Device::Cpu));
        let a = one.root().get("a", &[64], Init::Uniform(0.5));
        let _ = two.root().get("b", &[8], Init::Normal(1.0));
        assert_eq!(a, two.root().get("a", &[64], Init::Uniform(0.5)));
        assert!(a.abs().max().double_value(&[]) <= 0.5 && a.abs().max().double_value(&[]) > 0.4);
        assert_ne!(a, Params::init(2, Device::Cpu).root().get("a", &[64], Init::Uniform(0.5)));
    }
}
