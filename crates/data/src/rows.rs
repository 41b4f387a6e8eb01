//! What a JSON object says about pictures of a prompt, in the spellings of the layouts that use JSON.

use serde_json::Value;

use crate::builder::Fault;
use crate::report::Reason;

const PROMPT: &[&str] = &["prompt", "caption", "text"];
const WINNER: &[&str] =
    &["winner", "win", "chosen", "winner_file_name", "win_file_name", "chosen_file_name", "win_image"];
const LOSER: &[&str] =
    &["loser", "lose", "rejected", "loser_file_name", "lose_file_name", "rejected_file_name", "lose_image"];
const FIRST: &[&str] = &["image_0", "jpg_0", "image_0_path"];
const SECOND: &[&str] = &["image_1", "jpg_1", "image_1_path"];
const LIST: &[&str] = &["images", "image_path", "file_path", "image_paths"];
const SINGLE: &[&str] = &["file_name", "image"];
/// Lower is better.
const RANKS: &[&str] = &["rank", "ranks", "ranking"];
/// Higher is better.
const SCORES: &[&str] = &["human_preference", "preference", "labels", "label", "scores", "score"];

/// What a row says; pictures as they are written there, scores with higher being better.
#[derive(Debug, PartialEq)]
pub(crate) enum Said {
    /// A winner, and perhaps the loser.
    Pair { winner: String, loser: Option<String> },
    /// Pictures with a score each.
    Ranking { pictures: Vec<String>, scores: Vec<f64>, generators: Option<Vec<String>> },
    /// One picture, to be compared with others of its prompt if it has a score.
    Single { picture: String, score: Option<f64> },
}

/// Reads a row: its captions, the first of which is its prompt, and what it says. Errors: what is missing or of the wrong
/// type.
pub(crate) fn read(value: &Value) -> Result<(Vec<String>, Said), Fault> {
    if !value.is_object() {
        return Err((Reason::WrongType, format!("expected an object, found {}", shown(value))));
    }
    let captions = captions(value)?;
    let said = if let Some(winner) = text(value, WINNER)? {
        Said::Pair { winner, loser: text(value, LOSER)? }
    } else if let (Some(first), Some(second)) = (text(value, FIRST)?, text(value, SECOND)?) {
        let label = number(value, &["label_0"])?;
        let label = label.ok_or_else(|| (Reason::NoLabel, "expected `label_0`, found none".to_owned()))?;
        let generators = [text(value, &["model_0"])?, text(value, &["model_1"])?].into_iter().collect();
        Said::Ranking { pictures: vec![first, second], scores: vec![label, 1.0 - label], generators }
    } else if let Some(pictures) = field(value, LIST) {
        ranking(value, pictures)?
    } else if let Some(picture) = text(value, SINGLE)? {
        // Some files pair a plain `file_name`, the winner, with a loser's name.
        match text(value, LOSER)? {
            Some(loser) => Said::Pair { winner: picture, loser: Some(loser) },
            None => Said::Single { picture, score: single_score(value)? },
        }
    } else {
        let expected = "expected `winner` and `loser`, `image_0` and `image_1`, a list `images`, or `file_name`";
        return Err((Reason::WrongType, format!("{expected}, found {}", shown(value))));
    };
    Ok((captions, said))
}

/// One caption, or several of the same pictures.
fn captions(value: &Value) -> Result<Vec<String>, Fault> {
    let wrong = |found: &Value| (Reason::WrongType, format!("`prompt`: expected texts, found {}", shown(found)));
    match field(value, PROMPT) {
        None => Err((Reason::NoPrompt, format!("expected `{}`, found {}", PROMPT.join("` or `"), shown(value)))),
        Some(Value::String(caption)) => Ok(vec![caption.clone()]),
        Some(Value::Array(list)) => {
            let text = |caption: &Value| {
                let text = caption.as_str().ok_or_else(|| wrong(caption))?;
                if text.trim().is_empty() {
                    return Err((Reason::NoPrompt, "a caption is empty".to_owned()));
                }
                Ok(text.to_owned())
            };
            let captions = list.iter().map(text).collect::<Result<Vec<_>, _>>()?;
            if captions.is_empty() {
                Err((Reason::NoPrompt, "the list of captions is empty".into()))
            } else {
                Ok(captions)
            }
        }
        Some(other) => Err(wrong(other)),
    }
}

fn ranking(value: &Value, pictures: &Value) -> Result<Said, Fault> {
    let wrong = |what: &str, found: &Value| (Reason::WrongType, format!("expected {what}, found {}", shown(found)));
    let texts = |list: &Value| -> Option<Vec<String>> {
        list.as_array()?.iter().map(|entry| entry.as_str().map(str::to_owned)).collect()
    };
    let numbers = |list: &Value| -> Option<Vec<f64>> { list.as_array()?.iter().map(as_number).collect() };
    let paths = texts(pictures).ok_or_else(|| wrong("a list of file names", pictures))?;
    let scores = match (field(value, RANKS), field(value, SCORES)) {
        (Some(ranks), _) => {
            let ranks = numbers(ranks).ok_or_else(|| wrong("a list of ranks", ranks))?;
            ranks.into_iter().map(|rank| -rank).collect()
        }
        (None, Some(scores)) => numbers(scores).ok_or_else(|| wrong("a list of labels", scores))?,
        (None, None) => return Err((Reason::NoLabel, "expected `rank`, `human_preference` or `scores`".into())),
    };
    Ok(Said::Ranking { pictures: paths, scores, generators: field(value, &["models", "model"]).and_then(texts) })
}

fn single_score(value: &Value) -> Result<Option<f64>, Fault> {
    match number(value, RANKS)? {
        Some(rank) => Ok(Some(-rank)),
        None => number(value, SCORES),
    }
}

fn field<'v>(value: &'v Value, names: &[&str]) -> Option<&'v Value> {
    names.iter().find_map(|name| value.get(name)).filter(|found| !found.is_null())
}

fn text(value: &Value, names: &[&str]) -> Result<Option<String>, Fault> {
    match field(value, names) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err((Reason::WrongType, format!("`{}`: expected a text, found {}", names[0], shown(other)))),
    }
}

fn number(value: &Value, names: &[&str]) -> Result<Option<f64>, Fault> {
    match field(value, names) {
        None => Ok(None),
        Some(found) => match as_number(found) {
            Some(number) => Ok(Some(number)),
            None => Err((Reason::NoLabel, format!("`{}`: expected a number, found {}", names[0], shown(found)))),
        },
    }
}

/// Numbers, and true and false as 1 and 0.
pub(crate) fn as_number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_bool().map(|yes| f64::from(u8::from(yes))))
}

/// A value as JSON, cut short.
pub(crate) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(120) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
