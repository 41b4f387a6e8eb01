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

    /// Whether its scores depend on the prompt. Of a process of the user's that is unknown: it is taken for one that does
    /// without.
    pub fn reads_prompt(&self) -> bool {
        match self {
            Self::Named { name, .. } => info(name).is_ok_and(|info| info.reads_prompt),
            Self::Path { location } => {
                recognised(&[PathBuf::from(location)]).and_then(info).is_ok_and(|info| info.reads_prompt)
            }
            Self::Exec { .. } => false,
            Self::Ensemble { members, .. } => members.iter().any(|member| member.judge.reads_prompt()),
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

    /// Whether its scores say only how a picture compares with the others of its prompt: by its rule, or because all its
    /// judges do (those that weigh nothing aside).
    pub fn compares(&self) -> bool {
        let Self::Ensemble { rule, members } = self else { return false };
        let mut counting = members.iter().filter(|member| member.weight != 0.0);
        rule.compares() || counting.all(|member| member.judge.compares())
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

/// Names that tell judges apart: a judge's own, where several share it the whole line, and of equal lines the number too,
/// as in `chroma (2)`.
pub fn distinct_names<'a>(specs: &[&JudgeSpec], names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let names: Vec<&str> = names.collect();
    let shared = |name: &str| names.iter().filter(|other| **other == name).count() > 1;
    let line = |(name, spec): (&&str, &&JudgeSpec)| if shared(name) { spec.to_string() } else { (*name).to_owned() };
    let lines: Vec<String> = names.iter().zip(specs).map(line).collect();
    let numbered = |(at, line): (usize, &String)| match lines[..at].iter().filter(|before| *before == line).count() {
        0 => line.clone(),
        before => format!("{line} ({})", before + 1),
    };
    lines.iter().enumerate().map(numbered).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(line: &str) -> JudgeSpec {
        line.parse().unwrap()
    }

    #[test]
    fn no_two_judges_share_a_name() {
        let lines = ["chroma", "pickscore=a", "pickscore", "chroma", "aesthetic", "pickscore=a", "chroma"];
        let specs = lines.map(spec);
        let names = ["chroma", "pickscore", "pickscore", "chroma", "aesthetic", "pickscore", "chroma"];
        let expected =
            ["chroma", "pickscore=a", "pickscore", "chroma (2)", "aesthetic", "pickscore=a (2)", "chroma (3)"];
        assert_eq!(distinct_names(&specs.iter().collect::<Vec<_>>(), names.into_iter()), expected);
        let built = spec("majority(chroma, chroma, colourfulness)")
            .build(&JudgeOptions::default(), &mut |_, _| Ok(Vec::new()))
            .unwrap();
        let names: Vec<String> = built.statistics().into_iter().map(|statistics| statistics.judge).collect();
        assert_eq!(names, ["chroma", "chroma (2)", "colourfulness"]);
    }

    #[test]
    fn what_only_compares_does_so_within_any_rule() {
        for line in [
            "majority(chroma, colourfulness)",
            "weighted(majority(chroma, colourfulness), 2*pareto(chroma, colourfulness))",
            "worst(pareto(chroma, colourfulness), normalised(majority(chroma, colourfulness), 1, 2))",
            "weighted(0*chroma, weighted(majority(chroma, colourfulness), pareto(chroma, colourfulness)))",
        ] {
            assert!(spec(line).compares(), "{line}");
        }
        for line in
            ["chroma", "weighted(chroma, majority(chroma, colourfulness))", "worst(chroma, pareto(chroma, aesthetic))"]
        {
            assert!(!spec(line).compares(), "{line}");
        }
    }

    #[test]
    fn a_list_holds_no_judge_twice() {
        let refused = |list: &str| JudgeSpec::list(list).unwrap_err().to_string();
        let twice = "expected different judges, found it twice";
        assert_eq!(refused("aesthetic, hps, HPSv2"), format!("judge `hpsv2`: {twice}"));
        assert!(refused("weighted(2*chroma,aesthetic),weighted(2*chroma, aesthetic)").contains(twice));
        assert_eq!(JudgeSpec::list("pickscore, pickscore=a, worst(chroma, chroma)").unwrap().len(), 3);
    }
}
