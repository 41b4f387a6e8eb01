//! Devices, dtypes, weight files and keyed random noise over libtorch.
//!
//! Everything above this crate speaks [`Tensor`]; everything that touches a file of weights goes through
//! [`WeightFile`] and [`write_weights`], and every random draw through [`NoiseKey`].

mod allocator;
pub mod convolution;
pub mod device;
pub mod error;
pub mod files;
pub mod gradient;
pub mod memory;
pub mod params;
pub mod product;
pub mod random;
pub mod speed;
pub mod tf32;
pub mod weights;

pub use error::{Error, Result};
pub use files::{read_text, sha256_file, write_atomic};
pub use params::{Init, ParamPath, Params};
pub use random::NoiseKey;
pub use tch::{self, Device, Kind, Tensor};
pub use weights::{Part, WeightFile, write_weights, write_weights_in};
