//! A random model of a few thousand parameters, made once per test binary.
#![allow(dead_code)]

use seedpo_model::config::{DownBlockType, UpBlockType};
use seedpo_model::{ClipTokenizer, DiffusionModel, SchedulerConfig, TextConfig, UNetConfig, VaeConfig};
use seedpo_tensor::Device;
use seedpo_tensor::files::write_atomic;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

const LENGTH: i64 = 8;
const WIDTH: i64 = 16;
const VOCABULARY: i64 = 514;

/// A model with 16x16 images, `[4, 8, 8]` latents.
pub fn tiny_model() -> DiffusionModel {
    // Tests run side by side; operators this small gain nothing from threads of their own.
    seedpo_tensor::tch::set_num_threads(1);
    let text = TextConfig {
        vocab_size: VOCABULARY,
        hidden_size: WIDTH,
        intermediate_size: 32,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        max_position_embeddings: LENGTH,
        projection_dim: WIDTH,
        bos_token_id: VOCABULARY - 2,
        eos_token_id: VOCABULARY - 1,
        pad_token_id: VOCABULARY - 1,
        ..TextConfig::default()
    };
    let unet = UNetConfig {
        sample_size: Some([8, 8]),
        down_block_types: vec![DownBlockType::CrossAttnDownBlock2D, DownBlockType::DownBlock2D],
        up_block_types: vec![UpBlockType::UpBlock2D, UpBlockType::CrossAttnUpBlock2D],
        block_out_channels: vec![16, 32],
        layers_per_block: vec![1],
        norm_num_groups: 8,
        cross_attention_dim: vec![WIDTH],
        attention_head_dim: vec![2],
        ..UNetConfig::default()
    };
    let vae =
        VaeConfig { block_out_channels: vec![8, 16], norm_num_groups: 4, sample_size: 16, ..VaeConfig::default() };
    // Kept, since saving the model copies its tokenizer's files. Written once: the tests of a binary run at once.
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tiny-tokenizer");
        fs::create_dir_all(&folder).unwrap();
        write_tokenizer(&folder);
        folder
    });
    let folder = FOLDER.as_path();
    let tokenizer = ClipTokenizer::from_folder(folder).unwrap();
    DiffusionModel::init(tokenizer, text, unet, vae, SchedulerConfig::stable_diffusion(), 1, Device::Cpu).unwrap()
}

/// CLIP's byte alphabet, each byte within a word and at its end; no merges.
fn write_tokenizer(folder: &Path) {
    let printable = |b: u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let hidden = (0..256).filter(|&b| !printable(b)).zip(256..).map(|(_, code)| code);
    let letters: Vec<String> = (0..256)
        .filter(|&b| printable(b))
        .chain(hidden)
        .map(|code| char::from_u32(code).unwrap().to_string())
        .collect();
    let ends = letters.iter().map(|letter| format!("{letter}</w>"));
    let special = ["<|startoftext|>", "<|endoftext|>"].map(str::to_owned);
    let tokens = letters.iter().cloned().chain(ends).chain(special);
    let vocabulary: Map<String, Value> = tokens.zip(0..).map(|(token, id)| (token, Value::from(id))).collect();
    write_atomic(&folder.join("vocab.json"), serde_json::to_string(&vocabulary).unwrap().as_bytes()).unwrap();
    write_atomic(&folder.join("merges.txt"), b"#version: 0.2\n").unwrap();
    let settings = json!({
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>", "model_max_length": LENGTH, "tokenizer_class": "CLIPTokenizer",
    });
    write_atomic(&folder.join("tokenizer_config.json"), settings.to_string().as_bytes()).unwrap();
}
