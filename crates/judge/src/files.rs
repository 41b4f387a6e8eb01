//! A judge's files, wherever the user has them: told by their content, not by their names.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use seedpo_model::clip::{ClipLayout, layout_of};
use seedpo_tensor::WeightFile;

use crate::{Error, JudgeInfo, Result};

/// What a weight file is, by the names of its tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A whole CLIP.
    Clip(ClipLayout),
    /// A CLIP conditioned on timesteps.
    StepAwareClip,
    /// The aesthetic predictor's head.
    AestheticHead,
    /// ImageReward; the prefix before its names.
    ImageReward(String),
    /// None of them.
    Other,
}

impl Content {
    /// Looks at names only.
    pub fn of(file: &WeightFile) -> Self {
        let prefix = |key: &str| file.names().find_map(|name| name.strip_suffix(key)).map(str::to_owned);
        if let Some(prefix) = prefix("blip.visual_encoder.cls_token") {
            Self::ImageReward(prefix)
        } else if let Some((layout, prefix)) = layout_of(file) {
            let timed = file.shape(&format!("{prefix}t_embedder.mlp.0.weight")).is_some();
            if timed { Self::StepAwareClip } else { Self::Clip(layout) }
        } else if file.shape("layers.0.weight").is_some() && file.shape("layers.7.weight").is_some() {
            Self::AestheticHead
        } else {
            Self::Other
        }
    }

    fn words(&self) -> &'static str {
        match self {
            Self::Clip(ClipLayout::Transformers) => "a CLIP (transformers)",
            Self::Clip(ClipLayout::OpenClip) => "a CLIP (OpenCLIP)",
            Self::StepAwareClip => "a step-aware CLIP",
            Self::AestheticHead => "the aesthetic predictor's head",
            Self::ImageReward(_) => "ImageReward",
            Self::Other => "other tensors",
        }
    }
}

/// The weight files at the paths a judge was given.
pub struct Found {
    judge: &'static JudgeInfo,
    paths: Vec<PathBuf>,
    files: Vec<(WeightFile, Content)>,
    /// Files of a folder that could not be read: no concern, unless what is looked for is not there.
    unreadable: Vec<String>,
}

const SUFFIXES: [&str; 6] = ["safetensors", "bin", "pt", "pth", "ckpt", "json"];

impl Found {
    /// Opens every weight file at `paths`: folders with what is in them and one level below, and files, whatever they are
    /// called: only texts beside weights (`config.json`, `vocab.txt`) are none.
    ///
    /// Errors: nothing there, a file that is named and cannot be read, or a folder in which none can.
    pub fn open(judge: &'static JudgeInfo, paths: &[PathBuf]) -> Result<Self> {
        let (mut files, mut unreadable) = (Vec::new(), Vec::new());
        for path in paths {
            if path.is_dir() {
                for inside in weight_files(path) {
                    match WeightFile::open(&inside) {
                        Ok(file) => files.push(file),
                        Err(error) => unreadable.push(error.to_string()),
                    }
                }
            } else if !path.exists() {
                return Err(missing(judge, path, "nothing"));
            } else if !is_text(path) {
                files.push(WeightFile::open(path)?);
            }
        }
        let files = files.into_iter().map(|file| (Content::of(&file), file)).map(|(content, file)| (file, content));
        let found = Self { judge, paths: paths.to_vec(), files: files.collect(), unreadable };
        match (found.files.is_empty(), found.unreadable.is_empty()) {
            (true, true) => Err(missing(judge, &found.place(), "no weight file")),
            (true, false) => Err(missing(judge, &found.place(), &found.unreadable.join("; "))),
            _ => Ok(found),
        }
    }

    /// Each file and what it is.
    pub fn contents(&self) -> impl Iterator<Item = &(WeightFile, Content)> {
        self.files.iter()
    }

    /// The file whose content `wanted` holds for; of several, that with the published name, then safetensors.
    ///
    /// Errors: there is none, or several of equal standing; what was found is listed.
    pub fn one(&self, expected: &str, wanted: impl Fn(&Content) -> bool) -> Result<(&WeightFile, &Content)> {
        let fitting: Vec<_> = self.files.iter().filter(|(_, content)| wanted(content)).collect();
        let rank = |file: &WeightFile| {
            let name = file.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
            let published = self.judge.weights.iter().any(|w| w.file.rsplit('/').next() == Some(&name));
            (!published, !name.ends_with(".safetensors"), name.contains("fp16"))
        };
        let best = fitting.iter().map(|(file, _)| rank(file)).min();
        let mut top = fitting.iter().filter(|(file, _)| Some(rank(file)) == best);
        match (top.next(), top.next()) {
            (Some((file, content)), None) => Ok((file, content)),
            (Some((a, _)), Some((b, _))) => {
                let found = format!("{} and {}; name one of them", a.path().display(), b.path().display());
                Err(self.unfit(expected, found))
            }
            (None, _) => {
                let list = self.files.iter().map(|(f, c)| format!("{} ({})", f.path().display(), c.words()));
                let unreadable = self.unreadable.iter().map(|reason| format!("one that cannot be read ({reason})"));
                Err(self.unfit(expected, list.chain(unreadable).collect::<Vec<_>>().join(", ")))
            }
        }
    }

    /// The first of `names` that lies beside `file`, in one of the given folders or is itself given, and fits.
    pub fn beside(&self, file: &WeightFile, names: &[&str], fits: impl Fn(&Path) -> bool) -> Option<PathBuf> {
        let given = self.paths.iter().filter(|path| path.is_file());
        let named = given.filter(|path| names.iter().any(|name| path.ends_with(name))).cloned();
        let folders = file.path().parent().into_iter().chain(self.paths.iter().map(PathBuf::as_path));
        let inside = folders.flat_map(|folder| names.iter().map(|name| folder.join(name)));
        inside.chain(named).find(|path| path.exists() && fits(path))
    }

    /// An error about these files.
    pub fn unfit(&self, expected: &str, found: String) -> Error {
        Error::Files { judge: self.judge.name.to_owned(), path: self.place(), expected: expected.to_owned(), found }
    }

    fn place(&self) -> PathBuf {
        self.paths.first().cloned().unwrap_or_default()
    }
}

fn missing(judge: &JudgeInfo, path: &Path, found: &str) -> Error {
    Error::Files {
        judge: judge.name.to_owned(),
        path: path.to_path_buf(),
        expected: "its weights (a .safetensors, .bin, .pt or .pth file, or a folder with one)".into(),
        found: found.into(),
    }
}

/// A file's name and its suffix, in lower case.
fn name_and_suffix(path: &Path) -> (String, String) {
    let lower = |part: Option<&OsStr>| part.unwrap_or_default().to_string_lossy().to_lowercase();
    (lower(path.file_name()), lower(path.extension()))
}

/// Whether a file that is named is a configuration or a vocabulary; an index of shards is none.
fn is_text(path: &Path) -> bool {
    let (name, suffix) = name_and_suffix(path);
    suffix == "txt" || suffix == "json" && !name.contains(".index.")
}

/// Whether a file of a folder may be weights; what training leaves beside them is passed over.
fn is_weights(path: &Path) -> bool {
    let (name, suffix) = name_and_suffix(path);
    let shard = name.contains("-of-");
    let training =
        ["optimizer", "training_args", "scheduler", "checkpoint"].iter().any(|start| name.starts_with(start));
    SUFFIXES.contains(&suffix.as_str()) && !is_text(path) && !shard && !training
}

/// The weight files of a folder and of its folders, sorted.
fn weight_files(folder: &Path) -> Vec<PathBuf> {
    let list = |folder: &Path| -> Vec<PathBuf> {
        let mut entries: Vec<PathBuf> =
            std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        entries.sort();
        entries
    };
    let (folders, files): (Vec<_>, Vec<_>) = list(folder).into_iter().partition(|path| path.is_dir());
    let below = folders.iter().flat_map(|folder| list(folder)).filter(|path| path.is_file());
    files.into_iter().chain(below).filter(|path| is_weights(path)).collect()
}
