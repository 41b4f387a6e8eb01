//! The published head of the aesthetic predictor, read from its own file (fixtures/README.md).

mod common;

use common::fixture;
use seedpo_judge::{AestheticHead, recognised};
use seedpo_tensor::WeightFile;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

const FILE: &str = "sac+logos+ava1-l14-linearMSE.pth";
const SHA256: &str = "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0";
/// The width of CLIP L/14's embeddings.
const WIDTH: i64 = 768;

#[test]
fn the_published_head_is_the_affine_map_that_numpy_finds_in_it() {
    let path = fixture(FILE);
    let bytes = std::fs::read(&path).unwrap();
    let sum: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((bytes.len(), sum.as_str()), (3_714_759, SHA256));
    let file = WeightFile::open(&path).unwrap();
    assert_eq!(file.names().count(), 10);
    assert_eq!(file.shape("layers.0.weight"), Some(&[1024, WIDTH][..]));
    let head = AestheticHead::load(&file, "", WIDTH, Device::Cpu).unwrap();
    let score = |embedding: Tensor| head.forward(&embedding.view([1, WIDTH])).double_value(&[0]);
    let float = (Kind::Float, Device::Cpu);
    // Numbers of the five layers multiplied out in f64; scores are f32.
    let bias = score(Tensor::zeros([WIDTH], float));
    assert!((bias - 5.236645845).abs() < 1e-6, "{bias}");
    let basis = Tensor::eye(WIDTH, float);
    let weights = head.forward(&basis).to_kind(Kind::Double) - 5.236645845;
    let norm = weights.norm().double_value(&[]);
    assert!((norm - 17.995625).abs() < 2e-6, "{norm}");
    for (at, expected) in [-0.691593, -0.556994, -0.321169].into_iter().enumerate() {
        assert!((weights.double_value(&[at as i64]) - expected).abs() < 1e-6, "{at}: {weights}");
    }
    let e0 = score(basis.get(0));
    assert!((e0 - 4.545052).abs() < 1e-6, "{e0}");
    let uniform = score(Tensor::full([WIDTH], 1.0 / (WIDTH as f64).sqrt(), float));
    assert!((uniform - 4.883285).abs() < 2e-6, "{uniform}");
    assert_eq!(recognised(&[path]).unwrap(), "aesthetic");
}

#[test]
fn a_head_of_another_width_or_one_cut_short_is_refused() {
    let file = WeightFile::open(&fixture(FILE)).unwrap();
    let text = AestheticHead::load(&file, "", 512, Device::Cpu).unwrap_err().to_string();
    assert!(text.contains("layers.0.weight") && text.contains("768"), "{text}");
    let folder = tempfile::tempdir().unwrap();
    let cut = folder.path().join(FILE);
    let bytes = std::fs::read(fixture(FILE)).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let text = WeightFile::open(&cut).map(|_| ()).unwrap_err().to_string();
    assert!(text.contains(FILE), "{text}");
}
