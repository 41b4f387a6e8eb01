//! Where pictures go.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// `0003-red-apple-1.png`: the prompt's index, its first words, the picture's number.
pub fn file_name(prompt: &str, index: usize, number: u64) -> String {
    let words: String =
        prompt.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { ' ' }).collect();
    let slug: String = words.split_whitespace().collect::<Vec<_>>().join("-").chars().take(40).collect();
    format!("{index:04}-{}-{number}.png", if slug.is_empty() { "prompt" } else { slug.trim_end_matches('-') })
}

/// The folder written to; taken away again if this run made it and left nothing in it.
pub struct OutputFolder<'a> {
    path: &'a Path,
    made: bool,
}

impl<'a> OutputFolder<'a> {
    /// Errors: the folder cannot be made, or holds one of `files`.
    pub fn make(path: &'a Path, files: &[PathBuf]) -> Result<Self> {
        let made = !path.exists();
        std::fs::create_dir_all(path)
            .with_context(|| format!("--out {}: could not make the folder", path.display()))?;
        if let Some(there) = files.iter().find(|file| file.exists()) {
            bail!("--out: {} is there already and would be overwritten; name another folder", there.display());
        }
        Ok(Self { path, made })
    }
}

impl Drop for OutputFolder<'_> {
    fn drop(&mut self) {
        if self.made {
            // Fails where pictures are in it, which is what we want.
            let _ = std::fs::remove_dir(self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_after_their_prompts() {
        assert_eq!(file_name("Red apple, on a table!", 3, 1), "0003-red-apple-on-a-table-1.png");
        assert_eq!(file_name("☕", 3, 1), "0003-prompt-1.png");
    }
}
