//! BERT's WordPiece tokenizer (`bert-base-uncased`).

use std::path::{Path, PathBuf};

use seedpo_tensor::read_text;
use tch::Tensor;
use tokenizers::models::bpe::Vocab;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{AddedToken, Tokenizer};

use crate::{Error, Result};

/// WordPiece on lower-case text without accents, Chinese characters apart.
///
/// Equal, id for id, to `BertTokenizer` with `padding="max_length", truncation=True`.
#[derive(Debug)]
pub struct BertTokenizer {
    inner: Tokenizer,
    path: PathBuf,
    length: usize,
    cls: i64,
    sep: i64,
    pad: i64,
}

impl BertTokenizer {
    /// Reads `vocab.txt`, a token a line. `length`: tokens of a row, start and end included, at least 2.
    ///
    /// Errors: unreadable, or a vocabulary without `[CLS]`, `[SEP]`, `[PAD]` or `[UNK]`.
    pub fn from_vocabulary(path: &Path, length: usize) -> Result<Self> {
        let refuse = |reason: String| Error::Tokenizer { path: path.to_path_buf(), reason };
        let text = read_text(path)?;
        let vocab: Vocab = text.lines().map(|line| line.trim_end().to_owned()).zip(0u32..).collect();
        let pieces = WordPiece::builder().vocab(vocab).unk_token("[UNK]".into()).max_input_chars_per_word(100).build();
        let mut inner = Tokenizer::new(pieces.map_err(|e| refuse(e.to_string()))?);
        inner.with_normalizer(Some(BertNormalizer::new(true, true, None, true))).map_err(|e| refuse(e.to_string()))?;
        inner.with_pre_tokenizer(Some(BertPreTokenizer));
        let id = |token: &str| {
            let id = inner.token_to_id(token).map(i64::from);
            id.ok_or_else(|| refuse(format!("expected BERT's vocabulary, a token a line; it lacks {token}")))
        };
        let (cls, sep, pad) = (id("[CLS]")?, id("[SEP]")?, id("[PAD]")?);
        id("[UNK]")?;
        let special = ["[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"];
        let known = special.into_iter().filter(|token| inner.token_to_id(token).is_some());
        let added: Vec<AddedToken> = known.map(|token| AddedToken::from(token, true)).collect();
        inner.add_special_tokens(added).map_err(|e| refuse(e.to_string()))?;
        Ok(Self { inner, path: path.to_path_buf(), length, cls, sep, pad })
    }

    /// Ids and mask (1 a token, 0 padding), i64 `[B, L]`. Errors: a text that the library refuses.
    pub fn encode(&self, texts: &[impl AsRef<str>]) -> Result<(Tensor, Tensor)> {
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for text in texts {
            let start = ids.len();
            let words = self.inner.encode_fast(text.as_ref(), false).map_err(|e| Error::Tokenizer {
                path: self.path.clone(),
                reason: format!("the text {:?} is refused: {e}", text.as_ref()),
            })?;
            ids.push(self.cls);
            ids.extend(words.get_ids().iter().take(self.length.saturating_sub(2)).map(|id| i64::from(*id)));
            ids.push(self.sep);
            mask.resize(ids.len(), 1i64);
            ids.resize(start + self.length, self.pad);
            mask.resize(ids.len(), 0);
        }
        let shape = [texts.len() as i64, self.length as i64];
        Ok((Tensor::from_slice(&ids).reshape(shape), Tensor::from_slice(&mask).reshape(shape)))
    }
}
