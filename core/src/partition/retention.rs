//! Retention: which partitions are due, and what comes next for one that is on its way out.
//!
//! ```text
//!   due -> fenced -> counted -> verified -> detaching -> trash -> dropped
//!          no row     rollups    they equal   DETACH ..    grace;
//!          comes or   keep its   its rows     CONCURRENTLY  undo
//!          changes    groups
//! ```
//!
//! Each step is a transaction of its own (but for DETACH CONCURRENTLY, which is several) and is recorded with what it did. What is
//! to be done next follows from the record **and** from where the catalogs say that the partition is, so a crash at any moment, and
//! statements by hand, lead to no other end.

use super::{Interval, Key};
use crate::bucket::{DAY, Date, Timestamp, Zone, first_instant, wall_clock};

/// What is recorded of a partition that is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Triggers refuse every change of its rows.
    Fenced,
    /// Every rollup has counted all of its rows and keeps their groups apart.
    Counted,
    /// Every rollup has been compared with its rows.
    Verified,
    /// DETACH CONCURRENTLY has been asked for.
    Detaching,
    /// Detached and moved to the trash, from where it can come back until the grace is over.
    Trash,
    /// Attached again, and takes no changes yet: there may be snapshots in which its groups are kept apart.
    Returning,
    /// Attached again for good: it is not retired a second time until the set is resumed.
    Kept,
    /// A rollup does not equal its rows: somebody has to look.
    Mismatch,
}

impl State {
    const ALL: [(State, &'static str); 8] = [
        (State::Fenced, "fenced"),
        (State::Counted, "counted"),
        (State::Verified, "verified"),
        (State::Detaching, "detaching"),
        (State::Trash, "trash"),
        (State::Returning, "returning"),
        (State::Kept, "kept"),
        (State::Mismatch, "mismatch"),
    ];

    /// As it is written in `tally.retirements`.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(state, _)| *state == self).map_or("", |(_, name)| name)
    }

    pub fn named(name: &str) -> Option<State> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(state, _)| *state)
    }
}

/// Where the catalogs say that a partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Attached,
    /// A DETACH CONCURRENTLY has begun and not ended: its rows are invisible through the parent.
    Pending,
    /// A table of its own, outside of the trash.
    Detached,
    Trash,
    /// There is no such table any more.
    Gone,
}

/// What to do next with a partition that has a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Have every rollup count its rows and keep their groups.
    Count,
    /// Compare every rollup with its rows.
    Verify,
    /// DETACH CONCURRENTLY, once nobody holds an older snapshot.
    Detach,
    /// End an interrupted DETACH CONCURRENTLY.
    Finalize,
    /// Move the detached table to the trash.
    Discard,
    /// Prove once more that nothing in it is uncounted, and drop it.
    Drop,
    /// Count its rows where they are again; after that, let them be changed.
    Release,
    /// Somebody took the matter into his own hands: take the fence away and forget the record.
    LetGo,
    /// Nothing, now.
    Wait,
}

/// The next step for a partition. `grace_is_over` is asked for in the trash only.
pub fn next(state: State, place: Place, grace_is_over: bool) -> Step {
    match (state, place) {
        (_, Place::Gone) => Step::LetGo,
        (State::Fenced, Place::Attached) => Step::Count,
        (State::Counted, Place::Attached) => Step::Verify,
        (State::Verified | State::Detaching, Place::Attached) => Step::Detach,
        (State::Detaching, Place::Pending) => Step::Finalize,
        (State::Detaching, Place::Detached) => Step::Discard,
        // The move and its record are one transaction, so this was done by hand; it is where it shall be.
        (State::Detaching, Place::Trash) => Step::Discard,
        (State::Trash, Place::Trash) if grace_is_over => Step::Drop,
        (State::Trash, Place::Trash) => Step::Wait,
        (State::Returning, Place::Attached) => Step::Release,
        (State::Kept | State::Mismatch, Place::Attached) => Step::Wait,
        // Rows came to the trash by force.
        (State::Mismatch, Place::Trash) => Step::Wait,
        // A DETACH CONCURRENTLY by hand that was interrupted: the status says how to end it.
        (_, Place::Pending) => Step::Wait,
        // Detached, attached or moved by hand.
        (_, Place::Attached | Place::Detached | Place::Trash) => Step::LetGo,
    }
}

/// A look at the records of a set, the oldest first: a step is taken with the first one that has something to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// One of them is on its way to the trash or back, or has stopped: no other partition is begun with.
    pub is_busy: bool,
    /// When the next one in the trash is dropped.
    pub wake: Option<Timestamp>,
}

impl Round {
    /// The next step with this one. `drop_after` is when its grace is over.
    pub fn look(&mut self, state: State, place: Place, drop_after: Option<Timestamp>, clock: Timestamp) -> Step {
        let step = next(state, place, drop_after.is_some_and(|at| at <= clock));
        match state {
            _ if step != Step::Wait => {}
            State::Trash => self.wake = [self.wake, drop_after].into_iter().flatten().min(),
            State::Kept => {}
            _ => self.is_busy = true,
        }
        step
    }
}

/// May DETACH CONCURRENTLY begin?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detach {
    /// Not every rollup of by now keeps its groups: a rollup has been created meanwhile, or somebody has taken the partition away and
    /// brought it back.
    CountAgain,
    /// Somebody has a snapshot that does not know of the retained groups.
    Wait,
    Now,
}

/// `is_retained`: every rollup keeps its groups, and nobody reads its rows when groups are made anew. `is_waited_for`: somebody has an
/// older snapshot. `waited` and `deadline` are microseconds: nobody is waited for forever.
pub fn detach(is_retained: bool, is_waited_for: bool, waited: i64, deadline: i64) -> Detach {
    if !is_retained {
        Detach::CountAgain
    } else if is_waited_for && waited < deadline {
        Detach::Wait
    } else {
        Detach::Now
    }
}

/// Has the table that is about to be dropped the rows that were counted, and no others? `uncounted` of those that are there have not been.
pub fn is_proven(counted: i64, there: i64, uncounted: i64) -> bool {
    there == counted && uncounted == 0
}

/// How a partition with a record becomes what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WayBack {
    /// It has come back, or is about to.
    Done,
    /// It has not left: its rows are counted where they are again.
    Stay,
    /// It is attached again.
    Attach,
    /// It is being detached just now.
    Wait,
    /// There is no way back.
    Gone,
}

/// How to bring a partition back.
pub fn way_back(state: State, place: Place) -> WayBack {
    match (state, place) {
        (State::Kept | State::Returning, _) => WayBack::Done,
        (_, Place::Attached) => WayBack::Stay,
        (_, Place::Detached | Place::Trash) => WayBack::Attach,
        (_, Place::Pending) => WayBack::Wait,
        (_, Place::Gone) => WayBack::Gone,
    }
}

/// Partitions that end at this value of the key or before are older than `retention`. Months and days are those of the zone's
/// calendar, as PostgreSQL subtracts an interval: a day may have 23 or 25 hours, and the 31st minus a month is the last of the month.
pub fn cutoff(key: Key, zone: &dyn Zone, now: Timestamp, retention: Interval) -> Timestamp {
    let Interval { months, days, microseconds } = retention;
    let at =
        if months == 0 && days == 0 { now } else { first_instant(zone, earlier(wall_clock(zone, now), months, days)) };
    key.value(zone, at.minus(microseconds))
}

fn earlier(wall: Timestamp, months: i32, days: i32) -> Timestamp {
    let (year, month, day) = wall.date().civil();
    let month = year * 12 + month - 1 - i64::from(months);
    let (year, month) = (month.div_euclid(12), month.rem_euclid(12) + 1);
    let next = if month == 12 { Date::from_civil(year + 1, 1, 1) } else { Date::from_civil(year, month + 1, 1) };
    let first = Date::from_civil(year, month, 1);
    let date = first.0 + (day - 1).min(next.0 - first.0 - 1) - i64::from(days);
    Timestamp(date.saturating_mul(DAY).saturating_add(wall.0.rem_euclid(DAY)))
}

/// Is a partition that ends at `upper` older than `retention`?
pub fn is_due(key: Key, zone: &dyn Zone, now: Timestamp, retention: Interval, upper: Timestamp) -> bool {
    upper <= cutoff(key, zone, now, retention)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::{HOUR, Rule, Utc};

    /// Berlin in the autumn of 2026: UTC+2 until 2026-10-25 01:00 UTC, then UTC+1.
    struct Berlin;
    impl Zone for Berlin {
        fn rule(&self, at: Timestamp) -> Rule {
            let change = Timestamp(Date::from_civil(2026, 10, 25).0 * DAY + HOUR);
            match at < change {
                true => Rule { offset: 2 * HOUR, until: change },
                false => Rule { offset: HOUR, until: Timestamp::INFINITY },
            }
        }
    }

    fn at(year: i64, month: i64, day: i64, hour: i64) -> Timestamp {
        Timestamp(Date::from_civil(year, month, day).0 * DAY + hour * HOUR)
    }

    fn interval(months: i32, days: i32, hours: i64) -> Interval {
        Interval { months, days, microseconds: hours * HOUR }
    }

    #[test]
    fn cutoff_follows_the_calendar() {
        let utc = |now, retention| cutoff(Key::Instant, &Utc, now, retention);
        assert_eq!(utc(at(2026, 3, 31, 7), interval(1, 0, 0)), at(2026, 2, 28, 7));
        assert_eq!(utc(at(2024, 3, 31, 7), interval(1, 0, 0)), at(2024, 2, 29, 7));
        assert_eq!(utc(at(2026, 1, 15, 7), interval(13, 0, 0)), at(2024, 12, 15, 7));
        assert_eq!(utc(at(2026, 3, 1, 7), interval(0, 1, 8)), at(2026, 2, 27, 23));
        // A day before noon of the 25th is noon of the 24th, 25 hours ago.
        let now = at(2026, 10, 25, 11);
        assert_eq!(cutoff(Key::Instant, &Berlin, now, interval(0, 1, 0)), at(2026, 10, 24, 10));
        assert_eq!(cutoff(Key::Instant, &Berlin, now, interval(0, 0, 24)), at(2026, 10, 24, 11));
        assert_eq!(cutoff(Key::WallClock, &Berlin, now, interval(0, 1, 0)), at(2026, 10, 24, 12));
    }

    #[test]
    fn a_partition_is_due_from_its_end_on() {
        let due = |hour| is_due(Key::Instant, &Utc, at(2026, 3, 31, hour), interval(1, 0, 0), at(2026, 2, 28, 7));
        assert_eq!([due(6), due(7), due(8)], [false, true, true]);
    }

    #[test]
    fn names_of_states_are_read_as_they_are_written() {
        for (state, name) in State::ALL {
            assert_eq!(State::named(name), Some(state));
            assert_eq!(state.name(), name);
        }
        assert_eq!(State::named("gone"), None);
    }

    /// Whatever happened, following the steps ends: dropped, kept or let go.
    #[test]
    fn every_record_comes_to_an_end() {
        use Place::{Attached, Detached, Gone, Pending, Trash};
        for (state, _) in State::ALL {
            for place in [Attached, Pending, Detached, Trash, Gone] {
                let (mut state, mut place) = (state, place);
                for _ in 0..10 {
                    match next(state, place, true) {
                        Step::Count => state = State::Counted,
                        Step::Verify => state = State::Verified,
                        Step::Detach => (state, place) = (State::Detaching, Detached),
                        Step::Finalize => place = Detached,
                        Step::Discard => (state, place) = (State::Trash, Trash),
                        Step::Release => state = State::Kept,
                        Step::Drop | Step::LetGo | Step::Wait => break,
                    }
                }
                assert!(
                    matches!(next(state, place, true), Step::Drop | Step::LetGo | Step::Wait),
                    "{state:?} {place:?}"
                );
            }
        }
    }

    #[test]
    fn a_round_says_whether_another_partition_may_be_begun_with() {
        let look = |records: &[(State, Place, Option<i64>)]| {
            let mut round = Round::default();
            for (state, place, drop_after) in records {
                assert_eq!(round.look(*state, *place, drop_after.map(Timestamp), Timestamp(10)), Step::Wait);
            }
            round
        };
        assert_eq!(look(&[]), Round::default());
        let trash = |at| (State::Trash, Place::Trash, Some(at));
        let kept = (State::Kept, Place::Attached, None);
        assert_eq!(look(&[trash(30), kept, trash(20)]), Round { is_busy: false, wake: Some(Timestamp(20)) });
        for stopped in [(State::Mismatch, Place::Trash, Some(5)), (State::Counted, Place::Pending, None)] {
            assert!(look(&[kept, stopped]).is_busy);
        }
        let mut round = Round::default();
        assert_eq!(round.look(State::Trash, Place::Trash, Some(Timestamp(10)), Timestamp(10)), Step::Drop);
    }

    #[test]
    fn a_partition_is_detached_when_nobody_misses_it() {
        assert_eq!(detach(false, false, 0, 9), Detach::CountAgain);
        assert_eq!(detach(false, true, 9, 9), Detach::CountAgain);
        assert_eq!(detach(true, true, 8, 9), Detach::Wait);
        assert_eq!(detach(true, true, 9, 9), Detach::Now);
        assert_eq!(detach(true, false, 0, 9), Detach::Now);
    }

    #[test]
    fn only_the_rows_that_were_counted_are_dropped() {
        assert!(is_proven(5, 5, 0));
        assert!(!is_proven(5, 6, 0) && !is_proven(5, 4, 0) && !is_proven(5, 5, 1));
    }

    #[test]
    fn there_is_a_way_back_from_wherever_a_table_is() {
        for (state, _) in State::ALL {
            let way = |place| way_back(state, place);
            if matches!(state, State::Kept | State::Returning) {
                assert_eq!(way(Place::Attached), WayBack::Done);
                continue;
            }
            assert_eq!(way(Place::Attached), WayBack::Stay);
            assert_eq!([way(Place::Detached), way(Place::Trash)], [WayBack::Attach; 2]);
            assert_eq!([way(Place::Pending), way(Place::Gone)], [WayBack::Wait, WayBack::Gone]);
        }
    }

    #[test]
    fn what_is_not_counted_is_never_dropped() {
        for (state, _) in State::ALL.iter().filter(|(state, _)| *state != State::Trash) {
            for place in [Place::Attached, Place::Pending, Place::Detached, Place::Trash, Place::Gone] {
                assert_ne!(next(*state, place, true), Step::Drop);
            }
        }
        assert_eq!(next(State::Trash, Place::Trash, false), Step::Wait);
        assert_eq!(next(State::Mismatch, Place::Trash, true), Step::Wait);
    }
}
