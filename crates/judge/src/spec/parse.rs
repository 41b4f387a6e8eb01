//! Reading and writing the line that names a judge.

use std::fmt;
use std::str::FromStr;

use super::{JudgeSpec, MemberSpec, hub};
use crate::ensemble::Rule;
use crate::{Error, Result, info};

impl JudgeSpec {
    /// Reads a list, separated by commas outside of parentheses and of the quotes of commands.
    ///
    /// Errors: as [`JudgeSpec::from_str`]; [`Error::Spec`] for a judge that comes twice, whose scores could not be told apart.
    pub fn list(text: &str) -> Result<Vec<Self>> {
        let specs = split(text).into_iter().map(str::parse).collect::<Result<Vec<Self>>>()?;
        match specs.iter().enumerate().find(|(at, spec)| specs[..*at].contains(spec)) {
            Some((_, spec)) => refuse(&spec.to_string(), "expected different judges, found it twice"),
            None => Ok(specs),
        }
    }
}

/// The parts of a list: cut at commas outside of parentheses and, in the commands of `exec:`, of quotes.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0i32, 0, Vec::new());
    // Within a command: the depth it began at, the quote that is open, whether a backslash came before.
    let (mut command, mut quote, mut escaped): (Option<i32>, Option<char>, bool) = (None, None, false);
    for (at, c) in text.char_indices() {
        if std::mem::take(&mut escaped) {
            continue;
        }
        match (command, quote, c) {
            (_, Some(open), _) if c == open => quote = None,
            (Some(_), None | Some('"'), '\\') => escaped = true,
            (_, Some(_), _) => {}
            (Some(_), None, '"' | '\'') => quote = Some(c),
            (_, None, '(') => depth += 1,
            (_, None, ')') => {
                depth -= 1;
                command = command.filter(|began| *began <= depth);
            }
            (_, None, ',') => {
                command = command.filter(|began| *began < depth);
                if depth == 0 {
                    parts.push(text[start..at].trim());
                    start = at + 1;
                }
            }
            (None, None, _) if begins_command(text, at) => command = Some(depth),
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts
}

/// Whether a judge's `exec:` stands at this place of a list.
fn begins_command(text: &str, at: usize) -> bool {
    let before = text[..at].trim_end();
    text[at..].starts_with("exec:") && (before.is_empty() || before.ends_with(['(', ',', '*']))
}

/// The line of an external scorer, whatever its command holds: in quotes where it would not stay whole in a list.
pub fn exec_line(command: &str) -> String {
    let line = format!("exec:{command}");
    let whole = split(&format!("{line},x")).len() == 2 && split(&format!("({line}),x")).len() == 2;
    match shlex::split(command).and_then(|words| shlex::try_join(words.iter().map(String::as_str)).ok()) {
        Some(quoted) if !whole => format!("exec:{quoted}"),
        _ => line,
    }
}

impl FromStr for JudgeSpec {
    type Err = Error;

    /// Errors: [`Error::UnknownJudge`]; [`Error::Spec`] where the line cannot be read.
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        if let Some(command) = text.strip_prefix("exec:") {
            let command = command.trim().to_owned();
            return match shlex::split(&command) {
                None => refuse(text, "a quote in the command is never closed, or it ends in a backslash"),
                Some(words) if words.is_empty() => refuse(text, "expected a command after exec:"),
                Some(_) => Ok(Self::Exec { command }),
            };
        }
        if let Some(location) = text.strip_prefix("path:") {
            let location = location.trim().to_owned();
            let given = !location.is_empty();
            return if given { Ok(Self::Path { location }) } else { refuse(text, "expected a path after path:") };
        }
        if let Some(id) = text.strip_prefix("hub:") {
            return match hub::published(id.trim()) {
                Ok(info) => Ok(Self::Named { name: info.name, location: None }),
                Err(reason) => refuse(text, &reason),
            };
        }
        if let Some((rule, inside)) = called(text) {
            return ensemble(text, rule, inside);
        }
        let (name, location) = match text.split_once('=') {
            Some((name, location)) => (name, Some(location.trim().to_owned())),
            None => (text, None),
        };
        if location.as_ref().is_some_and(String::is_empty) {
            return refuse(text, "expected a folder, a file or a hub id after `=`");
        }
        Ok(Self::Named { name: info(name)?.name, location })
    }
}

fn refuse<T>(text: &str, reason: &str) -> Result<T> {
    Err(Error::Spec { text: text.to_owned(), reason: reason.to_owned() })
}

/// The word before parentheses that end a text, and what is in them.
fn called(text: &str) -> Option<(&str, &str)> {
    let (word, inside) = text.strip_suffix(')')?.split_once('(')?;
    Some((word.trim(), inside)).filter(|(word, _)| word.chars().all(|c| c.is_ascii_alphabetic()))
}

/// What [`MemberSpec::typical`] is written with.
const NORMALISED: &str = "normalised";

fn ensemble(text: &str, rule: &str, inside: &str) -> Result<JudgeSpec> {
    if rule == NORMALISED {
        return refuse(text, "normalised(..) has its place within weighted(..) or worst(..)");
    }
    let Some(rule) = Rule::from_name(rule) else {
        return refuse(text, "expected weighted(..), majority(..), pareto(..) or worst(..)");
    };
    let members = split(inside).into_iter().map(|part| member(rule, part)).collect::<Result<Vec<_>>>()?;
    if members.len() < 2 {
        refuse(text, "expected at least two judges")
    } else {
        Ok(JudgeSpec::Ensemble { rule, members })
    }
}

/// `0.5*pickscore`, `normalised(pickscore, 20, 1)`, or a judge alone, which weighs 1.
fn member(rule: Rule, text: &str) -> Result<MemberSpec> {
    let (weight, rest) = match text.split_once('*').map(|(weight, rest)| (weight.trim().parse::<f64>(), rest.trim())) {
        Some((Ok(weight), rest)) if weight.is_finite() => (Some(weight), rest),
        _ => (None, text),
    };
    if weight.is_some() && rule != Rule::Weighted {
        return refuse(text, &format!("only weighted(..) takes weights, {}(..) has none", rule.name()));
    }
    let weight = weight.unwrap_or(1.0);
    let Some((NORMALISED, inside)) = called(rest) else {
        return Ok(MemberSpec { weight, typical: None, judge: rest.parse()? });
    };
    if rule.compares() {
        return refuse(text, &format!("{}(..) compares scores as they are and normalises none", rule.name()));
    }
    let parts = split(inside);
    let number = |part: &str| part.parse::<f64>().ok().filter(|number| number.is_finite());
    match parts[..] {
        [judge, mean, spread] => match (number(mean), number(spread)) {
            (Some(mean), Some(spread)) if spread > 0.0 => {
                Ok(MemberSpec { weight, typical: Some((mean, spread)), judge: judge.parse()? })
            }
            _ => refuse(text, "expected a mean and a spread above 0: normalised(JUDGE, MEAN, SPREAD)"),
        },
        _ => refuse(text, "expected normalised(JUDGE, MEAN, SPREAD)"),
    }
}

impl fmt::Display for JudgeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named { name, location: None } => f.write_str(name),
            Self::Named { name, location: Some(location) } => write!(f, "{name}={location}"),
            Self::Path { location } => write!(f, "path:{location}"),
            Self::Exec { command } => write!(f, "exec:{command}"),
            Self::Ensemble { rule, members } => {
                let members: Vec<String> = members.iter().map(ToString::to_string).collect();
                write!(f, "{}({})", rule.name(), members.join(", "))
            }
        }
    }
}

impl fmt::Display for MemberSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.weight != 1.0 {
            write!(f, "{}*", self.weight)?;
        }
        match self.typical {
            None => write!(f, "{}", self.judge),
            Some((mean, spread)) => write!(f, "{NORMALISED}({}, {mean}, {spread})", self.judge),
        }
    }
}
