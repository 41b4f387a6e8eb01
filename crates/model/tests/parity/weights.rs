//! Weights computed from names, the same as `filled` of python/fixtures/networks.py, and the fixture reader.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use seedpo_model::adapter::Adapter;
use seedpo_tensor::{Device, Kind, Params, Tensor, WeightFile};

/// One case: what the Python libraries computed.
pub struct Fixture {
    pub tensors: BTreeMap<String, Tensor>,
    pub metadata: BTreeMap<String, String>,
    pub shapes: BTreeMap<String, Vec<i64>>,
    pub path: PathBuf,
}

impl Fixture {
    pub fn open(folder: &str, name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{folder}/{name}.safetensors"));
        let file = WeightFile::open(&path).unwrap();
        let metadata = file.metadata();
        let shapes = serde_json::from_str(&metadata["shapes"]).unwrap();
        Self { tensors: file.tensors().unwrap(), metadata, shapes, path }
    }

    /// All cases of a folder.
    pub fn all(folder: &str) -> Vec<(String, Self)> {
        let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(folder);
        let mut names: Vec<String> = std::fs::read_dir(place)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names.into_iter().map(|name| (name.clone(), Self::open(folder, &name))).collect()
    }

    pub fn get(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("{}: no {name}", self.path.display()))
    }

    /// An input that records gradients.
    pub fn input(&self, name: &str) -> Tensor {
        self.get(name).copy().set_requires_grad(true)
    }

    pub fn config(&self) -> &str {
        &self.metadata["config"]
    }

    /// All weights, by name.
    pub fn weights(&self) -> BTreeMap<String, Tensor> {
        let residual = self.metadata.get("residual").map_or(1.0, |r| r.parse().unwrap());
        self.shapes.iter().map(|(name, shape)| (name.clone(), filled(name, shape, residual))).collect()
    }

    /// The weights as a network's constructor takes them.
    pub fn params(&self, kind: Kind) -> Params {
        Params::from_tensors("model.safetensors", self.weights(), Device::Cpu, kind)
    }

    /// Compares a gradient or a result: largest difference over the largest value of the reference.
    pub fn check(&self, name: &str, found: &Tensor, tolerance: f64) {
        let expected = self.get(name);
        assert_eq!(expected.size(), found.size(), "{name}");
        let off = relative(found, expected);
        println!("{} {name}: {off:.1e}", self.path.file_stem().unwrap().to_string_lossy());
        assert!(off <= tolerance, "{}: {name} differs by {off:.2e}, more than {tolerance:.0e}", self.path.display());
    }
}

/// Largest absolute difference, relative to the reference's largest absolute value.
pub fn relative(found: &Tensor, expected: &Tensor) -> f64 {
    let (found, expected) = (found.detach().to_kind(Kind::Double), expected.to_kind(Kind::Double));
    let largest = expected.abs().max().double_value(&[]);
    (found - expected).abs().max().double_value(&[]) / largest.max(1e-30)
}

/// The layers that the fixtures' LoRAs change: the attention projections.
pub fn adapted(unet: &seedpo_model::UNet2DConditionModel) -> impl Iterator<Item = &seedpo_model::Projection> {
    unet.projections().iter().filter(|layer| layer.path.contains(".attn"))
}

/// The LoRA that the fixture's reference used, through a file as peft would write it.
pub fn lora(fixture: &Fixture, unet: &seedpo_model::UNet2DConditionModel) -> Adapter {
    let rank: i64 = fixture.metadata["lora_rank"].parse().unwrap();
    let alpha: i64 = fixture.metadata["lora_alpha"].parse().unwrap();
    let mut tensors = BTreeMap::new();
    for projection in adapted(unet) {
        let shapes = [("A", [rank, projection.in_features]), ("B", [projection.out_features, rank])];
        for (side, shape) in shapes {
            let key = format!("unet.{}.lora_{side}.weight", projection.path);
            tensors.insert(key.clone(), filled(&key, &shape, 1.0));
        }
    }
    let config = serde_json::json!({"unet.r": rank, "unet.lora_alpha": alpha});
    let metadata = [("format", "pt".to_owned()), ("lora_adapter_metadata", config.to_string())];
    let metadata = metadata.map(|(k, v)| (k.to_owned(), v)).into();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_lora_weights.safetensors");
    seedpo_tensor::write_weights(&path, &tensors, &metadata).unwrap();
    Adapter::load(&path, unet).unwrap()
}

/// Layers whose output joins the residual stream.
const RESIDUAL: [&str; 8] =
    ["conv_in.", "conv2.", "conv_shortcut.", "proj_in.", "proj_out.", "to_out.", "net.2.", "samplers.0.conv."];

fn filled(name: &str, shape: &[i64], residual: f64) -> Tensor {
    let count: i64 = shape.iter().product();
    // A LoRA as strong as the base would make the small networks chaotic and the comparison meaningless.
    let strength = if name.contains(".lora_B.") { 0.3 } else { 1.0 };
    let fan_in: i64 = shape.iter().skip(1).product();
    let scale = if shape.len() > 1 { strength * (3.0 / fan_in as f64).sqrt() } else { 0.1 };
    let centre = if shape.len() == 1 && name.ends_with("weight") { 1.0 } else { 0.0 };
    let residual = if RESIDUAL.iter().any(|part| name.contains(part)) { residual } else { 1.0 };
    let values: Vec<f32> = uniform(name, count as u64).map(|u| ((centre + scale * u) * residual) as f32).collect();
    Tensor::from_slice(&values).reshape(shape)
}

/// `count` numbers in [-1, 1): the top 24 bits of splitmix64, started from the name's FNV-1a hash.
fn uniform(name: &str, count: u64) -> impl Iterator<Item = f64> {
    let start = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3));
    (1..=count).map(move |i| {
        let z = start.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f64 / 8_388_608.0 - 1.0
    })
}
