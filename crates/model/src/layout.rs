//! Which files of a diffusers folder hold a part's weights.

use std::path::{Path, PathBuf};

use seedpo_tensor::WeightFile;

use crate::{Error, Result};

/// How a part's weight files are called, before variant and ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stems {
    safetensors: &'static str,
    torch: &'static str,
}

/// U-Net and VAE (diffusers' own classes).
pub(crate) const DIFFUSERS: Stems = Stems { safetensors: "diffusion_pytorch_model", torch: "diffusion_pytorch_model" };
/// Text encoders (transformers' classes).
pub(crate) const TRANSFORMERS: Stems = Stems { safetensors: "model", torch: "pytorch_model" };

/// Parts of a pipeline that have weights.
const PARTS: [(&str, Stems); 4] =
    [("unet", DIFFUSERS), ("vae", DIFFUSERS), ("text_encoder", TRANSFORMERS), ("text_encoder_2", TRANSFORMERS)];

impl Stems {
    /// The file that [`crate::DiffusionModel::save`] writes.
    pub fn saved(self) -> String {
        format!("{}.safetensors", self.safetensors)
    }

    /// Every name that the weights may have, the preferred first: safetensors before torch's pickles, one file before
    /// shards. `variant` is a word such as `fp16`, which diffusers puts at one of two places in an index's name.
    fn names(self, variant: Option<&str>) -> Vec<String> {
        let mut names = Vec::new();
        for (stem, ending) in [(self.safetensors, "safetensors"), (self.torch, "bin")] {
            match variant {
                None => names.extend([format!("{stem}.{ending}"), format!("{stem}.{ending}.index.json")]),
                Some(variant) => names.extend([
                    format!("{stem}.{variant}.{ending}"),
                    format!("{stem}.{ending}.index.{variant}.json"),
                    format!("{stem}.{variant}.{ending}.index.json"),
                ]),
            }
        }
        names
    }

    /// The variants of which weights lie in `folder`, sorted.
    fn variants(self, folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut found: Vec<String> =
            entries.filter_map(|entry| self.variant_of(entry.file_name().to_str()?).map(str::to_owned)).collect();
        found.sort();
        found.dedup();
        found
    }

    /// The `fp16` of `model.fp16.safetensors` and of an index of shards.
    fn variant_of(self, name: &str) -> Option<&str> {
        [(self.safetensors, "safetensors"), (self.torch, "bin")].into_iter().find_map(|(stem, ending)| {
            let rest = name.strip_prefix(stem)?.strip_prefix('.')?;
            let inner = rest.strip_suffix(".index.json").unwrap_or(rest).strip_suffix(&format!(".{ending}"));
            let indexed = || rest.strip_prefix(ending)?.strip_prefix(".index.")?.strip_suffix(".json");
            inner.or_else(indexed).filter(|variant| !variant.is_empty() && !variant.contains('.'))
        })
    }

    /// The file of weights in `folder`, or the index of its shards.
    ///
    /// The variant named, where the folder has it, else full precision; where it has neither, its `fp16` variant. Errors:
    /// there is none of these; the error names the variants that are there.
    pub fn find(self, folder: &Path, variant: Option<&str>) -> Result<PathBuf> {
        let first = |variant| self.names(variant).into_iter().map(|name| folder.join(name)).find(|path| path.is_file());
        let choices = [variant.map(Some), Some(None), Some(Some("fp16"))];
        if let Some(path) = choices.into_iter().flatten().find_map(first) {
            return Ok(path);
        }
        let reason = match &self.variants(folder)[..] {
            [] => "no such file, nor shards of it (.index.json) nor a .bin file".to_owned(),
            variants => format!("no such file, but the variant(s) {}: name one with --variant", variants.join(", ")),
        };
        Err(seedpo_tensor::Error::format(folder.join(self.saved()), reason).into())
    }

    /// Opens what [`Self::find`] finds.
    pub fn open(self, folder: &Path, variant: Option<&str>) -> Result<WeightFile> {
        Ok(WeightFile::open(&self.find(folder, variant)?)?)
    }
}

/// Refuses a variant that no part of the model in `folder` has (a part that lacks it is read in full precision, as
/// diffusers does). Errors: [`Error::Argument`] naming the variants that are there.
pub(crate) fn check_variant(folder: &Path, variant: &str) -> Result<()> {
    let mut found: Vec<String> = PARTS.iter().flat_map(|(part, stems)| stems.variants(&folder.join(part))).collect();
    if found.iter().any(|name| name == variant) {
        return Ok(());
    }
    found.sort();
    found.dedup();
    Err(Error::Argument {
        what: format!("weight variant of {}", folder.display()),
        expected: if found.is_empty() { "none: the folder has no variants".into() } else { found.join(" or ") },
        found: variant.into(),
    })
}

/// Every file that a model's weights are read from, by a name that does not depend on where the model lies:
/// `unet/diffusion_pytorch_model.safetensors`, of shards the index and each of them; `model` for a single file.
pub fn weight_files(folder: &Path, variant: Option<&str>) -> Vec<(String, PathBuf)> {
    if folder.is_file() {
        return vec![("model".to_owned(), folder.to_path_buf())];
    }
    let mut files = Vec::new();
    for (part, stems) in PARTS {
        // What is missing is named when the model is loaded.
        let Ok(path) = stems.find(&folder.join(part), variant) else { continue };
        let shards = if path.extension().is_some_and(|e| e == "json") { shards(&path) } else { Vec::new() };
        for path in std::iter::once(path).chain(shards) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.push((format!("{part}/{name}"), path));
        }
    }
    files
}

fn shards(index: &Path) -> Vec<PathBuf> {
    let Ok(file) = WeightFile::open(index) else { return Vec::new() };
    file.paths().into_iter().map(Path::to_path_buf).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        names.iter().for_each(|name| std::fs::write(folder.path().join(name), "x").unwrap());
        folder
    }

    fn found(stems: Stems, names: &[&str], variant: Option<&str>) -> Result<String> {
        let folder = folder(names);
        stems.find(folder.path(), variant).map(|p| p.file_name().unwrap().to_string_lossy().into_owned())
    }

    #[test]
    fn the_variant_named_wins_then_full_precision_then_fp16() {
        let all = ["model.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "pytorch_model.fp16.bin"];
        for (names, variant, expected) in [
            (&all[..], None, "model.safetensors"),
            (&all[..], Some("fp16"), "model.fp16.safetensors"),
            (&all[1..], None, "pytorch_model.bin"),
            (&all[3..], None, "pytorch_model.fp16.bin"),
            (&all[..1], Some("fp16"), "model.safetensors"),
            (&["model.safetensors.index.json"], None, "model.safetensors.index.json"),
            (&["model.safetensors.index.fp16.json"], Some("fp16"), "model.safetensors.index.fp16.json"),
            (&["model.fp16.safetensors.index.json"], Some("fp16"), "model.fp16.safetensors.index.json"),
            (&["pytorch_model.bin.index.json"], None, "pytorch_model.bin.index.json"),
        ] {
            assert_eq!(found(TRANSFORMERS, names, variant).unwrap(), expected, "{names:?}");
        }
        assert_eq!(found(DIFFUSERS, &["diffusion_pytorch_model.bin"], None).unwrap(), "diffusion_pytorch_model.bin");
    }

    #[test]
    fn other_variants_have_to_be_named() {
        let names =
            ["diffusion_pytorch_model.non_ema.safetensors", "diffusion_pytorch_model.safetensors.index.bf16.json"];
        let message = found(DIFFUSERS, &names, None).unwrap_err().to_string();
        assert!(message.contains("bf16, non_ema: name one with --variant"), "{message}");
        assert!(found(DIFFUSERS, &names, Some("non_ema")).is_ok());
        let message = found(DIFFUSERS, &["config.json"], None).unwrap_err().to_string();
        assert!(message.contains("no such file"), "{message}");
    }

    #[test]
    fn a_variant_of_no_part_is_refused() {
        let model = tempfile::tempdir().unwrap();
        std::fs::create_dir(model.path().join("unet")).unwrap();
        std::fs::write(model.path().join("unet/diffusion_pytorch_model.fp16.bin"), "x").unwrap();
        assert!(check_variant(model.path(), "fp16").is_ok());
        let message = check_variant(model.path(), "fp8").unwrap_err().to_string();
        assert!(message.contains("expected fp16, found fp8"), "{message}");
    }
}
