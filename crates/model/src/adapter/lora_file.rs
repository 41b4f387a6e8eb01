//! A LoRA file taken apart without a model: which layers it changes, and how.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use seedpo_tensor::WeightFile;
use tch::{Kind, Tensor};

use super::keys::{self, LAYERS_PER_BLOCK, Layout, Parsed, Part};
use super::lora::{Lora, LoraModule};
use super::metadata::Metadatas;
use super::network::Network;
use super::resolve;
use crate::{Error, Result};

/// Problems shown of one file; a wrong base gives hundreds.
const MOST_PROBLEMS: usize = 8;

/// Tensors of a file that we do not apply, of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// What they are, in words: LoHa, LoKr, layers of another network, ..
    pub what: &'static str,
    /// Their keys.
    pub keys: Vec<String>,
}

/// A LoRA file, read and checked as far as that goes without a model.
#[derive(Debug)]
pub struct LoraFile {
    /// The file.
    pub path: PathBuf,
    /// How its keys are spelled; usually one.
    pub layouts: BTreeSet<Layout>,
    /// The layers it changes, by their whole names, e.g. `unet.mid_block.attentions.0.proj_in` (see [`Lora`]).
    pub modules: BTreeMap<String, LoraModule>,
    /// What else it holds.
    pub unsupported: Vec<Unsupported>,
}

/// A file's tensors of one layer, with their keys.
#[derive(Default)]
struct Found {
    a: Option<(String, Tensor)>,
    b: Option<(String, Tensor)>,
    alpha: Option<(String, f64)>,
}

impl LoraFile {
    /// Reads a LoRA in diffusers', peft's or kohya's layout (safetensors or torch's `.bin`). `path` is the file, or a
    /// folder that holds one under diffusers' or peft's name.
    ///
    /// Errors: [`Error::Adapter`] naming missing partners, shapes that do not go together, the same tensor in two
    /// spellings, numbers that are no floats; [`Error::Config`] for metadata that is malformed or asks for a kind of
    /// LoRA we do not have. What is merely unsupported is no error here, but in [`Self::into_lora`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_counting(path, LAYERS_PER_BLOCK)
    }

    /// As [`Self::open`], for U-Nets with another number of residual blocks per level than Stable Diffusion's 2.
    pub(super) fn open_counting(path: &Path, layers_per_block: usize) -> Result<Self> {
        let path = resolve(path);
        let file = WeightFile::open(&path)?;
        if let Some((key, what)) = keys::whole_model(&file.names().collect::<Vec<_>>()) {
            return Err(refuse(&path, vec![format!("`{key}`: {what}")]));
        }
        let metadatas = Metadatas::read(&file)?;
        let mut lora = Self { path, layouts: BTreeSet::new(), modules: BTreeMap::new(), unsupported: Vec::new() };
        let mut problems = Vec::new();
        let found = lora.collect(&file, layers_per_block, &mut problems)?;
        if !found.is_empty() {
            metadatas.check_known(&file)?;
        }
        for (module, found) in found {
            match pair(&module, found, &metadatas) {
                Ok(pair) => drop(lora.modules.insert(module, pair)),
                Err(reason) => problems.push(reason),
            }
        }
        if lora.modules.is_empty() && lora.unsupported.is_empty() && problems.is_empty() {
            problems.push("expected LoRA tensors, found none".to_owned());
        }
        if !problems.is_empty() {
            return Err(refuse(&lora.path, problems));
        }
        lora.warn_of_lost_scale();
        Ok(lora)
    }

    /// peft keeps alpha in a file of its own, which is easily left behind; the adapter then works, but too weakly or strongly.
    fn warn_of_lost_scale(&self) {
        if self.layouts.contains(&Layout::Peft) && self.modules.values().any(|module| !module.has_alpha) {
            tracing::warn!(
                "adapter {}: peft's adapter_config.json with its alpha is not beside it, so its scale is taken as 1; put the \
                 one it was saved with there",
                self.path.display()
            );
        }
    }

    /// Sorts a file's tensors by layer.
    fn collect(
        &mut self,
        file: &WeightFile,
        layers_per_block: usize,
        problems: &mut Vec<String>,
    ) -> Result<BTreeMap<String, Found>> {
        let mut modules: BTreeMap<String, Found> = BTreeMap::new();
        let twice = |key: &str, first: &str| format!("`{key}`: the same tensor as `{first}` in another spelling");
        for key in file.names() {
            let (module, part, layout) = match keys::parse(key, layers_per_block) {
                Ok(Parsed::Layer { module, part, layout }) => (module, part, layout),
                Ok(Parsed::Unsupported(what)) => {
                    self.note_unsupported(what, key);
                    continue;
                }
                Err(reason) => {
                    problems.push(format!("`{key}`: {reason}"));
                    continue;
                }
            };
            self.layouts.insert(layout);
            let found = modules.entry(module).or_default();
            let tensor = file.tensor(key)?;
            let slot = match part {
                Part::A => &mut found.a,
                Part::B => &mut found.b,
                Part::Alpha => {
                    match alpha(&tensor) {
                        Ok(_) if found.alpha.is_some() => {
                            problems.push(twice(key, &found.alpha.as_ref().map_or_else(String::new, |a| a.0.clone())))
                        }
                        Ok(value) => found.alpha = Some((key.to_owned(), value)),
                        Err(reason) => problems.push(format!("`{key}`: {reason}")),
                    }
                    continue;
                }
            };
            match slot {
                Some((first, _)) => problems.push(twice(key, first)),
                None => *slot = Some((key.to_owned(), tensor)),
            }
        }
        self.leave_out_other_kinds(&mut modules, layers_per_block);
        Ok(modules)
    }

    /// Takes away what stands beside the tensors of another kind of adapter: its alpha, the pair around a convolution's
    /// middle part.
    fn leave_out_other_kinds(&mut self, modules: &mut BTreeMap<String, Found>, layers_per_block: usize) {
        for kind in &mut self.unsupported {
            let mut beside = Vec::new();
            for (alpha, all) in kind.keys.iter().filter_map(|key| keys::alpha_of_other_kind(key)) {
                let Ok(Parsed::Layer { module, .. }) = keys::parse(&alpha, layers_per_block) else { continue };
                let alone = modules.get(&module).is_some_and(|found| found.a.is_none() && found.b.is_none());
                if !all && !alone {
                    continue;
                }
                let Some(Found { a, b, alpha }) = modules.remove(&module) else { continue };
                beside.extend([a.map(|(key, _)| key), b.map(|(key, _)| key), alpha.map(|(key, _)| key)]);
            }
            kind.keys.extend(beside.into_iter().flatten());
        }
    }

    fn note_unsupported(&mut self, what: &'static str, key: &str) {
        match self.unsupported.iter_mut().find(|kind| kind.what == what) {
            Some(kind) => kind.keys.push(key.to_owned()),
            None => self.unsupported.push(Unsupported { what, keys: vec![key.to_owned()] }),
        }
    }

    /// The layers' pairs. `ignore_unsupported` leaves out what we do not apply.
    ///
    /// Errors: [`Error::Adapter`] naming what is not applied (unless ignored), or that nothing is left; layers whose
    /// numbers are not all finite.
    pub fn into_lora(self, ignore_unsupported: bool) -> Result<Lora> {
        let broken = self.modules.iter().filter(|(_, module)| !module.is_finite());
        let mut problems: Vec<String> =
            broken.map(|(name, _)| format!("`{name}`: expected finite numbers, found NaN or infinite ones")).collect();
        if !ignore_unsupported {
            problems.extend(self.unsupported.iter().map(Unsupported::describe));
        } else if self.modules.is_empty() {
            problems.push("expected low-rank pairs of Stable Diffusion's layers, found none".to_owned());
        }
        match problems.is_empty() {
            true => Ok(Lora { modules: self.modules }),
            false => Err(refuse(&self.path, problems)),
        }
    }

    /// The family of base models whose text embeddings the cross attention reads, by their width; `None` where no such
    /// projection is changed or the width is none of theirs.
    pub fn family(&self) -> Option<&'static str> {
        family(&self.modules)
    }
}

/// As [`LoraFile::family`].
pub(super) fn family(modules: &BTreeMap<String, LoraModule>) -> Option<&'static str> {
    let reads = |path: &str| path.ends_with("attn2.to_k") || path.ends_with("attn2.to_v");
    let module = modules.iter().find(|(path, _)| reads(path))?.1;
    match module.a.size()[1] {
        768 => Some("Stable Diffusion 1.x"),
        1024 => Some("Stable Diffusion 2.x"),
        2048 => Some("SDXL"),
        _ => None,
    }
}

/// Whether layers are SDXL's, by what only it has, or only Stable Diffusion 1.x and 2.x have; `None` where that is open.
pub(super) fn shows_sdxl(modules: &BTreeMap<String, LoraModule>) -> Option<bool> {
    let any = |parts: &[&str]| modules.keys().any(|name| parts.iter().any(|part| name.contains(part)));
    // A second text encoder, an embedding of sizes, several blocks in a transformer; four levels with a transformer in each
    // but the lowest, against three with none in the first.
    let deep =
        modules.keys().any(|name| name.contains(".transformer_blocks.") && !name.contains(".transformer_blocks.0."));
    if deep || any(&["text_encoder_2.", "unet.add_embedding."]) {
        return Some(true);
    }
    let four = ["_blocks.3.", "unet.down_blocks.0.attentions.", "unet.up_blocks.2.attentions."];
    let wide =
        |(name, module): (&String, &LoraModule)| name.ends_with("self_attn.q_proj") && module.a.size()[1] == 1024;
    if any(&four) || modules.iter().any(wide) {
        return Some(false);
    }
    family(modules).map(|family| family == "SDXL")
}

impl Unsupported {
    /// One line that names them.
    pub fn describe(&self) -> String {
        let (count, first) = (self.keys.len(), self.keys.first().map_or("", String::as_str));
        let which = if count == 1 { format!("`{first}`") } else { format!("{count} tensors such as `{first}`") };
        format!(
            "{which}: {} cannot be applied; merge the file into its model with the tool that made it, or leave them out with \
             `seedpo adapter convert --ignore-unsupported`",
            self.what
        )
    }
}

/// An error with so many problems as help.
pub(super) fn refuse(path: &Path, mut problems: Vec<String>) -> Error {
    if problems.len() > MOST_PROBLEMS {
        let rest = problems.len() - MOST_PROBLEMS;
        problems.truncate(MOST_PROBLEMS);
        problems.push(format!("and {rest} more of this kind"));
    }
    Error::Adapter { path: path.to_path_buf(), problems }
}

fn alpha(tensor: &Tensor) -> std::result::Result<f64, String> {
    let value = (tensor.numel() == 1).then(|| tensor.to_kind(Kind::Double).reshape([1]).double_value(&[0]));
    value
        .filter(|v| v.is_finite())
        .ok_or_else(|| format!("expected one finite number, found shape {:?}", tensor.size()))
}

/// One layer's pair, or what is wrong with it.
fn pair(name: &str, found: Found, metadatas: &Metadatas) -> std::result::Result<LoraModule, String> {
    let partner = |key: &str, half: &str| format!("`{key}`: its partner, the `lora_{half}` of {name}, is missing");
    let (a_key, a, b_key, b) = match (found.a, found.b) {
        (Some((a_key, a)), Some((b_key, b))) => (a_key, a, b_key, b),
        (Some((key, _)), None) => return Err(partner(&key, "B")),
        (None, Some((key, _))) => return Err(partner(&key, "A")),
        (None, None) => return Err(partner(&found.alpha.map_or_else(String::new, |(key, _)| key), "A")),
    };
    for (key, tensor) in [(&a_key, &a), (&b_key, &b)] {
        if !tensor.is_floating_point() {
            return Err(format!("`{key}`: expected floating-point numbers, found {:?}", tensor.kind()));
        }
    }
    let rank = match a.size()[..] {
        [rank, ..] if matches!(a.dim(), 2 | 4) && a.numel() > 0 => rank,
        _ => return Err(format!("`{a_key}`: expected shape [rank, in] or [rank, in, k, k], found {:?}", a.size())),
    };
    if !matches!(b.size()[..], [_, r] | [_, r, 1, 1] if r == rank) {
        return Err(format!("`{b_key}`: expected shape [out, {rank}] or [out, {rank}, 1, 1], found {:?}", b.size()));
    }
    let (network, path) = Network::split(name).unwrap_or((Network::UNet, name));
    let metadata = metadatas.network(network);
    if let Some(said) = metadata.rank(path).filter(|&said| said != rank) {
        return Err(format!("`{a_key}`: expected rank {said} as the metadata says, found {rank}"));
    }
    let (scale, has_alpha) = match &found.alpha {
        Some((_, alpha)) => (alpha / rank as f64, true),
        None => (metadata.scale(path, rank), metadata.has_alpha(path)),
    };
    Ok(LoraModule { a, b, scale, has_alpha })
}
