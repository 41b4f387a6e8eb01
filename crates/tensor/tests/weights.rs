//! The weight-file reader: round trips, and no input that makes it panic.

use std::collections::BTreeMap;
use std::fs;

use proptest::prelude::*;
use seedpo_tensor::{Device, Kind, Tensor, WeightFile, write_weights};

fn sample() -> BTreeMap<String, Tensor> {
    let range = Tensor::arange(24, (Kind::Float, Device::Cpu));
    BTreeMap::from([
        ("a".to_owned(), range.reshape([2, 3, 4])),
        ("b".to_owned(), range.to_kind(Kind::BFloat16)),
        ("c.scalar".to_owned(), Tensor::from(3i64)),
        ("empty".to_owned(), Tensor::zeros([0, 4], (Kind::Half, Device::Cpu))),
    ])
}

#[test]
fn what_is_written_is_read_and_written_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one.safetensors"), folder.path().join("two.safetensors"));
    let metadata =
        BTreeMap::from([("format".to_owned(), "pt".to_owned()), ("note".to_owned(), "α \"quoted\"".to_owned())]);
    write_weights(&one, &sample(), &metadata).unwrap();
    let file = WeightFile::open(&one).unwrap();
    assert_eq!(file.metadata(), metadata);
    for (name, tensor) in sample() {
        let read = file.tensor(&name).unwrap();
        assert_eq!((read.kind(), read.size()), (tensor.kind(), tensor.size()), "{name}");
        assert_eq!(read, tensor, "{name}");
    }
    write_weights(&two, &file.tensors().unwrap(), &metadata).unwrap();
    assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());
}

#[test]
fn a_missing_tensor_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    write_weights(&path, &sample(), &BTreeMap::new()).unwrap();
    let message = WeightFile::open(&path).unwrap().tensor("nope").unwrap_err().to_string();
    assert!(message.contains("w.safetensors") && message.contains("missing `nope`"), "{message}");
}

fn open_bytes(bytes: &[u8]) -> Result<WeightFile, seedpo_tensor::Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    fs::write(&path, bytes).unwrap();
    let file = WeightFile::open(&path)?;
    file.tensors()?;
    Ok(file)
}

fn whole_file() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    write_weights(&path, &sample(), &BTreeMap::new()).unwrap();
    fs::read(&path).unwrap()
}

#[test]
fn every_truncation_is_refused() {
    let whole = whole_file();
    for length in 0..whole.len() {
        let message = open_bytes(&whole[..length]).expect_err("a part of a file was read").to_string();
        assert!(message.contains("w.safetensors"), "{message}");
    }
}

#[test]
fn a_header_that_claims_too_much_is_refused() {
    for header in [
        r#"{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}"#,
        r#"{"a":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"Q3","shape":[1],"data_offsets":[0,4]}}"#,
        r#"[1, 2]"#,
    ] {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&[0; 4]);
        assert!(open_bytes(&bytes).is_err(), "{header}");
    }
    assert!(open_bytes(&u64::MAX.to_le_bytes()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = open_bytes(&bytes);
    }

    #[test]
    fn a_changed_byte_never_panics(at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let mut bytes = whole_file();
        let at = at.index(bytes.len());
        bytes[at] = value;
        let _ = open_bytes(&bytes);
    }

    #[test]
    fn any_shape_survives_the_round_trip(shape in proptest::collection::vec(0i64..5, 0..5), seed in any::<u64>()) {
        let tensor = seedpo_tensor::NoiseKey::new(seed, "test").normal(&shape);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let tensors = BTreeMap::from([("t".to_owned(), tensor.shallow_clone())]);
        write_weights(&path, &tensors, &BTreeMap::new()).unwrap();
        prop_assert_eq!(WeightFile::open(&path).unwrap().tensor("t").unwrap(), tensor);
    }
}

#[test]
fn numbers_are_converted_as_they_are_read_wherever_they_lie() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.safetensors");
    // Three bytes first, so that the floats behind them begin at an odd address.
    let mut header = br#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"F32","shape":[2],"data_offsets":[3,11]}}"#.to_vec();
    header.resize(header.len().next_multiple_of(8), b' ');
    let floats = [1.5f32, -2.7].map(f32::to_le_bytes).concat();
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes(), &header[..], &[1, 2, 3], &floats].concat()).unwrap();
    let file = WeightFile::open(&path).unwrap();
    assert_eq!(Vec::<f32>::try_from(file.tensor("b").unwrap()).unwrap(), [1.5, -2.7]);
    // bf16 has eight significant bits.
    let half = file.tensor_in("b", Kind::BFloat16).unwrap();
    assert_eq!((half.kind(), half.double_value(&[1])), (Kind::BFloat16, -2.703125));
    assert_eq!(file.tensor_in("a", Kind::Float).unwrap().double_value(&[2]), 3.0);
}
