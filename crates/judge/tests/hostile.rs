//! Judges' weight files with changed bytes: refused or read, never a panic.

mod common;
#[path = "../../tensor/tests/common/torch_zip.rs"]
mod torch_zip;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use common::weight;
use proptest::prelude::*;
use seedpo_judge::{AestheticHead, JudgeOptions, load, recognised};
use seedpo_tensor::{WeightFile, write_weights};
use tch::{Device, Tensor};

/// Width of the embeddings that the head takes.
const WIDTH: i64 = 6;

/// The aesthetic predictor's head, small.
fn head() -> BTreeMap<String, Tensor> {
    let widths = [(0, WIDTH, 5), (2, 5, 4), (4, 4, 3), (6, 3, 2), (7, 2, 1)];
    let layer = |(number, inputs, outputs): (i64, i64, i64)| {
        let (w, b) = (format!("layers.{number}.weight"), format!("layers.{number}.bias"));
        let (weights, bias) = (weight(&w, &[outputs, inputs]), weight(&b, &[outputs]));
        [(w, weights), (b, bias)]
    };
    widths.into_iter().flat_map(layer).collect()
}

thread_local!(static FOLDER: tempfile::TempDir = tempfile::tempdir().unwrap());

fn path(name: &str) -> PathBuf {
    FOLDER.with(|folder| folder.path().join(name))
}

/// The head as a safetensors file, and as `torch.save` writes it.
fn whole(torch: bool) -> Vec<u8> {
    if torch {
        return torch_zip::torch_file(&head(), false);
    }
    let path = path("whole.safetensors");
    write_weights(&path, &head(), &BTreeMap::new()).unwrap();
    fs::read(path).unwrap()
}

/// Opens the bytes in each way that a judge is; whether the head was read.
fn open(bytes: &[u8], torch: bool) -> bool {
    let path = path(if torch { "head.pth" } else { "head.safetensors" });
    // A new file each time: some file systems write a file that is cut to nothing out to the disk at once.
    let _ = fs::remove_file(&path);
    fs::write(&path, bytes).unwrap();
    let paths = [path.clone()];
    for refused in [recognised(&paths).err(), load("aesthetic", &paths, &JudgeOptions::default()).err()] {
        let message = refused.map(|error| error.to_string()).unwrap_or_default();
        assert!(message.is_empty() || message.contains("head."), "{message}");
    }
    let head = WeightFile::open(&path).ok().and_then(|file| AestheticHead::load(&file, "", WIDTH, Device::Cpu).ok());
    head.is_some_and(|head| head.forward(&weight("embedding", &[2, WIDTH])).size() == [2])
}

#[test]
fn the_unchanged_head_is_read() {
    assert!(open(&whole(true), true) && open(&whole(false), false));
    for torch in [true, false] {
        let bytes = whole(torch);
        assert!((0..bytes.len()).step_by(31).all(|length| !open(&bytes[..length], torch)), "a part of a file was read");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn changed_bytes_never_panic(
        torch in any::<bool>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = whole(torch);
        // Most of the file is numbers; names, shapes and places are what can mislead.
        let describing = if torch { bytes.len() } else { bytes.len() / 2 };
        for (at, value) in changes {
            let at = at.index(describing);
            bytes[at] = value;
        }
        open(&bytes, torch);
    }
}
