//! How adapter files spell their keys.

/// Which part of a low-rank pair a key names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A, `[rank, in]`, also called `down`.
    A,
    /// B, `[out, rank]`, also called `up`.
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
    /// kohya's sd-scripts, A1111, ComfyUI: `lora_unet_<path with _>.lora_down.weight` and `.alpha`.
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
    /// Part of the pair of an attention projection of the U-Net, whose diffusers path is `module`.
    Projection { module: String, part: Part, layout: Layout },
    /// A part of an adapter that we do not apply: what it is, in words.
    Unsupported(&'static str),
}

/// The residual blocks per level of every Stable Diffusion: what the original block numbers count by.
pub(super) const LAYERS_PER_BLOCK: usize = 2;

const TEXT_ENCODER: &str = "the text encoder";
const CONVOLUTIONS: &str = "convolutions (LoCon)";
const FEED_FORWARD: &str = "feed-forward layers";
const OTHER_LAYERS: &str = "layers other than attention projections";
const OTHER_KINDS: &str = "kinds other than LoRA (LoHa, LoKr, whole weights)";

/// The key that [`Adapter::tensors`](super::Adapter::tensors) has for the tensor that a file calls `key`, in whatever
/// spelling [`Adapter::load`](super::Adapter::load) reads; `None` where it names no A or B.
pub fn canonical_key(key: &str) -> Option<String> {
    match parse(key, LAYERS_PER_BLOCK).ok()? {
        Parsed::Projection { module, part: part @ (Part::A | Part::B), .. } => {
            Some(format!("unet.{module}.lora_{part:?}.weight"))
        }
        _ => None,
    }
}

/// What a key stands for, or why it stands for nothing.
///
/// Read are the spellings that diffusers 0.38 reads for a U-Net (`convert_unet_state_dict_to_peft`), peft's own, and
/// kohya's with diffusers' or the original block names. `layers_per_block` is what the latter count by.
pub(super) fn parse(key: &str, layers_per_block: usize) -> Result<Parsed, &'static str> {
    if ["lora_te", "text_encoder", "base_model.model.text_encoder", "text_model"].iter().any(|p| key.starts_with(p)) {
        return Ok(Parsed::Unsupported(TEXT_ENCODER));
    }
    if [".dora_scale", ".lora_magnitude_vector"].iter().any(|part| key.contains(part)) {
        return Err("a DoRA magnitude; DoRA is not supported");
    }
    if [".hada_", ".lokr_", ".oft_", ".diff", ".on_input", ".w_norm"].iter().any(|part| key.contains(part)) {
        return Ok(Parsed::Unsupported(OTHER_KINDS));
    }
    if key.contains(".lora_mid.") {
        return Ok(Parsed::Unsupported(CONVOLUTIONS));
    }
    match ["lora_unet_", "lycoris_"].iter().find_map(|prefix| key.strip_prefix(prefix)) {
        Some(rest) => parse_kohya(rest, layers_per_block),
        None => parse_dotted(key),
    }
}

fn parse_kohya(rest: &str, layers_per_block: usize) -> Result<Parsed, &'static str> {
    let ends = [(".lora_down.weight", Part::A), (".lora_up.weight", Part::B), (".alpha", Part::Alpha)];
    let found = ends.iter().find_map(|(end, part)| Some((rest.strip_suffix(end)?, *part)));
    let (stem, part) = found.ok_or("expected `....lora_down.weight`, `....lora_up.weight` or `....alpha`")?;
    let module = dotted(stem, layers_per_block);
    Ok(match module {
        Some(module) => Parsed::Projection { module, part, layout: Layout::Kohya },
        None => Parsed::Unsupported(kind_of_layer(stem)),
    })
}

fn parse_dotted(key: &str) -> Result<Parsed, &'static str> {
    let prefixes = [
        ("base_model.model.unet.", Layout::Peft),
        ("base_model.model.", Layout::Peft),
        ("unet.", Layout::Diffusers),
        ("", Layout::Diffusers),
    ];
    let found = prefixes.iter().find_map(|(prefix, layout)| Some((key.strip_prefix(prefix)?, *layout)));
    let (path, mut layout) = found.unwrap_or((key, Layout::Diffusers));
    let ends = [
        (".lora_A.weight", Part::A),
        (".lora_B.weight", Part::B),
        (".lora.down.weight", Part::A),
        (".lora.up.weight", Part::B),
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
        if module.ends_with(".to_out") {
            module += ".0";
        }
    }
    Ok(match is_projection(&module) {
        true => Parsed::Projection { module, part, layout },
        false => Parsed::Unsupported(kind_of_layer(&module)),
    })
}

/// Whether a path ends as those of a U-Net's attention projections do.
fn is_projection(path: &str) -> bool {
    let of = |attention: &str| {
        let rest = path.rsplit_once(attention).map(|(_, rest)| rest);
        rest.is_some_and(|rest| ["to_q", "to_k", "to_v", "to_out.0"].contains(&rest))
    };
    of(".attn1.") || of(".attn2.")
}

fn kind_of_layer(path: &str) -> &'static str {
    let has = |parts: &[&str]| parts.iter().any(|part| path.contains(part));
    match () {
        _ if has(&["conv", "resnets", "in_layers", "out_layers", "skip_connection", "samplers", "_0_op"]) => {
            CONVOLUTIONS
        }
        _ if has(&["ff.net", "ff_net"]) => FEED_FORWARD,
        _ => OTHER_LAYERS,
    }
}

/// The diffusers path of a projection from kohya's stem: `down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q`,
/// or the same with the original names (`input_blocks_1_1_...`); `None` for any other layer.
fn dotted(stem: &str, layers_per_block: usize) -> Option<String> {
    let words: Vec<&str> = stem.split('_').collect();
    let number = |text: &str| text.parse::<usize>().ok();
    let (layers, up_layers) = (layers_per_block + 1, layers_per_block + 1);
    let (block, rest) = match words[..] {
        ["down", "blocks", i, "attentions", j, ref rest @ ..] => {
            (format!("down_blocks.{}.attentions.{}", number(i)?, number(j)?), rest)
        }
        ["up", "blocks", i, "attentions", j, ref rest @ ..] => {
            (format!("up_blocks.{}.attentions.{}", number(i)?, number(j)?), rest)
        }
        ["mid", "block", "attentions", j, ref rest @ ..] => (format!("mid_block.attentions.{}", number(j)?), rest),
        ["middle", "block", "1", ref rest @ ..] => ("mid_block.attentions.0".to_owned(), rest),
        ["input", "blocks", n, "1", ref rest @ ..] => {
            let n = number(n)?.checked_sub(1)?;
            (format!("down_blocks.{}.attentions.{}", n / layers, n % layers), rest)
        }
        ["output", "blocks", n, "1", ref rest @ ..] => {
            let n = number(n)?;
            (format!("up_blocks.{}.attentions.{}", n / up_layers, n % up_layers), rest)
        }
        _ => return None,
    };
    let ["transformer", "blocks", t, attention @ ("attn1" | "attn2"), "to", ref projection @ ..] = *rest else {
        return None;
    };
    let projection = match projection {
        [letter @ ("q" | "k" | "v")] => format!("to_{letter}"),
        ["out", "0"] | ["out"] => "to_out.0".to_owned(),
        _ => return None,
    };
    Some(format!("{block}.transformer_blocks.{}.{attention}.{projection}", number(t)?))
}

/// Kohya's stem for a path.
pub(super) fn kohya_stem(path: &str) -> String {
    format!("lora_unet_{}", path.replace('.', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_names_the_same_projection() {
        let q = "mid_block.attentions.0.transformer_blocks.0.attn1";
        let kohya = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1";
        let cases = [
            (format!("unet.{q}.to_q.lora_A.weight"), "to_q", Part::A, Layout::Diffusers),
            (format!("unet.{q}.to_q.lora.up.weight"), "to_q", Part::B, Layout::Diffusers),
            (format!("{q}.processor.to_q_lora.down.weight"), "to_q", Part::A, Layout::OldDiffusers),
            (format!("unet.{q}.processor.to_out_lora.up.weight"), "to_out.0", Part::B, Layout::OldDiffusers),
            (format!("base_model.model.{q}.to_out.0.lora_B.weight"), "to_out.0", Part::B, Layout::Peft),
            (format!("{kohya}_to_out_0.lora_down.weight"), "to_out.0", Part::A, Layout::Kohya),
            (format!("{kohya}_to_v.alpha"), "to_v", Part::Alpha, Layout::Kohya),
            (
                "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_k.lora_up.weight".into(),
                "to_k",
                Part::B,
                Layout::Kohya,
            ),
        ];
        for (key, name, part, layout) in cases {
            let expected = Parsed::Projection { module: format!("{q}.{name}"), part, layout };
            assert_eq!(parse(&key, 2), Ok(expected), "{key}");
        }
    }

    #[test]
    fn original_block_numbers_count_levels() {
        let rest = "_1_transformer_blocks_3_attn2_to_q";
        let path = |block: &str| format!("{block}.transformer_blocks.3.attn2.to_q");
        for (stem, block) in [
            ("input_blocks_1", "down_blocks.0.attentions.0"),
            ("input_blocks_8", "down_blocks.2.attentions.1"),
            ("output_blocks_3", "up_blocks.1.attentions.0"),
            ("output_blocks_11", "up_blocks.3.attentions.2"),
        ] {
            assert_eq!(dotted(&format!("{stem}{rest}"), 2), Some(path(block)), "{stem}");
        }
        assert_eq!(dotted(&format!("input_blocks_3{rest}"), 1), Some(path("down_blocks.1.attentions.0")));
        for stem in ["input_blocks_0", "input_blocks_x", "input_blocks_99999999999999999999999"] {
            assert_eq!(dotted(&format!("{stem}{rest}"), 2), None, "{stem}");
        }
        let original =
            crate::single_file::unet::original_name(&crate::UNetConfig::default(), "up_blocks.2.attentions.1.x.y");
        assert_eq!(original, "output_blocks.7.1.x.y");
        assert_eq!(dotted(&format!("output_blocks_7{rest}"), 2), Some(path("up_blocks.2.attentions.1")));
    }

    #[test]
    fn what_is_no_projection_is_told_apart() {
        for (key, reason) in [
            ("text_encoder.layers.0.q_proj.lora_A.weight", TEXT_ENCODER),
            ("lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha", TEXT_ENCODER),
            ("lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight", CONVOLUTIONS),
            ("lora_unet_input_blocks_1_0_in_layers_2.lora_mid.weight", CONVOLUTIONS),
            ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj.alpha", FEED_FORWARD),
            ("lora_unet_mid_block_attentions_0_proj_in.lora_up.weight", OTHER_LAYERS),
            ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", OTHER_KINDS),
            ("unet.mid_block.foo.lora_A.weight", OTHER_LAYERS),
        ] {
            assert_eq!(parse(key, 2), Ok(Parsed::Unsupported(reason)), "{key}");
        }
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
