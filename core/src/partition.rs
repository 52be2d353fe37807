//! Partition sets: which partitions a set still needs, from its policy, the partitions it has and the time.
//!
//! All times here are in the time of the *key*: an instant for `timestamptz`, wall clock of the set's zone for `timestamp` and
//! `date` ([`Key::value`]). Three things must stay true:
//! - **Contiguity beats the grid**: the lower bound of a new partition is the upper bound of the one before it, also where that
//!   lies off the grid (an adopted set, a zone whose rules changed). So there is never a gap or an overlap.
//! - **Poison never moves the target**: keys later than `now + far_future` are not obeyed, or one row dated 2097 would cost
//!   thousands of partitions.
//! - **No user row is read**: whether a partition ahead of the clock is in use is seen from its size.

pub mod check;
pub mod conversion;
pub mod default;
mod error;
pub mod idle;
pub mod lock;
pub mod pg_partman;
pub mod retention;
pub mod sql;
pub mod status;
pub mod upkeep;

use crate::bucket::{DAY, Grid, Timestamp, Utc, Width, Zone, first_instant, wall_clock};
use std::fmt;

pub use error::Error;

/// The type of the column that a set is partitioned by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// `timestamptz`
    Instant,
    /// `timestamp`: wall clock of the set's zone; the hour that the zone repeats in autumn shares a partition.
    WallClock,
    /// `date` in the set's zone.
    Date,
}

impl Key {
    /// Of a column of this type, which is one of these three.
    pub fn of_type(name: &str) -> Self {
        match name {
            "timestamp with time zone" => Self::Instant,
            "date" => Self::Date,
            _ => Self::WallClock,
        }
    }

    /// The value that a row of this instant has.
    pub fn value(self, zone: &dyn Zone, at: Timestamp) -> Timestamp {
        match self {
            Self::Instant => at,
            Self::WallClock | Self::Date => wall_clock(zone, at),
        }
    }

    /// The first instant whose rows have this value or a later one.
    pub fn instant(self, zone: &dyn Zone, value: Timestamp) -> Timestamp {
        match self {
            Self::Instant => value,
            Self::WallClock | Self::Date => first_instant(zone, value),
        }
    }

    /// The bounds of partitions. Wall clock has no offsets, so its grid is that of UTC.
    pub fn grid<'a>(self, width: Width, zone: &'a dyn Zone) -> Grid<'a> {
        match self {
            Self::Instant => Grid::new(width, zone),
            Self::WallClock | Self::Date => Grid::new(width, &Utc),
        }
    }
}

/// A span of time as PostgreSQL keeps it in an `interval`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interval {
    pub months: i32,
    pub days: i32,
    pub microseconds: i64,
}

impl Interval {
    /// Its length in microseconds, with days of 24 hours and months of 30 days, as PostgreSQL compares intervals.
    pub fn length(self) -> i64 {
        let days = i64::from(self.months) * 30 + i64::from(self.days);
        days.saturating_mul(DAY).saturating_add(self.microseconds)
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.months != 0 {
            parts.push(format!("{} months", self.months));
        }
        if self.days != 0 {
            parts.push(format!("{} days", self.days));
        }
        if self.microseconds != 0 || parts.is_empty() {
            parts.push(format!("{} seconds", self.microseconds as f64 / 1e6));
        }
        f.write_str(&parts.join(" "))
    }
}

/// What the owner of a set asked for; lengths in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub key: Key,
    pub width: Width,
    /// Partitions reach at least this far ahead of the clock.
    pub premake: i64,
    /// A row this old always finds a partition.
    pub lateness: i64,
    /// Keys later than the clock by more than this are poison.
    pub far_future: i64,
    /// Partitions older than this are retired, if it is given.
    pub retention: Option<Interval>,
    /// How long a retired partition lies in the trash.
    pub grace: i64,
    /// How long a partition waits for older snapshots before it is detached all the same.
    pub detach_deadline: i64,
}

/// What the settings of the server say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A time without any worker in which no row may fail; microseconds.
    pub outage: i64,
    /// At most so many partitions ahead of the clock.
    pub most: usize,
}

/// From `lower`, inclusive, to `upper`, exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub lower: Timestamp,
    pub upper: Timestamp,
}

/// A partition that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    pub range: Range,
    /// It has storage, so rows have been written to it.
    pub used: bool,
}

/// What is to be made, in order of time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Premake {
    pub missing: Vec<Range>,
    /// More would be needed but for [`Limits::most`].
    pub capped: bool,
}

impl Policy {
    /// How far ahead of the clock partitions shall reach.
    pub fn ahead(&self, limits: &Limits) -> i64 {
        self.premake.max(self.width.longest().saturating_mul(2)).max(limits.outage)
    }

    /// Partitions are made until the last one reaches this time. `existing` is in order of time.
    pub fn target(&self, existing: &[Partition], now: Timestamp, limits: &Limits) -> Timestamp {
        let believable = now.plus(self.far_future);
        let newest = existing
            .iter()
            .rev()
            .find(|partition| partition.used && partition.range.lower <= believable && partition.range.lower > now)
            .map_or(now, |partition| partition.range.upper.min(believable));
        newest.max(now).plus(self.ahead(limits))
    }
}

/// The partitions to make ahead of the clock. `existing` is in order of time.
pub fn premake(policy: &Policy, grid: &Grid<'_>, existing: &[Partition], now: Timestamp, limits: &Limits) -> Premake {
    let target = policy.target(existing, now, limits);
    // A partition far away (somebody made one for 2097) neither serves the target nor may be overlapped.
    let near = existing.partition_point(|partition| partition.range.lower < target);
    let end = existing.get(near).map_or(Timestamp::INFINITY, |next| next.range.lower);
    let mut lower = match near.checked_sub(1) {
        Some(last) => existing[last].range.upper,
        None => grid.floor(now.minus(policy.lateness)).min(end),
    };
    let mut ahead = existing[..near].iter().filter(|partition| partition.range.lower > now).count();
    let mut plan = Premake::default();
    while lower < target && lower < end {
        if lower > now {
            if ahead >= limits.most {
                plan.capped = true;
                break;
            }
            ahead += 1;
        }
        let upper = grid.next(lower).min(end);
        plan.missing.push(Range { lower, upper });
        lower = upper;
    }
    plan
}

/// The partitions that the rows of a range need and that are not there: before the first partition and after the last without a
/// gap, and in the gaps between. Stops with an error when more than `most` would be needed. `existing` is in order of time.
pub fn cover(grid: &Grid<'_>, existing: &[Partition], range: Range, most: usize) -> Result<Vec<Range>, Error> {
    if !range.lower.is_finite() || !range.upper.is_finite() || range.lower >= range.upper {
        return Err(Error::RangeEmptyOrInfinite { lower: range.lower, upper: range.upper });
    }
    if range.lower < EARLIEST || range.upper > LATEST {
        return Err(Error::RangeTooFar);
    }
    let mut missing = Vec::new();
    let mut fill = |mut lower: Timestamp, end: Timestamp, stop: Timestamp, wanted: &dyn Fn(Range) -> bool| {
        while lower < end && lower < stop {
            let cell = Range { lower, upper: grid.next(lower).min(end) };
            if wanted(cell) {
                if missing.len() == most {
                    return Err(Error::TooManyPartitions { range, most });
                }
                missing.push(cell);
            }
            lower = cell.upper;
        }
        Ok(())
    };
    let (Some(first), Some(last)) = (existing.first(), existing.last()) else {
        fill(grid.floor(range.lower), Timestamp::INFINITY, range.upper, &|_| true)?;
        return Ok(missing);
    };
    if range.lower < first.range.lower {
        fill(grid.floor(range.lower), first.range.lower, Timestamp::INFINITY, &|_| true)?;
    }
    for gap in gaps(existing) {
        let wanted = |cell: Range| cell.lower < range.upper && cell.upper > range.lower;
        // Cells before the range are left out without walking over them one by one.
        let start = if gap.lower < range.lower { grid.floor(range.lower).max(gap.lower) } else { gap.lower };
        fill(start, gap.upper, range.upper, &wanted)?;
    }
    fill(last.range.upper, Timestamp::INFINITY, range.upper, &|_| true)?;
    Ok(missing)
}

/// Years 1 to 9999, so that every name and bound is written with four digits.
const EARLIEST: Timestamp = Timestamp(-730_119 * DAY);
const LATEST: Timestamp = Timestamp(2_921_940 * DAY);

/// The gaps between partitions, in order of time, as the partitions are.
pub fn gaps(existing: &[Partition]) -> impl Iterator<Item = Range> {
    existing
        .windows(2)
        .filter(|pair| pair[0].range.upper < pair[1].range.lower)
        .map(|pair| Range { lower: pair[0].range.upper, upper: pair[1].range.lower })
}

#[cfg(test)]
mod replay;
#[cfg(test)]
mod tests;
