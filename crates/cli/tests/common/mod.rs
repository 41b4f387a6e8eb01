//! The real binary, a fresh folder for each test, and a tiny random model that all tests of a file share.
#![allow(dead_code)]

pub mod judges;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use assert_cmd::Command;
use seedpo_model::config::{DownBlockType, UpBlockType};
use seedpo_model::{ClipTokenizer, DiffusionModel, SchedulerConfig, TextConfig, UNetConfig, VaeConfig};
use seedpo_tensor::{Device, Tensor, write_weights};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A fresh folder with a copy of the tiny model in `model/`, so that a test may spoil it.
pub struct Room {
    folder: TempDir,
}

impl Room {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy(tiny_model(), &folder.path().join("model"));
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> &Self {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), bytes).unwrap();
        self
    }

    /// A case file for `seedpo probe`.
    pub fn case(&self, name: &str, what: &str, settings: &str, tensors: &[(&str, Tensor)]) -> &Self {
        let tensors = tensors.iter().map(|(n, t)| ((*n).to_owned(), t.shallow_clone())).collect();
        let metadata = [("what", what), ("settings", settings)].map(|(k, v)| (k.to_owned(), v.to_owned()));
        write_weights(&self.path(name), &tensors, &BTreeMap::from(metadata)).unwrap();
        self
    }

    /// Changes one text file of the model.
    pub fn edit(&self, name: &str, change: impl Fn(String) -> String) -> &Self {
        let text = fs::read_to_string(self.path(name)).unwrap();
        let changed = change(text.clone());
        assert_ne!(text, changed, "the edit of {name} changed nothing");
        self.write(name, changed)
    }

    /// `seedpo` in this folder, on one thread, in f32 where `arguments` name no dtype: what tests expect must not depend
    /// on which dtype is fastest here.
    pub fn seedpo(&self, arguments: &[&str]) -> Command {
        let mut command = self.seedpo_as_given(arguments);
        if !arguments.contains(&"--dtype") {
            command.args(["--dtype", "f32"]);
        }
        command
    }

    /// `seedpo` in this folder, on one thread, with nothing added.
    pub fn seedpo_as_given(&self, arguments: &[&str]) -> Command {
        let mut command = Command::cargo_bin("seedpo").unwrap();
        command.current_dir(self.folder.path()).env("OMP_NUM_THREADS", "1").env("NO_COLOR", "1");
        command.env("XDG_CACHE_HOME", self.path(".cache")).args(arguments);
        command
    }

    /// Every file and folder, with sizes.
    pub fn listing(&self) -> BTreeMap<PathBuf, u64> {
        let mut found = BTreeMap::new();
        list(self.folder.path(), &mut found);
        found
    }
}

fn list(folder: &Path, found: &mut BTreeMap<PathBuf, u64>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let path = entry.path();
        if path.is_dir() {
            found.insert(path.clone(), 0);
            list(&path, found);
        } else {
            found.insert(path, entry.metadata().unwrap().len());
        }
    }
}

pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &target) } else { assert!(fs::copy(&path, &target).is_ok()) }
    }
}

/// A random model of a few thousand parameters in diffusers layout, made once per test binary.
pub fn tiny_model() -> &'static Path {
    static MODEL: OnceLock<TempDir> = OnceLock::new();
    MODEL
        .get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            make_tiny_model(folder.path());
            folder
        })
        .path()
}

/// Side of the tiny model's images, and `[C, h, w]` of its latents.
pub const SIDE: i64 = 16;
pub const LATENT: [i64; 3] = [4, 8, 8];
/// L and D of its prompt embeddings.
pub const EMBED: [i64; 2] = [16, 16];
const VOCABULARY: i64 = 514;

fn make_tiny_model(folder: &Path) {
    let text = TextConfig {
        vocab_size: VOCABULARY,
        hidden_size: EMBED[1],
        intermediate_size: 32,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        max_position_embeddings: EMBED[0],
        projection_dim: EMBED[1],
        bos_token_id: VOCABULARY - 2,
        eos_token_id: VOCABULARY - 1,
        pad_token_id: VOCABULARY - 1,
        ..TextConfig::default()
    };
    let unet = UNetConfig {
        sample_size: Some([LATENT[1], LATENT[2]]),
        down_block_types: vec![DownBlockType::CrossAttnDownBlock2D, DownBlockType::DownBlock2D],
        up_block_types: vec![UpBlockType::UpBlock2D, UpBlockType::CrossAttnUpBlock2D],
        block_out_channels: vec![16, 32],
        layers_per_block: vec![1],
        norm_num_groups: 8,
        cross_attention_dim: vec![EMBED[1]],
        attention_head_dim: vec![2],
        ..UNetConfig::default()
    };
    let vae =
        VaeConfig { block_out_channels: vec![8, 16], norm_num_groups: 4, sample_size: SIDE, ..VaeConfig::default() };
    let source = tempfile::tempdir().unwrap();
    make_tokenizer(source.path());
    let tokenizer = ClipTokenizer::from_folder(source.path()).unwrap();
    let scheduler = SchedulerConfig::stable_diffusion();
    let model = DiffusionModel::init(tokenizer, text, unet, vae, scheduler, 1, Device::Cpu).unwrap();
    model.save(folder, None).unwrap();
}

/// CLIP's byte alphabet, each byte within a word and at its end; no merges.
fn make_tokenizer(folder: &Path) {
    let printable = |b: u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let hidden = (0..256).filter(|&b| !printable(b)).zip(256..).map(|(_, code)| code);
    let letters: Vec<String> = (0..256)
        .filter(|&b| printable(b))
        .chain(hidden)
        .map(|code| char::from_u32(code).unwrap().to_string())
        .collect();
    let ends = letters.iter().map(|letter| format!("{letter}</w>"));
    let special = ["<|startoftext|>", "<|endoftext|>"].map(str::to_owned);
    let vocabulary: serde_json::Map<String, Value> = letters
        .iter()
        .cloned()
        .chain(ends)
        .chain(special)
        .zip(0..)
        .map(|(token, id)| (token, Value::from(id)))
        .collect();
    json_file(&folder.join("vocab.json"), &Value::Object(vocabulary));
    fs::write(folder.join("merges.txt"), "#version: 0.2\n").unwrap();
    json_file(
        &folder.join("tokenizer_config.json"),
        &json!({
            "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>", "model_max_length": EMBED[0], "tokenizer_class": "CLIPTokenizer",
        }),
    );
}

fn json_file(path: &Path, value: &Value) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, serde_json::to_string_pretty(value).unwrap()).unwrap();
}
