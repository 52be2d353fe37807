//! Time buckets: the one function that computes the bounds of partitions and of rollup buckets, because with two of them a
//! bucket would one day straddle two partitions.
//!
//! Time is a number of microseconds since 2000-01-01 00:00 UTC, as PostgreSQL keeps it. A time zone is an argument, never the
//! session's, and its rules come from outside ([`Zone`]): this crate knows no tzdata.
//!
//! - Widths below a day lie on an absolute grid that starts at local 2000-01-01 00:00; each bucket lasts exactly its width. The
//!   hour that a zone repeats in autumn gives two buckets.
//! - Widths from a day follow the calendar of the zone. A bound is **the first instant whose local date is the wanted date, or a
//!   later one**. That is not always what `AT TIME ZONE` gives: where midnight comes twice (Havana, 2025-11-02), it picks the
//!   second one. Where a day is missing (Apia, 2011-12-30), its bound is the next day's, and the empty bucket does not exist.

use std::fmt;

/// Microseconds of a second, a minute, an hour and a day of 24 hours.
pub const SECOND: i64 = 1_000_000;
pub const MINUTE: i64 = 60 * SECOND;
pub const HOUR: i64 = 60 * MINUTE;
pub const DAY: i64 = 24 * HOUR;
const HALF_A_DAY: i64 = 12 * HOUR;

/// An instant: microseconds since 2000-01-01 00:00 UTC. For wall-clock values (`timestamp`, `date`) the same number without a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// PostgreSQL's `-infinity`; as the lower bound of a partition also MINVALUE.
    pub const NEG_INFINITY: Self = Self(i64::MIN);
    /// PostgreSQL's `infinity`; as the upper bound of a partition also MAXVALUE.
    pub const INFINITY: Self = Self(i64::MAX);

    pub fn is_finite(self) -> bool {
        self != Self::NEG_INFINITY && self != Self::INFINITY
    }

    /// Later by so many microseconds; infinity stays infinity.
    pub fn plus(self, microseconds: i64) -> Self {
        if self.is_finite() { Self(self.0.saturating_add(microseconds)) } else { self }
    }

    /// Earlier by so many microseconds; infinity stays infinity.
    pub fn minus(self, microseconds: i64) -> Self {
        self.plus(microseconds.saturating_neg())
    }

    /// Microseconds from `earlier` to `self`, at most what an `i64` holds.
    pub fn since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The date of the number itself, which is the date in UTC.
    pub fn date(self) -> Date {
        Date(self.0.div_euclid(DAY))
    }
}

/// ISO 8601 without a zone: `2026-11-24 06:30:00`, with a fraction only where there is one. PostgreSQL reads it whatever
/// DateStyle says.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NEG_INFINITY => return f.write_str("-infinity"),
            Self::INFINITY => return f.write_str("infinity"),
            _ => {}
        }
        let of_day = self.0.rem_euclid(DAY);
        let (hour, minute, second) = (of_day / HOUR, of_day / MINUTE % 60, of_day / SECOND % 60);
        let (year, month, day) = self.date().civil();
        write!(
            f,
            "{:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}",
            if year > 0 { year } else { 1 - year }
        )?;
        if of_day % SECOND != 0 {
            write!(f, ".{:06}", of_day % SECOND)?;
        }
        if year > 0 { Ok(()) } else { f.write_str(" BC") }
    }
}

/// A calendar date: days since 2000-01-01, in the proleptic Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Date(pub i64);

/// Days from 0000-03-01, where the algorithms below begin, to 2000-01-01.
const EPOCH: i64 = 730_425;

impl Date {
    /// Year, month (1 to 12), day. Source: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
    pub fn civil(self) -> (i64, i64, i64) {
        let days = self.0 + EPOCH;
        let era = days.div_euclid(146_097);
        let of_era = days.rem_euclid(146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * of_year + 2) / 153; // months from March
        let day = of_year - (153 * shifted + 2) / 5 + 1;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        (year_of_era + era * 400 + i64::from(month <= 2), month, day)
    }

    /// Source: as [`Date::civil`], `days_from_civil`.
    pub fn from_civil(year: i64, month: i64, day: i64) -> Self {
        let year = if month <= 2 { year - 1 } else { year };
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let shifted = if month > 2 { month - 3 } else { month + 9 };
        let of_year = (153 * shifted + 2) / 5 + day - 1;
        let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
        Self(era * 146_097 + of_era - EPOCH)
    }

    /// Midnight of this date, as a wall-clock value.
    fn midnight(self) -> Timestamp {
        Timestamp(self.0.saturating_mul(DAY))
    }
}

/// The rule of a zone at some instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Local time minus UTC, in microseconds.
    pub offset: i64,
    /// The first instant at which another rule may hold; [`Timestamp::INFINITY`] if there is none.
    pub until: Timestamp,
}

/// The rules of a time zone.
pub trait Zone {
    /// The rule in force at an instant. `until` must be later than `at`.
    fn rule(&self, at: Timestamp) -> Rule;
}

/// UTC, and also the zone of wall-clock values, which know no offsets.
#[derive(Clone, Copy, Debug)]
pub struct Utc;

impl Zone for Utc {
    fn rule(&self, _: Timestamp) -> Rule {
        Rule { offset: 0, until: Timestamp::INFINITY }
    }
}

/// No offset of a zone is larger; the largest in tzdata is about 15 h 13 min.
const LARGEST_OFFSET: i64 = 26 * HOUR;

/// What the clocks of a zone show at an instant.
pub fn wall_clock(zone: &dyn Zone, at: Timestamp) -> Timestamp {
    if at.is_finite() { at.plus(zone.rule(at).offset) } else { at }
}

/// The first instant at which the clocks of the zone show `wall` or later.
pub fn first_instant(zone: &dyn Zone, wall: Timestamp) -> Timestamp {
    if !wall.is_finite() {
        return wall;
    }
    // Between two changes of the rule the clocks run evenly, so each stretch has one candidate.
    let mut from = wall.minus(LARGEST_OFFSET);
    loop {
        let rule = zone.rule(from);
        let candidate = wall.minus(rule.offset).max(from);
        if candidate < rule.until || !rule.until.is_finite() {
            return candidate;
        }
        from = rule.until;
    }
}

/// How long a bucket or a partition lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// So many microseconds; below a day.
    Exact(i64),
    Day,
    /// From Monday to Monday.
    Week,
    /// 1, 3, 6 or 12 calendar months, counted from January.
    Months(i64),
}

impl Width {
    /// The width that an interval of PostgreSQL stands for, if it is one that is allowed: a divisor of a day from 1 minute to 12
    /// hours, 1 day, 1 week, 1, 3 or 6 months, 1 year.
    pub fn from_interval(months: i32, days: i32, microseconds: i64) -> Option<Self> {
        match (months, days, microseconds) {
            (0, 0, MINUTE..=HALF_A_DAY) if DAY % microseconds == 0 => Some(Self::Exact(microseconds)),
            (0, 1, 0) => Some(Self::Day),
            (0, 7, 0) => Some(Self::Week),
            (1 | 3 | 6 | 12, 0, 0) => Some(Self::Months(i64::from(months))),
            _ => None,
        }
    }

    /// Its length in microseconds, with a month of 31 days, so that no bucket is longer but for a change of the clocks.
    pub fn longest(self) -> i64 {
        match self {
            Self::Exact(microseconds) => microseconds,
            Self::Day => DAY,
            Self::Week => 7 * DAY,
            Self::Months(12) => 366 * DAY,
            Self::Months(months) => months * 31 * DAY,
        }
    }

    /// The number of the calendar unit that a date is in; not for [`Width::Exact`].
    fn unit(self, date: Date) -> i64 {
        match self {
            Self::Exact(_) | Self::Day => date.0,
            Self::Week => (date.0 - FIRST_MONDAY).div_euclid(7),
            Self::Months(months) => {
                let (year, month, _) = date.civil();
                (year * 12 + month - 1).div_euclid(months)
            }
        }
    }

    /// The first date of a calendar unit.
    fn first_date(self, unit: i64) -> Date {
        match self {
            Self::Exact(_) | Self::Day => Date(unit),
            Self::Week => Date(unit * 7 + FIRST_MONDAY),
            Self::Months(months) => {
                let month = unit * months;
                Date::from_civil(month.div_euclid(12), month.rem_euclid(12) + 1, 1)
            }
        }
    }
}

/// 2000-01-03.
const FIRST_MONDAY: i64 = 2;

/// The bounds of all buckets of one width in one zone.
#[derive(Clone, Copy)]
pub struct Grid<'a> {
    width: Width,
    zone: &'a dyn Zone,
}

impl fmt::Debug for Grid<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grid").field("width", &self.width).finish_non_exhaustive()
    }
}

impl<'a> Grid<'a> {
    pub fn new(width: Width, zone: &'a dyn Zone) -> Self {
        Self { width, zone }
    }

    /// The start of the bucket that holds `at`: the last bound that is not later.
    pub fn floor(&self, at: Timestamp) -> Timestamp {
        if !at.is_finite() {
            return at;
        }
        match self.width {
            Width::Exact(width) => {
                Timestamp(at.0.saturating_sub((at.0.saturating_sub(self.origin())).rem_euclid(width)))
            }
            _ => self.bound(self.bucket(at)),
        }
    }

    /// The end of the bucket that holds `at`: the first bound that is later.
    pub fn next(&self, at: Timestamp) -> Timestamp {
        if !at.is_finite() {
            return at;
        }
        match self.width {
            Width::Exact(width) => self.floor(at).plus(width),
            _ => {
                let mut bucket = self.bucket(at) + 1;
                // A missing day has the bound of the day after it.
                while self.bound(bucket) <= at {
                    bucket += 1;
                }
                self.bound(bucket)
            }
        }
    }

    /// Is there a bound at this instant?
    pub fn contains(&self, at: Timestamp) -> bool {
        self.floor(at) == at
    }

    /// The last calendar unit that has begun by then.
    fn bucket(&self, at: Timestamp) -> i64 {
        let mut unit = self.width.unit(wall_clock(self.zone, at).date());
        // Clocks that went back over midnight show yesterday's date again, after the first instant of today.
        while self.bound(unit + 1) <= at {
            unit += 1;
        }
        unit
    }

    fn bound(&self, unit: i64) -> Timestamp {
        first_instant(self.zone, self.width.first_date(unit).midnight())
    }

    /// Local 2000-01-01 00:00.
    fn origin(&self) -> i64 {
        first_instant(self.zone, Timestamp(0)).0
    }
}

#[cfg(test)]
pub(crate) mod tests;
