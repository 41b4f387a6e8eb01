//! Training prompts: from a file, or given in line.

use crate::config::TrainConfig;
use crate::error::{Error, Result};
use std::path::Path;

/// The prompts of a run, in file order, blank ones dropped; at least one.
///
/// Errors: [`Error::Prompts`] naming file and place; files that are not UTF-8 name the byte.
pub fn load_prompts(config: &TrainConfig) -> Result<Vec<String>> {
    if config.prompts_file.is_empty() {
        let prompts: Vec<String> = config.prompts.iter().filter(|p| !p.trim().is_empty()).cloned().collect();
        let empty =
            Error::Setting { key: "prompts".into(), expected: "at least one prompt".into(), found: "none".into() };
        return if prompts.is_empty() { Err(empty) } else { Ok(prompts) };
    }
    read_prompts(Path::new(&config.prompts_file))
}

/// Reads a prompt file: `.txt` one prompt a line, `.json` a list of strings or of objects with `caption` (or `prompt`),
/// `.jsonl` one such value a line.
///
/// Errors: [`Error::Prompts`] for another extension, malformed JSON, or no prompts.
pub fn read_prompts(path: &Path) -> Result<Vec<String>> {
    let refuse = |reason: String| Error::Prompts { path: path.into(), reason };
    let text = seedpo_tensor::files::read_text(path)?;
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    let prompts = match extension.as_str() {
        "txt" => text.trim_start_matches('\u{feff}').lines().map(|line| line.trim().to_string()).collect(),
        "json" => {
            let list: Vec<serde_json::Value> =
                serde_json::from_str(&text).map_err(|e| refuse(format!("expected a JSON list of prompts: {e}")))?;
            let one = |(i, value): (usize, &serde_json::Value)| {
                prompt_of(value).map_err(|e| refuse(format!("entry {i}: {e}")))
            };
            list.iter().enumerate().map(one).collect::<Result<Vec<_>>>()?
        }
        "jsonl" => {
            let one = |(i, line): (usize, &str)| {
                let value = serde_json::from_str(line).map_err(|e| refuse(format!("line {}: {e}", i + 1)))?;
                prompt_of(&value).map_err(|e| refuse(format!("line {}: {e}", i + 1)))
            };
            text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(one).collect::<Result<Vec<_>>>()?
        }
        other => return Err(refuse(format!("expected a .txt, .json or .jsonl file, found extension `{other}`"))),
    };
    let prompts: Vec<String> = prompts.into_iter().filter(|p| !p.trim().is_empty()).collect();
    if prompts.is_empty() { Err(refuse("expected at least one prompt, found none".into())) } else { Ok(prompts) }
}

fn prompt_of(value: &serde_json::Value) -> Result<String, String> {
    let text = value.as_str().or_else(|| value.get("caption")?.as_str()).or_else(|| value.get("prompt")?.as_str());
    text.map(str::to_string).ok_or_else(|| format!("expected a string or an object with `caption`, found {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, bytes: &[u8]) -> Result<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        read_prompts(&path)
    }

    #[test]
    fn all_three_formats_give_the_same_prompts() {
        let expected = ["a cat", "ein Fuß"];
        assert_eq!(read("p.txt", "a cat\r\n\n ein Fuß \n".as_bytes()).unwrap(), expected);
        assert_eq!(read("p.json", r#"["a cat", {"caption": "ein Fuß", "id": 3}]"#.as_bytes()).unwrap(), expected);
        assert_eq!(read("p.jsonl", "{\"prompt\": \"a cat\"}\n\n\"ein Fuß\"\n".as_bytes()).unwrap(), expected);
    }

    #[test]
    fn bad_files_name_file_and_place() {
        let cases: [(&str, &[u8], &str); 7] = [
            ("p.txt", b"", "at least one prompt"),
            ("p.txt", b"cat\n\xff\n", "UTF-8"),
            ("p.json", b"{}", "JSON list"),
            ("p.json", b"[\"a\", 3]", "entry 1"),
            ("p.json", b"[\"a\"", "JSON list"),
            ("p.jsonl", b"\"a\"\nnope\n", "line 2"),
            ("p.csv", b"a", "`csv`"),
        ];
        for (name, bytes, expected) in cases {
            let message = read(name, bytes).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains(expected), "{name}: {message}");
        }
        assert!(read_prompts(Path::new("no/such.txt")).unwrap_err().to_string().contains("no/such.txt"));
    }
}
