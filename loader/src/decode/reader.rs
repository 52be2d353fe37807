//! The usual pieces of JSON text: strings without escapes, numbers, and other values by way of serde_json.

use serde::Deserialize;
use serde_json::value::RawValue;

const ONES: u64 = u64::from_le_bytes([1; 8]);
const HIGHEST_BITS: u64 = ONES << 7;

/// A message, being read. Every method that gives `None` has found something that is not for this way.
pub(super) struct Reader<'m> {
    text: &'m str,
    /// The end of the text that is not read yet.
    pub rest: &'m [u8],
}

impl<'m> Reader<'m> {
    pub fn new(text: &'m str) -> Self {
        Self { text, rest: text.as_bytes() }
    }

    #[inline(always)]
    pub fn skip_blanks(&mut self) {
        while let [b' ' | b'\n' | b'\t' | b'\r', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }

    #[inline(always)]
    pub fn take(&mut self, byte: u8) -> Option<()> {
        self.rest = self.rest.strip_prefix(&[byte])?;
        Some(())
    }

    /// Goes on by a number of bytes, which are returned. They begin and end where characters do.
    #[inline(always)]
    fn take_text(&mut self, length: usize) -> Option<&'m str> {
        let at = self.text.len() - self.rest.len();
        self.rest = self.rest.get(length..)?;
        self.text.get(at..at + length)
    }

    /// A string without escapes.
    #[inline(always)]
    pub fn string(&mut self) -> Option<&'m str> {
        let rest = self.rest.strip_prefix(b"\"")?;
        let length = plain_length(rest)?;
        self.rest = rest;
        let text = self.take_text(length)?;
        self.take(b'"')?;
        Some(text)
    }

    /// Any value, as it is written.
    #[inline(never)]
    pub fn raw(&mut self) -> Option<&'m str> {
        let at = self.text.len() - self.rest.len();
        let mut json = serde_json::Deserializer::from_str(self.text.get(at..)?);
        let length = <&RawValue>::deserialize(&mut json).ok()?.get().len();
        self.take_text(length)
    }

    /// A number.
    #[inline(always)]
    pub fn number(&mut self) -> Option<Number<'m>> {
        let all = self.rest;
        let (negative, rest) = match all.strip_prefix(b"-") {
            Some(rest) => (true, rest),
            None => (false, all),
        };
        let leading_zero = rest.first() == Some(&b'0');
        let (mut mantissa, mut digits, mut rest) = take_digits(rest, 0);
        if digits == 0 || (leading_zero && digits > 1) {
            return None;
        }
        let mut fraction = 0;
        if let Some(behind) = rest.strip_prefix(b".") {
            (mantissa, fraction, rest) = take_digits(behind, mantissa);
            if fraction == 0 {
                return None;
            }
            digits += fraction;
        }
        let exponent = matches!(rest, [b'e' | b'E', ..]);
        if exponent {
            let behind = match rest {
                [_, b'+' | b'-', behind @ ..] | [_, behind @ ..] => behind,
                [] => return None,
            };
            let (_, count, end) = take_digits(behind, 0);
            if count == 0 {
                return None;
            }
            rest = end;
        }
        let text = self.take_text(all.len() - rest.len())?;
        Some(Number { text, negative, mantissa, digits, fraction, exponent })
    }
}

/// A number as JSON has it.
pub(super) struct Number<'m> {
    /// As it is written.
    pub text: &'m str,
    negative: bool,
    /// All digits but those of the exponent as one integer, if there are at most 19.
    mantissa: u64,
    digits: usize,
    /// How many of them stand behind the point.
    fraction: usize,
    exponent: bool,
}

/// Powers of ten that a double holds exactly.
const POWERS_OF_TEN: [f64; 19] =
    [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18];

impl Number<'_> {
    /// The parser takes -0 for a floating-point number, so it is none here.
    #[inline(always)]
    pub fn as_integer(&self) -> Option<i64> {
        if self.fraction > 0 || self.exponent || self.digits > 19 || (self.negative && self.mantissa == 0) {
            return None;
        }
        let value = i64::try_from(self.mantissa).ok()?;
        Some(if self.negative { -value } else { value })
    }

    /// Digits and power of ten are exact as doubles, so that one division rounds correctly (W. D. Clinger, "How to Read Floating
    /// Point Numbers Accurately").
    #[inline(always)]
    pub fn as_double(&self) -> Option<f64> {
        if self.exponent || self.digits > 19 || self.mantissa > 1 << 53 {
            return None;
        }
        let value = self.mantissa as f64 / POWERS_OF_TEN.get(self.fraction)?;
        Some(if self.negative { -value } else { value })
    }
}

/// Reads digits: the number they continue, how many they are, and what follows. The number wraps around.
#[inline(always)]
fn take_digits(mut bytes: &[u8], mut value: u64) -> (u64, usize, &[u8]) {
    const POWERS_OF_TEN: [u64; 8] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000];
    let all = bytes.len();
    while let Some((eight, rest)) = bytes.split_first_chunk::<8>() {
        let digits = u64::from_le_bytes(*eight) ^ (ONES * u64::from(b'0'));
        // The highest bit of the first byte above 9, and perhaps of later ones.
        let others = (digits.wrapping_add(ONES * (0x80 - 10)) | digits) & HIGHEST_BITS;
        if others == 0 {
            value = value.wrapping_mul(100_000_000).wrapping_add(eight_digits(digits));
            bytes = rest;
            continue;
        }
        // Fewer digits stand behind zeros, so that the number of digits decides no jump.
        let count = others.trailing_zeros() as usize / 8;
        let digits = (digits << 8) << (56 - 8 * count);
        value = value.wrapping_mul(POWERS_OF_TEN[count & 7]).wrapping_add(eight_digits(digits));
        let rest = bytes.get(count..).unwrap_or_default();
        return (value, all - rest.len(), rest);
    }
    while let Some((first, rest)) = bytes.split_first()
        && first.is_ascii_digit()
    {
        value = value.wrapping_mul(10).wrapping_add(u64::from(first - b'0'));
        bytes = rest;
    }
    (value, all - bytes.len(), bytes)
}

/// The number whose digits, 0 to 9, are the bytes, the lowest one first (Daniel Lemire, "Quickly parsing eight digits").
#[inline(always)]
fn eight_digits(digits: u64) -> u64 {
    let pairs = digits.wrapping_mul(10 << 8 | 1) >> 8 & 0x00ff_00ff_00ff_00ff;
    let fours = pairs.wrapping_mul(100 << 16 | 1) >> 16 & 0x0000_ffff_0000_ffff;
    fours.wrapping_mul(10_000 << 32 | 1) >> 32
}

/// How many bytes stand before the quote that ends a string; `None` if an escape, or what no string may hold, comes first.
#[inline(always)]
fn plain_length(bytes: &[u8]) -> Option<usize> {
    // The highest bit of the first byte that is zero, and perhaps of later ones (Sean Eron Anderson, "Bit Twiddling Hacks").
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word;
    let (words, _) = bytes.as_chunks::<8>();
    let mut length = 0;
    for word in words {
        let word = u64::from_le_bytes(*word);
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        let quote = zeros(word ^ (ONES * u64::from(b'"')));
        let backslash = zeros(word ^ (ONES * u64::from(b'\\')));
        let found = (control | quote | backslash) & HIGHEST_BITS;
        if found != 0 {
            length += found.trailing_zeros() as usize / 8;
            return (bytes[length] == b'"').then_some(length);
        }
        length += 8;
    }
    let end = bytes[length..].iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20))?;
    (bytes[length + end] == b'"').then_some(length + end)
}
