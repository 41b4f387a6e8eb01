//! The tokenizer against transformers' CLIPTokenizer: 10,000 odd strings in four kinds of folder, exactly equal.
//!
//! Fixture: python/fixtures/tokenizer.py.

use std::path::{Path, PathBuf};

use seedpo_model::tokenizer::ClipTokenizer;
use seedpo_tensor::WeightFile;
use tch::Tensor;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer")
}

fn copy_into(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// A tokenizer folder of one kind: its JSON files, and the shared vocabulary unless it brings its own.
fn folder_of(kind: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_into(&fixtures().join(kind), folder.path());
    if !folder.path().join("tokenizer.json").exists() {
        for name in ["vocab.json", "merges.txt"] {
            std::fs::copy(fixtures().join(name), folder.path().join(name)).unwrap();
        }
    }
    folder
}

fn fnv(ids: &[i64]) -> i32 {
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    (hash ^ (hash >> 32)) as i32
}

fn integers(tensor: &Tensor) -> Vec<i64> {
    Vec::try_from(tensor.to_kind(tch::Kind::Int64).flatten(0, -1)).unwrap()
}

fn check(kind: &str) {
    let file = WeightFile::open(&fixtures().join("strings.safetensors")).unwrap();
    let get = |name: &str| integers(&file.tensor(name).unwrap());
    let text: Vec<u8> = get("text").into_iter().map(|b| b as u8).collect();
    let text = String::from_utf8(text).unwrap();
    let (hashes, counts, first) =
        (get(&format!("{kind}.hash")), get(&format!("{kind}.count")), get(&format!("{kind}.first")));
    let folder = folder_of(kind);
    let tokenizer = ClipTokenizer::from_folder(folder.path()).unwrap();
    let length = tokenizer.max_length();
    let mut start = 0;
    let ends = get("end");
    assert!(ends.len() >= 10_000);
    for (i, end) in ends.into_iter().enumerate() {
        let string = &text[start..end as usize];
        start = end as usize;
        let ids = integers(&tokenizer.encode(&[string]).unwrap());
        if let Some(expected) = first.get(i * length..(i + 1) * length) {
            assert_eq!(ids, expected, "{kind}: string {i} {string:?}");
        }
        assert_eq!(i64::from(fnv(&ids)), hashes[i], "{kind}: string {i} {string:?} gives {ids:?}");
        if let Some(&count) = counts.get(i) {
            assert_eq!(tokenizer.token_count(string).unwrap() as i64, count, "{kind}: count of string {i} {string:?}");
        }
    }
}

#[test]
fn a_folder_as_sd1_ships_it_gives_the_same_ids() {
    check("sd1");
}

#[test]
fn a_folder_as_sd2_ships_it_pads_with_an_exclamation_mark() {
    check("sd2");
}

#[test]
fn a_folder_with_added_tokens_in_its_config_gives_the_same_ids() {
    check("decoder");
}

#[test]
fn a_folder_as_transformers_5_saves_it_gives_the_same_ids() {
    check("saved");
}

#[test]
fn a_batch_is_one_row_per_prompt() {
    let tokenizer = ClipTokenizer::from_folder(folder_of("sd1").path()).unwrap();
    let batch = tokenizer.encode(&["a red fox", "", "two\tcats"]).unwrap();
    assert_eq!(batch.size(), [3, 77]);
    assert_eq!(batch.get(2), tokenizer.encode(&["two cats"]).unwrap().get(0));
    assert_eq!(
        integers(&batch.get(1))[..2],
        [tokenizer.encode(&["a"]).unwrap().int64_value(&[0, 0]), tokenizer.eos_token_id()]
    );
    assert_eq!(tokenizer.encode(&[""; 0]).unwrap().size(), [0, 77]);
}

/// Each broken folder is refused with an error that names the file and, where there is one, the key.
#[test]
fn broken_folders_name_file_and_key() {
    let cases: [(&str, &str, &[&str]); 9] = [
        ("tokenizer_config.json", "", &["tokenizer_config.json", "JSON"]),
        ("tokenizer_config.json", "[1]", &["tokenizer_config.json"]),
        ("tokenizer_config.json", "{}", &["tokenizer_config.json", "model_max_length", "null"]),
        ("tokenizer_config.json", r#"{"model_max_length": 77, "padding_side": "left"}"#, &["padding_side", "left"]),
        ("tokenizer_config.json", r#"{"model_max_length": 77, "eos_token": null}"#, &["eos_token", "null"]),
        ("special_tokens_map.json", r#"{"bos_token": 7}"#, &["special_tokens_map.json", "bos_token", "7"]),
        ("vocab.json", r#"{"a": 0,"#, &["vocab.json"]),
        ("merges.txt", "#version: 0.2\nx y z\n", &["merges"]),
        ("merges.txt", "#version: 0.2\nnot there\n", &["merges"]),
    ];
    for (name, content, parts) in cases {
        let folder = folder_of("sd1");
        std::fs::write(folder.path().join(name), content).unwrap();
        let message = ClipTokenizer::from_folder(folder.path()).unwrap_err().to_string();
        for part in parts {
            assert!(message.contains(part), "{name} {content:?}: {message}");
        }
    }
    for name in ["vocab.json", "merges.txt", "tokenizer_config.json"] {
        let folder = folder_of("sd1");
        std::fs::remove_file(folder.path().join(name)).unwrap();
        let message = ClipTokenizer::from_folder(folder.path()).unwrap_err().to_string();
        assert!(message.contains(name), "{message}");
    }
}
