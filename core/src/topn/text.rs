//! The text of a number, the same for all numbers that are equal.
#![forbid(unsafe_code)]

/// Without zeros at the end of a fraction, and without the sign of zero: what the output of numeric, real and double precision
/// differs in for equal values. A number with an exponent has neither.
///
/// ```
/// use tally_core::topn::text::number;
/// assert_eq!(number(b"1.50"), b"1.5");
/// assert_eq!(number(b"100"), b"100");
/// assert_eq!(number(b"-0"), b"0");
/// ```
pub fn number(text: &[u8]) -> &[u8] {
    let text = if text == b"-0" { b"0" } else { text };
    if !text.contains(&b'.') || text.contains(&b'e') {
        return text;
    }
    let digits = text.iter().rposition(|byte| *byte != b'0').map_or(0, |last| last + 1);
    let text = &text[..digits];
    text.strip_suffix(b".").unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn equal_numbers_have_one_text() {
        for (text, expected) in [
            ("1.000", "1"),
            ("-1.10", "-1.1"),
            ("0.00", "0"),
            ("10", "10"),
            ("1200.0", "1200"),
            ("-0", "0"),
            ("1.5e-10", "1.5e-10"),
            ("1e+20", "1e+20"),
            ("NaN", "NaN"),
            ("-Infinity", "-Infinity"),
            ("", ""),
        ] {
            assert_eq!(number(text.as_bytes()), expected.as_bytes(), "{text}");
        }
    }
}
