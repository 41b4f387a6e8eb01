//! The judges of `judges.json` (by `python/fixtures/judges.py`): weights by formula, scores of the reference implementations.

use std::path::Path;

use seedpo_tensor::{read_text, write_weights};
use serde_json::Value;
use tch::Tensor;

use super::{picture, weight};

/// A judge, its small weights, and what its reference implementation gives some pictures.
pub struct Case {
    pub judge: String,
    pub files: Value,
    pub pictures: Vec<Tensor>,
    pub prompts: Vec<String>,
    pub steps: Option<Vec<i64>>,
    pub scores: Vec<f64>,
}

/// All cases of the fixture.
pub fn cases() -> Vec<Case> {
    let text = read_text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../judge/tests/fixtures/judges.json")).unwrap();
    let fixture: Value = serde_json::from_str(&text).unwrap();
    let list = |value: &Value| value.as_array().cloned();
    let one = |case: &Value| Case {
        judge: case["judge"].as_str().unwrap().to_owned(),
        files: case["files"].clone(),
        pictures: list(&case["pictures"])
            .unwrap()
            .iter()
            .map(|p| {
                picture(
                    p[0].as_u64().unwrap() as usize,
                    p[1].as_u64().unwrap() as usize,
                    p[2].as_u64().unwrap() as usize,
                )
            })
            .collect(),
        prompts: list(&case["prompts"]).unwrap().iter().map(|p| p.as_str().unwrap().to_owned()).collect(),
        steps: list(&case["steps"]).map(|steps| steps.iter().map(|s| s.as_i64().unwrap()).collect()),
        scores: list(&case["scores"]).unwrap().iter().map(|s| s.as_f64().unwrap()).collect(),
    };
    fixture["cases"].as_array().unwrap().iter().map(one).collect()
}

/// Writes what a user would have: JSON and text as they are, weights by formula.
pub fn write(case: &Case, folder: &Path) {
    for (name, content) in case.files.as_object().unwrap() {
        let path = folder.join(name);
        match content {
            Value::String(text) => std::fs::write(path, text).unwrap(),
            json if name.ends_with(".json") => std::fs::write(path, json.to_string()).unwrap(),
            shapes => {
                let shapes = shapes.as_object().unwrap().iter();
                let tensors = shapes.map(|(name, shape)| {
                    let shape: Vec<i64> = shape.as_array().unwrap().iter().map(|n| n.as_i64().unwrap()).collect();
                    (name.clone(), weight(name, &shape))
                });
                write_weights(&path, &tensors.collect(), &Default::default()).unwrap();
            }
        }
    }
}

/// The largest score stands for the scale: a cosine near 0 has no relative precision.
pub fn relative_error(found: &[f64], expected: &[f64]) -> f64 {
    let scale = expected.iter().fold(1e-3f64, |scale, score| scale.max(score.abs()));
    found.iter().zip(expected).fold(0.0, |worst: f64, (f, e)| worst.max((f - e).abs() / scale))
}
