//! Times of day: microseconds since midnight, up to and with 24:00, and for `timetz` the zone beside it.

use super::digits;

const DAY: i64 = 86_400_000_000;

/// `12:30` or `12:30:00.5` -> microseconds since midnight, rounded to the nearest.
pub fn time(text: &str) -> Option<i64> {
    let (time, rest) = leading_time(text)?;
    rest.is_empty().then_some(time)
}

/// A time of day with its offset (`Z`, `+02`, `+02:00` or `+02:00:00`) -> microseconds since midnight, and the zone as
/// PostgreSQL stores it: seconds **west** of UTC.
pub fn timetz(text: &str) -> Option<(i64, i32)> {
    let (time, rest) = leading_time(text)?;
    let bytes = rest.as_bytes();
    let sign = match bytes.first()? {
        b'Z' | b'z' if bytes.len() == 1 => return Some((time, 0)),
        b'+' => -1,
        b'-' => 1,
        _ => return None,
    };
    let seconds = match bytes.len() {
        3 => 0,
        6 if bytes[3] == b':' => digits(bytes, 4, 6).filter(|minutes| *minutes < 60)? * 60,
        9 if bytes[3] == b':' && bytes[6] == b':' => {
            let (minutes, seconds) = (digits(bytes, 4, 6)?, digits(bytes, 7, 9)?);
            if minutes > 59 || seconds > 59 {
                return None;
            }
            minutes * 60 + seconds
        }
        _ => return None,
    };
    // PostgreSQL has no zone of 16 hours and more.
    let hours = digits(bytes, 1, 3).filter(|hours| *hours < 16)?;
    Some((time, sign * i32::try_from(hours * 3_600 + seconds).ok()?))
}

/// The time at the start of a text, and what follows it.
fn leading_time(text: &str) -> Option<(i64, &str)> {
    let bytes = text.as_bytes();
    let (hour, minute) = (digits(bytes, 0, 2)?, digits(bytes, 3, 5)?);
    if bytes[2] != b':' {
        return None;
    }
    let (mut second, mut fraction, mut end) = (0, 0, 5);
    if bytes.get(5) == Some(&b':') {
        (second, end) = (digits(bytes, 6, 8)?, 8);
        if bytes.get(8) == Some(&b'.') {
            (fraction, end) = microseconds(bytes, 9)?;
        }
    }
    // A leap second is the first second of the next minute, as in PostgreSQL.
    let time = ((hour * 60 + minute) * 60 + second) * 1_000_000 + fraction;
    (minute < 60 && second <= 60 && time <= DAY).then(|| (time, &text[end..]))
}

/// The digits of a fraction from `from` on, as microseconds rounded to the nearest, and where they end.
#[inline(always)]
pub(super) fn microseconds(bytes: &[u8], from: usize) -> Option<(i64, usize)> {
    let (mut nanoseconds, mut unit, mut count) = (0, 100_000_000, 0);
    while let Some(byte) = bytes.get(from + count)
        && byte.is_ascii_digit()
    {
        nanoseconds += i64::from(byte - b'0') * unit;
        unit /= 10;
        count += 1;
    }
    if count == 0 {
        return None;
    }
    Some(((nanoseconds + 500) / 1_000, from + count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_microseconds_since_midnight() {
        for (text, expected) in [
            ("00:00", 0),
            ("12:30", 45_000_000_000),
            ("23:59:59.999999", DAY - 1),
            ("23:59:59.9999999", DAY),
            ("24:00:00", DAY),
            ("12:30:60", 45_060_000_000),
            ("00:00:00.0000005", 1),
            ("00:00:00.123456789012", 123_457),
        ] {
            assert_eq!(time(text), Some(expected), "{text}");
        }
        for refused in [
            "",
            "12",
            "1230",
            "1:30",
            "12:30:",
            "12:30:0",
            "12:60:00",
            "12:30:61",
            "24:00:00.1",
            "25:00:00",
            "12:30:00.",
            "12:30:00 ",
            "12:30:00Z",
            "12:30 PM",
            "-1:00:00",
            "é:30",
        ] {
            assert_eq!(time(refused), None, "{refused}");
        }
    }

    #[test]
    fn zones_count_to_the_west() {
        for (text, expected) in [
            ("00:00:00Z", (0, 0)),
            ("00:00z", (0, 0)),
            ("00:00:01+02", (1_000_000, -7_200)),
            ("00:00-05:30", (0, 19_800)),
            ("00:00:00.5+15:59:59", (500_000, -57_599)),
        ] {
            assert_eq!(timetz(text), Some(expected), "{text}");
        }
        for refused in ["00:00", "00:00:00 Z", "00:00+1", "00:00+16", "00:00+02:60", "00:00+0200", "00:00+02:00x"] {
            assert_eq!(timetz(refused), None, "{refused}");
        }
    }
}
