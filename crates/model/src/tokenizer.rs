//! CLIP's tokenizer, from a diffusers folder's `tokenizer/`.

mod built_in;
mod row_length;
mod vocabulary;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use seedpo_tensor::read_text;
use serde_json::{Map, Value};
use tch::Tensor;
use tokenizers::models::bpe::{BPE, BpeBuilder};
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

use crate::{Error, Result};

pub use built_in::ClipDialect;

/// What `CLIPTokenizer` splits a prompt by: special tokens, English contractions, letters, single digits, the rest.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The named special tokens, in the order in which transformers adds them to the vocabulary.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Those that every CLIP tokenizer has, and what they are where no file names them.
const REQUIRED: [(&str, &str); 4] = [
    ("bos_token", "<|startoftext|>"),
    ("eos_token", "<|endoftext|>"),
    ("unk_token", "<|endoftext|>"),
    ("pad_token", "<|endoftext|>"),
];

/// CLIP's byte-level BPE tokenizer: NFC, whitespace collapsed, lower case, CLIP's word pattern, `</w>` word ends.
///
/// Equal, id for id, to `transformers.CLIPTokenizer` 5.x called with `padding="max_length", truncation=True`.
#[derive(Debug)]
pub struct ClipTokenizer {
    inner: Tokenizer,
    folder: PathBuf,
    bos: i64,
    eos: i64,
    pad: i64,
    pad_token: String,
    max_length: usize,
    /// Whether its own files say `max_length`.
    says_length: bool,
    cleaned: bool,
}

impl ClipTokenizer {
    /// Reads `vocab.json` + `merges.txt` (or `tokenizer.json`) and, where they are there, `tokenizer_config.json`,
    /// `special_tokens_map.json` and `added_tokens.json`, with the precedence that transformers gives them. What none of
    /// them says is CLIP's; of rows whose length they leave open see [`Self::max_length`].
    ///
    /// `folder` is the one that holds these files, or a diffusers folder with a `tokenizer/` in it.
    /// Errors: a missing or malformed file, an option that is not supported; each names file and key.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        Self::padded_with(folder, None)
    }

    /// As [`Self::from_folder`], with another padding token than the files say, e.g. `!` for OpenCLIP's text encoders.
    pub fn padded_with(folder: &Path, pad: Option<&str>) -> Result<Self> {
        let inside = folder.join("tokenizer");
        let folder = if inside.is_dir() { inside } else { folder.to_path_buf() };
        let mut settings = Settings::read(&folder)?;
        if let Some(pad) = pad {
            settings.named.insert("pad_token", Named::Text(pad.to_owned()));
        }
        let tokens = settings.tokens_to_add();
        let unk = settings.content("unk_token");
        let mut inner = backend(&folder, &unk)?;
        inner.set_encode_special_tokens(settings.split_special_tokens);
        inner.add_tokens(tokens).map_err(|e| broken(&folder, format!("the added tokens are refused: {e}")))?;
        let id = |name: &str| {
            let content = settings.content(name);
            inner
                .token_to_id(&content)
                .map(i64::from)
                .ok_or_else(|| broken(&folder, format!("`{name}` is {content:?}, which the vocabulary lacks")))
        };
        let (bos, eos, pad) = (id("bos_token")?, id("eos_token")?, id("pad_token")?);
        let pad_token = settings.content("pad_token");
        let (max_length, says_length) = match settings.max_length {
            Some(length) => (length, true),
            None => (row_length::beside(&folder), false),
        };
        Ok(Self { bos, eos, pad, pad_token, max_length, says_length, cleaned: false, inner, folder })
    }

    /// Token ids `[B, L]`, i64 on the CPU, L = [`max_length`](Self::max_length): start token, the prompt's tokens
    /// (the first L − 2 of them), end token, padding.
    ///
    /// Errors: [`Error::Tokenizer`] where the library refuses a text.
    pub fn encode(&self, prompts: &[impl AsRef<str>]) -> Result<Tensor> {
        let mut ids = Vec::with_capacity(prompts.len() * self.max_length);
        for prompt in prompts {
            let start = ids.len();
            ids.push(self.bos);
            ids.extend(self.words(prompt.as_ref())?.into_iter().take(self.max_length - 2));
            ids.push(self.eos);
            ids.resize(start + self.max_length, self.pad);
        }
        Ok(Tensor::from_slice(&ids).reshape([prompts.len() as i64, self.max_length as i64]))
    }

    /// How many tokens a prompt has, start and end included, before truncation; more than
    /// [`max_length`](Self::max_length) means that its end is cut off.
    pub fn token_count(&self, prompt: &str) -> Result<usize> {
        Ok(self.words(prompt)?.len() + 2)
    }

    /// L: how many tokens a row of [`encode`](Self::encode) has (`model_max_length`, 77 in every SD folder). Where the files
    /// say none, or one without limit, it is what the text encoder in the same folder reads, else 77; a warning is logged.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The id of the end token, at which the text encoder pools.
    pub fn eos_token_id(&self) -> i64 {
        self.eos
    }

    /// The id that fills a row behind the end token.
    pub fn pad_token_id(&self) -> i64 {
        self.pad
    }

    /// The token that fills a row behind the end token, as text.
    pub fn pad_token(&self) -> &str {
        &self.pad_token
    }

    /// The folder that the tokenizer was read from: its files are copied when a model is saved.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn words(&self, prompt: &str) -> Result<Vec<i64>> {
        let text = if self.cleaned { built_in::cleaned(prompt) } else { prompt.into() };
        let encoding = self
            .inner
            .encode_fast(text.as_ref(), false)
            .map_err(|e| broken(&self.folder, format!("the prompt {prompt:?} is refused: {e}")))?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }
}

/// What the JSON files beside the vocabulary say.
struct Settings {
    named: BTreeMap<&'static str, Named>,
    added: BTreeMap<u64, AddedToken>,
    extra: Vec<Named>,
    /// `None` where the files leave it open.
    max_length: Option<usize>,
    split_special_tokens: bool,
}

/// A special token as the files spell it: transformers treats a bare string and a described token differently.
#[derive(Clone, Debug, PartialEq)]
enum Named {
    Text(String),
    Described(AddedToken),
}

impl Named {
    fn content(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Described(token) => &token.content,
        }
    }
}

impl Settings {
    fn read(folder: &Path) -> Result<Self> {
        let config_path = folder.join("tokenizer_config.json");
        let config = if config_path.is_file() { read_object(&config_path)? } else { Map::new() };
        for (key, only) in [("padding_side", "right"), ("truncation_side", "right")] {
            if let Some(side) = config.get(key).filter(|side| side.as_str() != Some(only)) {
                return Err(wrong(&config_path, key, &format!("\"{only}\""), side));
            }
        }
        let max_length = row_length::of(&config_path, &config)?;
        let split_special_tokens = config.get("split_special_tokens").and_then(Value::as_bool).unwrap_or(false);
        let (named, added, extra) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let mut settings = Self { named, added, extra, max_length, split_special_tokens };
        settings.overlay(&config_path, &config, false)?;
        match config.get("added_tokens_decoder") {
            Some(decoder) => settings.read_decoder(&config_path, decoder)?,
            None => settings.read_legacy(folder)?,
        }
        settings.complete();
        Ok(settings)
    }

    /// Takes the special tokens of `object`: the later file wins. `special`: the flag of a token that has none.
    fn overlay(&mut self, path: &Path, object: &Map<String, Value>, special: bool) -> Result<()> {
        for name in NAMED {
            match object.get(name) {
                None => {}
                Some(Value::Null) if REQUIRED.iter().all(|(required, _)| *required != name) => {}
                Some(value) => {
                    self.named.insert(name, parse_token(path, name, value, special)?);
                }
            }
        }
        for key in ["additional_special_tokens", "extra_special_tokens"] {
            for value in object.get(key).and_then(Value::as_array).into_iter().flatten() {
                let token = parse_token(path, key, value, true)?;
                if !self.extra.contains(&token) {
                    self.extra.push(token);
                }
            }
        }
        Ok(())
    }

    /// A named token that the list of added tokens describes takes that description; the unnamed ones are CLIP's.
    fn complete(&mut self) {
        for token in self.named.values_mut() {
            if let Some(described) = self.added.values().find(|added| added.content == token.content()) {
                *token = Named::Described(described.clone());
            }
        }
        for (name, text) in REQUIRED {
            self.named.entry(name).or_insert_with(|| Named::Text(text.to_owned()));
        }
    }

    fn read_decoder(&mut self, path: &Path, decoder: &Value) -> Result<()> {
        let key = "added_tokens_decoder";
        let object = decoder.as_object().ok_or_else(|| wrong(path, key, "an object", decoder))?;
        for (id, value) in object {
            let id = id.parse().map_err(|_| wrong(path, key, "token ids as keys", &Value::from(id.as_str())))?;
            self.added.insert(id, described(path, key, value, false)?);
        }
        Ok(())
    }

    /// Folders written before transformers 4.34 (every SD 1.x and 2.x one): the tokens lie in three more files.
    fn read_legacy(&mut self, folder: &Path) -> Result<()> {
        let map_path = folder.join("special_tokens_map.json");
        if map_path.is_file() {
            self.overlay(&map_path, &read_object(&map_path)?, true)?;
        }
        let added_path = folder.join("added_tokens.json");
        if added_path.is_file() {
            for (content, id) in read_object(&added_path)? {
                let id = id.as_u64().ok_or_else(|| wrong(&added_path, &content, "a token id", &id))?;
                let special = self.named.values().chain(&self.extra).any(|token| token.content() == content);
                self.added.insert(id, AddedToken::from(content, special));
            }
        }
        let json_path = folder.join("tokenizer.json");
        if json_path.is_file() {
            let json = read_object(&json_path)?;
            for value in json.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
                let id = value.get("id").and_then(Value::as_u64);
                let id = id.ok_or_else(|| wrong(&json_path, "added_tokens", "tokens with an `id`", value))?;
                self.added.insert(id, described(&json_path, "added_tokens", value, false)?);
            }
        }
        Ok(())
    }

    fn content(&self, name: &str) -> String {
        self.named.get(name).map(|token| token.content().to_owned()).unwrap_or_default()
    }

    /// The tokens on top of the BPE vocabulary, in transformers' order; where two have the same text, the later
    /// one's flags hold (as in `tokenizers`).
    fn tokens_to_add(&self) -> Vec<AddedToken> {
        let mut tokens: Vec<Named> = self.added.values().cloned().map(Named::Described).collect();
        let known: Vec<String> = tokens.iter().map(|token| token.content().to_owned()).collect();
        let named = NAMED.iter().filter_map(|name| self.named.get(name));
        for token in named.chain(&self.extra) {
            if !known.iter().any(|content| content == token.content()) && !tokens.contains(token) {
                tokens.push(token.clone());
            }
        }
        let is_named = |content: &str| self.named.values().any(|token| token.content() == content);
        let finish = |token| match token {
            Named::Text(text) => AddedToken::from(text, true),
            Named::Described(token) => {
                let special = token.special || is_named(&token.content);
                token.special(special)
            }
        };
        tokens.into_iter().map(finish).collect()
    }
}

fn parse_token(path: &Path, key: &str, value: &Value, special: bool) -> Result<Named> {
    match value {
        Value::String(text) => Ok(Named::Text(text.clone())),
        value => described(path, key, value, special).map(Named::Described),
    }
}

fn described(path: &Path, key: &str, value: &Value, special: bool) -> Result<AddedToken> {
    let content = value.get("content").and_then(Value::as_str);
    let content = content.ok_or_else(|| wrong(path, key, "a string, or an object with a `content`", value))?;
    let flag = |name: &str, default| value.get(name).and_then(Value::as_bool).unwrap_or(default);
    let special = special || flag("special", false);
    Ok(AddedToken::from(content, special)
        .single_word(flag("single_word", false))
        .lstrip(flag("lstrip", false))
        .rstrip(flag("rstrip", false))
        .normalized(flag("normalized", !special)))
}

/// The `tokenizers` pipeline, as `transformers/models/clip/tokenization_clip.py` builds it.
fn backend(folder: &Path, unk: &str) -> Result<Tokenizer> {
    let json_path = folder.join("tokenizer.json");
    let builder = if json_path.is_file() {
        let (vocab, merges) = vocabulary::of(&json_path)?;
        BPE::builder().vocab_and_merges(vocab, merges)
    } else {
        let (vocab, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
        // Read them once by ourselves: the library's errors do not name the file.
        read_object(&vocab)?;
        read_text(&merges)?;
        BPE::from_file(&vocab.to_string_lossy(), &merges.to_string_lossy())
    };
    assembled(builder, folder, unk, WORDS)
}

/// The steps around the vocabulary; `origin` is what errors name, `words` the pattern that prompts are split by.
fn assembled(builder: BpeBuilder, origin: &Path, unk: &str, words: &str) -> Result<Tokenizer> {
    let bpe = builder.end_of_word_suffix("</w>".to_owned()).unk_token(unk.to_owned()).build();
    let mut tokenizer =
        Tokenizer::new(bpe.map_err(|e| broken(origin, format!("vocabulary and merges do not fit: {e}")))?);
    let fixed = |e| broken(origin, format!("the tokenizers library refuses a pattern: {e}"));
    let whitespace = Replace::new(tokenizers::normalizers::replace::ReplacePattern::Regex(r"\s+".to_owned()), " ");
    let normalizers: Vec<NormalizerWrapper> = vec![NFC.into(), whitespace.map_err(fixed)?.into(), Lowercase.into()];
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers))).map_err(fixed)?;
    let split = Split::new(SplitPattern::Regex(words.to_owned()), SplitDelimiterBehavior::Removed, true);
    let steps: Vec<PreTokenizerWrapper> = vec![split.map_err(fixed)?.into(), ByteLevel::new(false, true, true).into()];
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(steps)));
    Ok(tokenizer)
}

fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let text = read_text(path)?;
    serde_json::from_str(&text).map_err(|e| broken(path, format!("expected a JSON object: {e}")))
}

fn broken(path: &Path, reason: impl Into<String>) -> Error {
    Error::Tokenizer { path: path.to_path_buf(), reason: reason.into() }
}

fn wrong(path: &Path, key: &str, expected: &str, found: &Value) -> Error {
    let found = found.to_string();
    let found = found.chars().take(80).collect();
    Error::Config { path: path.to_path_buf(), key: key.to_owned(), expected: expected.to_owned(), found }
}
