//! Preparations against Pillow, transformers and torch; fixture by `python/fixtures/preprocess.py`.

mod common;

use common::{fixture, picture};
use seedpo_judge::{ImageBatch, Preparation, Window, resize_bicubic, step_aware};
use seedpo_tensor::WeightFile;
use tch::{Kind, Tensor};

fn size(text: &str) -> (usize, usize) {
    let (height, width) = text.split_once('x').unwrap();
    (height.parse().unwrap(), width.parse().unwrap())
}

/// Each case of the kinds asked for: its picture, target size and expected result.
fn each(kinds: &[&str], mut check: impl FnMut(&str, &str, &Tensor, (usize, usize), &Tensor)) {
    let file = WeightFile::open(&fixture("preprocess.safetensors")).unwrap();
    let mut cases = 0;
    for name in file.names() {
        let [kind, from, to] = name.split('.').collect::<Vec<_>>()[..] else { panic!("{name}") };
        if kinds.contains(&kind) {
            let (height, width) = size(from);
            check(name, kind, &picture(height, width, 0), size(to), &file.tensor(name).unwrap());
            cases += 1;
        }
    }
    assert!(cases >= 18 * kinds.len(), "{kinds:?}: {cases} cases");
}

#[test]
fn pillows_resize_byte_for_byte() {
    each(&["resize"], |name, _, image, (rows, columns), expected| {
        let batch = ImageBatch::from_tensor(image).unwrap();
        let pixels = batch.pixels().next().unwrap();
        let whole = |length| Window { full: length, start: 0, length };
        let found = resize_bicubic(pixels, batch.width(), batch.height(), whole(columns), whole(rows));
        assert_eq!(Tensor::from_slice(&found).reshape(expected.size()), *expected, "{name}");
    });
}

#[test]
fn a_window_is_a_part_of_the_whole() {
    let batch = ImageBatch::from_tensor(&picture(61, 203, 3)).unwrap();
    let pixels = batch.pixels().next().unwrap();
    let resize = |columns, rows| resize_bicubic(pixels, 203, 61, columns, rows);
    let window = |full, start, length| Window { full, start, length };
    let whole = Tensor::from_slice(&resize(window(90, 0, 90), window(40, 0, 40))).reshape([40, 90, 3]);
    let part = Tensor::from_slice(&resize(window(90, 33, 20), window(40, 11, 20))).reshape([20, 20, 3]);
    assert_eq!(whole.narrow(0, 11, 20).narrow(1, 33, 20), part);
}

/// Stored as f16 of values up to 2.7: spacing 2⁻⁹ there. A byte off by one would be 0.0146.
const ROUNDING: f64 = 1e-3;

#[test]
fn every_preparation_equals_its_reference() {
    each(&["processor", "openai", "padded", "plain", "step"], |name, kind, image, (side, _), expected| {
        let batch = ImageBatch::from_tensor(image).unwrap();
        let found = match kind {
            "processor" => Preparation::Processor.prepare(&batch, side).unwrap(),
            "openai" => Preparation::OpenAi.prepare(&batch, side).unwrap(),
            "step" => {
                let floats = image.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 127.5 - 1.0;
                step_aware(&floats, side as i64).unwrap()
            }
            _ => Preparation::Padded { antialias: kind == "padded" }.prepare(&batch, side).unwrap(),
        };
        let difference = (found.squeeze_dim(0) - expected.to_kind(Kind::Float)).abs().max().double_value(&[]);
        assert!(difference < ROUNDING, "{name}: {difference}");
    });
}
