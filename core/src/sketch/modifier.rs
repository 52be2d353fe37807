//! The type modifier of a column: `hll(14)` holds only sketches with 2^14 registers and the default of everything else.
//!
//! In 15 bits, from high to low: log2m 5, bits per register 3, code of the threshold 6, sparse storage 1.
#![forbid(unsafe_code)]

use super::error::Error;
use super::params::Params;
use std::fmt;

/// The parameters that a column demands. Unlike those of a value they may have a width of 0; such a column holds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modifier(Params);

impl Modifier {
    /// # Errors
    /// The first argument that is out of its range.
    pub fn new(log2m: i64, width: i64, threshold: i64, sparse: i64) -> Result<Self, Error> {
        Params::checked(log2m, width, threshold, sparse).map(Self)
    }

    /// The texts between the brackets; those that are missing are `None`.
    ///
    /// # Errors
    /// No integers; none or more than four.
    pub fn parse(texts: &[&str]) -> Result<[Option<i64>; 4], Error> {
        let given = texts.iter().map(|text| integer(text).ok_or(Error::ModifierText));
        let given = given.collect::<Result<Vec<i64>, Error>>()?;
        if !(1..=4).contains(&given.len()) {
            return Err(Error::ModifierCount);
        }
        Ok(std::array::from_fn(|place| given.get(place).copied()))
    }

    /// `None` for a column without a modifier.
    pub fn from_typmod(typmod: i32) -> Option<Self> {
        let bits = u32::try_from(typmod).ok()?;
        let field = |shift: u32, width: u32| ((bits >> shift) & ((1 << width) - 1)) as u8;
        Some(Self(Params::from_fields(field(10, 5), field(7, 3), field(1, 6), field(0, 1) == 1)))
    }

    pub fn to_typmod(self) -> i32 {
        let Params { log2m, width, .. } = self.0;
        i32::from(log2m) << 10
            | i32::from(width) << 7
            | i32::from(self.0.threshold_code()) << 1
            | i32::from(self.0.sparse())
    }

    /// # Errors
    /// The first parameter in which the value differs.
    pub fn check(self, value: Params) -> Result<(), Error> {
        self.0.check_equal(value)
    }
}

/// As it stands behind the type's name in SQL.
impl fmt::Display for Modifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Params { log2m, width, .. } = self.0;
        write!(f, "({log2m},{width},{},{})", self.0.specified_threshold(), u8::from(self.0.sparse()))
    }
}

/// As C's `strtoll` reads it with base 0: decimal, 0x.. or octal 0.., and what is too large becomes the largest number.
fn integer(text: &str) -> Option<i64> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (16, digits),
        None if digits.len() > 1 && digits.starts_with('0') => (8, &digits[1..]),
        None => (10, digits),
    };
    if digits.is_empty() {
        return None;
    }
    // Downwards for a negative number: there is one more of them.
    let sign = if negative { -1 } else { 1 };
    digits.chars().try_fold(0i64, |number, digit| {
        let digit = i64::from(digit.to_digit(radix)?);
        Some(number.saturating_mul(i64::from(radix)).saturating_add(sign * digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_modifier_keeps_its_fields_in_15_bits() {
        let modifier = Modifier::new(14, 5, -1, 1).unwrap();
        assert_eq!(modifier.to_typmod(), 15103);
        assert_eq!(modifier.to_string(), "(14,5,-1,1)");
        for (log2m, width, threshold, sparse) in [(0, 0, 0, 0), (17, 7, 8192, 1), (11, 5, 128, 0)] {
            let modifier = Modifier::new(log2m, width, threshold, sparse).unwrap();
            assert_eq!(Modifier::from_typmod(modifier.to_typmod()), Some(modifier));
            assert_eq!(modifier.to_string(), format!("({log2m},{width},{threshold},{sparse})"));
        }
        assert_eq!(Modifier::from_typmod(-1), None);
    }

    #[test]
    fn modifiers_are_read_as_c_reads_integers() {
        let parse = |texts: &[&str]| Modifier::parse(texts);
        assert_eq!(parse(&["14", "0x5", "-1", "01"]), Ok([Some(14), Some(5), Some(-1), Some(1)]));
        assert_eq!(parse(&["0"]), Ok([Some(0), None, None, None]));
        assert_eq!(parse(&["\x0b\t +7"]), Ok([Some(7), None, None, None]));
        for (text, number) in [
            ("9223372036854775807", i64::MAX),
            ("9223372036854775808", i64::MAX),
            ("99999999999999999999999999999999999999999999", i64::MAX),
            ("0xffffffffffffffffffff", i64::MAX),
            ("-9223372036854775808", i64::MIN),
            ("-9223372036854775809", i64::MIN),
        ] {
            assert_eq!(parse(&[text]), Ok([Some(number), None, None, None]), "{text}");
        }
        for texts in [
            &["x"][..],
            &["1.5"],
            &[""],
            &["--1"],
            &["0x"],
            &["0x-1"],
            &["08"],
            &["1 "],
            &["\u{a0}1"],
            &["1", ""],
            &["1", "2", "3", "4", "x"],
        ] {
            assert_eq!(parse(texts), Err(Error::ModifierText), "{texts:?}");
        }
        assert_eq!(parse(&[]), Err(Error::ModifierCount));
        assert_eq!(parse(&["1"; 5]), Err(Error::ModifierCount));
    }

    #[test]
    fn a_column_takes_only_values_with_its_parameters() {
        let column = Modifier::new(14, 5, -1, 1).unwrap();
        assert_eq!(column.check(Params::new(14, 5, -1, 1).unwrap()), Ok(()));
        assert_eq!(
            column.check(Params::default()).unwrap_err().to_string(),
            "register count does not match: source uses 2048 and dest uses 16384"
        );
    }
}
