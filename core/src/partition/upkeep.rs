//! What a set wants besides partitions: statistics of the whole, which autovacuum never collects for a partitioned table, and BRIN indexes
//! that know of the pages of partitions that have ended.

use super::Range;
use crate::bucket::{DAY, HOUR, Timestamp, Width};

/// What is known of a partition without a look into it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Filling {
    /// In instants.
    pub lower: Timestamp,
    /// As the statistics have it.
    pub rows: f64,
}

/// What ANALYZE has found when it last looked at the whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Analyzed {
    pub at: Timestamp,
    pub rows: f64,
}

/// As autovacuum has it by default: so many rows and such a part of the table have to be new.
const ROWS: f64 = 50.0;
const PART: f64 = 0.1;

/// May the whole be analyzed again already? At most once a width, between an hour and a day.
pub fn may_analyze(width: Width, last: Option<Timestamp>, now: Timestamp) -> bool {
    let least = width.longest().clamp(HOUR, DAY);
    // A clock that was set back must not keep it from being done.
    last.is_none_or(|last| !(0..least).contains(&now.since(last)))
}

/// Has enough changed? Rows of partitions that have begun since are new; in the others it is seen from their number.
pub fn is_worth_analyzing(last: Option<Analyzed>, partitions: &[Filling]) -> bool {
    let rows: f64 = partitions.iter().map(|partition| partition.rows).sum();
    let Some(last) = last else { return rows > 0.0 };
    let new: f64 =
        partitions.iter().filter(|partition| partition.lower >= last.at).map(|partition| partition.rows).sum();
    new.max((rows - last.rows).abs()) > ROWS + PART * last.rows
}

/// The partitions that have ended since the last look, or without one as long ago as rows may be late: so a set that is new here does not
/// have all of its past read. `ranges` are in order of time, like `done` and `now` in values of the key.
pub fn ended(ranges: &[Range], done: Option<Timestamp>, lateness: i64, now: Timestamp) -> impl Iterator<Item = usize> {
    let done = done.unwrap_or(now.minus(lateness));
    let first = ranges.partition_point(|range| range.upper <= done);
    let end = ranges.partition_point(|range| range.upper <= now);
    first..end.max(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::MINUTE;

    fn filling(day: i64, rows: f64) -> Filling {
        Filling { lower: Timestamp(day * DAY), rows }
    }

    #[test]
    fn the_whole_is_analyzed_once_a_width_and_not_more_than_once_an_hour() {
        let now = Timestamp(1_000 * DAY);
        for (width, least) in [
            (Width::Exact(MINUTE), HOUR),
            (Width::Exact(6 * HOUR), 6 * HOUR),
            (Width::Day, DAY),
            (Width::Months(1), DAY),
        ] {
            assert!(may_analyze(width, None, now));
            assert!(!may_analyze(width, Some(now.minus(least - 1)), now), "{width:?}");
            assert!(may_analyze(width, Some(now.minus(least + HOUR)), now), "{width:?}");
            assert!(may_analyze(width, Some(now.plus(DAY)), now), "the clock was set back");
        }
    }

    #[test]
    fn it_is_worth_it_when_a_tenth_is_new_or_gone() {
        assert!(!is_worth_analyzing(None, &[]));
        assert!(!is_worth_analyzing(None, &[filling(1, 0.0)]), "nothing to sample");
        assert!(is_worth_analyzing(None, &[filling(1, 1.0)]));
        let last = Some(Analyzed { at: Timestamp(10 * DAY), rows: 1_000.0 });
        let old = filling(1, 1_000.0);
        assert!(!is_worth_analyzing(last, &[old]));
        assert!(!is_worth_analyzing(last, &[old, filling(10, 150.0)]));
        assert!(is_worth_analyzing(last, &[old, filling(10, 151.0)]), "a new partition");
        assert!(is_worth_analyzing(last, &[filling(1, 1_151.0)]), "an old one has grown");
        assert!(is_worth_analyzing(last, &[filling(1, 800.0)]), "one has left");
        // As many have left as have come.
        assert!(is_worth_analyzing(last, &[filling(1, 800.0), filling(10, 200.0)]));
    }

    #[test]
    fn each_partition_ends_once() {
        let ranges: Vec<Range> =
            (0..10).map(|day| Range { lower: Timestamp(day * DAY), upper: Timestamp((day + 1) * DAY) }).collect();
        let ended = |done, now: i64| ended(&ranges, done, 2 * DAY, Timestamp(now)).collect::<Vec<_>>();
        assert_eq!(ended(None, 5 * DAY), [3, 4], "the past is left alone");
        assert_eq!(ended(Some(Timestamp(3 * DAY)), 5 * DAY), [3, 4]);
        assert_eq!(ended(Some(Timestamp(5 * DAY)), 6 * DAY - 1), [0; 0]);
        assert_eq!(ended(Some(Timestamp(5 * DAY)), 6 * DAY), [5]);
        assert_eq!(ended(Some(Timestamp(5 * DAY)), 2 * DAY), [0; 0], "the clock was set back");
        assert_eq!(ended(Some(Timestamp(5 * DAY)), 100 * DAY), [5, 6, 7, 8, 9]);
    }
}
