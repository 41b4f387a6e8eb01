//! The tokenizer of a single-file checkpoint, which holds none.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Repositories whose tokenizer is CLIP's, with the folder it lies in; looked for in the hub's cache.
const CACHED: [(&str, &str); 4] = [
    ("models--openai--clip-vit-large-patch14", ""),
    ("models--stable-diffusion-v1-5--stable-diffusion-v1-5", "tokenizer"),
    ("models--runwayml--stable-diffusion-v1-5", "tokenizer"),
    ("models--stabilityai--stable-diffusion-xl-base-1.0", "tokenizer"),
];

/// The folder to read CLIP's tokenizer from: the one named, `tokenizer/` beside the file, or one in the hub's cache.
///
/// Errors: [`Error::Tokenizer`] saying where to get one.
pub(super) fn folder(file: &Path, named: Option<&Path>) -> Result<PathBuf> {
    if let Some(folder) = named {
        return Ok(folder.to_path_buf());
    }
    let beside = file.with_file_name("tokenizer");
    if is_tokenizer(&beside) {
        return Ok(beside);
    }
    let cached = cache().map(|cache| CACHED.iter().find_map(|(name, inside)| in_cache(&cache.join(name), inside)));
    cached.flatten().ok_or_else(|| Error::Tokenizer {
        path: file.to_path_buf(),
        reason: "a single-file checkpoint holds no tokenizer, and none was found; name a folder with CLIP's vocab.json, \
                 merges.txt and tokenizer_config.json with --tokenizer (the tokenizer/ of any Stable Diffusion folder will \
                 do), or put it beside the file as tokenizer/"
            .into(),
    })
}

fn is_tokenizer(folder: &Path) -> bool {
    folder.join("vocab.json").is_file() && folder.join("merges.txt").is_file()
}

/// The hub's cache, by the variables that its Python tools read.
fn cache() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || variable("HF_HOME").or_else(|| Some(variable("XDG_CACHE_HOME")?.join("huggingface")));
    let home = || home().or_else(|| Some(variable("HOME")?.join(".cache/huggingface")));
    variable("HF_HUB_CACHE").or_else(|| Some(home()?.join("hub")))
}

fn in_cache(repository: &Path, inside: &str) -> Option<PathBuf> {
    let snapshots = std::fs::read_dir(repository.join("snapshots")).ok()?;
    let mut folders: Vec<PathBuf> = snapshots.flatten().map(|entry| entry.path().join(inside)).collect();
    folders.sort();
    folders.into_iter().find(|folder| is_tokenizer(folder) && folder.join("tokenizer_config.json").is_file())
}
