//! A judge as a TOML table, turned into the one line that names it everywhere else.

use seedpo_judge::exec_line;
use toml::{Table, Value};

use crate::error::{Error, Result};

/// The keys that may hold a judge.
const KEYS: [&str; 2] = ["judge", "heldout_judge"];
/// Rules of several judges.
const RULES: [&str; 4] = ["weighted", "majority", "pareto", "worst"];

/// Replaces tables under `judge` and `heldout_judge` by lines: `{ name = "pickscore", path = "folder" }` becomes
/// `pickscore=folder`, `{ exec = "./scorer" }` `exec:./scorer`, `{ worst = ["a", "b"] }` `worst(a, b)`; a member with `mean`
/// and `spread` becomes `normalised(.., mean, spread)`.
///
/// Errors: [`Error::Setting`] naming the key.
pub fn flatten_judges(settings: &mut Table, origin: &str) -> Result<()> {
    for key in KEYS {
        if let Some(Value::Table(table)) = settings.get(key) {
            let line = line(table).map_err(|expected| Error::Setting {
                key: key.into(),
                expected: expected.into(),
                found: format!("{} in {origin}", Value::Table(table.clone())),
            })?;
            settings.insert(key.into(), Value::String(line));
        }
    }
    Ok(())
}

const EXPECTED: &str = "a judge's name, or one of { path }, { hub }, either with a name, { exec }, { weighted = { a = 1, b = 2 } }, \
                        { majority = [a, b] }, { pareto = [a, b] }, { worst = [a, b] }; a judge of the last may have a mean and a spread \
                        too, { name, mean, spread }, and one of the first is { weighted = { \"normalised(a, 1, 2)\" = 1 } } then";

type Line = std::result::Result<String, &'static str>;

fn number(value: &Value) -> Option<f64> {
    value.as_float().or_else(|| value.as_integer().map(|n| n as f64))
}

/// A judge among others: one whose table has a mean and a spread is normalised by them.
fn member(value: &Value) -> Line {
    let table = match value {
        Value::String(line) => return Ok(line.clone()),
        Value::Table(table) => table,
        _ => return Err(EXPECTED),
    };
    match (table.get("mean").and_then(number), table.get("spread").and_then(number)) {
        (Some(mean), Some(spread)) => {
            let judge: Table = table.clone().into_iter().filter(|(key, _)| key != "mean" && key != "spread").collect();
            Ok(format!("normalised({}, {mean}, {spread})", line(&judge)?))
        }
        _ => line(table),
    }
}

fn line(table: &Table) -> Line {
    let entries: Vec<(&str, &Value)> = table.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let text = |key: &str| table.get(key).and_then(Value::as_str);
    match entries[..] {
        [("exec", Value::String(command))] => Ok(exec_line(command)),
        [("name", Value::String(name))] => Ok(name.clone()),
        [(key @ ("path" | "hub"), Value::String(location))] => Ok(format!("{key}:{location}")),
        [("weighted", Value::Table(members))] => {
            let item = |(name, weight): (&String, &Value)| -> Line {
                Ok(format!("{}*{name}", number(weight).ok_or(EXPECTED)?))
            };
            let members = members.iter().map(item).collect::<std::result::Result<Vec<_>, _>>()?;
            Ok(format!("weighted({})", members.join(", ")))
        }
        [(rule, Value::Array(members))] if RULES.contains(&rule) => {
            let members = members.iter().map(member).collect::<std::result::Result<Vec<_>, _>>()?;
            Ok(format!("{rule}({})", members.join(", ")))
        }
        [_, _] => match (text("name"), text("path").or(text("hub"))) {
            (Some(name), Some(location)) => Ok(format!("{name}={location}")),
            _ => Err(EXPECTED),
        },
        _ => Err(EXPECTED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(text: &str) -> Result<Value> {
        let mut table: Table = text.parse().unwrap();
        flatten_judges(&mut table, "run.toml").map(|()| table["judge"].clone())
    }

    #[test]
    fn every_form_becomes_its_line() {
        for (text, line) in [
            (r#"judge = "pickscore""#, "pickscore"),
            (r#"judge = { name = "hpsv2", path = "a/b.pt" }"#, "hpsv2=a/b.pt"),
            (r#"judge = { hub = "user/repo", name = "pickscore" }"#, "pickscore=user/repo"),
            (r#"judge = { path = "folder" }"#, "path:folder"),
            (r#"judge = { exec = "python s.py" }"#, "exec:python s.py"),
            (r#"judge = { worst = ["aesthetic", { exec = "./s" }] }"#, "worst(aesthetic, exec:./s)"),
            (r#"judge = { worst = ["chroma", { exec = "./s a,b" }] }"#, "worst(chroma, exec:./s 'a,b')"),
            (
                r#"judge = { worst = ["chroma", { name = "pickscore", path = "own", mean = 18, spread = 2.5 }] }"#,
                "worst(chroma, normalised(pickscore=own, 18, 2.5))",
            ),
            (r#"judge = { weighted = { aesthetic = 1, pickscore = 0.5 } }"#, "weighted(1*aesthetic, 0.5*pickscore)"),
            (
                r#"judge = { weighted = { "normalised(aesthetic, 1, 2)" = 1, chroma = 2 } }"#,
                "weighted(2*chroma, 1*normalised(aesthetic, 1, 2))",
            ),
        ] {
            assert_eq!(flat(text).unwrap(), Value::String(line.into()), "{text}");
        }
    }

    #[test]
    fn other_tables_are_refused_by_key() {
        for text in [
            r#"judge = { worst = ["a", { name = "b", mean = 1 }] }"#,
            "judge = { path = 3 }",
            r#"judge = { best = ["a", "b"] }"#,
            "judge = { weighted = { a = 'x' } }",
            r#"judge = { weighted = { a = { name = "b", mean = 1, spread = 2 } } }"#,
        ] {
            let message = flat(text).unwrap_err().to_string();
            assert!(
                message.contains("`judge`") && message.contains("run.toml") && message.contains("exec"),
                "{message}"
            );
        }
    }
}
