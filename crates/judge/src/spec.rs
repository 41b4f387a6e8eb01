//! One line that names a judge: `pickscore`, `pickscore=folder`, `exec:./scorer`, `worst(pickscore, aesthetic)`.

use std::error::Error as StdError;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::ensemble::{Ensemble, Member, Rule};
use crate::exec::ExecJudge;
use crate::load::{JudgeOptions, load, recognised};
use crate::{Error, Judge, JudgeInfo, Result, info, names};

/// A judge, or several as one, as users write it.
#[derive(Clone, Debug, PartialEq)]
pub enum JudgeSpec {
    /// A judge of the catalogue; `location` is a folder, a file or a hub id, absent for the published weights.
    Named {
        /// Its name in the catalogue.
        name: &'static str,
        /// Where its weights lie.
        location: Option<String>,
    },
    /// Weights on disk that say themselves which judge they are.
    Path {
        /// A folder or a file.
        location: String,
    },
    /// An external process (docs/judges.md has the protocol).
    Exec {
        /// The command and its arguments, split at spaces.
        command: String,
    },
    /// Several judges that become one, each with its weight.
    Ensemble {
        /// How.
        rule: Rule,
        /// Weights and judges; only [`Rule::Weighted`] uses the weights.
        members: Vec<(f64, JudgeSpec)>,
    },
}

/// How a judge's weights are found: the paths for its name and location.
pub type Locate<'a> = dyn FnMut(&'static JudgeInfo, Option<&str>) -> std::result::Result<Vec<PathBuf>, Box<dyn StdError + Send + Sync>>
    + 'a;

/// How long an external scorer may take for one batch.
pub const EXEC_TIMEOUT: Duration = Duration::from_secs(120);

impl JudgeSpec {
    /// Reads a list, separated by commas outside of parentheses. Errors: as [`JudgeSpec::from_str`].
    pub fn list(text: &str) -> Result<Vec<Self>> {
        split(text).into_iter().map(str::parse).collect()
    }

    /// Builds it, each judge's weights found by `locate`. Errors: those of [`load`], and [`Error::Locate`].
    pub fn build(&self, options: &JudgeOptions, locate: &mut Locate<'_>) -> Result<Box<dyn Judge>> {
        match self {
            Self::Named { name, location } => {
                let info = info(name)?;
                let fail = |source| Error::Locate { judge: info.name.to_owned(), source };
                let none = !info.has_weights() && location.is_none();
                let paths = if none { Vec::new() } else { locate(info, location.as_deref()).map_err(fail)? };
                load(name, &paths, options)
            }
            Self::Path { location } => {
                let paths = [PathBuf::from(location)];
                load(recognised(&paths)?, &paths, options)
            }
            Self::Exec { command } => Ok(Box::new(ExecJudge::new(command, EXEC_TIMEOUT)?)),
            Self::Ensemble { rule, members } => {
                let member = |(weight, spec): &(f64, Self)| {
                    let typical = spec.typical();
                    Ok(Member { judge: spec.build(options, locate)?, weight: *weight, typical })
                };
                let members = members.iter().map(member).collect::<Result<Vec<_>>>()?;
                Ok(Box::new(Ensemble::new(*rule, members)))
            }
        }
    }

    fn typical(&self) -> (f64, f64) {
        match self {
            Self::Named { name, .. } => info(name).map_or((0.0, 1.0), |info| info.typical),
            _ => (0.0, 1.0),
        }
    }

    /// Whether it has a network to run.
    pub fn computes(&self) -> bool {
        match self {
            Self::Named { name, .. } => info(name).is_ok_and(JudgeInfo::has_weights),
            Self::Path { .. } => true,
            Self::Exec { .. } => false,
            Self::Ensemble { members, .. } => members.iter().any(|(_, member)| member.computes()),
        }
    }

    /// Whether a process of the user's does the work, or part of it.
    pub fn is_external(&self) -> bool {
        match self {
            Self::Exec { .. } => true,
            Self::Ensemble { members, .. } => members.iter().any(|(_, member)| member.is_external()),
            Self::Named { .. } | Self::Path { .. } => false,
        }
    }

    /// The unit of its scores, without building it.
    pub fn unit(&self) -> &'static str {
        match self {
            Self::Named { name, .. } => info(name).map_or("", |info| info.unit),
            Self::Path { .. } | Self::Exec { .. } => "score",
            Self::Ensemble { rule, .. } => rule.unit(),
        }
    }
}

/// The parts of a list, at commas outside of parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0i32, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts
}

impl FromStr for JudgeSpec {
    type Err = Error;

    /// Errors: [`Error::UnknownJudge`]; [`Error::Spec`] where the line cannot be read.
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let refuse = |reason: &str| Err(Error::Spec { text: text.to_owned(), reason: reason.to_owned() });
        if let Some(command) = text.strip_prefix("exec:") {
            let command = command.trim().to_owned();
            return if command.is_empty() {
                refuse("expected a command after exec:")
            } else {
                Ok(Self::Exec { command })
            };
        }
        if let Some(location) = text.strip_prefix("path:") {
            let location = location.trim().to_owned();
            return if location.is_empty() {
                refuse("expected a path after path:")
            } else {
                Ok(Self::Path { location })
            };
        }
        if let Some(repo) = text.strip_prefix("hub:") {
            let published = |info: &&JudgeInfo| info.weights.iter().any(|w| w.repo.eq_ignore_ascii_case(repo.trim()));
            return match names().iter().find(published) {
                Some(info) => Ok(Self::Named { name: info.name, location: None }),
                None => {
                    refuse("this repository is none of the published judges'; say which judge it is: NAME=user/repo")
                }
            };
        }
        if let Some((rule, inside)) = text.strip_suffix(')').and_then(|rest| rest.split_once('(')) {
            let rule = Rule::from_name(rule.trim());
            let Some(rule) = rule else {
                return refuse("expected weighted(..), majority(..), pareto(..) or worst(..)");
            };
            let members = split(inside).into_iter().map(weighted).collect::<Result<Vec<_>>>()?;
            return if members.len() < 2 {
                refuse("expected at least two judges")
            } else {
                Ok(Self::Ensemble { rule, members })
            };
        }
        let (name, location) = match text.split_once('=') {
            Some((name, location)) => (name, Some(location.trim().to_owned())),
            None => (text, None),
        };
        if location.as_ref().is_some_and(String::is_empty) {
            return refuse("expected a folder, a file or a hub id after `=`");
        }
        Ok(Self::Named { name: info(name)?.name, location })
    }
}

/// `0.5*pickscore`, or a judge alone, which weighs 1.
fn weighted(text: &str) -> Result<(f64, JudgeSpec)> {
    match text.split_once('*').map(|(weight, judge)| (weight.trim().parse::<f64>(), judge)) {
        Some((Ok(weight), judge)) if weight.is_finite() => Ok((weight, judge.parse()?)),
        _ => Ok((1.0, text.parse()?)),
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
                let item = |(weight, spec): &(f64, Self)| match weight {
                    1.0 => spec.to_string(),
                    _ => format!("{weight}*{spec}"),
                };
                write!(f, "{}({})", rule.name(), members.iter().map(item).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_written_back() {
        for text in [
            "pickscore",
            "hpsv2.1=weights/HPS_v2.1_compressed.pt",
            "exec:python scorer.py --fast",
            "path:a/folder",
            "weighted(2*pickscore, 0.5*aesthetic=a/b)",
            "worst(pickscore, exec:./mine)",
        ] {
            assert_eq!(text.parse::<JudgeSpec>().unwrap().to_string(), text);
        }
        let list = JudgeSpec::list("Pick_Score, majority(hpsv2,aesthetic,clipscore),colorfulness").unwrap();
        assert_eq!(list.iter().map(ToString::to_string).collect::<Vec<_>>()[0], "pickscore");
        assert_eq!((list.len(), list[2].unit()), (3, "M"));
        assert_eq!("hub:xswu/HPSv2".parse::<JudgeSpec>().unwrap().to_string(), "hpsv2");
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        for (text, part) in [
            ("exec: ", "command"),
            ("path:", "path"),
            ("hub:some/repo", "NAME=user/repo"),
            ("best(pickscore, hpsv2)", "weighted"),
            ("worst(pickscore)", "two"),
            ("pickscore=", "folder"),
            ("pikscore", "`pickscore`"),
            ("worst(pickscore, hsv2)", "`hpsv2`"),
        ] {
            let message = text.parse::<JudgeSpec>().unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
