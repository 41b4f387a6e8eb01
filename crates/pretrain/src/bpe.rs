//! Training a byte-level BPE vocabulary, written in the files that CLIP's tokenizers read.
//!
//! Layout as OpenAI's CLIP has it: the 256 byte characters, the same with `</w>`, one token for each merge, then
//! `<|startoftext|>` and `<|endoftext|>`.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use seedpo_tensor::write_atomic;
use serde_json::{Map, Value, json};

use crate::Result;

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// A trained vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bpe {
    /// The merges, most frequent first.
    pub merges: Vec<(String, String)>,
}

impl Bpe {
    /// Learns merges from texts with weights until the vocabulary has `vocab_size` tokens, or no pair of tokens comes
    /// twice. Ties go to the pair that sorts first, so the result depends on the texts alone.
    pub fn train(texts: &[(String, u64)], vocab_size: usize) -> Self {
        let mut words = word_counts(texts);
        let mut merges = Vec::new();
        while merges.len() + 514 < vocab_size {
            let Some(best) = most_frequent_pair(&words) else { break };
            for (symbols, _) in &mut words {
                merge(symbols, &best);
            }
            merges.push(best);
        }
        Self { merges }
    }

    /// The number of tokens, special ones included.
    pub fn vocab_size(&self) -> usize {
        514 + self.merges.len()
    }

    /// The id of `<|startoftext|>`; `<|endoftext|>` is the next.
    pub fn start_id(&self) -> usize {
        512 + self.merges.len()
    }

    /// Writes `vocab.json`, `merges.txt`, `tokenizer_config.json` and `special_tokens_map.json` into a folder.
    ///
    /// `max_length` is the number of tokens that prompts are padded and cut to.
    pub fn save(&self, folder: &Path, max_length: i64) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(|e| seedpo_tensor::Error::io(folder, e))?;
        let mut vocab = Map::new();
        let alphabet: Vec<char> = byte_characters().to_vec();
        let singles = alphabet.iter().map(char::to_string);
        let ends = alphabet.iter().map(|c| format!("{c}</w>"));
        let merged = self.merges.iter().map(|(a, b)| format!("{a}{b}"));
        for token in singles.chain(ends).chain(merged).chain([START.to_owned(), END.to_owned()]) {
            let id = vocab.len();
            vocab.insert(token, Value::from(id));
        }
        let mut merges = String::from("#version: 0.2\n");
        for (a, b) in &self.merges {
            merges.push_str(&format!("{a} {b}\n"));
        }
        let config = json!({
            "add_prefix_space": false, "bos_token": START, "do_lower_case": true, "eos_token": END, "errors": "replace",
            "model_max_length": max_length, "pad_token": END, "tokenizer_class": "CLIPTokenizer", "unk_token": END,
        });
        let special = json!({ "bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END });
        write_atomic(&folder.join("vocab.json"), Value::Object(vocab).to_string().as_bytes())?;
        write_atomic(&folder.join("merges.txt"), merges.as_bytes())?;
        write_atomic(&folder.join("tokenizer_config.json"), format!("{config:#}\n").as_bytes())?;
        write_atomic(&folder.join("special_tokens_map.json"), format!("{special:#}\n").as_bytes())?;
        Ok(())
    }
}

/// The character that stands for each byte: itself where printable, else one from U+0100 on. In CLIP's order.
fn byte_characters() -> [char; 256] {
    let printable = |b: &u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let shown = (0..256u32).filter(printable);
    let hidden = (0..256u32).filter(|b| !printable(b)).enumerate().map(|(i, _)| 256 + i as u32);
    let mut all = ['\0'; 256];
    for (slot, code) in all.iter_mut().zip(shown.chain(hidden)) {
        *slot = char::from_u32(code).unwrap_or('\0');
    }
    all
}

/// The character that stands for one byte.
fn byte_character(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    match printable(byte) {
        true => char::from(byte),
        false => char::from_u32(256 + (0..byte).filter(|&b| !printable(b)).count() as u32).unwrap_or('\0'),
    }
}

/// Words as CLIP's pattern splits cleaned captions (letters together, digits singly, the rest together), as symbols.
fn word_counts(texts: &[(String, u64)]) -> Vec<(Vec<String>, u64)> {
    let class = |c: char| {
        if c.is_alphabetic() {
            0
        } else if c.is_numeric() {
            1
        } else {
            2
        }
    };
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for (text, weight) in texts {
        for part in text.split_whitespace() {
            let mut word = String::new();
            for c in part.chars() {
                let breaks = word.chars().last().is_some_and(|l| class(l) != class(c) || class(c) == 1);
                if breaks {
                    *counts.entry(std::mem::take(&mut word)).or_default() += weight;
                }
                word.push(c);
            }
            *counts.entry(word).or_default() += weight;
        }
    }
    counts.into_iter().filter(|(w, _)| !w.is_empty()).map(|(word, count)| (symbols(&word), count)).collect()
}

fn symbols(word: &str) -> Vec<String> {
    let mut symbols: Vec<String> = word.bytes().map(|b| byte_character(b).to_string()).collect();
    if let Some(last) = symbols.last_mut() {
        last.push_str("</w>");
    }
    symbols
}

fn most_frequent_pair(words: &[(Vec<String>, u64)]) -> Option<(String, String)> {
    let mut pairs: HashMap<(&str, &str), u64> = HashMap::new();
    for (symbols, count) in words {
        for pair in symbols.windows(2) {
            *pairs.entry((&pair[0], &pair[1])).or_default() += count;
        }
    }
    let best = pairs.into_iter().max_by(|(a, m), (b, n)| m.cmp(n).then_with(|| b.cmp(a)));
    best.filter(|(_, count)| *count > 1).map(|((a, b), _)| (a.to_owned(), b.to_owned()))
}

fn merge(symbols: &mut Vec<String>, pair: &(String, String)) {
    let mut at = 0;
    while at + 1 < symbols.len() {
        if symbols[at] == pair.0 && symbols[at + 1] == pair.1 {
            let second = symbols.remove(at + 1);
            symbols[at].push_str(&second);
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequent_words_become_tokens() {
        let texts = [("red apple".to_owned(), 5), ("red heart 10".to_owned(), 3)];
        let bpe = Bpe::train(&texts, 600);
        let tokens: Vec<String> = bpe.merges.iter().map(|(a, b)| format!("{a}{b}")).collect();
        for word in ["red</w>", "apple</w>", "heart</w>"] {
            assert!(tokens.contains(&word.to_owned()), "{word} in {tokens:?}");
        }
        assert!(!tokens.iter().any(|t| t.contains("10")), "digits stay single");
        assert_eq!(bpe, Bpe::train(&texts, 600));
        assert_eq!(Bpe::train(&texts, 516).merges.len(), 2);
    }

    #[test]
    fn bytes_have_clips_characters() {
        assert_eq!((byte_character(b'a'), byte_character(b' '), byte_character(0xad)), ('a', 'Ġ', 'Ń'));
        let mut all = byte_characters();
        assert_eq!((all[0], all[188]), ('!', 'Ā'));
        all.sort_unstable();
        let mut each: Vec<char> = (0..=255).map(byte_character).collect();
        each.sort_unstable();
        assert_eq!(all.to_vec(), each);
    }
}
