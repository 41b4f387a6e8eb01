//! From TOML layers (preset, file, flags; later wins) to a validated [`TrainConfig`].

use super::{KeyInfo, KeyKind, TrainConfig, keys};
use crate::error::{Error, Result};
use toml::{Table, Value};

/// What a run folder's config.toml records beside the settings.
const RECORD_TABLES: [&str; 2] = ["run", "inputs"];

/// Puts `top` over `base`, key by key, tables merged.
pub fn layer(base: &mut Table, top: Table) {
    for (key, value) in top {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => layer(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// A flag's text as the TOML value its key takes: numbers parsed, lists split at commas or read as a TOML array.
///
/// Errors: [`Error::Setting`] naming the key, what it takes and what was found.
pub fn parse_value(key: &KeyInfo, text: &str) -> Result<Value> {
    let refuse = |expected: &str| Error::Setting {
        key: key.name.into(),
        expected: format!("{expected} ({})", key.range),
        found: format!("{text:?}"),
    };
    Ok(match key.kind {
        KeyKind::Text => Value::String(text.into()),
        KeyKind::Integer => Value::Integer(text.replace('_', "").parse().map_err(|_| refuse("a whole number"))?),
        KeyKind::Number => Value::Float(text.parse().map_err(|_| refuse("a number"))?),
        KeyKind::List if text.trim_start().starts_with('[') => {
            let table: Table = format!("v = {text}").parse().map_err(|_| refuse("a list of strings"))?;
            table["v"].clone()
        }
        KeyKind::Switch => Value::Boolean(text.parse().map_err(|_| refuse("true or false"))?),
        KeyKind::List => Value::Array(text.split(',').map(|s| Value::String(s.trim().into())).collect()),
    })
}

impl TrainConfig {
    /// Reads TOML text. `origin` names the file in errors. Not yet validated.
    ///
    /// Errors: [`Error::Config`] with line and column; unknown keys name the nearest known one.
    pub fn from_toml(text: &str, origin: &str) -> Result<Self> {
        let mut table = text.parse::<Table>().map_err(|e| config_error(origin, &e))?;
        super::flatten_judges(&mut table, origin)?;
        Self::from_table(table, origin)
    }

    /// A table that passed [`TrainConfig::check_keys`] (layers already merged) as settings. Not yet validated.
    ///
    /// Errors: [`Error::Config`] naming the key whose type is wrong.
    pub fn from_table(mut table: Table, origin: &str) -> Result<Self> {
        Self::check_keys(&table, origin)?;
        RECORD_TABLES.iter().for_each(|record| drop(table.remove(*record)));
        table.try_into().map_err(|e: toml::de::Error| config_error(origin, &e))
    }

    /// Refuses keys that do not exist, naming the nearest that does, and values of the wrong type.
    ///
    /// The tables `run` and `inputs`, which a run folder's config.toml has in addition, are passed over.
    pub fn check_keys(table: &Table, origin: &str) -> Result<()> {
        for (key, value) in table {
            match value {
                Value::Table(_) if RECORD_TABLES.contains(&key.as_str()) => {}
                Value::Table(inner) if key == "entropy" => {
                    inner.iter().try_for_each(|(k, v)| check_key(&format!("{key}.{k}"), v, origin))?
                }
                _ => check_key(key, value, origin)?,
            }
        }
        Ok(())
    }

    /// The settings as TOML text, every key present, each with its documentation as a comment.
    pub fn to_documented_toml(&self) -> Result<String> {
        let table =
            Table::try_from(self).map_err(|e| Error::Config { origin: "settings".into(), reason: e.to_string() })?;
        let mut text = String::new();
        let mut nested = String::new();
        for key in keys() {
            let comment = format!("# {} ({})\n", key.help, key.range);
            match key.name.split_once('.') {
                Some((outer, inner)) => nested += &format!("{comment}{inner} = {}\n", table[outer][inner]),
                None => text += &format!("{comment}{} = {}\n", key.name, table[key.name]),
            }
        }
        Ok(format!("{text}\n[entropy]\n{nested}"))
    }
}

fn check_key(name: &str, value: &Value, origin: &str) -> Result<()> {
    let Some(key) = keys().find(|k| k.name == name) else {
        let nearest = keys().min_by_key(|k| strsim::levenshtein(k.name, name)).map(|k| k.name).unwrap_or_default();
        let reason = format!("unknown key `{name}`; the nearest known key is `{nearest}`");
        return Err(Error::Config { origin: origin.into(), reason });
    };
    let expected = match (key.kind, value) {
        (KeyKind::Text, Value::String(_)) | (KeyKind::Number, Value::Float(_) | Value::Integer(_)) => return Ok(()),
        (KeyKind::Switch, Value::Boolean(_)) => return Ok(()),
        (KeyKind::Integer, Value::Integer(n)) if *n >= 0 => return Ok(()),
        (KeyKind::List, Value::Array(list)) if list.iter().all(Value::is_str) => return Ok(()),
        (KeyKind::Text, _) => "a string",
        (KeyKind::Number, _) => "a number",
        (KeyKind::Switch, _) => "true or false",
        (KeyKind::Integer, _) => "a whole number, 0 or more",
        (KeyKind::List, _) => "a list of strings",
    };
    let found = format!("{value} in {origin}");
    Err(Error::Setting { key: name.into(), expected: format!("{expected} ({})", key.range), found })
}

fn config_error(origin: &str, error: &toml::de::Error) -> Error {
    Error::Config { origin: origin.into(), reason: error.to_string().trim_end().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let message = TrainConfig::from_toml("learning_rat = 1e-4", "run.toml").unwrap_err().to_string();
        assert!(
            message.contains("run.toml") && message.contains("`learning_rat`") && message.contains("`learning_rate`")
        );
        let message = TrainConfig::from_toml("entropy = { gama = 1 }", "run.toml").unwrap_err().to_string();
        assert!(message.contains("entropy.gama") && message.contains("`entropy.gamma`"), "{message}");
    }

    #[test]
    fn a_wrong_type_names_key_expected_and_found() {
        for (text, key) in [
            ("steps = \"20\"", "steps"),
            ("steps = -1", "steps"),
            ("eta = \"one\"", "eta"),
            ("prompts = [1]", "prompts"),
            ("judge = 3", "judge"),
            ("rank = 4.5", "rank"),
        ] {
            let message = TrainConfig::from_toml(text, "run.toml").unwrap_err().to_string();
            assert!(
                message.contains(&format!("`{key}`")) && message.contains("expected") && message.contains("run.toml"),
                "{message}"
            );
        }
        assert!(TrainConfig::from_toml("steps = ", "run.toml").unwrap_err().to_string().contains("line 1"));
    }

    #[test]
    fn documented_toml_reads_back_equal() {
        let config =
            TrainConfig { prompts: vec!["a \"red\" cat\n".into()], learning_rate: 1.25e-7, ..Default::default() };
        let text = config.to_documented_toml().unwrap();
        assert_eq!(TrainConfig::from_toml(&text, "x").unwrap(), config);
    }

    #[test]
    fn later_layers_win_key_by_key() {
        let mut table: Table = "beta = 1.0\nentropy = { gamma = 2.0, form = 'literal-power' }".parse().unwrap();
        layer(&mut table, "entropy = { gamma = 3 }".parse().unwrap());
        let config = TrainConfig::from_table(table, "layers").unwrap();
        assert_eq!((config.beta, config.entropy.gamma), (1.0, 3.0));
        assert_eq!(config.entropy.form, crate::objective::EntropyForm::LiteralPower);
    }

    #[test]
    fn flags_become_values_of_their_kind() {
        let key = |name: &str| keys().find(|k| k.name == name).unwrap();
        assert_eq!(parse_value(key("steps"), "1_000").unwrap(), Value::Integer(1000));
        assert_eq!(parse_value(key("prompts"), "a, b").unwrap().as_array().unwrap().len(), 2);
        assert_eq!(parse_value(key("prompts"), "[\"a, b\"]").unwrap().as_array().unwrap().len(), 1);
        assert!(parse_value(key("beta"), "many").unwrap_err().to_string().contains("`beta`"));
    }
}
