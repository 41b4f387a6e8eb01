//! Text for people: escaping and numbers.

/// Escapes text for HTML and SVG, element content and double-quoted attributes alike. Control characters that no
/// XML may hold become U+FFFD.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(character),
            control if control.is_control() => out.push('\u{fffd}'),
            other => out.push(other),
        }
    }
    out
}

/// A number with three significant digits (all digits of an integer part), a real minus sign and no needless zeros:
/// `−1.9`, `0.693`, `4,723`; below 0.001 and from ten million on with two, `1.2×10⁻⁵`.
pub(crate) fn number(value: f64) -> String {
    if value.is_nan() {
        return "not a number".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "∞" } else { "−∞" }.to_owned();
    }
    let size = value.abs();
    if size == 0.0 {
        return "0".to_owned();
    }
    let text = if !(9.995e-4..1e7).contains(&size) { scientific(size) } else { plain(size) };
    if value < 0.0 { format!("−{text}") } else { text }
}

/// As [`number`], with a plus sign before positive ones.
pub(crate) fn signed(value: f64) -> String {
    if value > 0.0 { format!("+{}", number(value)) } else { number(value) }
}

fn plain(size: f64) -> String {
    // Digits after the point that leave three significant ones.
    let digits = (2 - size.log10().floor() as i32).clamp(0, 6) as usize;
    let text = format!("{size:.digits$}");
    let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
    let part = part.trim_end_matches('0');
    let mut out = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if !part.is_empty() {
        out.push('.');
        out.push_str(part);
    }
    out
}

fn scientific(size: f64) -> String {
    let text = format!("{size:.1e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let raised: String = exponent.chars().map(superscript).collect();
    format!("{}×10{raised}", mantissa.trim_end_matches('0').trim_end_matches('.'))
}

fn superscript(character: char) -> char {
    match character {
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        '-' => '⁻',
        digit => digit.to_digit(10).and_then(|d| char::from_u32(0x2070 + d)).unwrap_or(digit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_read_well() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "0"),
            (-1.9, "−1.9"),
            (std::f64::consts::LN_2, "0.693"),
            (4723.0, "4,723"),
            (1_234_567.0, "1,234,567"),
            (999.6, "1,000"),
            (0.00125, "0.00125"),
            (1.24e-5, "1.2×10⁻⁵"),
            (1e-10, "1×10⁻¹⁰"),
            (-3e8, "−3×10⁸"),
            (12.345, "12.3"),
            (f64::NAN, "not a number"),
            (f64::NEG_INFINITY, "−∞"),
        ] {
            assert_eq!(number(value), text);
        }
        assert_eq!((signed(2.0), signed(-2.0), signed(0.0)), ("+2".to_owned(), "−2".to_owned(), "0".to_owned()));
    }

    #[test]
    fn markup_is_disarmed() {
        assert_eq!(escape("<b a=\"1\" b='2'>&\u{0}\n"), "&lt;b a=&quot;1&quot; b=&#39;2&#39;&gt;&amp;\u{fffd}\n");
    }

    proptest! {
        #[test]
        fn no_text_can_leave_its_place(text in any::<String>()) {
            let safe = escape(&text);
            prop_assert!(!safe.contains(['<', '>', '"', '\'']));
        }

        #[test]
        fn numbers_keep_three_digits(value in prop::num::f64::NORMAL) {
            let text = number(value).replace('−', "-").replace(',', "");
            if let Ok(read) = text.parse::<f64>() {
                prop_assert!((read - value).abs() <= 0.006 * value.abs(), "{} -> {}", value, text);
            } else {
                prop_assert!(text.contains("×10"));
            }
        }
    }
}
