//! Kohya's stems: a module's path with `_` in the place of the dots, under diffusers' or the original block names.

use super::network::Network;

/// The parts of a path that hold a `_` themselves.
const WORDS: [&str; 25] = [
    "down_blocks",
    "mid_block",
    "up_blocks",
    "transformer_blocks",
    "to_q",
    "to_k",
    "to_v",
    "to_out",
    "proj_in",
    "proj_out",
    "time_emb_proj",
    "conv_shortcut",
    "conv_in",
    "conv_out",
    "time_embedding",
    "add_embedding",
    "linear_1",
    "linear_2",
    "text_model",
    "text_projection",
    "self_attn",
    "q_proj",
    "k_proj",
    "v_proj",
    "out_proj",
];

/// The path of a stem without its network's prefix, e.g. of `down_blocks_0_attentions_0_proj_in`, or the same with the
/// original names (`input_blocks_1_1_proj_in`). `layers_per_block` is what the latter count by.
pub(super) fn path(stem: &str, layers_per_block: usize) -> String {
    let mut path = original(stem, layers_per_block).unwrap_or_else(|| dotted(stem));
    if path.ends_with(".to_out") {
        path += ".0";
    }
    path
}

/// `_` to `.`, but within the parts that hold one.
fn dotted(stem: &str) -> String {
    let mut parts = Vec::new();
    let mut rest = stem;
    while !rest.is_empty() {
        let whole = |word: &&&str| rest.strip_prefix(**word).is_some_and(|r| r.is_empty() || r.starts_with('_'));
        let known = WORDS.iter().find(whole).map(|word| word.len());
        let length = known.unwrap_or_else(|| rest.find('_').unwrap_or(rest.len()));
        parts.push(&rest[..length]);
        rest = rest.get(length + 1..).unwrap_or("");
    }
    parts.join(".")
}

/// The diffusers path of a stem with original block names; `None` where it has none.
fn original(stem: &str, layers_per_block: usize) -> Option<String> {
    let words: Vec<&str> = stem.split('_').collect();
    let number = |text: &str| text.parse::<usize>().ok();
    let per_level = layers_per_block + 1;
    let (level, layer, rest) = match words[..] {
        ["input", "blocks", "0", "0"] => return Some("conv_in".to_owned()),
        ["out", "2"] => return Some("conv_out".to_owned()),
        ["time", "embed", i] => return Some(format!("time_embedding.linear_{}", number(i)? / 2 + 1)),
        ["label", "emb", "0", i] => return Some(format!("add_embedding.linear_{}", number(i)? / 2 + 1)),
        ["input", "blocks", n, _, ref rest @ ..] => {
            let n = number(n)?.checked_sub(1)?;
            (format!("down_blocks.{}", n / per_level), n % per_level, rest)
        }
        ["output", "blocks", n, _, ref rest @ ..] => {
            let n = number(n)?;
            (format!("up_blocks.{}", n / per_level), n % per_level, rest)
        }
        // A residual block, the transformer, a residual block.
        ["middle", "block", n @ ("0" | "1" | "2"), ref rest @ ..] => ("mid_block".to_owned(), number(n)? / 2, rest),
        _ => return None,
    };
    let resnet = |name: &str| Some(format!("{level}.resnets.{layer}.{name}"));
    match *rest {
        ["in", "layers", "2"] => resnet("conv1"),
        ["emb", "layers", "1"] => resnet("time_emb_proj"),
        ["out", "layers", "3"] => resnet("conv2"),
        ["skip", "connection"] => resnet("conv_shortcut"),
        ["op"] => Some(format!("{level}.downsamplers.0.conv")),
        ["conv"] => Some(format!("{level}.upsamplers.0.conv")),
        ref rest => Some(format!("{level}.attentions.{layer}.{}", dotted(&rest.join("_")))),
    }
}

/// Kohya's stem for a layer. SDXL's first text encoder is `te1`, the only one of other models `te`.
pub(super) fn stem(network: Network, path: &str, sdxl: bool) -> String {
    let prefix = match network {
        Network::UNet => "lora_unet",
        Network::TextEncoder if sdxl => "lora_te1",
        Network::TextEncoder => "lora_te",
        Network::TextEncoder2 => "lora_te2",
    };
    format!("{prefix}_{}", network.written(path).replace('.', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn original_block_numbers_count_levels() {
        for (stem, expected) in [
            ("input_blocks_1_1_proj_in", "down_blocks.0.attentions.0.proj_in"),
            (
                "input_blocks_8_1_transformer_blocks_3_ff_net_0_proj",
                "down_blocks.2.attentions.1.transformer_blocks.3.ff.net.0.proj",
            ),
            (
                "output_blocks_3_1_transformer_blocks_3_attn2_to_q",
                "up_blocks.1.attentions.0.transformer_blocks.3.attn2.to_q",
            ),
            ("output_blocks_11_1_proj_out", "up_blocks.3.attentions.2.proj_out"),
            (
                "middle_block_1_transformer_blocks_0_attn1_to_out_0",
                "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
            ),
            ("middle_block_0_in_layers_2", "mid_block.resnets.0.conv1"),
            ("middle_block_2_out_layers_3", "mid_block.resnets.1.conv2"),
            ("input_blocks_4_0_emb_layers_1", "down_blocks.1.resnets.0.time_emb_proj"),
            ("input_blocks_4_0_skip_connection", "down_blocks.1.resnets.0.conv_shortcut"),
            ("input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
            ("output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv"),
            ("input_blocks_0_0", "conv_in"),
            ("out_2", "conv_out"),
            ("time_embed_2", "time_embedding.linear_2"),
            ("label_emb_0_0", "add_embedding.linear_1"),
        ] {
            assert_eq!(path(stem, 2), expected, "{stem}");
        }
        assert_eq!(path("input_blocks_3_1_proj_in", 1), "down_blocks.1.attentions.0.proj_in");
        let original =
            crate::single_file::unet::original_name(&crate::UNetConfig::default(), "up_blocks.2.attentions.1.x.y");
        assert_eq!(original, "output_blocks.7.1.x.y");
        assert_eq!(path("output_blocks_7_1_x_y", 2), "up_blocks.2.attentions.1.x.y");
        for stem in ["input_blocks_x_1_proj_in", "input_blocks_99999999999999999999999_1_proj_in", "input_blocks", ""] {
            assert_eq!(Network::UNet.name_of(&path(stem, 2)), None, "{stem}");
        }
    }

    /// Every layer of every family, there and back.
    #[test]
    fn stems_name_every_layer() {
        let unet = |json: &str| {
            let config = crate::UNetConfig::from_json(json, std::path::Path::new("config.json")).unwrap();
            crate::UNet2DConditionModel::parameter_shapes(&config).unwrap()
        };
        let families = [
            unet("{}"),
            unet(
                r#"{"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": true}"#,
            ),
            unet(
                r#"{"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                    "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
                    "attention_head_dim": [5, 10, 20], "use_linear_projection": true, "cross_attention_dim": 2048,
                    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
                    "projection_class_embeddings_input_dim": 2816}"#,
            ),
        ];
        assert!(families[2].contains_key("add_embedding.linear_1.weight"));
        assert!(families[2].keys().any(|name| name.contains("transformer_blocks.9.")));
        let text = crate::config::TextConfig::from_json(
            r#"{"vocab_size": 10, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2,
                "num_attention_heads": 2, "projection_dim": 8, "architectures": ["CLIPTextModelWithProjection"]}"#,
            std::path::Path::new("config.json"),
        );
        let text = crate::ClipTextModel::parameter_shapes(&text.unwrap()).unwrap();
        let layers = families.iter().flatten().map(|layer| (Network::UNet, layer));
        for (network, (name, shape)) in layers.chain(text.iter().map(|layer| (Network::TextEncoder2, layer))) {
            let Some(path) =
                name.strip_suffix(".weight").filter(|name| shape.len() > 1 && !name.contains("embeddings"))
            else {
                continue;
            };
            let prefix = if network == Network::UNet { "lora_unet_" } else { "lora_te2_" };
            let name = network.name_of(path).unwrap();
            let (_, bare) = Network::split(&name).unwrap();
            let stem = stem(network, bare, true);
            let found = super::path(stem.strip_prefix(prefix).unwrap(), 2);
            assert_eq!(network.name_of(&found), Some(name), "{stem}");
        }
    }
}
