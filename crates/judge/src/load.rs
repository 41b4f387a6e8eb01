//! Building judges: from a name and files.

use std::path::PathBuf;
use std::time::Duration;

use seedpo_model::clip::ClipLayout;
use seedpo_model::{Activation, ClipConfig, ClipDialect, ClipModel, ClipTokenizer};
use seedpo_tensor::{Device, Kind, WeightFile};

use crate::aesthetic::AestheticHead;
use crate::clip_judge::{ClipFormula, ClipJudge};
use crate::exec::EXEC_TIMEOUT;
use crate::files::{Content, Found};
use crate::{Chroma, Colourfulness, Error, HubFile, JpegSize, Judge, JudgeInfo, Preparation, Result, info};

/// How judges compute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct JudgeOptions {
    /// Where.
    pub device: Device,
    /// The weights' number type: f32 as the reference implementations, or bf16 (docs/judges.md has the error).
    pub kind: Kind,
    /// Pictures in one pass.
    pub batch_size: usize,
    /// How long an external scorer may take for one batch ([`ExecJudge::new`](crate::ExecJudge::new)).
    pub exec_timeout: Duration,
}

impl Default for JudgeOptions {
    fn default() -> Self {
        Self { device: Device::Cpu, kind: Kind::Float, batch_size: 8, exec_timeout: EXEC_TIMEOUT }
    }
}

/// Builds the judge of this name from its files: folders, or single files; none for a judge without weights.
///
/// Errors: [`Error::UnknownJudge`]; [`Error::Files`] where the weights are not there or are others; what is wrong with
/// them otherwise.
pub fn load(name: &str, paths: &[PathBuf], options: &JudgeOptions) -> Result<Box<dyn Judge>> {
    let info = info(name)?;
    if !info.has_weights() {
        return match paths.first() {
            None => Ok(without_weights(info)),
            Some(path) => Err(Error::Files {
                judge: info.name.to_owned(),
                path: path.clone(),
                expected: "no path, since it has no weights".into(),
                found: "one".into(),
            }),
        };
    }
    let found = Found::open(info, paths)?;
    match info.name {
        "imagereward" => Ok(Box::new(crate::image_reward::load(info, &found, options)?)),
        _ => Ok(Box::new(clip_judge(info, &found, options)?)),
    }
}

/// What a judge needs besides the files at these paths and is published in another model's repository: BERT's vocabulary for
/// ImageReward, CLIP for the aesthetic predictor's head. Empty where nothing is lacking, or the paths hold no such judge.
pub fn lacking(info: &'static JudgeInfo, paths: &[PathBuf]) -> Vec<&'static HubFile> {
    let lacks = |found: &Found| match info.name {
        "imagereward" => found
            .contents()
            .find(|(_, content)| matches!(content, Content::ImageReward(_)))
            .is_some_and(|(file, _)| crate::image_reward::vocabulary(found, file).is_none()),
        "aesthetic" => {
            let has = |wanted: &dyn Fn(&Content) -> bool| found.contents().any(|(_, content)| wanted(content));
            has(&|c| *c == Content::AestheticHead) && !has(&|c| matches!(c, Content::Clip(_)))
        }
        _ => false,
    };
    match Found::open(info, paths) {
        Ok(found) if lacks(&found) => info.other_weights().collect(),
        _ => Vec::new(),
    }
}

/// Which judge the weights at these paths are: by their tensors; a CLIP of OpenCLIP's is HPS (v2.1 where its file's name says
/// so), one of transformers' is read as PickScore, or with the predictor's head beside it as that.
///
/// Errors: [`Error::Files`] where they are none, or both versions of HPS.
pub fn recognised(paths: &[PathBuf]) -> Result<&'static str> {
    let found = Found::open(info("pickscore")?, paths)?;
    let kinds: Vec<&Content> = found.contents().map(|(_, content)| content).collect();
    let has = |wanted: &dyn Fn(&Content) -> bool| kinds.iter().any(|content| wanted(content));
    if has(&|c| matches!(c, Content::ImageReward(_))) {
        Ok("imagereward")
    } else if has(&|c| *c == Content::StepAwareClip) {
        Ok("spm")
    } else if has(&|c| *c == Content::AestheticHead) {
        Ok("aesthetic")
    } else if has(&|c| *c == Content::Clip(ClipLayout::OpenClip)) {
        hps_version(&found)
    } else if has(&|c| matches!(c, Content::Clip(_))) {
        Ok("pickscore")
    } else {
        Err(found.unfit("the weights of a judge", "other tensors".into()))
    }
}

/// The versions of HPS differ in nothing but their numbers: the file's name tells.
fn hps_version(found: &Found) -> Result<&'static str> {
    let open_clip = found.contents().filter(|(_, content)| *content == Content::Clip(ClipLayout::OpenClip));
    let newer: Vec<bool> = open_clip
        .map(|(file, _)| file.path().file_name().is_some_and(|n| n.to_string_lossy().contains("2.1")))
        .collect();
    match (newer.contains(&true), newer.contains(&false)) {
        (true, true) => Err(found.unfit("one version of HPS", "v2 and v2.1; name one of the files".into())),
        (true, false) => Ok("hpsv2.1"),
        _ => Ok("hpsv2"),
    }
}

/// A whole CLIP to go on training from, conditioned on timesteps or not, with its tokenizer; `from` is a folder or a file.
/// What no file says is taken as PickScore has it.
///
/// Errors: as [`load`].
pub fn load_clip(from: &std::path::Path, options: &JudgeOptions) -> Result<(ClipModel, ClipTokenizer)> {
    let found = Found::open(info("pickscore")?, &[from.to_path_buf()])?;
    let (file, _) = found.one("a CLIP", |content| matches!(content, Content::Clip(_) | Content::StepAwareClip))?;
    let model = clip(&found, file, None, options)?;
    let tokenizer = tokenizer(&found, file, ClipDialect::Transformers, model.config().text.vocab_size)?;
    Ok((model, tokenizer))
}

/// `act`: that of the one published model, `None` where the sizes are to tell; a configuration beside the file has
/// precedence.
fn clip(found: &Found, file: &WeightFile, act: Option<Activation>, options: &JudgeOptions) -> Result<ClipModel> {
    let config = clip_config(found, file)?;
    let act = match act {
        Some(act) => act,
        None if config.is_none() => usual_activation(file),
        // The configuration's counts.
        None => Activation::Gelu,
    };
    Ok(ClipModel::load(file, config, act, options.device, options.kind)?)
}

/// OpenAI's towers (B/32, B/16, L/14) were trained with quick_gelu, the larger ones with the exact function; others trained
/// OpenAI's sizes anew with that, which no shape shows: a line says what is supposed.
fn usual_activation(file: &WeightFile) -> Activation {
    let shape = |end: &str| file.names().find(|name| name.ends_with(end)).and_then(|name| file.shape(name));
    let patches = shape("vision_model.embeddings.patch_embedding.weight").or(shape("visual.conv1.weight"));
    match (patches, shape("token_embedding.weight")) {
        (Some(&[768, _, 32 | 16, _]), Some(&[_, 512])) | (Some(&[1024, _, 14, _]), Some(&[_, 768])) => {
            tracing::warn!(
                "{}: no config.json beside it says its activation; by its sizes it is taken as OpenAI's CLIP (quick_gelu). If \
                 it is LAION's or tuned from one of LAION's, put its config.json beside it",
                file.path().display()
            );
            Activation::QuickGelu
        }
        _ => Activation::Gelu,
    }
}

fn without_weights(info: &JudgeInfo) -> Box<dyn Judge> {
    match info.name {
        "jpeg-compressibility" => Box::new(JpegSize::Compressibility),
        "jpeg-incompressibility" => Box::new(JpegSize::Incompressibility),
        "chroma" => Box::new(Chroma),
        _ => Box::new(Colourfulness),
    }
}

fn clip_judge(info: &'static JudgeInfo, found: &Found, options: &JudgeOptions) -> Result<ClipJudge> {
    use ClipDialect::{OpenAi, OpenClip, Transformers};
    let padded = |antialias| Preparation::Padded { antialias };
    let (dialect, preparation, act) = match info.name {
        "hpsv2" | "hpsv2.1" => (OpenClip, padded(true), Some(Activation::Gelu)),
        "hpsv2-no-antialias" | "hpsv2.1-no-antialias" => (OpenClip, padded(false), Some(Activation::Gelu)),
        "clipscore" => (OpenAi, Preparation::OpenAi, Some(Activation::QuickGelu)),
        "aesthetic" => (Transformers, Preparation::Processor, Some(Activation::QuickGelu)),
        _ => (Transformers, Preparation::Processor, None),
    };
    let step_aware = info.step_aware();
    let expected = if step_aware { "a CLIP with a timestep's conditioning" } else { "a CLIP" };
    let wanted = |content: &Content| match content {
        Content::Clip(_) => !step_aware,
        Content::StepAwareClip => step_aware,
        _ => false,
    };
    let (file, _) = found.one(expected, wanted)?;
    let model = clip(found, file, act, options)?;
    let vocab_size = model.config().text.vocab_size;
    let tokenizer = info.reads_prompt.then(|| tokenizer(found, file, dialect, vocab_size)).transpose()?;
    let formula = match info.name {
        "clipscore" => ClipFormula::ClipScore,
        "aesthetic" => {
            let (head, _) = found.one("the predictor's head beside a CLIP", |c| *c == Content::AestheticHead)?;
            ClipFormula::Aesthetic(AestheticHead::load(head, "", model.config().projection_dim, options.device)?)
        }
        name if name.starts_with("hps") => ClipFormula::Cosine,
        _ => ClipFormula::Logit,
    };
    Ok(ClipJudge::new(info, model, tokenizer, preparation, formula, options.batch_size))
}

/// The sizes, where a file beside the weights says them.
fn clip_config(found: &Found, file: &WeightFile) -> Result<Option<ClipConfig>> {
    let of_clip = |path: &std::path::Path| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        ["vision_config", "vision_cfg"].iter().any(|key| text.contains(key))
    };
    let path = found.beside(file, &["config.json", "open_clip_config.json"], of_clip);
    Ok(path.map(|path| ClipConfig::from_file(&path)).transpose()?)
}

/// CLIP's own vocabulary, or the one beside the weights: transformers' folders bring theirs, and models of other
/// vocabularies need one.
fn tokenizer(found: &Found, file: &WeightFile, dialect: ClipDialect, vocab_size: i64) -> Result<ClipTokenizer> {
    let folders = ["tokenizer", "."];
    let complete = |folder: &std::path::Path| {
        let has = |name: &str| folder.join(name).is_file();
        has("tokenizer_config.json") && (has("tokenizer.json") || has("vocab.json") && has("merges.txt"))
    };
    let folder = found.beside(file, &folders, complete);
    let built_in = vocab_size == 49408;
    match folder {
        Some(folder) if dialect == ClipDialect::Transformers || !built_in => Ok(ClipTokenizer::from_folder(&folder)?),
        _ if built_in => Ok(ClipTokenizer::built_in(dialect)?),
        _ => Err(found.unfit(
            "a tokenizer beside the weights (tokenizer.json or vocab.json and merges.txt, tokenizer_config.json)",
            format!("none, and a vocabulary of {vocab_size} tokens, which is not CLIP's own (49408)"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use seedpo_tensor::{Tensor, write_weights};

    /// The sizes of OpenAI's B/32, B/16 and L/14, in both layouts, and others.
    #[test]
    fn an_activation_that_no_file_says_is_told_by_the_sizes() {
        let folder = tempfile::tempdir().unwrap();
        let layouts = [
            ("vision_model.embeddings.patch_embedding.weight", "text_model.embeddings.token_embedding.weight"),
            ("visual.conv1.weight", "token_embedding.weight"),
        ];
        for (patches, words) in layouts {
            for (width, patch, text, expected) in [
                (768, 32, 512, Activation::QuickGelu),
                (768, 16, 512, Activation::QuickGelu),
                (1024, 14, 768, Activation::QuickGelu),
                (1280, 14, 1024, Activation::Gelu),
                (1408, 14, 1024, Activation::Gelu),
                (768, 32, 640, Activation::Gelu),
                (64, 4, 64, Activation::Gelu),
            ] {
                let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Uint8, Device::Cpu));
                let tensors = [(patches, zeros(&[width, 3, patch, patch])), (words, zeros(&[5, text]))];
                let path = folder.path().join("model.safetensors");
                let tensors = tensors.into_iter().map(|(name, tensor)| (format!("model.{name}"), tensor)).collect();
                write_weights(&path, &tensors, &Default::default()).unwrap();
                let found = usual_activation(&WeightFile::open(&path).unwrap());
                assert_eq!(found, expected, "{width} {patch} {text}");
            }
        }
    }
}
