//! What the repository's scripts say of the commands.

use std::path::Path;

/// The names in a tuple of a Python file: `NAME = ("a", "b")`.
fn tuple(text: &str, name: &str) -> Vec<String> {
    let line = text.lines().find(|line| line.starts_with(&format!("{name} = ("))).unwrap();
    line.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_gpu_check_and_the_benchmark_update_with_every_method() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../python/benchmark/methods.py");
    let text = std::fs::read_to_string(script).unwrap();
    let mut covered = [tuple(&text, "ONLINE"), tuple(&text, "OFFLINE")].concat();
    covered.sort();
    let methods: Vec<&str> = seedpo_align::METHODS.iter().map(|method| method.name).collect();
    assert_eq!(covered, methods);
    let files: Vec<&str> = seedpo_align::METHODS.iter().filter(|m| m.pairs.from_files()).map(|m| m.name).collect();
    let mut offline = tuple(&text, "OFFLINE");
    offline.sort();
    assert_eq!(offline, files, "those that are given pairs of pictures");
}
