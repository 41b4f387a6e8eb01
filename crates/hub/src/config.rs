//! Where the hub and its cache are, from the variables that the Python tools read.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// A token, and where it came from (for messages; the token itself is never shown).
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What the hub is sent.
    pub secret: String,
    /// The variable or file it was found in.
    pub source: String,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token {{ source: {:?} }}", self.source)
    }
}

/// How to reach the hub, and where to keep what it gives.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// The hub's address without a slash at its end.
    pub endpoint: String,
    /// The folder that holds `models--*`.
    pub cache: PathBuf,
    /// Sent to the endpoint alone, never to where it redirects.
    pub token: Option<Token>,
    /// Ask nobody: what is not cached is an error.
    pub offline: bool,
    /// Tries of a request that fails for a passing reason, at least 1.
    pub tries: u32,
    /// The pause before the second try; it doubles from try to try.
    pub pause: Duration,
}

impl HubConfig {
    /// From the environment: `HF_ENDPOINT`, `HF_HUB_CACHE` (or `HUGGINGFACE_HUB_CACHE`), `HF_HOME`, `XDG_CACHE_HOME`,
    /// `HF_TOKEN` (or `HUGGING_FACE_HUB_TOKEN`), `HF_TOKEN_PATH`, `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_HUB_OFFLINE`
    /// (or `TRANSFORMERS_OFFLINE`), with the meanings and defaults of `huggingface_hub`.
    pub fn from_env() -> Self {
        Self::from_variables(&|name| std::env::var(name).ok())
    }

    /// As [`HubConfig::from_env`], from other variables. One that is set to nothing counts as not set.
    pub fn from_variables(get: &dyn Fn(&str) -> Option<String>) -> Self {
        let text = |name: &str| get(name).filter(|value| !value.trim().is_empty());
        let first = |names: [&'static str; 2]| names.iter().find_map(|name| Some((*name, text(name)?)));
        let user = || PathBuf::from(text("HOME").or_else(|| text("USERPROFILE")).unwrap_or_else(|| ".".to_owned()));
        let expanded = |path: String| match path.strip_prefix("~") {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => user().join(rest.trim_start_matches('/')),
            _ => PathBuf::from(path),
        };
        let home = text("HF_HOME").map(expanded).unwrap_or_else(|| {
            text("XDG_CACHE_HOME").map(expanded).unwrap_or_else(|| user().join(".cache")).join("huggingface")
        });
        let cache = first(["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]);
        let token_file = text("HF_TOKEN_PATH").map(expanded).unwrap_or_else(|| home.join("token"));
        let on =
            |name: &str| text(name).is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&v.to_uppercase().as_str()));
        let named = first(["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).map(|(name, value)| token(&value, name));
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache: cache.map(|(_, path)| expanded(path)).unwrap_or_else(|| home.join("hub")),
            token: named
                .or_else(|| stored_token(&token_file))
                .filter(|token| !token.secret.is_empty() && !on("HF_HUB_DISABLE_IMPLICIT_TOKEN")),
            offline: on("HF_HUB_OFFLINE") || on("TRANSFORMERS_OFFLINE"),
            tries: 5,
            pause: Duration::from_secs(1),
        }
    }
}

fn token(secret: &str, source: &str) -> Token {
    Token { secret: secret.trim().to_owned(), source: source.to_owned() }
}

fn stored_token(path: &Path) -> Option<Token> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(token(&text, &path.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> HubConfig {
        HubConfig::from_variables(&|name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn places_are_those_of_the_python_tools() {
        let cache = |variables: &[(&str, &str)]| config(variables).cache.display().to_string();
        let home = ("HOME", "/home/me");
        assert_eq!(cache(&[home]), "/home/me/.cache/huggingface/hub");
        assert_eq!(cache(&[home, ("XDG_CACHE_HOME", "/x")]), "/x/huggingface/hub");
        assert_eq!(cache(&[home, ("HF_HOME", "~/hf"), ("XDG_CACHE_HOME", "/x")]), "/home/me/hf/hub");
        assert_eq!(cache(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c"), ("HUGGINGFACE_HUB_CACHE", "/d")]), "/c");
        assert_eq!(cache(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", "/d")]), "/d");
        let other = config(&[("HF_ENDPOINT", "http://mirror/"), ("HF_HUB_OFFLINE", "yes")]);
        assert_eq!((other.endpoint.as_str(), other.offline), ("http://mirror", true));
        assert!(!config(&[("HF_HUB_OFFLINE", "0")]).offline);
    }

    #[test]
    fn the_token_comes_from_the_variable_then_from_the_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "stored\n").unwrap();
        let home = folder.path().display().to_string();
        let stored = config(&[("HF_HOME", &home)]).token.unwrap();
        assert!(stored.secret == "stored" && stored.source.ends_with("token"));
        let named = config(&[("HF_HOME", &home), ("HF_TOKEN", " named ")]).token.unwrap();
        assert_eq!((named.secret.as_str(), named.source.as_str()), ("named", "HF_TOKEN"));
        assert!(!format!("{named:?}").contains("named \"") && !format!("{named:?}").contains("secret"));
        assert!(config(&[("HF_HOME", &home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).token.is_none());
        assert!(config(&[("HF_HOME", "/none")]).token.is_none());
    }
}
