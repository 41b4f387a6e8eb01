//! The kinds of blocks a U-Net is made of, by their diffusers names.

use serde::{Deserialize, Serialize};

/// The kind of a level on the way down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownBlockType {
    /// Residual blocks each followed by a transformer.
    CrossAttnDownBlock2D,
    /// Residual blocks only.
    DownBlock2D,
}

/// The kind of the block at the bottom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MidBlockType {
    /// Two residual blocks with a transformer between.
    UNetMidBlock2DCrossAttn,
    /// One residual block.
    UNetMidBlock2D,
}

/// The kind of a level on the way up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpBlockType {
    /// Residual blocks each followed by a transformer.
    CrossAttnUpBlock2D,
    /// Residual blocks only.
    UpBlock2D,
}

impl DownBlockType {
    /// Whether the level has transformers.
    pub fn has_attention(self) -> bool {
        self == Self::CrossAttnDownBlock2D
    }
}

impl UpBlockType {
    /// Whether the level has transformers.
    pub fn has_attention(self) -> bool {
        self == Self::CrossAttnUpBlock2D
    }
}
