//! Parity with scikit-image, numpy and Pillow on a fixture made by `python/fixtures/diversity.py`.

use safetensors::SafeTensors;
use seedpo_evaluate::{diversity, kernel_entropies};
use tch::Tensor;

const FIXTURE: &[u8] = include_bytes!("fixtures/diversity.safetensors");

fn doubles(file: &SafeTensors, name: &str) -> Vec<f64> {
    let data = file.tensor(name).unwrap().data().to_vec();
    data.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn shape(file: &SafeTensors, name: &str) -> Vec<i64> {
    file.tensor(name).unwrap().shape().iter().map(|&side| side as i64).collect()
}

#[test]
fn pairwise_metrics_equal_scikit_image() {
    let file = SafeTensors::deserialize(FIXTURE).unwrap();
    for name in ["noise", "variations", "waves", "smallest"] {
        let key = format!("{name}.images");
        let images = Tensor::from_slice(file.tensor(&key).unwrap().data()).view(&shape(&file, &key)[..]);
        let found = diversity(&images).unwrap();
        let expected = doubles(&file, &format!("{name}.metrics"));
        let pairs = [found.rmse, found.psnr, found.ssim, found.entropy].into_iter().zip(expected);
        for (metric, (found, expected)) in ["RMSE", "PSNR", "SSIM", "entropy"].iter().zip(pairs) {
            // float64 on both sides; scikit-image's filter runs in float64 with other rounding.
            assert!(
                (found - expected).abs() < 1e-9 * expected.abs().max(1.0),
                "{name} {metric}: {found} != {expected}"
            );
        }
    }
}

#[test]
fn kernel_entropies_equal_numpy() {
    let file = SafeTensors::deserialize(FIXTURE).unwrap();
    let data = file.tensor("embeddings").unwrap().data().to_vec();
    let values: Vec<f32> = data.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
    let found = kernel_entropies(&Tensor::from_slice(&values).view(&shape(&file, "embeddings")[..])).unwrap();
    let expected = doubles(&file, "entropies");
    assert!((found.e1 - expected[0]).abs() < 1e-9, "{found:?} {expected:?}");
    assert!((found.e2 - expected[1]).abs() < 1e-9, "{found:?} {expected:?}");
    assert!(found.e2 <= found.e1);
}
