//! How adapter files spell their keys.

use super::kohya;
use super::network::Network;

/// Which part of a low-rank pair a key names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A, `[rank, in]` (of a convolution `[rank, in, k, k]`), also called `down`.
    A,
    /// B, `[out, rank]` (of a convolution `[out, rank, 1, 1]`), also called `up`.
    B,
    /// The number that, divided by the rank, scales the pair.
    Alpha,
}

/// A way to spell a LoRA's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layout {
    /// Today's diffusers: `unet.<path>.lora_A.weight` or `unet.<path>.lora.down.weight`.
    Diffusers,
    /// diffusers 0.17 and before: `<path>.processor.to_q_lora.down.weight`.
    OldDiffusers,
    /// peft's own: `base_model.model.<path>.lora_A.weight`.
    Peft,
    /// kohya's sd-scripts, A1111, ComfyUI: `lora_unet_<path with _>.lora_down.weight` and `.alpha`; `lora_te_`, SDXL
    /// `lora_te1_` and `lora_te2_`.
    Kohya,
    /// ComfyUI's own: `diffusion_model.<path with the original block names>.lora_A.weight`.
    ComfyUi,
}

impl Layout {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Diffusers => "diffusers",
            Self::OldDiffusers => "diffusers 0.17 and before",
            Self::Peft => "peft",
            Self::Kohya => "kohya",
            Self::ComfyUi => "ComfyUI",
        }
    }
}

/// What a key stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// Part of the pair of a layer; `module` is its whole name, e.g. `unet.mid_block.attentions.0.proj_in`.
    Layer { module: String, part: Part, layout: Layout },
    /// A part of an adapter that we do not apply: what it is, in words.
    Unsupported(&'static str),
}

/// The residual blocks per level of every Stable Diffusion: what the original block numbers count by.
pub(super) const LAYERS_PER_BLOCK: usize = 2;

const OTHER_LAYERS: &str = "layers that Stable Diffusion does not have";
/// What marks the kinds of adapter that are not plain low-rank pairs, within a key.
const OTHER_KINDS: [(&str, &str); 8] = [
    (".hada_", "LoHa"),
    (".lokr_", "LoKr"),
    (".oft_", "OFT"),
    (".lora_mid.", "Tucker-decomposed convolutions (LoCon with lora_mid)"),
    (".w_norm", "normalisation layers"),
    (".b_norm", "normalisation layers"),
    (".modules_to_save.", "whole layers (modules_to_save)"),
    ("bundle_emb.", "embeddings of new words (bundle_emb)"),
];
/// The same at a key's end.
const OTHER_ENDS: [(&str, &str); 5] = [
    (".diff", "whole weight changes (.diff)"),
    (".diff_b", "whole weight changes (.diff)"),
    (".on_input", "(IA)³"),
    (".lora_B.bias", "biases of B (lora_bias)"),
    (".lora_up.bias", "biases of B (lora_bias)"),
];
const UNKNOWN: &str = "keys of no layout that we read (expected `...lora_A.weight` and `...lora_B.weight`, or kohya's \
    `...lora_down.weight`, `...lora_up.weight` and `...alpha`)";
const DORA: &str = "a DoRA magnitude, and DoRA is not supported; merge the file into its model with the tool that made it, \
    and give seedpo the merged model";

/// The key that [`Adapter::tensors`](super::Adapter::tensors) has for the tensor that a file calls `key`, in whatever
/// spelling [`Adapter::load`](super::Adapter::load) reads; `None` where it names no A or B.
pub fn canonical_key(key: &str) -> Option<String> {
    match parse(key, LAYERS_PER_BLOCK).ok()? {
        Parsed::Layer { module, part: part @ (Part::A | Part::B), .. } => {
            Some(format!("{module}.lora_{part:?}.weight"))
        }
        _ => None,
    }
}

/// What a file with these keys is, where it is no adapter at all, and what to do with it; with the key that shows it.
pub(super) fn whole_model<'k>(keys: &[&'k str]) -> Option<(&'k str, &'static str)> {
    let single_file = ["model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.embedders."];
    let begins = |key: &&str| single_file.iter().any(|begin| key.starts_with(begin));
    if let Some(key) = keys.iter().copied().find(begins) {
        return Some((key, "a whole model, not an adapter; give it as --model"));
    }
    // An end alone is no sign: a ControlNet has the first.
    let [first, last] = ["conv_in.weight", "conv_out.weight"].map(|end| keys.iter().copied().find(|key| *key == end));
    Some((first.and(last)?, "a whole U-Net, not an adapter; `seedpo sample --unet` takes its folder"))
}

/// What a key stands for, or why the file cannot be used at all.
///
/// Read are the spellings that diffusers 0.38 reads (`convert_unet_state_dict_to_peft`, `convert_state_dict_to_peft`),
/// peft's own, and kohya's with diffusers' or the original block names. `layers_per_block` is what the latter count by.
pub(super) fn parse(key: &str, layers_per_block: usize) -> Result<Parsed, &'static str> {
    if [".dora_scale", ".lora_magnitude_vector"].iter().any(|part| key.contains(part)) {
        return Err(DORA);
    }
    let within = OTHER_KINDS.iter().find(|(mark, _)| key.contains(mark));
    if let Some((_, kind)) = within.or_else(|| OTHER_ENDS.iter().find(|(end, _)| key.ends_with(end))) {
        return Ok(Parsed::Unsupported(kind));
    }
    let prefixes = [
        ("lora_unet_", Network::UNet),
        ("lycoris_", Network::UNet),
        ("lora_te_", Network::TextEncoder),
        ("lora_te1_", Network::TextEncoder),
        ("lora_te2_", Network::TextEncoder2),
    ];
    Ok(match prefixes.iter().find_map(|(prefix, network)| Some((key.strip_prefix(prefix)?, *network))) {
        Some((rest, network)) => parse_kohya(rest, network, layers_per_block),
        None => parse_dotted(key, layers_per_block),
    })
}

/// The `.alpha` key of the layer that a key of another kind of adapter belongs to, and whether everything else of the layer
/// belongs to it too: not to keys that may stand beside a low-rank pair. `None` where the key shows no layer.
pub(super) fn alpha_of_other_kind(key: &str) -> Option<(String, bool)> {
    let mark = [".hada_", ".lokr_", ".oft_", ".lora_mid."].into_iter().find_map(|mark| key.find(mark));
    let stem = mark.or_else(|| key.find('.').filter(|_| key.starts_with("lora_") || key.starts_with("lycoris_")))?;
    Some((format!("{}.alpha", &key[..stem]), mark.is_some()))
}

fn parse_kohya(rest: &str, network: Network, layers_per_block: usize) -> Parsed {
    let ends = [(".lora_down.weight", Part::A), (".lora_up.weight", Part::B), (".alpha", Part::Alpha)];
    match ends.iter().find_map(|(end, part)| Some((rest.strip_suffix(end)?, *part))) {
        Some((stem, part)) => layer(network, &kohya::path(stem, layers_per_block), part, Layout::Kohya),
        // What LyCORIS writes beside `.on_input`.
        None if rest.strip_suffix(".weight").is_some_and(|stem| !stem.contains('.')) => Parsed::Unsupported("(IA)³"),
        None => Parsed::Unsupported(UNKNOWN),
    }
}

fn layer(network: Network, path: &str, part: Part, layout: Layout) -> Parsed {
    match network.name_of(path) {
        Some(module) => Parsed::Layer { module, part, layout },
        None => Parsed::Unsupported(OTHER_LAYERS),
    }
}

fn parse_dotted(key: &str, layers_per_block: usize) -> Parsed {
    let (path, mut layout) = match key.strip_prefix("base_model.model.") {
        Some(path) => (path, Layout::Peft),
        None => (key, Layout::Diffusers),
    };
    let (network, path) = Network::split(path).unwrap_or_else(|| match path.split('.').next() {
        Some("text_model" | "encoder") => (Network::TextEncoder, path),
        _ => (Network::UNet, path),
    });
    let ends = [
        (".lora_A.weight", Part::A),
        (".lora_B.weight", Part::B),
        (".lora.down.weight", Part::A),
        (".lora.up.weight", Part::B),
        (".lora_down.weight", Part::A),
        (".lora_up.weight", Part::B),
        (".lora_linear_layer.down.weight", Part::A),
        (".lora_linear_layer.up.weight", Part::B),
        ("_lora.down.weight", Part::A),
        ("_lora.up.weight", Part::B),
        (".alpha", Part::Alpha),
    ];
    let found = ends.iter().find_map(|(end, part)| Some((path.strip_suffix(end)?, *part, *end)));
    let Some((stem, part, end)) = found else { return Parsed::Unsupported(UNKNOWN) };
    if let Some(original) = stem.strip_prefix("diffusion_model.") {
        let path = kohya::path(&original.replace('.', "_"), layers_per_block);
        return layer(network, &path, part, Layout::ComfyUi);
    }
    let mut module = stem.replace(".processor.", ".");
    if end.starts_with("_lora") {
        layout = Layout::OldDiffusers;
        module = old_name(&module, network);
    }
    layer(network, &module, part, layout)
}

/// What diffusers 0.17 and before called the attention projection `to_q`, `to_k`, `to_v`, `to_out`, in text encoders too.
fn old_name(module: &str, network: Network) -> String {
    match (network, module.rsplit_once(".to_")) {
        (Network::UNet, Some((_, "out"))) => format!("{module}.0"),
        (Network::UNet, _) | (_, None) => module.to_owned(),
        (_, Some((attention, name))) => format!("{attention}.{name}_proj"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_names_the_same_layer() {
        let q = "mid_block.attentions.0.transformer_blocks.0.attn1";
        let kohya = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1";
        let (te, te2) = ("text_encoder.encoder.layers.3", "text_encoder_2.encoder.layers.3");
        let cases = [
            (format!("unet.{q}.to_q.lora_A.weight"), format!("unet.{q}.to_q"), Part::A, Layout::Diffusers),
            (format!("unet.{q}.to_q.lora.up.weight"), format!("unet.{q}.to_q"), Part::B, Layout::Diffusers),
            (format!("{q}.processor.to_q_lora.down.weight"), format!("unet.{q}.to_q"), Part::A, Layout::OldDiffusers),
            (
                format!("unet.{q}.processor.to_out_lora.up.weight"),
                format!("unet.{q}.to_out.0"),
                Part::B,
                Layout::OldDiffusers,
            ),
            (
                format!("base_model.model.{q}.to_out.0.lora_B.weight"),
                format!("unet.{q}.to_out.0"),
                Part::B,
                Layout::Peft,
            ),
            (format!("{kohya}_to_out_0.lora_down.weight"), format!("unet.{q}.to_out.0"), Part::A, Layout::Kohya),
            (format!("{kohya}_to_v.alpha"), format!("unet.{q}.to_v"), Part::Alpha, Layout::Kohya),
            (
                "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_k.lora_up.weight".into(),
                format!("unet.{q}.to_k"),
                Part::B,
                Layout::Kohya,
            ),
            (
                "text_encoder.text_model.encoder.layers.3.mlp.fc1.lora_A.weight".into(),
                format!("{te}.mlp.fc1"),
                Part::A,
                Layout::Diffusers,
            ),
            (
                "text_encoder.encoder.layers.3.mlp.fc1.lora_linear_layer.up.weight".into(),
                format!("{te}.mlp.fc1"),
                Part::B,
                Layout::Diffusers,
            ),
            (
                "text_encoder_2.text_model.encoder.layers.3.self_attn.to_out_lora.up.weight".into(),
                format!("{te2}.self_attn.out_proj"),
                Part::B,
                Layout::OldDiffusers,
            ),
            (
                "base_model.model.text_model.encoder.layers.3.self_attn.q_proj.lora_A.weight".into(),
                format!("{te}.self_attn.q_proj"),
                Part::A,
                Layout::Peft,
            ),
            (
                "lora_te_text_model_encoder_layers_3_self_attn_out_proj.alpha".into(),
                format!("{te}.self_attn.out_proj"),
                Part::Alpha,
                Layout::Kohya,
            ),
            (
                "lora_te2_text_model_encoder_layers_3_mlp_fc2.lora_up.weight".into(),
                format!("{te2}.mlp.fc2"),
                Part::B,
                Layout::Kohya,
            ),
            (
                "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.lora_A.weight".into(),
                format!("unet.{q}.to_q"),
                Part::A,
                Layout::ComfyUi,
            ),
            (
                "diffusion_model.input_blocks.4.0.in_layers.2.lora_up.weight".into(),
                "unet.down_blocks.1.resnets.0.conv1".into(),
                Part::B,
                Layout::ComfyUi,
            ),
            (
                "lora_te2_text_projection.lora_up.weight".into(),
                "text_encoder_2.text_projection".into(),
                Part::B,
                Layout::Kohya,
            ),
        ];
        for (key, module, part, layout) in cases {
            assert_eq!(parse(&key, 2), Ok(Parsed::Layer { module, part, layout }), "{key}");
        }
    }

    #[test]
    fn what_is_no_lora_of_ours_is_told_apart() {
        for (key, reason) in [
            ("text_encoder_3.encoder.block.0.lora_A.weight", OTHER_LAYERS),
            ("transformer.single_blocks.0.attn.to_q.lora_A.weight", OTHER_LAYERS),
            ("unet.foo.lora_A.weight", OTHER_LAYERS),
            ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", OTHER_LAYERS),
            ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "LoHa"),
            ("lora_te_text_model_encoder_layers_3_mlp_fc2.lokr_w1", "LoKr"),
            ("lora_unet_mid_block_attentions_0_norm.diff", "whole weight changes (.diff)"),
            ("lora_unet_mid_block_attentions_0_norm.diff_b", "whole weight changes (.diff)"),
            ("lora_unet_mid_block_attentions_0_proj_in.on_input", "(IA)³"),
            ("lora_unet_mid_block_attentions_0_proj_in.weight", "(IA)³"),
            ("unet.mid_block.attentions.0.proj_in.lora_B.bias", "biases of B (lora_bias)"),
            ("bundle_emb.style.string_to_param.*", "embeddings of new words (bundle_emb)"),
            ("base_model.model.conv_in.modules_to_save.weight", "whole layers (modules_to_save)"),
            ("diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight", OTHER_LAYERS),
            ("unet.conv_in.bias", UNKNOWN),
            ("", UNKNOWN),
        ] {
            assert_eq!(parse(key, 2), Ok(Parsed::Unsupported(reason)), "{key}");
        }
        let mid = parse("lora_unet_input_blocks_1_0_in_layers_2.lora_mid.weight", 2);
        assert!(matches!(mid, Ok(Parsed::Unsupported(what)) if what.contains("lora_mid")), "{mid:?}");
        let dora = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.dora_scale";
        assert!(parse(dora, 2).unwrap_err().contains("DoRA"));
        let controlnet =
            ["controlnet_cond_embedding.conv_in.weight", "conv_in.weight", "mid_block.resnets.0.conv1.weight"];
        for (keys, part) in [
            (&["model.diffusion_model.out.2.bias"][..], Some("--model")),
            (&["conv_in.weight", "conv_out.weight"], Some("`seedpo sample --unet`")),
            (&controlnet, None),
            (&["diffusion_model.out.2.lora_A.weight"], None),
        ] {
            let found = whole_model(keys).map(|(_, what)| what);
            assert!(found.is_some() == part.is_some() && found.unwrap_or("").contains(part.unwrap_or("")), "{keys:?}");
        }
    }
}
