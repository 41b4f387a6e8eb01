//! One line that names a judge: `pickscore`, `pickscore=folder`, `exec:./scorer`, `worst(pickscore, aesthetic)`.

mod hub;
mod parse;

pub use parse::exec_line;

use std::error::Error as StdError;
use std::path::PathBuf;

use crate::ensemble::{Ensemble, Member, Rule};
use crate::exec::ExecJudge;
use crate::load::{JudgeOptions, load, recognised};
use crate::{Error, Judge, JudgeInfo, Result, info};

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
        /// The command and its arguments, in words as a shell takes them.
        command: String,
    },
    /// Several judges that become one.
    Ensemble {
        /// How.
        rule: Rule,
        /// The judges.
        members: Vec<MemberSpec>,
    },
}

/// One judge of an ensemble, as users write it: `2*pickscore`, `normalised(pickscore=folder, 18, 2.5)`.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberSpec {
    /// Its weight; 1 under other rules than [`Rule::Weighted`].
    pub weight: f64,
    /// Mean and spread that its scores are normalised by, where they are given.
    pub typical: Option<(f64, f64)>,
    /// The judge.
    pub judge: JudgeSpec,
}

/// How a judge's weights are found: the paths for its name and location.
pub type Locate<'a> = dyn FnMut(&'static JudgeInfo, Option<&str>) -> std::result::Result<Vec<PathBuf>, Box<dyn StdError + Send + Sync>>
    + 'a;

impl JudgeSpec {
    /// Builds it, each judge's weights found by `locate`. Errors: those of [`load`], and [`Error::Locate`].
    pub fn build(&self, options: &JudgeOptions, locate: &mut Locate<'_>) -> Result<Box<dyn Judge>> {
        Ok(self.built(options, locate)?.0)
    }

    /// The judge, and the mean and spread that are typical of its scores.
    fn built(&self, options: &JudgeOptions, locate: &mut Locate<'_>) -> Result<(Box<dyn Judge>, (f64, f64))> {
        match self {
            Self::Named { name, location } => {
                let info = info(name)?;
                let fail = |source| Error::Locate { judge: info.name.to_owned(), source };
                let none = !info.has_weights() && location.is_none();
                let paths = if none { Vec::new() } else { locate(info, location.as_deref()).map_err(fail)? };
                Ok((load(name, &paths, options)?, info.typical))
            }
            Self::Path { location } => {
                let paths = [PathBuf::from(location)];
                let name = recognised(&paths)?;
                Ok((load(name, &paths, options)?, info(name)?.typical))
            }
            Self::Exec { command } => Ok((Box::new(ExecJudge::new(command, options.exec_timeout)?), UNKNOWN)),
            Self::Ensemble { rule, members } => {
                let mut build = |member: &MemberSpec| member.judge.built(options, locate);
                let built = members.iter().map(&mut build).collect::<Result<Vec<_>>>()?;
                let specs: Vec<&Self> = members.iter().map(|member| &member.judge).collect();
                let names = distinct_names(&specs, built.iter().map(|(judge, _)| judge.name()));
                let member = |((spec, (judge, typical)), name): ((&MemberSpec, _), String)| Member {
                    name,
                    judge,
                    weight: spec.weight,
                    typical: spec.typical.unwrap_or(typical),
                };
                let members = members.iter().zip(built).zip(names).map(member).collect();
                Ok((Box::new(Ensemble::new(*rule, members)), UNKNOWN))
            }
        }
    }

    /// Whether it has a network to run.
    pub fn computes(&self) -> bool {
        match self {
            Self::Named { name, .. } => info(name).is_ok_and(JudgeInfo::has_weights),
            Self::Path { .. } => true,
            Self::Exec { .. } => false,
            Self::Ensemble { members, .. } => members.iter().any(|member| member.judge.computes()),
        }
    }

    /// Whether its scores say only how a picture compares with the others of its prompt.
    pub fn compares(&self) -> bool {
        matches!(self, Self::Ensemble { rule, .. } if rule.compares())
    }

    /// Whether a process of the user's does the work, or part of it.
    pub fn is_external(&self) -> bool {
        match self {
            Self::Exec { .. } => true,
            Self::Ensemble { members, .. } => members.iter().any(|member| member.judge.is_external()),
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

/// Mean and spread of a judge of which nothing is known: its scores are taken as they are.
const UNKNOWN: (f64, f64) = (0.0, 1.0);

/// Names that tell judges apart: a judge's own, or where several share it the whole line.
pub fn distinct_names<'a>(specs: &[&JudgeSpec], names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let names: Vec<&str> = names.collect();
    let shared = |name: &str| names.iter().filter(|other| **other == name).count() > 1;
    names
        .iter()
        .zip(specs)
        .map(|(name, spec)| if shared(name) { spec.to_string() } else { (*name).to_owned() })
        .collect()
}
