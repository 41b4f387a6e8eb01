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
}

impl Layout {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Diffusers => "diffusers",
            Self::OldDiffusers => "diffusers 0.17 and before",
            Self::Peft => "peft",
            Self::Kohya => "kohya",
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
/// What marks the kinds of adapter that are not plain low-rank pairs.
const OTHER_KINDS: [(&str, &str); 8] = [
    (".hada_", "LoHa"),
    (".lokr_", "LoKr"),
    (".oft_", "OFT"),
    (".lora_mid.", "Tucker-decomposed convolutions (LoCon with lora_mid)"),
    (".diff", "whole weight changes (.diff)"),
    (".on_input", "(IA)³"),
    (".w_norm", "normalisation layers"),
    (".b_norm", "normalisation layers"),
];
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

/// What a key stands for, or why it stands for nothing.
///
/// Read are the spellings that diffusers 0.38 reads (`convert_unet_state_dict_to_peft`, `convert_state_dict_to_peft`),
/// peft's own, and kohya's with diffusers' or the original block names. `layers_per_block` is what the latter count by.
pub(super) fn parse(key: &str, layers_per_block: usize) -> Result<Parsed, &'static str> {
    if [".dora_scale", ".lora_magnitude_vector"].iter().any(|part| key.contains(part)) {
        return Err(DORA);
    }
    if let Some((_, kind)) = OTHER_KINDS.iter().find(|(mark, _)| key.contains(mark)) {
        return Ok(Parsed::Unsupported(kind));
    }
    let prefixes = [
        ("lora_unet_", Network::UNet),
        ("lycoris_", Network::UNet),
        ("lora_te_", Network::TextEncoder),
        ("lora_te1_", Network::TextEncoder),
        ("lora_te2_", Network::TextEncoder2),
    ];
    match prefixes.iter().find_map(|(prefix, network)| Some((key.strip_prefix(prefix)?, *network))) {
        Some((rest, network)) => parse_kohya(rest, network, layers_per_block),
        None => parse_dotted(key),
    }
}

/// The `.alpha` key of the layer that a key of another kind of adapter belongs to; `None` for keys that may stand beside
/// a low-rank pair.
pub(super) fn alpha_of_other_kind(key: &str) -> Option<String> {
    let mark = [".hada_", ".lokr_", ".oft_", ".lora_mid."].into_iter().find_map(|mark| key.find(mark))?;
    Some(format!("{}.alpha", &key[..mark]))
}

fn parse_kohya(rest: &str, network: Network, layers_per_block: usize) -> Result<Parsed, &'static str> {
    let ends = [(".lora_down.weight", Part::A), (".lora_up.weight", Part::B), (".alpha", Part::Alpha)];
    let found = ends.iter().find_map(|(end, part)| Some((rest.strip_suffix(end)?, *part)));
    let (stem, part) = found.ok_or("expected `....lora_down.weight`, `....lora_up.weight` or `....alpha`")?;
    Ok(layer(network, &kohya::path(stem, layers_per_block), part, Layout::Kohya))
}

fn layer(network: Network, path: &str, part: Part, layout: Layout) -> Parsed {
    match network.name_of(path) {
        Some(module) => Parsed::Layer { module, part, layout },
        None => Parsed::Unsupported(OTHER_LAYERS),
    }
}

fn parse_dotted(key: &str) -> Result<Parsed, &'static str> {
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
        (".lora_linear_layer.down.weight", Part::A),
        (".lora_linear_layer.up.weight", Part::B),
        ("_lora.down.weight", Part::A),
        ("_lora.up.weight", Part::B),
        (".alpha", Part::Alpha),
    ];
    let found = ends.iter().find_map(|(end, part)| Some((path.strip_suffix(end)?, *part, *end)));
    let (stem, part, end) =
        found.ok_or("expected `...lora_A.weight`, `...lora_B.weight`, `...lora.down.weight` or `...lora.up.weight`")?;
    let mut module = stem.replace(".processor.", ".");
    if end.starts_with("_lora") {
        layout = Layout::OldDiffusers;
        module = old_name(&module, network);
    }
    Ok(layer(network, &module, part, layout))
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
        ] {
            assert_eq!(parse(key, 2), Ok(Parsed::Unsupported(reason)), "{key}");
        }
        let mid = parse("lora_unet_input_blocks_1_0_in_layers_2.lora_mid.weight", 2);
        assert!(matches!(mid, Ok(Parsed::Unsupported(what)) if what.contains("lora_mid")), "{mid:?}");
        for (key, part) in [
            ("unet.conv_in.weight", "lora_A"),
            ("unet.a.to_q.lora_B.bias", "lora_B.weight"),
            ("", "lora_A"),
            ("lora_unet_mid_block_attentions_0_x.weight", "lora_down"),
            ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.dora_scale", "DoRA"),
        ] {
            assert!(parse(key, 2).unwrap_err().contains(part), "{key}");
        }
    }
}
