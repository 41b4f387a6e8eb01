//! Weights in several files with an index, and other names for the same bytes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use seedpo_tensor::{Device, Init, Kind, Params, Part, Tensor, WeightFile, write_weights};

fn numbers(shape: &[i64]) -> Tensor {
    Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu)).reshape(shape)
}

fn write(path: &Path, tensors: &[(&str, Tensor)]) {
    let tensors = tensors.iter().map(|(name, t)| ((*name).to_owned(), t.shallow_clone())).collect();
    write_weights(path, &tensors, &BTreeMap::new()).unwrap();
}

/// Two shards and their index.
fn sharded(folder: &Path, map: &[(&str, &str)]) -> PathBuf {
    write(&folder.join("m-1.safetensors"), &[("a", numbers(&[2, 3])), ("b", numbers(&[4]))]);
    write(&folder.join("m-2.safetensors"), &[("c", numbers(&[5]).to_kind(Kind::Half))]);
    let map: BTreeMap<_, _> = map.iter().copied().collect();
    let index = serde_json::json!({"metadata": {"total_size": 50}, "weight_map": map});
    let path = folder.join("m.safetensors.index.json");
    fs::write(&path, index.to_string()).unwrap();
    path
}

const WHOLE: [(&str, &str); 3] = [("a", "m-1.safetensors"), ("b", "m-1.safetensors"), ("c", "m-2.safetensors")];

#[test]
fn shards_are_one_file_of_weights() {
    let folder = tempfile::tempdir().unwrap();
    let file = WeightFile::open(&sharded(folder.path(), &WHOLE)).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(file.tensor("a").unwrap(), numbers(&[2, 3]));
    assert_eq!((file.kind("c"), file.tensor("c").unwrap().size()), (Some(Kind::Half), vec![5]));
    // A misfit names the shard.
    let params = Params::from_file(file, Device::Cpu, Kind::Float);
    let _ = params.root().get("a", &[2, 3], Init::Zeros);
    let _ = params.root().get("b", &[9], Init::Zeros);
    let message = params.finish().unwrap_err().to_string();
    assert!(message.contains("`b`: expected shape [9], found [4] (in m-1.safetensors)"), "{message}");
    assert!(message.contains("surplus `c`: the model has no such tensor (in m-2.safetensors)"), "{message}");
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let message = |map: &[(&str, &str)]| WeightFile::open(&sharded(folder.path(), map)).unwrap_err().to_string();
    let found = message(&[("a", "m-1.safetensors"), ("d", "m-2.safetensors")]);
    for part in ["missing `d`", "surplus `b` in m-1.safetensors", "surplus `c` in m-2.safetensors"] {
        assert!(found.contains(part), "{found}");
    }
    let found = message(&[("a", "m-3.safetensors")]);
    assert!(found.contains("m-3.safetensors: no such file") && found.contains("index.json lists it"), "{found}");
    for outside in ["../m-1.safetensors", "/etc/passwd", "", ".", "m.safetensors.index.json"] {
        assert!(message(&[("a", outside)]).contains("files beside the index"), "{outside}");
    }
    for text in ["[]", "{", "{}", r#"{"weight_map": {"a": 1}}"#] {
        let path = folder.path().join("broken.json");
        fs::write(&path, text).unwrap();
        let found = WeightFile::open(&path).unwrap_err().to_string();
        assert!(found.contains("broken.json") && found.contains("weight_map"), "{found}");
    }
}

#[test]
fn rearranged_tensors_are_parts_of_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    write(&path, &[("m", numbers(&[6, 2])), ("conv", numbers(&[3, 2, 1, 1])), ("rest", numbers(&[1]))]);
    let file = WeightFile::open(&path).unwrap();
    let rows = |start| Part::Rows { start, count: 2 };
    let other = file
        .rearranged(|name, _| match name {
            "m" => vec![("q".into(), rows(0)), ("v".into(), rows(4)), ("t".into(), Part::Transposed)],
            "conv" => vec![("linear".into(), Part::Shaped(vec![3, 2]))],
            _ => Vec::new(),
        })
        .unwrap();
    let tensors = other.tensors().unwrap();
    let m = numbers(&[6, 2]);
    let expected = [("linear", numbers(&[3, 2])), ("q", m.narrow(0, 0, 2)), ("t", m.tr()), ("v", m.narrow(0, 4, 2))];
    assert_eq!(tensors.len(), expected.len());
    for ((name, tensor), (expected_name, expected)) in tensors.iter().zip(expected) {
        assert_eq!((name.as_str(), tensor.size()), (expected_name, expected.size()));
        assert_eq!(*tensor, expected, "{name}");
    }
    // A part of a part.
    let again = other.rearranged(|name, _| {
        vec![(name.to_owned(), if name == "t" { Part::Rows { start: 1, count: 1 } } else { Part::Whole })]
    });
    assert_eq!(again.unwrap().tensor("t").unwrap(), m.tr().narrow(0, 1, 1));
}

#[test]
fn parts_that_are_not_there_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    write(&path, &[("m", numbers(&[6, 2])), ("n", numbers(&[3]))]);
    let file = WeightFile::open(&path).unwrap();
    for (part, expected) in [
        (Part::Rows { start: 2, count: 2 }, "rows 2 to 2 + 2"),
        (Part::Rows { start: i64::MAX, count: 2 }, "rows"),
        (Part::Transposed, "a matrix"),
        (Part::Shaped(vec![2]), "shape [2]"),
    ] {
        let found = file.rearranged(|name, _| if name == "n" { vec![("x".into(), part.clone())] } else { vec![] });
        let found = found.unwrap_err().to_string();
        assert!(found.contains("`n`") && found.contains(expected) && found.contains("[3]"), "{found}");
    }
    let twice = file.rearranged(|_, _| vec![("same".into(), Part::Whole)]).unwrap_err().to_string();
    assert!(twice.contains("`n`") && twice.contains("`same`"), "{twice}");
}
