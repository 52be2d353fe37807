//! Times as PostgreSQL stores them: microseconds since 2000-01-01 00:00 UTC.

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
pub fn rfc3339(text: &str) -> Option<i64> {
    // The parser knows more than RFC 3339: no seconds, basic format, a zone in brackets. Times without an offset it refuses.
    let bytes = text.as_bytes();
    let shape =
        |range: std::ops::Range<usize>| bytes.get(range).is_some_and(|part| part.iter().all(u8::is_ascii_digit));
    let fits = shape(0..4)
        && bytes.get(4) == Some(&b'-')
        && shape(5..7)
        && bytes.get(7) == Some(&b'-')
        && shape(8..10)
        && matches!(bytes.get(10), Some(b'T' | b't' | b' '))
        && shape(11..13)
        && bytes.get(13) == Some(&b':')
        && shape(14..16)
        && bytes.get(16) == Some(&b':')
        && shape(17..19)
        && bytes.last() != Some(&b']');
    if !fits {
        return None;
    }
    let time: jiff::Timestamp = text.parse().ok()?;
    let seconds = (time.as_second() - POSTGRES_EPOCH_SECONDS) * 1_000_000;
    in_range(seconds + i64::from(time.subsec_nanosecond() + 500).div_euclid(1_000))
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
