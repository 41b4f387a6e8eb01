//! The head of LAION's aesthetic predictor.

use seedpo_tensor::{Init, Params, WeightFile};
use tch::{Device, Kind, Tensor};

use crate::Result;

/// Where the layers stand in the file's list; what lies between them is dropout.
const LAYERS: [(&str, i64); 5] =
    [("layers.0", 1024), ("layers.2", 128), ("layers.4", 64), ("layers.6", 16), ("layers.7", 1)];

/// Five linear layers without anything between: an affine map, applied as such.
///
/// Source: improved-aesthetic-predictor's `MLP` (`sac+logos+ava1-l14-linearMSE.pth`), also the head of ImageReward.
#[derive(Debug)]
pub struct AestheticHead {
    /// f32 `[P]`.
    weight: Tensor,
    bias: f64,
}

impl AestheticHead {
    /// Reads a head of input width `width`; its tensors may have `prefix` before their names.
    ///
    /// The widths between are the file's own. Errors: a tensor missing or misshaped.
    pub fn load(file: &WeightFile, prefix: &str, width: i64, device: Device) -> Result<Self> {
        let inside = file.rearranged(|name, _| match name.strip_prefix(prefix) {
            Some(rest) if rest.starts_with("layers.") => vec![(rest.to_owned(), seedpo_tensor::Part::Whole)],
            _ => Vec::new(),
        })?;
        let outputs: Vec<i64> = LAYERS
            .iter()
            .map(|(name, usual)| match inside.shape(&format!("{name}.weight")) {
                Some([rows, _]) => *rows,
                _ => *usual,
            })
            .collect();
        let params = Params::from_file(inside, Device::Cpu, Kind::Double);
        let mut inputs = width;
        let mut layers = Vec::new();
        for ((name, usual), rows) in LAYERS.iter().zip(outputs) {
            let rows = if *usual == 1 { 1 } else { rows };
            let place = params.root().sub(name);
            layers.push((place.get("weight", &[rows, inputs], Init::Zeros), place.get("bias", &[rows], Init::Zeros)));
            inputs = rows;
        }
        params.finish()?;
        // Multiplied out in f64: what f32 layers would compute, without their rounding.
        let start =
            (Tensor::eye(width, (Kind::Double, Device::Cpu)), Tensor::zeros([width], (Kind::Double, Device::Cpu)));
        let (matrix, bias) = layers.iter().fold(start, |(m, c), (w, b)| (w.matmul(&m), w.mv(&c) + b));
        Ok(Self { weight: matrix.view(-1).to_kind(Kind::Float).to_device(device), bias: bias.double_value(&[0]) })
    }

    /// Scores f32 `[B]` of embeddings `[B, P]`.
    pub fn forward(&self, embeddings: &Tensor) -> Tensor {
        embeddings.to_kind(Kind::Float).mv(&self.weight) + self.bias
    }
}
