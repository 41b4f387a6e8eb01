//! Which network of a model a LoRA's layers belong to, and how their paths are written.
//!
//! Within the program a layer is named `unet.<path>`, `text_encoder.<path>` or `text_encoder_2.<path>`, where `<path>` is
//! diffusers' (transformers') module path, a text encoder's without the `text_model.` that files put before it.

/// A network that a LoRA may change layers of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Network {
    /// The noise-predicting U-Net.
    UNet,
    /// The text encoder; in SDXL the first one.
    TextEncoder,
    /// SDXL's second text encoder.
    TextEncoder2,
}

impl Network {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::UNet, Self::TextEncoder, Self::TextEncoder2];

    /// What its layers' names begin with, as diffusers writes it.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::UNet => "unet",
            Self::TextEncoder => "text_encoder",
            Self::TextEncoder2 => "text_encoder_2",
        }
    }

    /// The network and the path within it of a layer's whole name; `None` where it begins with no network's.
    pub(super) fn split(name: &str) -> Option<(Self, &str)> {
        let (prefix, path) = name.split_once('.')?;
        Some((Self::ALL.into_iter().find(|network| network.prefix() == prefix)?, path))
    }

    /// The whole name of the layer at a path of it as a file writes it; `None` where Stable Diffusion has no such layer.
    pub(super) fn name_of(self, path: &str) -> Option<String> {
        let path = match self {
            Self::UNet => path,
            _ => path.strip_prefix("text_model.").unwrap_or(path),
        };
        let begins: &[&str] = match self {
            Self::UNet => &[
                "down_blocks.",
                "mid_block.",
                "up_blocks.",
                "time_embedding.",
                "add_embedding.",
                "conv_in",
                "conv_out",
            ],
            _ => &["encoder.layers.", "text_projection"],
        };
        begins.iter().any(|begin| path.starts_with(begin)).then(|| format!("{}.{path}", self.prefix()))
    }

    /// The path as files write it: `text_model.` before the layers of a text encoder, as on every hub (transformers 5's
    /// own modules have it in `CLIPTextModelWithProjection` only).
    pub(super) fn written(self, path: &str) -> String {
        match self {
            Self::UNet => path.to_owned(),
            _ if path.starts_with("text_projection") => path.to_owned(),
            _ => format!("text_model.{path}"),
        }
    }
}
