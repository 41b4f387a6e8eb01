//! The `settings` of a case: a JSON object, of which every key must be known and of its type.

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value};

use crate::failure::nearest;

/// The settings of a case. A JSON `null` counts as absent.
pub struct CaseSettings(Map<String, Value>);

impl CaseSettings {
    /// Errors: not a JSON object, or a key that is not in `known`.
    pub fn parse(text: &str, known: &[&'static str]) -> Result<Self> {
        let value: Value = serde_json::from_str(text)
            .with_context(|| format!("metadata `settings`: expected a JSON object, found {text:?}"))?;
        let Value::Object(map) = value else {
            bail!("metadata `settings`: expected a JSON object, found {value}");
        };
        if let Some(key) = map.keys().find(|key| !known.contains(&key.as_str())) {
            let all = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let hint =
                nearest(key, known.iter().copied()).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            bail!("unknown setting `{key}`: this stage has {all}{hint}");
        }
        Ok(Self(map.into_iter().filter(|(_, value)| !value.is_null()).collect()))
    }

    /// A number. Errors: absent without a default, or something else.
    pub fn number(&self, key: &str, default: Option<f64>) -> Result<f64> {
        match (self.0.get(key), default) {
            (None, Some(default)) => Ok(default),
            (found, _) => found.and_then(Value::as_f64).with_context(|| wrong(key, "a number", found)),
        }
    }

    /// A number that may be absent.
    pub fn optional_number(&self, key: &str) -> Result<Option<f64>> {
        let Some(found) = self.0.get(key) else { return Ok(None) };
        Ok(Some(found.as_f64().with_context(|| wrong(key, "a number or null", Some(found)))?))
    }

    /// A whole number of 0 or more.
    pub fn count(&self, key: &str) -> Result<usize> {
        let found = self.0.get(key);
        // Other tools write counts as 20.0 too.
        let whole = found.and_then(Value::as_f64).filter(|n| *n >= 0.0 && n.fract() == 0.0 && *n < 1e9);
        whole.map(|n| n as usize).with_context(|| wrong(key, "a whole number of 0 or more", found))
    }

    /// A whole number of 0 or more that may be absent.
    pub fn optional_count(&self, key: &str) -> Result<Option<usize>> {
        self.0.contains_key(key).then(|| self.count(key)).transpose()
    }

    /// A string that may be absent.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        let Some(found) = self.0.get(key) else { return Ok(None) };
        Ok(Some(found.as_str().with_context(|| wrong(key, "a string", Some(found)))?))
    }

    /// A list of strings; `None` where it is absent.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(found) = self.0.get(key) else { return Ok(None) };
        let list = found.as_array().and_then(|list| list.iter().map(|v| v.as_str().map(str::to_owned)).collect());
        Ok(Some(list.with_context(|| wrong(key, "a list of strings", Some(found)))?))
    }
}

fn wrong(key: &str, expected: &str, found: Option<&Value>) -> String {
    let found = found.map_or("nothing".to_owned(), ToString::to_string);
    format!("setting `{key}`: expected {expected}, found {found}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_and_mistyped_settings_are_named() {
        let message = |text: &str| CaseSettings::parse(text, &["steps", "eta"]).err().unwrap().to_string();
        assert!(message(r#"{"step": 1}"#).contains("`step`") && message(r#"{"step": 1}"#).contains("`steps`?"));
        assert!(message("[1]").contains("JSON object") && message("{").contains("JSON object"));
        let settings = CaseSettings::parse(r#"{"steps": "20", "eta": null}"#, &["steps", "eta"]).unwrap();
        assert_eq!(
            settings.count("steps").unwrap_err().to_string(),
            "setting `steps`: expected a whole number of 0 or more, found \"20\""
        );
        assert_eq!(settings.number("eta", Some(0.0)).unwrap(), 0.0);
        assert!(settings.number("eta", None).unwrap_err().to_string().contains("found nothing"));
    }
}
