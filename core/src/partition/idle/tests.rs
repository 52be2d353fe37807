use super::*;
use crate::bucket::{DAY, Grid, HOUR, Rule, SECOND, Utc, Width};
use crate::partition::tests::{LIMITS, at, policy};
use crate::partition::{Range, premake};
use proptest::prelude::*;

/// A set as premake leaves it.
fn served(policy: &Policy, now: Timestamp, limits: &Limits) -> Vec<Partition> {
    let made = premake(policy, &Grid::new(policy.width, &Utc), &[], now, limits).missing;
    made.into_iter().map(|range| Partition { range, used: false }).collect()
}

fn rests(policy: &Policy, existing: &[Partition], now: Timestamp, limits: &Limits) -> Option<Rest> {
    let premake = premake(policy, &Grid::new(policy.width, &Utc), existing, now, limits);
    premake_rests(policy, existing, &premake, now, limits)
}

#[test]
fn premake_rests_until_the_clock_needs_the_next_partition() {
    let policy = policy(Width::Exact(HOUR));
    let now = at(2026, 11, 24, 10);
    let existing = served(&policy, now.plus(1), &LIMITS);
    assert_eq!(rests(&policy, &existing, now.plus(1), &LIMITS).unwrap().until, now.plus(HOUR));
    assert_eq!(rests(&policy, &existing, now.plus(HOUR - MINUTE), &LIMITS).unwrap().until, now.plus(HOUR));
    assert_eq!(rests(&policy, &existing, now.plus(HOUR + 1), &LIMITS), None, "there is one to be made");
}

#[test]
fn a_row_ahead_of_the_clock_ends_the_rest_if_it_moves_the_target() {
    let policy = policy(Width::Day);
    let now = at(2026, 11, 24, 10);
    let mut existing = served(&policy, now, &LIMITS);
    // Those of today and of the late rows do not, nor do those that begin where no row is believed.
    let watched = |existing: &[Partition]| -> Vec<Timestamp> {
        let rest = rests(&policy, existing, now, &LIMITS).unwrap();
        rest.watched.iter().map(|at| existing[*at].range.lower).collect()
    };
    assert_eq!(watched(&existing), [at(2026, 11, 25, 0), at(2026, 11, 26, 0)]);
    for watched in [at(2026, 11, 25, 0), at(2026, 11, 26, 0)] {
        let mut used = existing.clone();
        used.iter_mut().find(|partition| partition.range.lower == watched).unwrap().used = true;
        assert_eq!(rests(&policy, &used, now, &LIMITS), None);
    }
    // A row that has moved it already is not waited for.
    existing.iter_mut().find(|partition| partition.range.lower == at(2026, 11, 25, 0)).unwrap().used = true;
    let more = premake(&policy, &Grid::new(policy.width, &Utc), &existing, now, &LIMITS).missing;
    existing.extend(more.into_iter().map(|range| Partition { range, used: false }));
    // That of the 27th begins where rows are believed from the 25th on, before the rest is over.
    assert_eq!(watched(&existing), [at(2026, 11, 26, 0), at(2026, 11, 27, 0)]);
}

#[test]
fn a_row_that_will_be_believed_soon_ends_the_rest_then() {
    let policy = policy(Width::Day);
    let now = at(2026, 11, 24, 10);
    let mut existing = served(&policy, now, &LIMITS);
    existing.iter_mut().find(|partition| partition.range.lower == at(2026, 11, 27, 0)).unwrap().used = true;
    for now in [now, at(2026, 11, 25, 0).minus(MINUTE)] {
        assert_eq!(rests(&policy, &existing, now, &LIMITS).unwrap().until, at(2026, 11, 25, 0), "at midnight");
    }
}

#[test]
fn a_set_at_its_limit_rests_until_one_of_its_partitions_begins() {
    let policy = policy(Width::Exact(MINUTE));
    let now = at(2026, 11, 24, 10).plus(20 * SECOND);
    let existing = served(&policy, now, &LIMITS);
    let rest = Rest { until: at(2026, 11, 24, 10).plus(MINUTE), watched: vec![] };
    assert_eq!(rests(&policy, &existing, now, &LIMITS), Some(rest));
}

#[test]
fn a_look_holds_for_a_while_unless_something_happens() {
    let now = at(2026, 11, 24, 10);
    let look = Look { looked_at: now, until: now.plus(LONGEST - 5 * MINUTE), limits: LIMITS };
    let present = Present { now, limits: LIMITS, is_altered: false, is_used: false };
    assert!(look.holds(&present));
    assert!(look.holds(&Present { now: look.until.minus(1), ..present }));
    let long = Look { until: Timestamp::INFINITY, ..look };
    assert!(long.holds(&Present { now: now.plus(LONGEST - 1), ..present }));
    assert!(!long.holds(&Present { now: now.plus(LONGEST), ..present }));
    for over in [
        Present { now: look.until, ..present },
        Present { now: now.minus(1), ..present },
        Present { is_altered: true, ..present },
        Present { is_used: true, ..present },
        Present { limits: Limits { outage: 8 * DAY, ..LIMITS }, ..present },
        Present { limits: Limits { most: 1001, ..LIMITS }, ..present },
    ] {
        assert!(!look.holds(&over), "{over:?}");
    }
}

/// Berlin in the autumn of 2026: UTC+2 until 2026-10-25 01:00 UTC, then UTC+1.
struct Berlin;
impl Zone for Berlin {
    fn rule(&self, instant: Timestamp) -> Rule {
        let change = at(2026, 10, 25, 1);
        match instant < change {
            true => Rule { offset: 2 * HOUR, until: change },
            false => Rule { offset: HOUR, until: Timestamp::INFINITY },
        }
    }
}

#[test]
fn a_partition_is_due_when_the_cutoff_reaches_its_end() {
    let days = |days| Interval { days, ..Interval::default() };
    let due = |key, now, upper| due_at(key, &Berlin, days(1), upper, now, now.plus(2 * HOUR));
    // Noon of the 25th in Berlin is 25 hours after noon of the 24th.
    let upper = at(2026, 10, 24, 10);
    let due_then = at(2026, 10, 25, 11);
    assert_eq!(due(Key::Instant, at(2026, 10, 25, 10), upper), due_then);
    assert_eq!(due(Key::Instant, at(2026, 10, 25, 9).plus(1), upper), due_then, "whenever it is asked for");
    assert_eq!(due(Key::WallClock, at(2026, 10, 25, 10), at(2026, 10, 24, 12)), due_then);
    assert_eq!(due(Key::Instant, at(2026, 10, 25, 8), upper), Timestamp::INFINITY, "not within the time asked for");
}

proptest! {
    /// As long as premake rests there is nothing to be made, whatever rows come to partitions that are not watched.
    #[test]
    fn nothing_is_missing_while_premake_rests(
        width in prop_oneof![Just(Width::Exact(15 * MINUTE)), Just(Width::Exact(HOUR)), Just(Width::Day), Just(Width::Months(1))],
        far_future in prop_oneof![Just(0), Just(2 * HOUR), Just(2 * DAY), Just(30 * DAY)],
        most in prop_oneof![Just(3usize), Just(1000)],
        extra in proptest::collection::vec((0..30 * 24i64, 1..48i64), 0..4),
        minutes in 0..3 * 24 * 60i64,
        used in proptest::collection::vec(any::<prop::sample::Index>(), 0..3),
        later in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
        moments in proptest::collection::vec(0..1000i64, 1..5),
    ) {
        let policy = Policy { far_future, ..policy(width) };
        let limits = Limits { outage: 2 * DAY, most };
        let grid = Grid::new(width, &Utc);
        let begin = at(2026, 11, 24, 10);
        let mut existing = served(&policy, begin, &limits);
        for (gap, hours) in extra {
            let lower = existing.last().unwrap().range.upper.plus(gap / 24 * gap * HOUR);
            existing.push(Partition { range: Range { lower, upper: lower.plus(hours * HOUR) }, used: false });
        }
        for index in used {
            let at = index.index(existing.len());
            existing[at].used = true;
        }
        let now = begin.plus(minutes * MINUTE);
        for range in premake(&policy, &grid, &existing, now, &limits).missing {
            let place = existing.partition_point(|partition| partition.range.lower < range.lower);
            existing.insert(place, Partition { range, used: false });
        }
        let rest = rests(&policy, &existing, now, &limits);
        prop_assert!(rest.is_some(), "premake has just been there");
        let rest = rest.unwrap();
        prop_assert!(now <= rest.until);
        for index in later {
            let at = index.index(existing.len());
            existing[at].used |= !rest.watched.contains(&at);
        }
        for moment in moments {
            let then = now.plus(rest.until.since(now).min(90 * DAY) / 1000 * moment);
            if then < rest.until {
                let missing = premake(&policy, &grid, &existing, then, &limits).missing;
                prop_assert!(missing.is_empty(), "{missing:?} at {then}, rested until {}", rest.until);
            }
        }
    }
}
