//! Until when there is nothing to do for a set. A look at all partitions finds it out and stores it, so that the passes after it compare
//! it with the clock and read nothing of the set. (Where nobody writes, there are no passes at all: `schedule/rest.rs`.)
//!
//! It is over early when a table of the set is altered, when a row comes to a partition that is *watched*, when a setting has changed, or
//! when the clock was set back.

use super::retention;
use super::{Interval, Key, Limits, Partition, Policy, Premake};
use crate::bucket::{MINUTE, Timestamp, Zone};

/// Passes rely on a look no longer than this, so that what escaped notice is seen within the hour: passes may be half an hour apart.
pub const LONGEST: i64 = 30 * MINUTE;

/// What a look has found and stored; times are instants.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    pub looked_at: Timestamp,
    /// There is nothing to do before.
    pub until: Timestamp,
    /// What the server's settings were.
    pub limits: Limits,
}

/// What is known without a look.
#[derive(Clone, Copy, Debug)]
pub struct Present {
    /// An instant.
    pub now: Timestamp,
    pub limits: Limits,
    /// A table of the set has been altered since the look, or its policy.
    pub is_altered: bool,
    /// A watched partition has got rows.
    pub is_used: bool,
}

impl Look {
    /// Is there still nothing to do?
    pub fn holds(&self, present: &Present) -> bool {
        let over = self.until.min(self.looked_at.plus(LONGEST));
        let is_in_time = self.looked_at <= present.now && present.now < over;
        is_in_time && self.limits == present.limits && !present.is_altered && !present.is_used
    }
}

/// For how long premake has nothing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rest {
    /// A time of the key.
    pub until: Timestamp,
    /// Partitions, by their places, whose first row may end it early.
    pub watched: Vec<usize>,
}

/// For how long premake has nothing to do if no partition comes, goes or gets its first row; `None` if it has something to do now.
/// `existing` is in order of time; `premake` is what is to be made now.
pub fn premake_rests(
    policy: &Policy,
    existing: &[Partition],
    premake: &Premake,
    now: Timestamp,
    limits: &Limits,
) -> Option<Rest> {
    if !premake.missing.is_empty() {
        return None;
    }
    let ahead = existing.partition_point(|partition| partition.range.lower <= now);
    if premake.capped {
        // The limit counts those that begin later than now.
        let until = existing.get(ahead).map_or(Timestamp::INFINITY, |partition| partition.range.lower);
        return Some(Rest { until, watched: vec![] });
    }
    // Partitions suffice as long as neither the clock nor the newest one in use comes to lie behind this.
    let enough = horizon(policy, existing, now, limits)?.minus(policy.ahead(limits));
    // One in use further ahead counts no further than rows are believed, and not before.
    let counts_from = |partition: &Partition| partition.range.lower.max(enough).minus(policy.far_future);
    let beyond = existing.iter().enumerate().skip(ahead).filter(|(_, partition)| partition.range.upper > enough);
    let until = beyond
        .clone()
        .filter(|(_, partition)| partition.used)
        .map(|(_, partition)| counts_from(partition))
        .fold(enough, Timestamp::min);
    let watched = beyond.filter(|(_, partition)| !partition.used && counts_from(partition) < until);
    Some(Rest { until, watched: watched.map(|(at, _)| at).collect() })
}

/// Where the stretch without a gap ends that reaches the target.
fn horizon(policy: &Policy, existing: &[Partition], now: Timestamp, limits: &Limits) -> Option<Timestamp> {
    let target = policy.target(existing, now, limits);
    let last = existing.partition_point(|partition| partition.range.lower < target).checked_sub(1)?;
    let mut horizon = existing[last].range.upper;
    for next in &existing[last + 1..] {
        if next.range.lower != horizon {
            break;
        }
        horizon = next.range.upper;
    }
    Some(horizon)
}

/// The first instant from which a partition that ends at `upper` is older than the retention; [`Timestamp::INFINITY`] if that comes later
/// than `latest`. `now` it is not.
pub fn due_at(
    key: Key,
    zone: &dyn Zone,
    retention: Interval,
    upper: Timestamp,
    now: Timestamp,
    latest: Timestamp,
) -> Timestamp {
    let is_due = |at| retention::is_due(key, zone, at, retention, upper);
    if !is_due(latest) {
        return Timestamp::INFINITY;
    }
    let (mut early, mut late) = (now, latest);
    // To the microsecond, so that every look finds the same.
    while late.since(early) > 1 {
        let middle = early.plus(late.since(early) / 2);
        if is_due(middle) { late = middle } else { early = middle }
    }
    late
}

#[cfg(test)]
mod tests;
