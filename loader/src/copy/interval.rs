//! Intervals: microseconds, days and months, which PostgreSQL keeps apart.
//!
//! Two forms are taken. ISO 8601 with designators, `P1Y2M3DT4H5M6.7S`, also with weeks and with a sign before any number; and
//! the form that PostgreSQL prints, `1 year 2 mons -3 days +04:05:06.7`. Only seconds have a fraction: what half a month is,
//! nobody agrees on.

use super::time_of_day::microseconds;
use super::{ParseError, digits};

/// (microseconds, days, months)
pub type Interval = (i64, i32, i32);

/// The units in the order in which they must come, by the part they add to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Unit {
    Year,
    Month,
    Week,
    Day,
    Hour,
    Minute,
    Second,
}

/// Reads an interval in either form.
pub fn interval(text: &str) -> Result<Interval, ParseError> {
    match text.strip_prefix('P') {
        Some(rest) => iso8601(rest),
        None => postgres(text),
    }
}

fn iso8601(text: &str) -> Result<Interval, ParseError> {
    let mut sum = Sum::default();
    let mut rest = text;
    let mut in_time = false;
    loop {
        if let Some(time) = rest.strip_prefix('T').filter(|_| !in_time) {
            (in_time, rest) = (true, time);
        }
        let (number, behind) = Number::leading(rest).ok_or(ParseError::Syntax)?;
        let unit = match (behind.as_bytes().first(), in_time) {
            (Some(b'Y'), false) => Unit::Year,
            (Some(b'M'), false) => Unit::Month,
            (Some(b'W'), false) => Unit::Week,
            (Some(b'D'), false) => Unit::Day,
            (Some(b'H'), true) => Unit::Hour,
            (Some(b'M'), true) => Unit::Minute,
            (Some(b'S'), true) => Unit::Second,
            _ => return Err(ParseError::Syntax),
        };
        sum.add(unit, number)?;
        rest = &behind[1..];
        if rest.is_empty() {
            return sum.finish();
        }
    }
}

fn postgres(text: &str) -> Result<Interval, ParseError> {
    let mut sum = Sum::default();
    let mut words = text.split(' ');
    while let Some(word) = words.next() {
        if word.contains(':') {
            sum.add_clock(word)?;
            return if words.next().is_none() { sum.finish() } else { Err(ParseError::Syntax) };
        }
        let (number, behind) = Number::leading(word).ok_or(ParseError::Syntax)?;
        let unit = match words.next().filter(|_| behind.is_empty()) {
            Some("year" | "years") => Unit::Year,
            Some("mon" | "mons" | "month" | "months") => Unit::Month,
            Some("week" | "weeks") => Unit::Week,
            Some("day" | "days") => Unit::Day,
            Some("hour" | "hours") => Unit::Hour,
            Some("min" | "mins" | "minute" | "minutes") => Unit::Minute,
            Some("sec" | "secs" | "second" | "seconds") => Unit::Second,
            _ => return Err(ParseError::Syntax),
        };
        sum.add(unit, number)?;
    }
    sum.finish()
}

/// A number with the sign that its fraction shares.
struct Number {
    negative: bool,
    whole: i64,
    /// Microseconds, when a fraction is written.
    fraction: Option<i64>,
}

impl Number {
    /// The number at the start of a text, and what follows it.
    fn leading(text: &str) -> Option<(Self, &str)> {
        let (negative, unsigned) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let bytes = unsigned.as_bytes();
        let mut end = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if end == 0 {
            return None;
        }
        // Saturated far beyond any limit of the type.
        let whole = bytes[..end]
            .iter()
            .fold(0i64, |value, digit| value.saturating_mul(10).saturating_add(i64::from(digit - b'0')));
        let mut fraction = None;
        if bytes.get(end) == Some(&b'.') {
            let (value, behind) = microseconds(bytes, end + 1)?;
            (fraction, end) = (Some(value), behind);
        }
        Some((Self { negative, whole, fraction }, &unsigned[end..]))
    }
}

#[derive(Default)]
struct Sum {
    last: Option<Unit>,
    microseconds: i128,
    days: i128,
    months: i128,
}

impl Sum {
    fn add(&mut self, unit: Unit, number: Number) -> Result<(), ParseError> {
        if self.last.replace(unit) >= Some(unit) || (number.fraction.is_some() && unit != Unit::Second) {
            return Err(ParseError::Syntax);
        }
        let sign = if number.negative { -1 } else { 1 };
        let whole = i128::from(number.whole) * sign;
        match unit {
            Unit::Year => self.months += whole * 12,
            Unit::Month => self.months += whole,
            Unit::Week => self.days += whole * 7,
            Unit::Day => self.days += whole,
            Unit::Hour => self.microseconds += whole * 3_600_000_000,
            Unit::Minute => self.microseconds += whole * 60_000_000,
            Unit::Second => {
                self.microseconds += whole * 1_000_000 + i128::from(number.fraction.unwrap_or(0)) * sign;
            }
        }
        Ok(())
    }

    /// `-04:05:06.7`: one sign for all of it.
    fn add_clock(&mut self, word: &str) -> Result<(), ParseError> {
        let (number, behind) = Number::leading(word).ok_or(ParseError::Syntax)?;
        let bytes = behind.as_bytes();
        let is_clock = bytes.first() == Some(&b':') && bytes.get(3) == Some(&b':');
        let (Some(minutes), Some(seconds), true, None) =
            (digits(bytes, 1, 3), digits(bytes, 4, 6), is_clock, number.fraction)
        else {
            return Err(ParseError::Syntax);
        };
        let (fraction, end) = match bytes.get(6) {
            Some(b'.') => microseconds(bytes, 7).ok_or(ParseError::Syntax)?,
            _ => (0, 6),
        };
        if minutes > 59 || seconds > 59 || end != bytes.len() || self.last.replace(Unit::Hour) >= Some(Unit::Hour) {
            return Err(ParseError::Syntax);
        }
        let below_hours = i128::from((minutes * 60 + seconds) * 1_000_000 + fraction);
        let time = i128::from(number.whole) * 3_600_000_000 + below_hours;
        self.microseconds += if number.negative { -time } else { time };
        Ok(())
    }

    fn finish(self) -> Result<Interval, ParseError> {
        let microseconds = i64::try_from(self.microseconds).map_err(|_| ParseError::Range)?;
        let days = i32::try_from(self.days).map_err(|_| ParseError::Range)?;
        let months = i32::try_from(self.months).map_err(|_| ParseError::Range)?;
        // All at their limits is infinity since PostgreSQL 17.
        match (microseconds, days, months) {
            (i64::MIN, i32::MIN, i32::MIN) | (i64::MAX, i32::MAX, i32::MAX) => Err(ParseError::Range),
            interval => Ok(interval),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        const SECOND: i64 = 1_000_000;
        for (text, expected) in [
            ("PT0S", (0, 0, 0)),
            ("P1Y2M3W4DT5H6M7.8S", ((5 * 3_600 + 6 * 60 + 7) * SECOND + 800_000, 25, 14)),
            ("P-1Y2M", (0, 0, -10)),
            ("P+1D", (0, 1, 0)),
            ("PT-1.5S", (-1_500_000, 0, 0)),
            ("PT-0.5S", (-500_000, 0, 0)),
            ("P1DT1H", (3_600 * SECOND, 1, 0)),
            ("PT1M", (60 * SECOND, 0, 0)),
            ("00:00:00", (0, 0, 0)),
            ("1 year 2 mons -3 days +04:05:06.789", ((4 * 3_600 + 5 * 60 + 6) * SECOND + 789_000, -3, 14)),
            ("-1 years -2 mons", (0, 0, -14)),
            ("-00:00:00.5", (-500_000, 0, 0)),
            ("1 week 1 day", (0, 8, 0)),
            ("2 hours 3 mins 4.5 secs", ((2 * 3_600 + 3 * 60 + 4) * SECOND + 500_000, 0, 0)),
            ("2562047788:00:54.775807", (i64::MAX, 0, 0)),
        ] {
            assert_eq!(interval(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_could_mean_two_things_is_refused() {
        for text in [
            "",
            "P",
            "PT",
            "P1DT",
            "P1",
            "P1H",
            "PT1D",
            "P1D1D",
            "P1D1Y",
            "P0.5D",
            "P1.5Y",
            "PT1,5S",
            "PT1.S",
            "-P1D",
            "P0001-02-03T04:05:06",
            "04:05",
            "1:2:3",
            "04:60:00",
            "04:05:60",
            "1.5:00:00",
            "1 day ago",
            "1",
            "1day",
            "1 fortnight",
            "1  day",
            "1 day ",
            "1 day 1 day",
            "00:00:01 1 day",
            "1 hour 00:00:01",
            "infinity",
            "@ 1 day",
            "day",
            "P\u{e9}",
        ] {
            assert_eq!(interval(text), Err(ParseError::Syntax), "{text}");
        }
    }

    #[test]
    fn each_part_has_its_range() {
        assert_eq!(interval("P2147483647D"), Ok((0, i32::MAX, 0)));
        assert_eq!(interval("P-2147483648M"), Ok((0, 0, i32::MIN)));
        assert_eq!(interval("PT9223372036854.775807S"), Ok((i64::MAX, 0, 0)));
        assert_eq!(interval("PT-9223372036854.775808S"), Ok((i64::MIN, 0, 0)));
        for text in [
            "P2147483648D",
            "P306783379W",
            "P178956971Y",
            "PT9223372036854.775808S",
            "PT99999999999999999999999999999H",
            "2562047788:00:54.775808",
            "PT-9223372036854.775809S",
        ] {
            assert_eq!(interval(text), Err(ParseError::Range), "{text}");
        }
    }
}
