//! Sizes and durations as people write them: `"8 MiB"`, `"100 ms"`. A bare number would leave its unit to guessing.

use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub usize);

/// A span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Size {
    pub const fn kibibytes(n: usize) -> Self {
        Self(n << 10)
    }

    pub const fn mebibytes(n: usize) -> Self {
        Self(n << 20)
    }
}

impl Span {
    pub const fn milliseconds(n: u64) -> Self {
        Self(Duration::from_millis(n))
    }
}

fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim()))
}

fn size(text: &str) -> Option<usize> {
    let (number, unit) = split(text)?;
    let factor: u64 = match unit {
        "B" => 1,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(factor)?.try_into().ok()
}

fn span(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.checked_mul(milliseconds)?))
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        size(&text).map(Self).ok_or_else(|| {
            D::Error::custom("not a size: write a whole number and B, kB, MB, GB, KiB, MiB or GiB, such as \"8 MiB\"")
        })
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        span(&text).map(Self).ok_or_else(|| {
            D::Error::custom("not a duration: write a whole number and ms, s, min or h, such as \"100 ms\"")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_need_a_unit() {
        assert_eq!(size("8 MiB"), Some(8 << 20));
        assert_eq!(size("8MiB"), Some(8 << 20));
        assert_eq!(size("1 kB"), Some(1000));
        assert_eq!(size("8"), None);
        assert_eq!(size("eight MiB"), None);
        assert_eq!(size("99999999999999999999 B"), None);
        assert_eq!(size("18446744073709551615 GiB"), None);
        assert_eq!(span("100 ms"), Some(Duration::from_millis(100)));
        assert_eq!(span("10 min"), Some(Duration::from_secs(600)));
        assert_eq!(span("100"), None);
        assert_eq!(span("1.5 s"), None);
    }
}
