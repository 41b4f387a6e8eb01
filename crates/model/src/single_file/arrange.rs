//! A network's tensors in a checkpoint, given under their diffusers names.

use std::collections::BTreeMap;

use seedpo_tensor::{Part, WeightFile};

use crate::Result;

/// The tensors of one network of `file`, all of which begin with `prefix`.
///
/// `shapes` are the network's own, by diffusers name; `original` gives for such a name the file's name (without the
/// prefix) and the part of that tensor which it is; `ignored` holds for names (without the prefix) that diffusers leaves
/// out too. Errors: every missing, surplus and misshaped tensor under the file's own name.
pub(crate) fn network(
    file: &WeightFile,
    prefix: &str,
    shapes: &BTreeMap<String, Vec<i64>>,
    original: impl Fn(&str) -> (String, Part),
    ignored: impl Fn(&str) -> bool,
) -> Result<WeightFile> {
    let mut wanted: BTreeMap<String, Vec<(&String, Part)>> = BTreeMap::new();
    for name in shapes.keys() {
        let (key, part) = original(name);
        wanted.entry(format!("{prefix}{key}")).or_default().push((name, part));
    }
    let mut problems = Vec::new();
    for (key, parts) in &wanted {
        match file.shape(key) {
            None => problems.push(format!("missing `{key}`: expected shape {:?}", stored_shape(shapes, parts))),
            Some(found) if !parts.iter().all(|(name, part)| fits(found, &shapes[*name], part)) => {
                problems.push(format!("`{key}`: expected shape {:?}, found {found:?}", stored_shape(shapes, parts)));
            }
            Some(_) => {}
        }
    }
    let surplus = file.names().filter(|key| !wanted.contains_key(*key));
    let surplus = surplus.filter(|key| key.strip_prefix(prefix).is_some_and(|rest| !ignored(rest)));
    problems.extend(surplus.map(|key| format!("surplus `{key}`: the model has no such tensor")));
    if !problems.is_empty() {
        return Err(seedpo_tensor::Error::Tensors { path: file.path().to_path_buf(), problems }.into());
    }
    let arranged = file.rearranged(|key, found| {
        let parts = wanted.get(key).into_iter().flatten();
        parts.map(|(name, part)| ((*name).clone(), adapted(part, found, &shapes[*name]))).collect()
    });
    Ok(arranged?)
}

/// A 1×1 convolution stands for a linear layer in the autoencoder's attention.
fn adapted(part: &Part, found: &[i64], wanted: &[i64]) -> Part {
    match part {
        Part::Whole if found.len() > wanted.len() => Part::Shaped(wanted.to_vec()),
        other => other.clone(),
    }
}

/// Whether a stored shape gives the wanted one.
fn fits(found: &[i64], wanted: &[i64], part: &Part) -> bool {
    match part {
        Part::Transposed => found.iter().rev().eq(wanted),
        Part::Rows { start, count } => {
            // Three equal blocks: queries, keys, values.
            found.len() == wanted.len()
                && found[0] == 3 * count
                && start % count == 0
                && wanted[0] == *count
                && found[1..] == wanted[1..]
        }
        _ => found.starts_with(wanted) && found[wanted.len()..].iter().all(|n| *n == 1),
    }
}

/// What a tensor of the file should look like, for errors.
fn stored_shape(shapes: &BTreeMap<String, Vec<i64>>, parts: &[(&String, Part)]) -> Vec<i64> {
    let Some((name, part)) = parts.first() else { return Vec::new() };
    let mut shape = shapes[*name].clone();
    match part {
        Part::Transposed => shape.reverse(),
        Part::Rows { .. } => shape[0] *= 3,
        _ => {}
    }
    shape
}
