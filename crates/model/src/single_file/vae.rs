//! The autoencoder in the original names.

use seedpo_tensor::{Part, WeightFile};

use super::{VAE, arrange, count, shape_of, unfit};
use crate::Result;
use crate::config::VaeConfig;
use crate::vae::AutoencoderKl;

/// Infers the configuration, but for scale and image size. Errors: a tensor missing that tells it.
pub(super) fn config(file: &WeightFile) -> Result<VaeConfig> {
    let name = |rest: &str| format!("{VAE}{rest}");
    let has = |rest: &str| file.shape(&name(rest)).is_some();
    let [_, in_channels, ..] = shape_of::<4>(file, &name("encoder.conv_in.weight"))?;
    let [out_channels, ..] = shape_of::<4>(file, &name("decoder.conv_out.weight"))?;
    let [_, latent_channels, ..] = shape_of::<4>(file, &name("decoder.conv_in.weight"))?;
    let levels = count(file, &name("encoder.down."), ".block.0.conv1.weight");
    if levels == 0 {
        return Err(unfit(file, format!("missing `{}`", name("encoder.down.0.block.0.conv1.weight"))));
    }
    let channels =
        |level: i64| Ok(shape_of::<4>(file, &name(&format!("encoder.down.{level}.block.0.conv2.weight")))?[0]);
    Ok(VaeConfig {
        in_channels,
        out_channels,
        latent_channels,
        block_out_channels: (0..levels).map(channels).collect::<Result<_>>()?,
        layers_per_block: count(file, &name("encoder.down.0.block."), ".conv1.weight"),
        use_quant_conv: has("quant_conv.weight"),
        use_post_quant_conv: has("post_quant_conv.weight"),
        mid_block_add_attention: has("encoder.mid.attn_1.q.weight"),
        ..VaeConfig::default()
    })
}

/// The autoencoder's tensors under diffusers' names; those of its training loss are left out. Errors: as
/// [`arrange::network`].
pub(super) fn weights(file: &WeightFile, config: &VaeConfig) -> Result<WeightFile> {
    let shapes = AutoencoderKl::parameter_shapes(config)?;
    let original = |name: &str| (original_name(config, name), Part::Whole);
    arrange::network(file, VAE, &shapes, original, |rest| rest.starts_with("loss.") || rest.starts_with("model_ema."))
}

fn original_name(config: &VaeConfig, name: &str) -> String {
    const PARTS: [(&str, &str); 10] = [
        (".mid_block.resnets.0.", ".mid.block_1."),
        (".mid_block.resnets.1.", ".mid.block_2."),
        (".mid_block.attentions.0.group_norm.", ".mid.attn_1.norm."),
        (".mid_block.attentions.0.to_q.", ".mid.attn_1.q."),
        (".mid_block.attentions.0.to_k.", ".mid.attn_1.k."),
        (".mid_block.attentions.0.to_v.", ".mid.attn_1.v."),
        (".mid_block.attentions.0.to_out.0.", ".mid.attn_1.proj_out."),
        (".conv_norm_out.", ".norm_out."),
        (".downsamplers.0.conv.", ".downsample.conv."),
        (".upsamplers.0.conv.", ".upsample.conv."),
    ];
    let name =
        PARTS.iter().fold(name.replace(".conv_shortcut.", ".nin_shortcut."), |name, (from, to)| name.replace(from, to));
    let name = name.replace(".down_blocks.", ".down.").replace(".resnets.", ".block.");
    // The decoder's levels are counted from the image inwards, as the encoder's.
    let Some((before, rest)) = name.split_once(".up_blocks.") else { return name };
    let (level, rest) = rest.split_once('.').unwrap_or((rest, ""));
    let level = config.block_out_channels.len().saturating_sub(1 + level.parse::<usize>().unwrap_or(0));
    format!("{before}.up.{level}.{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_stable_diffusion() {
        let config =
            VaeConfig { block_out_channels: vec![128, 256, 512, 512], layers_per_block: 2, ..VaeConfig::default() };
        let cases = [
            ("encoder.down_blocks.1.resnets.0.conv_shortcut.bias", "encoder.down.1.block.0.nin_shortcut.bias"),
            ("encoder.down_blocks.2.downsamplers.0.conv.weight", "encoder.down.2.downsample.conv.weight"),
            ("decoder.up_blocks.0.resnets.2.norm1.weight", "decoder.up.3.block.2.norm1.weight"),
            ("decoder.up_blocks.2.upsamplers.0.conv.bias", "decoder.up.1.upsample.conv.bias"),
            ("decoder.mid_block.attentions.0.to_out.0.weight", "decoder.mid.attn_1.proj_out.weight"),
            ("decoder.conv_norm_out.weight", "decoder.norm_out.weight"),
            ("post_quant_conv.weight", "post_quant_conv.weight"),
        ];
        for (name, original) in cases {
            assert_eq!(original_name(&config, name), original);
        }
        let shapes = AutoencoderKl::parameter_shapes(&config).unwrap();
        let names: std::collections::BTreeSet<_> = shapes.keys().map(|name| original_name(&config, name)).collect();
        // 248 tensors, as in v1-5-pruned.safetensors.
        assert_eq!((shapes.len(), names.len()), (248, 248));
    }
}
