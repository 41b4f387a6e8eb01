//! Judges by the names users write.

use crate::{Colourfulness, Error, JpegSize, Judge, Result};

/// One row of the list that `seedpo score --help` and the documentation show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JudgeInfo {
    /// The name to write in a configuration.
    pub name: &'static str,
    /// The unit of its scores.
    pub unit: &'static str,
    /// What it rewards, in one line.
    pub description: &'static str,
}

const CATALOGUE: [JudgeInfo; 3] = [
    JudgeInfo {
        name: "jpeg-compressibility",
        unit: "kB",
        description: "minus the size as JPEG at quality 95: rewards flat, smooth images",
    },
    JudgeInfo {
        name: "jpeg-incompressibility",
        unit: "kB",
        description: "the size as JPEG at quality 95: rewards texture and detail",
    },
    JudgeInfo {
        name: "colourfulness",
        unit: "M",
        description: "Hasler and Süsstrunk's M: rewards vivid, varied colour (0 grey, 30 average, 100 extreme)",
    },
];

/// Every judge that [`by_name`] can build, in the order of the documentation.
pub fn names() -> &'static [JudgeInfo] {
    &CATALOGUE
}

/// Builds a judge from its name. Case and `_` for `-` do not matter, and `colorfulness` is understood.
///
/// Errors: [`Error::UnknownJudge`] with the nearest known name.
pub fn by_name(name: &str) -> Result<Box<dyn Judge>> {
    match normalised(name).as_str() {
        "jpeg-compressibility" => Ok(Box::new(JpegSize::Compressibility)),
        "jpeg-incompressibility" => Ok(Box::new(JpegSize::Incompressibility)),
        "colourfulness" | "colorfulness" => Ok(Box::new(Colourfulness)),
        wanted => Err(unknown(name, wanted)),
    }
}

fn normalised(name: &str) -> String {
    name.trim().to_lowercase().replace('_', "-")
}

fn unknown(name: &str, normalised: &str) -> Error {
    let nearest = CATALOGUE
        .iter()
        .map(|info| info.name)
        .min_by_key(|known| edit_distance(normalised, known))
        .unwrap_or_default()
        .to_owned();
    let known = CATALOGUE.map(|info| info.name).join(", ");
    Error::UnknownJudge { name: name.to_owned(), nearest, known }
}

/// Levenshtein distance in characters.
fn edit_distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, from) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, to) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[column + 1];
            row[column + 1] = substituted.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_name_builds_the_judge_it_names() {
        for info in names() {
            let judge = by_name(info.name).unwrap();
            assert_eq!((judge.name(), judge.unit()), (info.name, info.unit));
        }
        assert_eq!(by_name("JPEG_Compressibility").unwrap().name(), "jpeg-compressibility");
        assert_eq!(by_name(" colorfulness ").unwrap().name(), "colourfulness");
    }

    #[test]
    fn unknown_names_get_the_nearest() {
        for (wrong, nearest) in [
            ("jpeg-compresibility", "jpeg-compressibility"),
            ("jpg-incompressibility", "jpeg-incompressibility"),
            ("colorful", "colourfulness"),
        ] {
            let Err(Error::UnknownJudge { nearest: found, .. }) = by_name(wrong) else {
                panic!("{wrong} was accepted")
            };
            assert_eq!(found, nearest, "{wrong}");
        }
        let text = by_name("pickscore").err().unwrap().to_string();
        assert!(text.contains("`pickscore`") && names().iter().all(|info| text.contains(info.name)), "{text}");
    }

    #[test]
    fn edit_distances_by_hand() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abc", ""), 3);
        assert_eq!(edit_distance("same", "same"), 0);
    }
}
