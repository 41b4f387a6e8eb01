//! The prompts of pictures: what their files say, and what is said where they say nothing.

use std::path::Path;

use anyhow::{Error, anyhow};
use seedpo_judge::JudgeSpec;

/// The prompt in a PNG's text chunks: `prompt` as we write it, else what stands before the settings in `parameters`, as
/// AUTOMATIC1111's web UI and its kin write it.
pub fn in_texts(texts: &[(String, String)]) -> Option<String> {
    // ComfyUI keeps its graph of nodes under the same names.
    let is_graph = |text: &str| serde_json::from_str::<serde_json::Map<_, serde_json::Value>>(text).is_ok();
    let text = |wanted: &str| texts.iter().find(|(key, text)| key == wanted && !is_graph(text)).map(|(_, text)| text);
    text("prompt").cloned().or_else(|| text("parameters").map(|text| before_settings(text)))
}

fn before_settings(parameters: &str) -> String {
    let settings = |line: &&str| ["Negative prompt:", "Steps:"].iter().any(|start| line.starts_with(start));
    let lines: Vec<&str> = parameters.lines().take_while(|line| !settings(line)).collect();
    lines.join("\n").trim().to_owned()
}

/// That a picture has no prompt, which a judge would read.
pub fn missing(file: &Path, judge: &JudgeSpec) -> Error {
    anyhow!(
        "{}: judge `{judge}` reads the prompt; expected one in the picture (a PNG's text `prompt` or `parameters`), found \
         none; give --prompts FILE with a prompt for each picture",
        file.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(texts: &[(&str, &str)]) -> Option<String> {
        in_texts(&texts.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect::<Vec<_>>())
    }

    #[test]
    fn prompts_of_several_tools() {
        let settings = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512";
        let with_negative = format!("a red apple,\non a table\nNegative prompt: blurry,\nSteps: few\n{settings}");
        assert_eq!(found(&[("parameters", &with_negative)]).unwrap(), "a red apple,\non a table");
        assert_eq!(found(&[("parameters", &format!("two cats\n{settings}"))]).unwrap(), "two cats");
        assert_eq!(found(&[("parameters", settings)]).unwrap(), "");
        assert_eq!(found(&[("parameters", &with_negative), ("prompt", "ours")]).unwrap(), "ours");
        assert_eq!(found(&[("prompt", "")]).unwrap(), "");
        let graph = r#"{"3": {"class_type": "KSampler", "inputs": {}}}"#;
        assert_eq!(found(&[("prompt", graph), ("workflow", "{}")]), None);
        assert_eq!(found(&[("Software", "a camera")]), None);
    }
}
