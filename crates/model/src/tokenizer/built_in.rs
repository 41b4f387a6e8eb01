//! CLIP's own vocabulary, which every released CLIP shares, and the three ways its codes treat a prompt.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, Vocab};

use super::{ClipTokenizer, WORDS, assembled, broken};
use crate::Result;

/// OpenAI's merges (MIT licence), the first 48,894 of `bpe_simple_vocab_16e6.txt`: those that CLIP uses.
const MERGES: &str = include_str!("clip_merges.txt");
/// Tokens of a row.
pub(super) const CONTEXT: usize = 77;

/// Whose treatment of prompts a tokenizer follows; on plain English text all three agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClipDialect {
    /// transformers: NFC, whitespace, lower case.
    Transformers,
    /// OpenAI's CLIP: HTML entities unescaped, quotes and widths straightened first (ftfy); padded with 0.
    OpenAi,
    /// OpenCLIP: as OpenAI's, with special tokens called `<start_of_text>` and `<end_of_text>`.
    OpenClip,
}

impl ClipTokenizer {
    /// CLIP's tokenizer without any file, 77 tokens a row.
    ///
    /// Of ftfy's repairs only those of single characters are made (curly quotes, ligatures, full-width forms, control
    /// characters): text that was decoded with a wrong encoding stays as it is.
    /// Errors: none in practice; the tokenizers library's own.
    pub fn built_in(dialect: ClipDialect) -> Result<Self> {
        let [bos, eos] = match dialect {
            ClipDialect::OpenClip => ["<start_of_text>", "<end_of_text>"],
            _ => ["<|startoftext|>", "<|endoftext|>"],
        };
        let origin = Path::new("CLIP's own vocabulary");
        let (vocab, merges) = vocabulary([bos, eos]);
        let builder = BPE::builder().vocab_and_merges(vocab, merges);
        let words =
            WORDS.replace(r"<\|startoftext\|>|<\|endoftext\|>", &[bos, eos].map(|t| t.replace('|', r"\|")).join("|"));
        let mut inner = assembled(builder, origin, eos, &words)?;
        let special = [bos, eos].map(|token| AddedToken::from(token, true).normalized(true));
        inner.add_tokens(special).map_err(|e| broken(origin, format!("the special tokens are refused: {e}")))?;
        let cleaned = dialect != ClipDialect::Transformers;
        let (bos, eos) = (49406, 49407);
        let (pad, pad_token) = if cleaned { (0, "!") } else { (eos, "<|endoftext|>") };
        let (folder, pad_token) = (PathBuf::from(origin), pad_token.to_owned());
        Ok(Self { inner, folder, bos, eos, pad, pad_token, max_length: CONTEXT, says_length: true, cleaned })
    }
}

fn vocabulary(special: [&str; 2]) -> (Vocab, Vec<(String, String)>) {
    let merges: Vec<(String, String)> =
        MERGES.lines().filter_map(|line| line.split_once(' ')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect();
    let bytes = byte_characters();
    let singles = bytes.iter().map(char::to_string);
    let ends = bytes.iter().map(|c| format!("{c}</w>"));
    let merged = merges.iter().map(|(a, b)| format!("{a}{b}"));
    let tokens = singles.chain(ends).chain(merged).chain(special.map(str::to_owned));
    (tokens.zip(0u32..).collect(), merges)
}

/// GPT-2's printable stand-ins for the 256 bytes, in the order of CLIP's ids.
fn byte_characters() -> Vec<char> {
    let printable = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ');
    let known: HashSet<char> = printable.clone().collect();
    let others = (0..=255u8).map(char::from).filter(|c| !known.contains(c)).count() as u32;
    printable.chain((256..256 + others).filter_map(char::from_u32)).collect()
}

/// What OpenAI's and OpenCLIP's `basic_clean` make of a prompt, but for the repair of wrong encodings.
pub(super) fn cleaned(prompt: &str) -> Cow<'_, str> {
    if prompt.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'&') {
        return Cow::Borrowed(prompt);
    }
    // ftfy leaves entities alone where there are tags; `html.unescape` twice does not.
    let straight: String = htmlize::unescape(prompt).chars().flat_map(straightened).collect();
    Cow::Owned(htmlize::unescape(htmlize::unescape(straight)).into_owned())
}

/// ftfy's replacements of single characters.
fn straightened(c: char) -> impl Iterator<Item = char> {
    let one = |c: char| c.to_string();
    let text = match c {
        '\u{02bc}' | '\u{2018}'..='\u{201b}' => one('\''),
        '\u{201c}'..='\u{201f}' => one('"'),
        '\u{ff01}'..='\u{ff5e}' => one(char::from_u32(c as u32 - 0xfee0).unwrap_or(c)),
        '\u{3000}' => one(' '),
        '\u{0132}' => "IJ".to_owned(),
        '\u{0133}' => "ij".to_owned(),
        '\u{0149}' => "\u{02bc}n".to_owned(),
        '\u{01f1}' => "DZ".to_owned(),
        '\u{01f2}' => "Dz".to_owned(),
        '\u{01f3}' => "dz".to_owned(),
        '\u{fb00}' => "ff".to_owned(),
        '\u{fb01}' => "fi".to_owned(),
        '\u{fb02}' => "fl".to_owned(),
        '\u{fb03}' => "ffi".to_owned(),
        '\u{fb04}' => "ffl".to_owned(),
        '\u{fb05}' => "\u{017f}t".to_owned(),
        '\u{fb06}' => "st".to_owned(),
        // Line breaks of every kind become one; the rest are invisible.
        '\u{0085}' | '\u{2028}' | '\u{2029}' => one('\n'),
        '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' | '\u{206a}'..='\u{206f}' | '\u{feff}' => {
            String::new()
        }
        '\u{fff9}'..='\u{fffc}' => String::new(),
        _ => one(c),
    };
    text.chars().collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_prompts_stay_and_others_are_straightened() {
        assert!(matches!(cleaned("a red apple, 4k"), Cow::Borrowed(_)));
        assert_eq!(cleaned("“it’s” &amp;amp; &lt;b&gt; ﬁn Ａ1"), "\"it's\" & <b> fin A1");
    }
}
