//! How adapter files spell their keys.

/// Which half of a low-rank pair a key names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    /// A, `[rank, in]`, also called `down`.
    A,
    /// B, `[out, rank]`, also called `up`.
    B,
}

/// The key that [`Adapter::tensors`](super::Adapter::tensors) has for the tensor that a file calls `key`, in whatever
/// spelling [`Adapter::load`](super::Adapter::load) reads; `None` where it names no LoRA tensor.
pub fn canonical_key(key: &str) -> Option<String> {
    let (path, half) = parse(key).ok()?;
    Some(format!("unet.{path}.lora_{half:?}.weight"))
}

/// The projection and half that a key names, or why it names none.
///
/// Read are the spellings that diffusers 0.38 reads for a U-Net (`convert_unet_state_dict_to_peft`), and peft's own:
/// `unet.<path>.lora_A.weight`, `unet.<path>.lora.down.weight`, `<path>.processor.to_q_lora.down.weight` (diffusers
/// 0.17 and before, where `to_out_lora` stands for `to_out.0`), `base_model.model.<path>.lora_A.weight`.
pub(super) fn parse(key: &str) -> Result<(String, Half), &'static str> {
    let path = ["unet.", "base_model.model.unet.", "base_model.model."]
        .iter()
        .find_map(|prefix| key.strip_prefix(prefix))
        .unwrap_or(key);
    if path.starts_with("text_encoder") {
        return Err("an adapter of the text encoder is not supported");
    }
    if path.starts_with("lora_unet_") || path.starts_with("lora_te") {
        return Err("a kohya-style key is not supported; convert the file to the diffusers layout");
    }
    let halves = [(".lora_A", ".lora.down", "_lora.down", Half::A), (".lora_B", ".lora.up", "_lora.up", Half::B)];
    let stem = path.strip_suffix(".weight").ok_or("expected a key that ends in `.weight`")?;
    for (peft, diffusers, old, half) in halves {
        if let Some(module) = stem.strip_suffix(peft).or_else(|| stem.strip_suffix(diffusers)) {
            return Ok((module.replace(".processor.", "."), half));
        }
        if let Some(module) = stem.strip_suffix(old) {
            let module = module.replace(".processor.", ".");
            let is_out = module.ends_with(".to_out");
            return Ok((if is_out { format!("{module}.0") } else { module }, half));
        }
    }
    Err("expected `...lora_A.weight`, `...lora_B.weight`, `...lora.down.weight` or `...lora.up.weight`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_names_the_same_projection() {
        let q = "mid_block.attentions.0.transformer_blocks.0.attn1";
        let cases = [
            (format!("unet.{q}.to_q.lora_A.weight"), "to_q", Half::A),
            (format!("unet.{q}.to_q.lora.up.weight"), "to_q", Half::B),
            (format!("{q}.processor.to_q_lora.down.weight"), "to_q", Half::A),
            (format!("unet.{q}.processor.to_out_lora.up.weight"), "to_out.0", Half::B),
            (format!("base_model.model.{q}.to_out.0.lora_B.weight"), "to_out.0", Half::B),
        ];
        for (key, name, half) in cases {
            assert_eq!(parse(&key), Ok((format!("{q}.{name}"), half)), "{key}");
        }
    }

    #[test]
    fn keys_that_are_no_lora_are_refused_with_a_reason() {
        for (key, part) in [
            ("text_encoder.layers.0.q_proj.lora_A.weight", "text encoder"),
            ("lora_unet_mid_block_attn1_to_q.lora_down.weight", "kohya"),
            ("unet.conv_in.weight", "lora_A"),
            ("unet.a.to_q.lora_B.bias", ".weight"),
            ("", ".weight"),
        ] {
            assert!(parse(key).unwrap_err().contains(part), "{key}");
        }
    }
}
