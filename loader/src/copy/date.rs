//! Days as PostgreSQL stores them: counted from 2000-01-01, in the Gregorian calendar also before it was made.

use super::digits;

/// `2026-01-31` -> days since 2000-01-01. Years 1 to 9999.
pub fn date(text: &str) -> Option<i32> {
    let bytes = text.as_bytes();
    if bytes.len() != 10 || bytes[4] != b'-' || bytes[7] != b'-' {
        return None;
    }
    let days = days_since_2000(digits(bytes, 0, 4)?, digits(bytes, 5, 7)?, digits(bytes, 8, 10)?)?;
    i32::try_from(days).ok()
}

/// Days between 2000-01-01 and a date; `None` when the calendar has no such day. Years are counted from March, so that the
/// leap day is the last (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
#[inline(always)]
pub(super) fn days_since_2000(year: i64, month: i64, day: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let lengths = [31, 28 + i64::from(leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let days_of_month = lengths.get(usize::try_from(month - 1).ok()?)?;
    if year == 0 || !(1..=*days_of_month).contains(&day) {
        return None;
    }
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let since_march_of_year_0 =
        year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year;
    Some(since_march_of_year_0 - 730_425)
}

/// The year (0 is 1 BC), month and day of a number of days since 2000-01-01; the same source.
pub fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 730_425;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_days_since_2000() {
        assert_eq!(date("2000-01-01"), Some(0));
        assert_eq!(date("1999-12-31"), Some(-1));
        assert_eq!(date("2000-02-29"), Some(59));
        assert_eq!(date("0001-01-01"), Some(-730_119));
        assert_eq!(date("9999-12-31"), Some(2_921_939));
        for refused in [
            "",
            "2000-1-1",
            "2000-01-32",
            "2001-02-29",
            "1900-02-29",
            "0000-01-01",
            "2000-13-01",
            "20000101",
            "2000-01-01 ",
            "2000-01-01T00:00:00Z",
            "01/02/2000",
            "infinity",
            "é00-01-01",
        ] {
            assert_eq!(date(refused), None, "{refused}");
        }
    }

    #[test]
    fn every_day_is_found_again() {
        for days in (-2_451_545..2_145_031_948i64).step_by(9_973).chain(-1_000..1_000) {
            let (year, month, day) = civil(days);
            assert!(year <= 0 || days_since_2000(year, month, day) == Some(days), "{days}: {year}-{month}-{day}");
        }
        assert_eq!(civil(-2_451_545), (-4_713, 11, 24)); // the first day of PostgreSQL: 4714-11-24 BC
    }
}
