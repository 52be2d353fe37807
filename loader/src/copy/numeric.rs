//! Decimal text to the binary form of `numeric`: int16 number of digits, weight, sign and display scale, then the digits to
//! the base 10,000. No floating point is involved, so every digit of the message arrives.

use super::ParseError;

/// Limits of `numeric`, from `utils/adt/numeric.c`: digits before the decimal point, and after it.
const MAXIMUM_WEIGHT: i64 = 131_072;
const MAXIMUM_SCALE: i64 = 16_383;

/// Appends the bytes of a number, without their length. `limit` is the (precision, scale) of the column: the server rounds to
/// the scale, as text input does, and what does not fit then is refused here.
pub fn numeric(out: &mut Vec<u8>, text: &str, limit: Option<(i32, i32)>) -> Result<(), ParseError> {
    let number = Decimal::parse(text.as_bytes()).ok_or(ParseError::Syntax)?;
    if let Some((precision, scale)) = limit
        && number.exceeds(i64::from(precision), i64::from(scale))
    {
        return Err(ParseError::Range);
    }
    // The digits before the point, negative when zeros follow it.
    let integer_digits = number.integer_digits();
    let scale = (number.digits.len() as i64 - integer_digits).max(number.scale).max(0);
    if integer_digits > MAXIMUM_WEIGHT || scale > MAXIMUM_SCALE {
        return Err(ParseError::Range);
    }
    let digits = &number.digits;
    if digits.is_empty() {
        write(out, &[], 0, false, scale);
        return Ok(());
    }
    // Groups of four count from the decimal point, so the first one may be short.
    let weight = (integer_digits - 1).div_euclid(4);
    let lead = (integer_digits - 1).rem_euclid(4) as usize + 1;
    let mut groups = Vec::with_capacity(digits.len() / 4 + 2);
    let mut rest = &digits[..];
    let mut size = lead;
    while !rest.is_empty() {
        let (group, tail) = rest.split_at(size.min(rest.len()));
        let value = group.iter().fold(0u16, |value, digit| value * 10 + u16::from(*digit));
        groups.push(value * 10u16.pow((size - group.len()) as u32));
        rest = tail;
        size = 4;
    }
    while groups.last() == Some(&0) {
        groups.pop();
    }
    write(out, &groups, weight, number.negative, scale);
    Ok(())
}

fn write(out: &mut Vec<u8>, groups: &[u16], weight: i64, negative: bool, scale: i64) {
    out.extend_from_slice(&(groups.len() as u16).to_be_bytes());
    out.extend_from_slice(&(weight as i16).to_be_bytes());
    out.extend_from_slice(&(if negative { 0x4000u16 } else { 0 }).to_be_bytes());
    out.extend_from_slice(&(scale as u16).to_be_bytes());
    for group in groups {
        out.extend_from_slice(&group.to_be_bytes());
    }
}

/// `0.d1d2d3.. * 10^exponent`: the digits without leading zeros.
struct Decimal {
    negative: bool,
    digits: Vec<u8>,
    exponent: i64,
    /// Digits after the decimal point as written, which PostgreSQL keeps as the display scale.
    scale: i64,
}

impl Decimal {
    fn parse(text: &[u8]) -> Option<Self> {
        let (negative, text) = match text.split_first()? {
            (b'-', rest) => (true, rest),
            _ => (false, text),
        };
        let end = text.iter().position(|byte| matches!(byte, b'e' | b'E')).unwrap_or(text.len());
        let (mantissa, exponent) = text.split_at(end);
        let exponent = match exponent.split_first() {
            None => 0,
            Some((_, exponent)) => parse_exponent(exponent)?,
        };
        let point = mantissa.iter().position(|byte| *byte == b'.').unwrap_or(mantissa.len());
        let (integer, fraction) = (&mantissa[..point], mantissa.get(point + 1..).unwrap_or_default());
        if integer.is_empty() || (point < mantissa.len() && fraction.is_empty()) {
            return None;
        }
        let mut digits = Vec::with_capacity(mantissa.len());
        for byte in integer.iter().chain(fraction) {
            if !byte.is_ascii_digit() {
                return None;
            }
            digits.push(byte - b'0');
        }
        let zeros = digits.iter().take_while(|digit| **digit == 0).count();
        digits.drain(..zeros);
        while digits.last() == Some(&0) {
            digits.pop();
        }
        Some(Self {
            negative: negative && !digits.is_empty(),
            exponent: integer.len() as i64 - zeros as i64 + exponent,
            scale: fraction.len() as i64 - exponent,
            digits,
        })
    }

    fn integer_digits(&self) -> i64 {
        if self.digits.is_empty() { 0 } else { self.exponent }
    }

    /// Whether the number, rounded half away from zero to `scale`, needs more than `precision` digits.
    fn exceeds(&self, precision: i64, scale: i64) -> bool {
        if self.digits.is_empty() {
            return false;
        }
        let room = precision - scale;
        if self.exponent != room {
            return self.exponent > room;
        }
        // As many digits as there is room for: too many only if rounding carries through all of them.
        let digit = |place: i64| self.digits.get(place as usize).copied().unwrap_or(0);
        (0..precision).all(|place| digit(place) == 9) && digit(precision) >= 5
    }
}

fn parse_exponent(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        (b'+', rest) => (false, rest),
        _ => (false, text),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // Far beyond any limit of the type; saturating keeps the sums below from overflowing.
    let value = digits.iter().fold(0i64, |value, digit| (value * 10 + i64::from(digit - b'0')).min(1 << 32));
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (i16, i16, u16, i16, Vec<u16>) {
        let mut out = Vec::new();
        numeric(&mut out, text, None).unwrap();
        let at = |index: usize| u16::from_be_bytes([out[2 * index], out[2 * index + 1]]);
        (at(0) as i16, at(1) as i16, at(2), at(3) as i16, (4..out.len() / 2).map(at).collect())
    }

    fn error(text: &str, limit: Option<(i32, i32)>) -> Option<ParseError> {
        numeric(&mut Vec::new(), text, limit).err()
    }

    #[test]
    fn digits_are_grouped_from_the_decimal_point() {
        assert_eq!(parts("0"), (0, 0, 0, 0, vec![]));
        assert_eq!(parts("-0.00"), (0, 0, 0, 2, vec![]));
        assert_eq!(parts("1"), (1, 0, 0, 0, vec![1]));
        assert_eq!(parts("12345"), (2, 1, 0, 0, vec![1, 2345]));
        assert_eq!(parts("-12345.678"), (3, 1, 0x4000, 3, vec![1, 2345, 6780]));
        assert_eq!(parts("10000"), (1, 1, 0, 0, vec![1]));
        assert_eq!(parts("0.0001"), (1, -1, 0, 4, vec![1]));
        assert_eq!(parts("0.00001"), (1, -2, 0, 5, vec![1000]));
        assert_eq!(parts("1.10"), (2, 0, 0, 2, vec![1, 1000]));
        assert_eq!(parts("1e3"), (1, 0, 0, 0, vec![1000]));
        assert_eq!(parts("1.5E-3"), (1, -1, 0, 4, vec![15]));
        assert_eq!(parts("1.50e1"), (1, 0, 0, 1, vec![15]));
    }

    #[test]
    fn what_is_no_number_or_too_large_is_told_apart() {
        for text in ["", "-", ".5", "5.", "1e", "1e+", "0x10", "NaN", "1,5", "--1", "1.2.3", " 1"] {
            assert_eq!(error(text, None), Some(ParseError::Syntax), "{text}");
        }
        assert_eq!(error("1e131071", None), None);
        assert_eq!(error("1e131072", None), Some(ParseError::Range));
        assert_eq!(error("1e-16383", None), None);
        assert_eq!(error("1e-16384", None), Some(ParseError::Range));
        assert_eq!(error("1e99999999999999999999", None), Some(ParseError::Range));
    }

    #[test]
    fn precision_is_checked_after_rounding() {
        let limit = Some((5, 2));
        for fits in ["999.99", "-999.994", "0", "1e2", "0.001", "999.990000"] {
            assert_eq!(error(fits, limit), None, "{fits}");
        }
        for too_large in ["999.995", "1000", "-1000.00", "99999", "1e3"] {
            assert_eq!(error(too_large, limit), Some(ParseError::Range), "{too_large}");
        }
        assert_eq!(error("0.0949", Some((2, 3))), None);
        assert_eq!(error("0.0995", Some((2, 3))), Some(ParseError::Range));
    }
}
