//! How many heads an attention has, where only tensors tell: their shapes do not show it.

use std::path::Path;

use crate::config::wrong;
use crate::{Error, Result};

/// Channels of one head in nearly all published models.
const HEAD_CHANNELS: i64 = 64;

/// The heads of a network's attentions of these widths: 64 channels each.
///
/// A width that is none of the `published` ones is warned of, since its model may have been made with others; `otherwise`
/// says what would tell. Errors: [`Error::Config`] for a width that 64 does not divide.
pub(crate) fn of_64_channels(
    path: &Path,
    network: &str,
    widths: &[i64],
    published: &[i64],
    otherwise: &str,
) -> Result<Vec<i64>> {
    if let Some(width) = widths.iter().find(|width| **width < HEAD_CHANNELS || **width % HEAD_CHANNELS != 0) {
        return Err(unknown(path, network, *width, otherwise));
    }
    let heads: Vec<i64> = widths.iter().map(|width| width / HEAD_CHANNELS).collect();
    warn_of_unpublished(path, network, (widths, &heads), published, otherwise);
    Ok(heads)
}

/// Tells the user of the heads taken for widths that no published model has.
pub(crate) fn warn_of_unpublished(
    path: &Path,
    network: &str,
    (widths, heads): (&[i64], &[i64]),
    published: &[i64],
    otherwise: &str,
) {
    if widths.iter().any(|width| !published.contains(width)) {
        tracing::warn!(
            "{}: {network} is {} wide, which no published model is; taken for {} attention heads, which tensors do not show \
             ({otherwise} would tell)",
            path.display(),
            listed(widths),
            listed(heads)
        );
    }
}

fn unknown(path: &Path, network: &str, width: i64, otherwise: &str) -> Error {
    let expected = format!("{otherwise}, which tells the attention heads of {network}");
    wrong(path, "num_attention_heads", expected, format!("none, and a width ({width}) that does not tell them"))
}

fn listed(numbers: &[i64]) -> String {
    numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_tell_the_heads_or_are_refused() {
        let heads =
            |widths: &[i64]| of_64_channels(Path::new("model.safetensors"), "the tower", widths, &[320], "config.json");
        assert_eq!(heads(&[320, 64, 128]).unwrap(), [5, 1, 2]);
        for width in [32, 0, 96] {
            let message = heads(&[320, width]).unwrap_err().to_string();
            for part in ["model.safetensors", "the tower", "config.json", &format!("({width})")] {
                assert!(message.contains(part), "{message}");
            }
        }
    }
}
