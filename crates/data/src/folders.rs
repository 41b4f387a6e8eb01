//! Folders whose names say which pictures won: `win/` and `lose/`, matched by stem.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::builder::{Builder, Fault, Place};
use crate::error::{Error, Result};
use crate::files;
use crate::pairs::Picture;
use crate::report::Reason;

const WINNERS: &[&str] = &["win", "winner", "winners", "chosen"];
const LOSERS: &[&str] = &["lose", "loser", "losers", "rejected"];

/// The two folders in `folder`, where it has them.
pub(crate) fn find(folder: &Path) -> Option<[PathBuf; 2]> {
    let inner = |names: &[&str]| names.iter().map(|name| folder.join(name)).find(|path| path.is_dir());
    Some([inner(WINNERS)?, inner(LOSERS)?])
}

/// Where prompts come from.
struct Prompts {
    root: PathBuf,
    /// Of `prompts.json`: by stem; or `prompts.txt`: by place in the sorted list of winners.
    by_stem: HashMap<String, String>,
    by_line: Vec<String>,
}

/// Pairs the pictures of both folders by stem. Prompts: a `.txt` beside the winner, the loser or in the folder above;
/// else `prompts.json` (an object by stem) or `prompts.txt` (a line per winner, in order of name) in the folder above.
pub(crate) fn read(folder: &Path, [winners, losers]: &[PathBuf; 2], builder: &mut Builder) -> Result<()> {
    let prompts = Prompts::read(folder)?;
    let by_stem = |folder: &Path| -> Result<BTreeMap<String, PathBuf>> {
        let stem = |path: &PathBuf| path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(files::pictures(folder)?.into_iter().map(|path| (stem(&path), path)).collect())
    };
    let (won, mut lost) = (by_stem(winners)?, by_stem(losers)?);
    let source = builder.source(winners, "picture");
    for (index, (stem, winner)) in won.into_iter().enumerate() {
        let place = Place { source, number: index as u32 + 1 };
        let loser = lost.remove(&stem);
        let used = prompts.of(&stem, index, &[winners, losers]).and_then(|prompt| {
            let winner = builder.picture(Picture::File(winner.into()));
            let loser = loser.map(|path| builder.picture(Picture::File(path.into())));
            builder.pair(place, &prompt, winner, loser)
        });
        builder.row(place, used.map_err(|(reason, detail)| (reason, format!("`{stem}`: {detail}"))));
    }
    let source = builder.source(losers, "picture");
    for (index, stem) in lost.into_keys().enumerate() {
        let place = Place { source, number: index as u32 + 1 };
        builder.row(place, Err((Reason::MissingPicture, format!("`{stem}`: no picture of this name has won"))));
    }
    Ok(())
}

impl Prompts {
    fn read(root: &Path) -> Result<Self> {
        let mut prompts = Self { root: root.into(), by_stem: HashMap::new(), by_line: Vec::new() };
        let text = |name: &str| -> Result<Option<String>> {
            let path = root.join(name);
            if path.is_file() {
                std::fs::read_to_string(&path).map(Some).map_err(|e| Error::io(&path, e))
            } else {
                Ok(None)
            }
        };
        if let Some(json) = text("prompts.json")? {
            let refuse = |found: String| {
                Error::format(&root.join("prompts.json"), format!("expected an object of texts by file stem: {found}"))
            };
            let object: HashMap<String, Value> = serde_json::from_str(&json).map_err(|e| refuse(e.to_string()))?;
            for (stem, value) in object {
                let prompt = value.as_str().ok_or_else(|| refuse(format!("found {value} for `{stem}`")))?;
                prompts.by_stem.insert(stem, prompt.to_owned());
            }
        } else if let Some(lines) = text("prompts.txt")? {
            prompts.by_line = lines.trim_start_matches('\u{feff}').lines().map(|line| line.trim().to_owned()).collect();
        }
        Ok(prompts)
    }

    fn of(&self, stem: &str, index: usize, folders: &[&PathBuf]) -> Result<String, Fault> {
        let beside = folders.iter().map(|folder| folder.join(format!("{stem}.txt")));
        let file = beside.chain(std::iter::once(self.root.join(format!("{stem}.txt")))).find(|path| path.is_file());
        if let Some(file) = file {
            let text = std::fs::read_to_string(&file);
            return text
                .map(|text| text.trim().to_owned())
                .map_err(|e| (Reason::NoPrompt, format!("{}: {e}", file.display())));
        }
        let known = self.by_stem.get(stem).or_else(|| self.by_line.get(index));
        known.cloned().ok_or_else(|| {
            (Reason::NoPrompt, "expected a .txt beside it, or prompts.json or prompts.txt above, found neither".into())
        })
    }
}
