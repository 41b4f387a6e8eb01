//! Captions: one of an emoji's names, a keyword, a group, or nothing, drawn by a key.

use seedpo_tensor::NoiseKey;

use crate::dataset::Emoji;

/// Everything an emoji may be called besides its name, in plain lower-case words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Words {
    /// Short names: `apple`.
    pub short: Vec<String>,
    /// Keywords, shared with other emoji: `fruit`, `mac`, `school`.
    pub keywords: Vec<String>,
    /// Subcategory's parts and category: `food`, `fruit`, `food and drink`.
    pub groups: Vec<String>,
}

/// How often each kind of caption is drawn; what remains of 1 is the name.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct CaptionMix {
    /// The empty caption, for classifier-free guidance.
    pub empty: f64,
    /// A short name.
    pub short: f64,
    /// A keyword.
    pub keyword: f64,
    /// The subcategory or category.
    pub group: f64,
}

impl Default for CaptionMix {
    fn default() -> Self {
        Self { empty: 0.10, short: 0.20, keyword: 0.12, group: 0.08 }
    }
}

impl CaptionMix {
    /// The caption of `emoji` for this key. A kind it has no words of gives the name.
    pub fn draw(&self, emoji: &Emoji, key: NoiseKey) -> String {
        let kind = key.candidate(0).uniform();
        let words = &emoji.words;
        let thresholds = [(self.empty, None), (self.short, Some(&words.short)), (self.keyword, Some(&words.keywords))];
        let mut upper = 0.0;
        for (share, list) in thresholds.into_iter().chain([(self.group, Some(&words.groups))]) {
            upper += share;
            if kind < upper {
                return match list {
                    None => String::new(),
                    Some(list) if list.is_empty() => emoji.name.clone(),
                    Some(list) => list[key.candidate(1).below(list.len())].clone(),
                };
            }
        }
        emoji.name.clone()
    }
}

/// Plain words: lower case, `_`, `-`, `&`, quotes and brackets resolved, one space between words.
///
/// `flag-bo` becomes `flag bo`, `São Tomé & Príncipe Flag` `são tomé and príncipe flag`.
pub fn clean(text: &str) -> String {
    let spaced: String = text
        .to_lowercase()
        .replace('&', " and ")
        .chars()
        .filter(|c| !matches!(c, '\'' | '\u{2019}' | '\u{201c}' | '\u{201d}' | '"'))
        .map(|c| if c.is_alphanumeric() || c == '.' || c == '+' { c } else { ' ' })
        .collect();
    spaced.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Every caption that can be drawn, with its weight: what the tokenizer is trained on.
pub fn corpus(emoji: &[Emoji]) -> Vec<(String, u64)> {
    let mut all = Vec::new();
    for one in emoji {
        all.push((one.name.clone(), 4));
        for list in [&one.words.short, &one.words.keywords, &one.words.groups] {
            all.extend(list.iter().map(|w| (w.clone(), 1)));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_plain_words() {
        assert_eq!(clean("CLOCK FACE THREE-THIRTY"), "clock face three thirty");
        assert_eq!(clean("São Tomé & Príncipe Flag"), "são tomé and príncipe flag");
        assert_eq!(clean("RESCUE WORKER’S HELMET"), "rescue workers helmet");
        assert_eq!(clean("flag_bolivia"), "flag bolivia");
        assert_eq!(clean(":)"), "");
    }

    #[test]
    fn the_mix_is_kept() {
        let words = Words { short: vec!["s".into()], keywords: vec!["k".into()], groups: vec!["g".into(), "h".into()] };
        let emoji = Emoji { name: "n".into(), subcategory: "x".into(), file: String::new(), words };
        let mix = CaptionMix::default();
        let drawn: Vec<String> = (0..4000).map(|i| mix.draw(&emoji, NoiseKey::new(1, "caption").prompt(i))).collect();
        let share = |what: &str| drawn.iter().filter(|c| *c == what).count() as f64 / 4000.0;
        for (what, expected) in [("", 0.10), ("s", 0.20), ("k", 0.12), ("g", 0.04), ("h", 0.04), ("n", 0.50)] {
            // Five standard errors of a share of 4,000 draws: at most 0.04.
            assert!((share(what) - expected).abs() < 0.04 * (expected / 0.5f64).sqrt(), "{what}: {}", share(what));
        }
    }
}
