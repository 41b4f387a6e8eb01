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
    let cases: [(&str, &str, &[&str]); 10] = [
        ("tokenizer_config.json", "", &["tokenizer_config.json", "JSON"]),
        ("tokenizer_config.json", "[1]", &["tokenizer_config.json"]),
        ("tokenizer_config.json", r#"{"model_max_length": 2}"#, &["tokenizer_config.json", "model_max_length", "2"]),
        ("tokenizer_config.json", r#"{"model_max_length": "77"}"#, &["model_max_length", "whole number", "\"77\""]),
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
    for name in ["vocab.json", "merges.txt"] {
        let folder = folder_of("sd1");
        std::fs::remove_file(folder.path().join(name)).unwrap();
        let message = ClipTokenizer::from_folder(folder.path()).unwrap_err().to_string();
        assert!(message.contains(name), "{message}");
    }
}

/// What transformers 5 makes of folders with few files; without `model_max_length` it has no limit of its own.
#[test]
fn what_the_files_leave_open_is_clips() {
    let words = ["a red fox", "A  Photo of 3 cats, it's", "", "<|endoftext|> hi"];
    let full = ClipTokenizer::from_folder(folder_of("sd1").path()).unwrap().encode(&words).unwrap();
    for missing in [
        &["tokenizer_config.json"][..],
        &["special_tokens_map.json"],
        &["tokenizer_config.json", "special_tokens_map.json"],
    ] {
        let folder = folder_of("sd1");
        missing.iter().for_each(|name| std::fs::remove_file(folder.path().join(name)).unwrap());
        let tokenizer = ClipTokenizer::from_folder(folder.path()).unwrap();
        assert_eq!(tokenizer.encode(&words).unwrap(), full, "{missing:?}");
    }
    // The saved kind pads with `!` by its tokenizer_config.json alone.
    let folder = folder_of("saved");
    let saved = ClipTokenizer::from_folder(folder.path()).unwrap().encode(&words).unwrap();
    std::fs::remove_file(folder.path().join("tokenizer_config.json")).unwrap();
    let alone = ClipTokenizer::from_folder(folder.path()).unwrap();
    let ids = alone.encode(&words).unwrap();
    let end = alone.eos_token_id();
    let padding = saved.eq(0);
    assert_eq!(ids, saved.masked_fill(&padding, end));
    assert_eq!(integers(&ids.get(2)), [vec![end - 1], vec![end; 76]].concat());
}

#[test]
fn rows_are_as_long_as_the_text_encoder_reads_where_no_file_says_it() {
    for (part, encoder) in [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")] {
        let folder = tempfile::tempdir().unwrap();
        let (tokens, encoder) = (folder.path().join(part), folder.path().join(encoder));
        for place in [&tokens, &encoder] {
            std::fs::create_dir(place).unwrap();
        }
        copy_into(folder_of("sd1").path(), &tokens);
        let length = || ClipTokenizer::from_folder(&tokens).unwrap().max_length();
        assert_eq!(length(), 77);
        for open in [
            r#"{"pad_token": "!"}"#,
            r#"{"model_max_length": 1000000000000000019884624838656}"#,
            r#"{"model_max_length": null}"#,
        ] {
            std::fs::write(tokens.join("tokenizer_config.json"), open).unwrap();
            let _ = std::fs::remove_file(encoder.join("config.json"));
            assert_eq!(length(), 77, "CLIP's");
            std::fs::write(encoder.join("config.json"), r#"{"max_position_embeddings": 32}"#).unwrap();
            assert_eq!(length(), 32, "{open}");
        }
    }
}

/// Without merges every word falls apart into bytes, so a file that has lost them is refused; an empty list is one.
#[test]
fn a_vocabulary_without_merges_is_refused() {
    let folder = folder_of("saved");
    let path = folder.path().join("tokenizer.json");
    let mut json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    for merges in [None, Some(serde_json::json!(null)), Some(serde_json::json!("a b"))] {
        let model = json["model"].as_object_mut().unwrap();
        model.remove("merges");
        model.extend(merges.map(|merges| ("merges".to_owned(), merges)));
        std::fs::write(&path, json.to_string()).unwrap();
        let message = ClipTokenizer::from_folder(folder.path()).unwrap_err().to_string();
        assert!(message.contains("tokenizer.json") && message.contains("`model.merges`"), "{message}");
    }
    json["model"]["merges"] = serde_json::json!([]);
    std::fs::write(&path, json.to_string()).unwrap();
    ClipTokenizer::from_folder(folder.path()).unwrap();
}
