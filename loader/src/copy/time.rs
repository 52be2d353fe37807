//! Times as PostgreSQL stores them: microseconds since 2000-01-01 00:00 UTC.

use super::date::days_since_2000;
use super::digits;
use super::time_of_day::microseconds;

/// 2000-01-01 in seconds since 1970.
pub const POSTGRES_EPOCH_SECONDS: i64 = 946_684_800;

/// The smallest and the first too large value of a timestamp, from `datatype/timestamp.h`: 4714-11-24 BC and 294277-01-01.
const MINIMUM: i64 = -211_813_488_000_000_000;
const END: i64 = 9_223_371_331_200_000_000;

/// Milliseconds since 1970 -> microseconds since 2000; `None` outside what PostgreSQL can store.
pub fn from_unix_milliseconds(milliseconds: i64) -> Option<i64> {
    in_range(milliseconds.checked_sub(POSTGRES_EPOCH_SECONDS * 1_000)?.checked_mul(1_000)?)
}

/// Seconds since 1970 -> microseconds since 2000; `None` outside what PostgreSQL can store.
pub fn from_unix_seconds(seconds: i64) -> Option<i64> {
    in_range(seconds.checked_sub(POSTGRES_EPOCH_SECONDS)?.checked_mul(1_000_000)?)
}

fn in_range(time: i64) -> Option<i64> {
    (MINIMUM..END).contains(&time).then_some(time)
}

/// An RFC 3339 time with its offset -> microseconds since 2000, rounded to the nearest. `None` for any other text.
///
/// By hand, because libraries that know time zones end a day before the year 10000, and 9999-12-31 is a favourite of people who
/// mean "never". A leap second is the first second of the next minute, as in PostgreSQL.
pub fn rfc3339(text: &str) -> Option<i64> {
    let (head, bytes) = text.as_bytes().split_first_chunk::<19>()?;
    let [.., b'-', _, _, b'-', _, _, b'T' | b't' | b' ', _, _, b':', _, _, b':', _, _] = head else { return None };
    let mut highest = 0;
    let mut pair = |at: usize| {
        let (ten, one) = (head[at].wrapping_sub(b'0'), head[at + 1].wrapping_sub(b'0'));
        highest = highest.max(ten).max(one);
        i64::from(ten) * 10 + i64::from(one)
    };
    let (year, month, day) = (pair(0) * 100 + pair(2), pair(5), pair(8));
    let (hour, minute, second) = (pair(11), pair(14), pair(17));
    if highest > 9 || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let days = days_since_2000(year, month, day)?;
    let (fraction, at) = match bytes.first() {
        Some(b'.') => microseconds(bytes, 1)?,
        _ => (0, 0),
    };
    let offset = match *bytes.get(at..)? {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), ref hours @ .., b':', _, _] if hours.len() == 2 => {
            let (hours, minutes) = (digits(hours, 0, 2)?, digits(bytes, at + 4, at + 6)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            (hours * 3_600 + minutes * 60) * if sign == b'-' { -1 } else { 1 }
        }
        _ => return None,
    };
    let seconds = days * 86_400 + hour * 3_600 + minute * 60 + second - offset;
    in_range(seconds * 1_000_000 + fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3339_needs_an_offset_and_seconds() {
        assert_eq!(rfc3339("2000-01-01T00:00:00Z"), Some(0));
        assert_eq!(rfc3339("2000-01-01t00:00:00z"), Some(0));
        assert_eq!(rfc3339("2000-01-01T02:00:00+02:00"), Some(0));
        assert_eq!(rfc3339("2000-01-01T00:00:01.5Z"), Some(1_500_000));
        assert_eq!(rfc3339("1999-12-31T23:59:59.999999Z"), Some(-1));
        assert_eq!(rfc3339("1969-12-31T23:59:59.9999994Z"), Some(-POSTGRES_EPOCH_SECONDS * 1_000_000 - 1));
        assert_eq!(rfc3339("2000-01-01T00:00:00.0000006Z"), Some(1));
        assert_eq!(rfc3339("2000-01-01T00:00:00.0000004Z"), Some(0));
        for refused in [
            "2000-01-01T00:00:00",
            "2000-01-01T00:00Z",
            "2000-01-01",
            "20000101T000000Z",
            "2000-01-01T00:00:00+02:00[Europe/Berlin]",
            "2000-02-30T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2000-00-01T00:00:00Z",
            "2000-13-01T00:00:00Z",
            "0000-01-01T00:00:00Z",
            "2000-01-01T00:00:61Z",
            "2000-01-01T00:00:00.Z",
            "2000-01-01T00:00:00+0200",
            "2000-01-01T00:00:00+24:00",
            "2000-01-01T00:00:00Z ",
            "2000-01-01T25:00:00Z",
            "now",
            "infinity",
            "",
            "é000-01-01T00:00:00Z",
        ] {
            assert_eq!(rfc3339(refused), None, "{refused}");
        }
    }

    #[test]
    fn the_last_day_of_the_year_9999_is_a_time() {
        assert_eq!(rfc3339("9999-12-31T23:59:59.999999Z"), Some(252_455_615_999_999_999));
        assert_eq!(rfc3339("2016-12-31T23:59:60Z"), rfc3339("2017-01-01T00:00:00Z"));
    }

    proptest::proptest! {
        #[test]
        fn times_are_those_of_the_library(microseconds in -62_135_596_800_000_000i64..253_402_200_000_000_000) {
            let time = jiff::Timestamp::from_microsecond(microseconds).unwrap();
            proptest::prop_assert_eq!(rfc3339(&time.to_string()), Some(microseconds - POSTGRES_EPOCH_SECONDS * 1_000_000));
        }
    }

    #[test]
    fn the_range_of_postgres_is_kept() {
        assert_eq!(from_unix_milliseconds(946_684_800_000), Some(0));
        assert_eq!(from_unix_milliseconds(i64::MAX), None);
        assert_eq!(from_unix_milliseconds(-210_866_803_200_000), Some(MINIMUM));
        assert_eq!(from_unix_milliseconds(-210_866_803_200_001), None);
        assert_eq!(from_unix_milliseconds(9_224_318_015_999_999), Some(END - 1_000));
        assert_eq!(from_unix_milliseconds(9_224_318_016_000_000), None);
        assert_eq!(from_unix_seconds(946_684_801), Some(1_000_000));
        assert_eq!(from_unix_seconds(i64::MAX), None);
    }
}
