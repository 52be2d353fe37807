//! Ten years in the life of a set: volumes that change a hundredfold, workers that are away for up to a week, clocks that are set by
//! days, rows late and early, one dated 2097. No row that the policy lets in finds no partition, and none is made in vain.
//!
//! `TALLY_REPLAY_SEED=17 cargo test -p tally-core replay` repeats a life.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::tests::{LIMITS, at, policy};
use super::*;
use crate::bucket::tests::Iana;
use crate::bucket::{HOUR, MINUTE};

/// Clocks are set by less than what is taken for poison, or rows of the right time would be.
const CLOCK_OFF: i64 = 2 * DAY - HOUR;
const SKEW: i64 = 90 * MINUTE;
/// Of so many partitions one may stay empty.
const UNUSED_OF: usize = 100;

fn year(year: i64) -> Timestamp {
    at(year, 1, 1, 0)
}

struct Set {
    policy: Policy,
    zone: Iana,
    partitions: Vec<Partition>,
    retired: usize,
    retired_unused: usize,
}

impl Set {
    fn new(width: Width, zone: &str) -> Self {
        Self { policy: policy(width), zone: Iana::new(zone), partitions: Vec::new(), retired: 0, retired_unused: 0 }
    }

    /// One pass of the worker.
    fn pass(&mut self, clock: Timestamp) {
        let grid = Grid::new(self.policy.width, &self.zone);
        let made = premake(&self.policy, &grid, &self.partitions, clock, &LIMITS).missing;
        let latest = clock.plus(self.policy.far_future + self.policy.ahead(&LIMITS));
        assert!(made.iter().all(|range| range.lower < latest), "the row of 2097 is obeyed: {made:?}");
        for range in made {
            let at = self.partitions.partition_point(|partition| partition.range.lower < range.lower);
            assert!(
                at == 0 || self.partitions[at - 1].range.upper == range.lower,
                "a gap or an overlap before {range:?}"
            );
            self.partitions.insert(at, Partition { range, used: false });
        }
        let old = self.partitions.partition_point(|partition| partition.range.upper < clock.minus(60 * DAY));
        self.retired += old;
        self.retired_unused += self.partitions.drain(..old).filter(|partition| !partition.used).count();
    }

    /// Whether a partition takes the row.
    fn insert(&mut self, key: Timestamp) -> bool {
        let at = self.partitions.partition_point(|partition| partition.range.upper <= key);
        let found = self.partitions.get_mut(at).filter(|partition| partition.range.lower <= key);
        found.map(|partition| partition.used = true).is_some()
    }
}

/// A step is as long as workers pause between two passes.
fn live(width: Width, zone: &str, years: i64, step: i64, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut set = Set::new(width, zone);
    // Off the grid, as passes are.
    let mut now = year(2020).plus(rng.random_range(1..MINUTE));
    let end = year(2020 + years);
    let (mut away_until, mut clock_off, mut right_at) = (now, 0, now);
    let mut rows_per_step = 1;
    let mut has_far_partition = false;
    while now < end {
        if now >= right_at {
            clock_off = if rng.random_bool(1e-3) { rng.random_range(-CLOCK_OFF..CLOCK_OFF) } else { 0 };
            right_at = now.plus(rng.random_range(1..4) * DAY);
        }
        if now >= away_until {
            set.pass(now.plus(clock_off));
            if rng.random_bool(1e-3) {
                // Until the very end of the time for which no row may fail.
                away_until = now.plus([LIMITS.outage, rng.random_range(0..LIMITS.outage)][rng.random_range(0..2)]);
            }
        }
        if rng.random_bool(0.01) {
            rows_per_step = [1, 1, 1, 10, 100][rng.random_range(0..5)];
        }
        // One producer is right, one is ahead, as far as ever, and the others are late by what the policy allows.
        let late = (0..rows_per_step).map(|_| -rng.random_range(0..set.policy.lateness)).collect::<Vec<_>>();
        for offset in [0, SKEW].into_iter().chain(late) {
            let key = now.plus(offset);
            assert!(
                set.insert(key),
                "{width:?} {zone}, seed {seed}: no partition for {key:?} at {now:?}, clock off by {clock_off}, away until {away_until:?}"
            );
        }
        if rng.random_bool(1e-3) {
            assert_eq!(set.insert(year(2097)), has_far_partition, "made for a row that is poison");
        }
        if !has_far_partition && rng.random_bool(1e-4) {
            set.partitions.push(Partition { range: Range { lower: year(2097), upper: year(2098) }, used: false });
            has_far_partition = true;
        }
        now = now.plus(step);
    }
    assert!(
        set.retired_unused * UNUSED_OF <= set.retired,
        "{width:?} {zone}, seed {seed}: {} of {} partitions were never used",
        set.retired_unused,
        set.retired
    );
}

#[test]
fn ten_years_of_outages_wrong_clocks_and_poison_miss_no_partition() {
    let given = std::env::var("TALLY_REPLAY_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seed = given.unwrap_or_else(|| rand::random_range(0..1 << 32));
    println!("TALLY_REPLAY_SEED={seed}");
    for (width, zone, years, step) in [
        (Width::Exact(15 * MINUTE), "Australia/Lord_Howe", 1, 15 * MINUTE),
        (Width::Exact(HOUR), "Europe/Berlin", 2, HOUR),
        (Width::Exact(6 * HOUR), "America/Santiago", 10, 3 * HOUR),
        (Width::Day, "Europe/Berlin", 10, 6 * HOUR),
        (Width::Week, "Asia/Kathmandu", 10, 6 * HOUR),
        (Width::Months(1), "UTC", 10, 6 * HOUR),
    ] {
        live(width, zone, years, step, seed);
    }
}
