//! Which files of a repository are needed: diffusers' rule for pipelines, its names for LoRA adapters.

use std::collections::BTreeSet;

use serde_json::Value;

/// What is wanted of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Select {
    /// A diffusers pipeline: weights as safetensors where every part has them, else as `.bin`; those of the variant (such
    /// as `fp16`) in every part that has them; configurations and tokenizers. No safety checker, no single-file
    /// checkpoints, no ONNX, Flax or OpenVINO.
    Pipeline {
        /// The variant, `None` for the plain files.
        variant: Option<String>,
    },
    /// A LoRA adapter: `pytorch_lora_weights.safetensors`, or peft's file and its configuration, or the only safetensors
    /// file at the top, or where there is none the `.bin` of either name.
    Adapter,
    /// The LoRA adapter in this file, and peft's configuration beside it where there is one: its scale is written there.
    AdapterFile(String),
    /// One file by its path.
    File(String),
}

/// The index of a pipeline's parts.
pub const INDEX: &str = "model_index.json";

const PREFIXES: [&str; 3] = ["diffusion_pytorch_model", "pytorch_model", "model"];
/// Parts that neither training nor sampling reads.
const SKIPPED: [&str; 2] = ["safety_checker", "image_encoder"];
const FOREIGN: [&str; 4] = [".bin", ".msgpack", ".onnx", ".pb"];
/// Parts without weights.
const WEIGHTLESS: [&str; 3] = ["scheduler", "tokenizer", "tokenizer_2"];
/// Downloaded for other tools that expect it; nothing here reads it.
const UNREAD: &str = "feature_extractor";

/// A weight file's name, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Weights<'a> {
    variant: Option<&'a str>,
    safetensors: bool,
}

impl<'a> Weights<'a> {
    /// `model.safetensors`, `model.fp16.safetensors`, `model-00001-of-00002.safetensors`, both orders of variant and
    /// shard, and the indices of shards, the variant before or after the format or behind `index`. `None` for any other name.
    fn parse(name: &'a str) -> Option<Self> {
        let rest = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix))?;
        if let Some(inner) = rest.strip_suffix(".json") {
            let mut parts: Vec<&str> = inner.strip_prefix('.')?.split('.').collect();
            let index = parts.iter().position(|part| *part == "index")?;
            let format = parts[..index].iter().position(|part| format_of(part).is_some())?;
            parts.remove(index);
            let safetensors = format_of(parts.remove(format))?;
            let variant = (parts.len() <= 1).then(|| parts.pop())?;
            return Some(Self { variant, safetensors });
        }
        let (stem, suffix) = rest.rsplit_once('.')?;
        let safetensors = format_of(suffix)?;
        let stem = without_shard(stem);
        let variant = match stem {
            "" => None,
            _ => Some(stem.strip_prefix('.').filter(|variant| !variant.is_empty() && !variant.contains('.'))?),
        };
        Some(Self { variant, safetensors })
    }
}

fn format_of(suffix: &str) -> Option<bool> {
    match suffix {
        "safetensors" => Some(true),
        "bin" => Some(false),
        _ => None,
    }
}

/// The name without `-00001-of-00002`, which stands before or after the variant.
fn without_shard(stem: &str) -> &str {
    let number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_shard = |text: &str| {
        text.strip_prefix('-').and_then(|t| t.split_once("-of-")).is_some_and(|(a, b)| number(a) && number(b))
    };
    const LENGTH: usize = "-00001-of-00002".len();
    match (stem.get(..LENGTH), stem.len().checked_sub(LENGTH).and_then(|at| Some((stem.get(..at)?, stem.get(at..)?)))) {
        (Some(head), _) if is_shard(head) => &stem[LENGTH..],
        (_, Some((before, tail))) if is_shard(tail) => before,
        _ => stem,
    }
}

/// The pipeline's files among `files`, given its index. Errors: what is expected, what was found, what to do.
pub fn pipeline(files: &[String], index: &Value, variant: Option<&str>) -> Result<Vec<String>, String> {
    let parts = parts(index);
    let inside = |part: &str| -> Vec<(&str, Option<Weights<'_>>)> {
        let names = files.iter().filter_map(|file| file.strip_prefix(part)?.strip_prefix('/'));
        names.filter(|name| !name.contains('/')).map(|name| (name, Weights::parse(name))).collect()
    };
    let wanted = |names: &[(&str, Option<Weights<'_>>)], safetensors: bool| -> Option<Option<String>> {
        let has = |v: Option<&str>| {
            names.iter().any(|(_, w)| w.is_some_and(|w| w.variant == v && w.safetensors == safetensors))
        };
        let found = [variant, None].into_iter().find(|v| has(*v))?;
        Some(found.map(str::to_owned))
    };
    let has_weights = |part: &&str| inside(part).iter().any(|(_, weights)| weights.is_some());
    let models: Vec<&str> = parts.iter().map(String::as_str).filter(has_weights).collect();
    let safetensors = models.iter().all(|part| wanted(&inside(part), true).is_some());
    let (mut chosen, mut variant_found) = (BTreeSet::from([INDEX.to_owned()]), false);
    for part in &parts {
        let names = inside(part);
        if !models.contains(&part.as_str()) {
            let ours = names.iter().filter(|(name, _)| !FOREIGN.iter().any(|suffix| name.ends_with(suffix)));
            chosen.extend(ours.map(|(name, _)| format!("{part}/{name}")));
            continue;
        }
        let Some(found) = wanted(&names, safetensors) else {
            return Err(no_variant(part, variant, &names));
        };
        variant_found |= found.is_some();
        let fits = |w: Weights<'_>| w.safetensors == safetensors && w.variant == found.as_deref();
        let ours = names.iter().filter(|(name, w)| *name == "config.json" || w.is_some_and(fits));
        chosen.extend(ours.map(|(name, _)| format!("{part}/{name}")));
    }
    if let (Some(variant), false) = (variant, variant_found) {
        let all: Vec<_> = models.iter().flat_map(|part| inside(part)).collect();
        return Err(no_variant("any part", Some(variant), &all));
    }
    Ok(chosen.into_iter().collect())
}

fn no_variant(part: &str, variant: Option<&str>, names: &[(&str, Option<Weights<'_>>)]) -> String {
    let there: BTreeSet<&str> = names.iter().filter_map(|(_, weights)| weights.as_ref()?.variant).collect();
    let there: Vec<&str> = there.into_iter().collect();
    let wanted = variant.map_or("plain weights".to_owned(), |v| format!("weights of the variant `{v}`"));
    let advice = match (there.first(), variant) {
        (Some(first), None) => format!("the variants {}; try --variant {first}", there.join(", ")),
        (Some(_), Some(_)) => format!("the variants {}", there.join(", ")),
        (None, _) => "none; leave --variant out".to_owned(),
    };
    format!("expected {wanted} in {part}, found {advice}")
}

/// The folders that a pipeline's index names.
fn parts(index: &Value) -> Vec<String> {
    let named = index.as_object().into_iter().flatten().filter(|(key, value)| {
        let real = value.as_array().is_some_and(|list| list.iter().all(Value::is_string));
        real && !key.starts_with('_') && !key.contains(['/', '\\', '.']) && !SKIPPED.contains(&key.as_str())
    });
    named.map(|(key, _)| key.clone()).collect()
}

/// The first part that a snapshot's files leave without weights or without any file.
pub fn missing_part(files: &[String], index: &Value) -> Option<String> {
    parts(index).into_iter().filter(|part| part != UNREAD).find(|part| {
        let weightless = WEIGHTLESS.contains(&part.as_str());
        let mut names = files.iter().filter_map(|file| file.strip_prefix(part.as_str())?.strip_prefix('/'));
        !names.any(|name| weightless || Weights::parse(name).is_some_and(|_| !name.ends_with(".json")))
    })
}

/// peft's configuration of an adapter, beside its weights.
const PEFT_CONFIG: &str = "adapter_config.json";

/// The files of a LoRA adapter, its weights first. Errors: what is expected, what was found, what to do.
pub fn adapter(files: &[String]) -> Result<Vec<String>, String> {
    let first_of = |names: [&'static str; 2]| names.into_iter().find(|name| files.iter().any(|file| file == name));
    let usual = first_of(["pytorch_lora_weights.safetensors", "adapter_model.safetensors"]);
    let top: Vec<&str> =
        files.iter().map(String::as_str).filter(|file| !file.contains('/') && file.ends_with(".safetensors")).collect();
    let chosen = match (usual, &top[..]) {
        (Some(usual), _) => usual,
        (None, [only]) => only,
        (None, []) => first_of(["pytorch_lora_weights.bin", "adapter_model.bin"]).ok_or(
            "expected a LoRA adapter (a .safetensors file, pytorch_lora_weights.bin or adapter_model.bin), found none; \
             name the file as user/repo/path",
        )?,
        _ => {
            return Err(format!(
                "expected one LoRA adapter, found {}; name the file as user/repo/file",
                top.join(", ")
            ));
        }
    };
    Ok(with_config(files, chosen))
}

/// The file of an adapter, and peft's configuration beside it where `files` have it.
pub fn with_config(files: &[String], file: &str) -> Vec<String> {
    let folder = file.rfind('/').map_or("", |at| &file[..=at]);
    let config = format!("{folder}{PEFT_CONFIG}");
    let beside = files.contains(&config).then_some(config);
    std::iter::once(file.to_owned()).chain(beside).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn weight_files_are_taken_apart() {
        let parse = |name| Weights::parse(name).map(|w| (w.variant, w.safetensors));
        assert_eq!(parse("diffusion_pytorch_model.safetensors"), Some((None, true)));
        assert_eq!(parse("model.fp16.safetensors"), Some((Some("fp16"), true)));
        assert_eq!(parse("model-00001-of-00002.safetensors"), Some((None, true)));
        assert_eq!(parse("model.fp16-00001-of-00002.safetensors"), Some((Some("fp16"), true)));
        assert_eq!(parse("model-00001-of-00002.fp16.safetensors"), Some((Some("fp16"), true)));
        assert_eq!(parse("pytorch_model.bin"), Some((None, false)));
        assert_eq!(parse("diffusion_pytorch_model.safetensors.index.json"), Some((None, true)));
        assert_eq!(parse("diffusion_pytorch_model.safetensors.index.fp16.json"), Some((Some("fp16"), true)));
        assert_eq!(parse("model.safetensors.fp16.index.json"), Some((Some("fp16"), true)));
        assert_eq!(parse("model.fp16.safetensors.index.json"), Some((Some("fp16"), true)));
        assert_eq!(parse("pytorch_model.fp16.bin.index.json"), Some((Some("fp16"), false)));
        for other in [
            "config.json",
            "model.onnx",
            "openvino_model.bin",
            "flax_model.msgpack",
            "model.a.b.safetensors",
            "model.index.safetensors.json",
            "model.fp16.index.json",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    fn files(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn index() -> Value {
        json!({"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
            "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "image_encoder": [null, null],
            "requires_safety_checker": true})
    }

    const REPO: [&str; 20] = [
        "README.md",
        "v1-5-pruned.ckpt",
        "v1-5-pruned.safetensors",
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.bin",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/model.onnx",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "text_encoder/pytorch_model.bin",
        "text_encoder/flax_model.msgpack",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "safety_checker/config.json",
        "safety_checker/model.safetensors",
        "vae_decoder/model.safetensors",
    ];

    #[test]
    fn only_what_is_needed_is_chosen() {
        let choose = |variant| pipeline(&files(&REPO), &index(), variant).unwrap();
        let common = ["model_index.json", "text_encoder/config.json", "text_encoder/model.safetensors"];
        let tokenizer = ["tokenizer/merges.txt", "tokenizer/vocab.json", "unet/config.json"];
        let with = |unet: &str| files(&[&common[..], &tokenizer[..], &[unet]].concat());
        assert_eq!(choose(None), with("unet/diffusion_pytorch_model.safetensors"));
        assert_eq!(choose(Some("fp16")), with("unet/diffusion_pytorch_model.fp16.safetensors"));
        let error = pipeline(&files(&REPO), &index(), Some("bf16")).unwrap_err();
        assert!(error.contains("`bf16`") && error.contains("fp16, non_ema"), "{error}");
    }

    #[test]
    fn one_part_without_safetensors_makes_all_bin() {
        let left = REPO.iter().filter(|name| **name != "text_encoder/model.safetensors").copied().collect::<Vec<_>>();
        let chosen = pipeline(&files(&left), &index(), None).unwrap();
        assert!(chosen.contains(&"unet/diffusion_pytorch_model.bin".to_owned()), "{chosen:?}");
        assert!(!chosen.iter().any(|name| name.ends_with(".safetensors")), "{chosen:?}");
        let only = files(&["model_index.json", "unet/diffusion_pytorch_model.fp16.safetensors"]);
        assert!(pipeline(&only, &index(), None).unwrap_err().contains("try --variant fp16"));
    }

    #[test]
    fn a_snapshot_without_weights_is_not_whole() {
        let whole = pipeline(&files(&REPO), &index(), None).unwrap();
        assert_eq!(missing_part(&whole, &index()), None);
        let without = |gone: &str| whole.iter().filter(|name| !name.contains(gone)).cloned().collect::<Vec<_>>();
        assert_eq!(missing_part(&without("diffusion_pytorch_model"), &index()).as_deref(), Some("unet"));
        assert_eq!(missing_part(&without("tokenizer/"), &index()).as_deref(), Some("tokenizer"));
    }

    #[test]
    fn adapters_are_found_by_their_names() {
        let lora = "pytorch_lora_weights.safetensors";
        assert_eq!(adapter(&files(&["a.safetensors", lora])).unwrap(), [lora]);
        let peft = ["adapter_config.json", "adapter_model.safetensors"];
        assert_eq!(adapter(&files(&peft)).unwrap(), ["adapter_model.safetensors", "adapter_config.json"]);
        assert_eq!(adapter(&files(&["ink.safetensors", "unet/model.safetensors"])).unwrap(), ["ink.safetensors"]);
        assert!(adapter(&files(&["a.safetensors", "b.safetensors"])).unwrap_err().contains("a.safetensors, b.saf"));
        assert!(adapter(&files(&["README.md"])).unwrap_err().contains("found none"));
        // A pickle only where there is nothing else.
        let pickles = ["adapter_config.json", "adapter_model.bin", "optimizer.bin"];
        assert_eq!(adapter(&files(&pickles)).unwrap(), ["adapter_model.bin", "adapter_config.json"]);
        assert_eq!(adapter(&files(&["a.safetensors", "pytorch_lora_weights.bin"])).unwrap(), ["a.safetensors"]);
        assert_eq!(adapter(&files(&["pytorch_lora_weights.bin"])).unwrap(), ["pytorch_lora_weights.bin"]);
    }

    #[test]
    fn an_adapters_configuration_comes_with_it() {
        let inside = ["adapter_config.json", "a/adapter_config.json", "a/adapter_model.bin", "b/adapter_model.bin"];
        let chosen = |file: &str| with_config(&files(&inside), file);
        assert_eq!(chosen("a/adapter_model.bin"), ["a/adapter_model.bin", "a/adapter_config.json"]);
        assert_eq!(chosen("b/adapter_model.bin"), ["b/adapter_model.bin"]);
        assert_eq!(chosen("adapter_model.bin"), ["adapter_model.bin", "adapter_config.json"]);
    }
}
