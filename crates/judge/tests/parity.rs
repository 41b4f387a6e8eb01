//! Parity with Pillow and numpy on a fixture made by `python/fixtures/judge.py`.

use safetensors::SafeTensors;
use seedpo_judge::{Judge, JudgeOptions, colourfulness, jpeg_bytes, load, names};
use std::collections::HashMap;
use tch::{Device, Kind, Tensor};

const FIXTURE: &[u8] = include_bytes!("fixtures/judge.safetensors");

fn by_name(name: &str) -> Box<dyn Judge> {
    load(name, &[], &JudgeOptions::default()).unwrap()
}

fn metadata(key: &str) -> String {
    let (_, header) = SafeTensors::read_metadata(FIXTURE).unwrap();
    header.metadata().as_ref().unwrap()[key].clone()
}

struct Case {
    name: String,
    pixels: Vec<u8>,
    width: usize,
    height: usize,
    /// Pillow's whole file.
    jpeg: Vec<u8>,
    colourfulness: f64,
}

fn cases() -> Vec<Case> {
    let file = SafeTensors::deserialize(FIXTURE).unwrap();
    let mut names: Vec<_> = file.names().iter().filter_map(|name| name.strip_suffix(".image")).collect();
    names.sort_unstable();
    let read = |name: &str, part: &str| file.tensor(&format!("{name}.{part}")).unwrap();
    names
        .iter()
        .map(|name| {
            let image = read(name, "image");
            Case {
                name: name.to_string(),
                pixels: image.data().to_vec(),
                width: image.shape()[1],
                height: image.shape()[0],
                jpeg: read(name, "jpeg").data().to_vec(),
                colourfulness: f64::from_le_bytes(read(name, "colourfulness").data().try_into().unwrap()),
            }
        })
        .collect()
}

#[test]
fn jpeg_files_have_pillows_size() {
    let cases = cases();
    assert!(cases.len() >= 25);
    for Case { name, pixels, width, height, jpeg: expected, .. } in cases {
        let bytes = jpeg_bytes(&pixels, width, height, 95).unwrap();
        assert_eq!(bytes.len(), expected.len(), "{name}");
        // Stronger than the reward needs: the very same file, so that the size cannot agree by chance.
        assert!(bytes == expected, "{name}: same size as Pillow's file but other bytes");
    }
}

#[test]
fn flat_squares_have_pillows_size() {
    let sizes: HashMap<String, usize> = serde_json::from_str(&metadata("sizes")).unwrap();
    assert_eq!(sizes["512:0"], 4723);
    for (case, expected) in sizes {
        let (side, level) = case.split_once(':').unwrap();
        let (side, level): (usize, u8) = (side.parse().unwrap(), level.parse().unwrap());
        let bytes = jpeg_bytes(&vec![level; side * side * 3], side, side, 95).unwrap();
        assert_eq!(bytes.len(), expected, "{side}x{side} of {level}");
    }
}

#[test]
fn judges_report_kilobytes_with_their_sign() {
    for Case { name, pixels, width, height, jpeg: expected, .. } in cases() {
        let image = Tensor::from_slice(&pixels).view([1, height as i64, width as i64, 3]);
        let kilobytes = expected.len() as f64 / 1000.0;
        assert_eq!(by_name("jpeg-incompressibility").score(&image, &["x"]).unwrap(), [kilobytes], "{name}");
        assert_eq!(by_name("jpeg-compressibility").score(&image, &["x"]).unwrap(), [-kilobytes], "{name}");
    }
}

#[test]
fn colourfulness_equals_numpy() {
    for Case { name, pixels, colourfulness: expected, .. } in cases() {
        // Both sides work in float64; integer sums here, pairwise float sums there.
        assert!((colourfulness(&pixels) - expected).abs() < 1e-9 * expected.max(1.0), "{name}");
    }
}

#[test]
fn a_batch_scores_like_its_images_one_by_one() {
    tch::manual_seed(3);
    let images = Tensor::randint(256, [9, 24, 40, 3], (Kind::Uint8, Device::Cpu));
    for info in names().iter().filter(|info| !info.has_weights()) {
        let judge = by_name(info.name);
        assert_eq!((judge.name(), judge.unit()), (info.name, info.unit));
        let together = judge.score(&images, &["x"; 9]).unwrap();
        let apart: Vec<f64> = (0..9).flat_map(|i| judge.score(&images.narrow(0, i, 1), &["x"]).unwrap()).collect();
        assert_eq!(together, apart, "{}", info.name);
        assert!(together.windows(2).any(|pair| pair[0] != pair[1]), "{}: scores all equal", info.name);
    }
}
