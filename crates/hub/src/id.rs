//! Repository ids.

use std::fmt;

/// `user/repo`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoId(String);

impl RepoId {
    /// `None` for anything that cannot be a repository's id: two names of letters, digits, `-`, `_` and `.`, neither
    /// beginning nor ending with `-` or `.`, 96 characters at most in all.
    pub fn parse(text: &str) -> Option<Self> {
        let (user, repo) = text.split_once('/')?;
        let name = |name: &str| {
            let inside = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !name.is_empty()
                && name.chars().all(inside)
                && !name.starts_with(['-', '.'])
                && !name.ends_with(['-', '.'])
                && !name.contains("--")
                && !name.contains("..")
        };
        (text.len() <= 96 && name(user) && name(repo)).then(|| Self(text.to_owned()))
    }

    /// `user/repo`, or `user/repo/path/in/it`: the id and the path.
    pub fn parse_with_file(text: &str) -> Option<(Self, Option<&str>)> {
        match text.match_indices('/').nth(1) {
            None => Some((Self::parse(text)?, None)),
            Some((at, _)) => {
                let file = &text[at + 1..];
                let plain = file.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
                (plain && !file.contains('\\')).then_some(())?;
                Some((Self::parse(&text[..at])?, Some(file)))
            }
        }
    }

    /// The repository's folder in the cache.
    pub fn folder_name(&self) -> String {
        format!("models--{}", self.0.replace('/', "--"))
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        let id = RepoId::parse("runwayml/stable-diffusion-v1-5").unwrap();
        assert_eq!(id.folder_name(), "models--runwayml--stable-diffusion-v1-5");
        for path in
            ["model", "./model", "../models/a", "/abs/path", "~/models/a", "a/", "/a", "a/b c", "a/b--c", "a/.."]
        {
            assert!(RepoId::parse(path).is_none(), "{path}");
        }
        assert!(RepoId::parse(&format!("a/{}", "b".repeat(95))).is_none());
        let (id, file) = RepoId::parse_with_file("user/repo/styles/ink.safetensors").unwrap();
        assert_eq!((id.to_string().as_str(), file), ("user/repo", Some("styles/ink.safetensors")));
        assert_eq!(RepoId::parse_with_file("user/repo").unwrap().1, None);
        for path in ["user/repo/", "user/repo/../x", "user/repo//x", "./a/b", "user/repo/a\\b"] {
            assert!(RepoId::parse_with_file(path).is_none(), "{path}");
        }
    }
}
