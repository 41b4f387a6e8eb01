//! Which layers a fresh LoRA is made for, by name.

use super::argument;
use crate::Result;
use crate::unet::Projection;

/// What `attention`, the default, stands for.
pub(super) const ATTENTION: [&str; 4] = ["to_q", "to_k", "to_v", "to_out.0"];
/// What `all-linear` stands for besides.
const FURTHER: [&str; 4] = ["ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"];

/// Names, and ends of names, of layers that LoRA files may change but training does not, with what they are.
const NOT_TRAINED: [(&str, &str); 4] = [
    ("the text encoders", "text_encoder text_model q_proj k_proj v_proj out_proj fc1 fc2 text_projection"),
    ("convolutions", "conv conv1 conv2 conv_in conv_out conv_shortcut"),
    ("the time embedding", "time_emb_proj time_embedding add_embedding linear_1 linear_2"),
    ("normalisation layers", "norm norm1 norm2 norm3 group_norm"),
];

/// The layers that one of `targets` names, in their order. Errors: [`crate::Error::Argument`] naming a target that names
/// none, and for one that only files may change, what it is.
pub(super) fn select<'a>(layers: &'a [Projection], targets: &[String]) -> Result<Vec<&'a Projection>> {
    let ends: Vec<(&String, &str)> =
        targets.iter().flat_map(|target| ends(target).map(move |end| (target, end))).collect();
    let matches = |layer: &Projection, end: &str| {
        layer.path.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('.'))
    };
    for target in targets {
        let mut own = ends.iter().filter(|(of, _)| *of == target);
        if !own.any(|(_, end)| layers.iter().any(|layer| matches(layer, end))) {
            return Err(unmatched(layers, target));
        }
    }
    Ok(layers.iter().filter(|layer| ends.iter().any(|(_, end)| matches(layer, end))).collect())
}

/// The ends of paths that a target stands for.
fn ends(target: &str) -> impl Iterator<Item = &str> {
    let known: &[&[&str]] = match target {
        "attention" => &[&ATTENTION],
        "all-linear" => &[&ATTENTION, &FURTHER],
        _ => &[],
    };
    let itself = known.is_empty().then_some(target);
    known.iter().flat_map(|ends| ends.iter().copied()).chain(itself)
}

fn unmatched(layers: &[Projection], target: &str) -> crate::Error {
    let named = |names: &str| names.split(' ').any(|name| target.split('.').any(|part| part == name));
    let not_trained = NOT_TRAINED.iter().find(|(_, names)| named(names)).map(|(what, _)| {
        format!(" ({what} are not trained; a LoRA of them is applied by `sample --adapter` and `adapter merge`)")
    });
    let paths = layers.iter().map(|p| p.path.as_str()).take(2).collect::<Vec<_>>().join(", ");
    let expected = format!(
        "`attention`, `all-linear`, or the end of a layer's path: {}, {}, or longer, as {paths}",
        ATTENTION.join(", "),
        FURTHER.join(", ")
    );
    argument("LoRA target", expected, format!("{target}{}", not_trained.unwrap_or_default()))
}
