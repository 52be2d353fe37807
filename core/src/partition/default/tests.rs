use super::*;
use crate::bucket::{DAY, HOUR, Utc, Width};

fn day(day: i64) -> Timestamp {
    Timestamp(day * DAY)
}

fn spread(keys: impl IntoIterator<Item = Option<Timestamp>>) -> Spread<'static> {
    let mut spread = Spread::new(Grid::new(Width::Day, &Utc));
    keys.into_iter().for_each(|key| spread.add(key));
    spread
}

#[test]
fn rows_are_counted_by_the_ranges_of_the_grid() {
    let keys = [day(3), day(3).plus(HOUR), day(1), Timestamp::INFINITY, Timestamp::NEG_INFINITY];
    let spread = spread(keys.map(Some).into_iter().chain([None]));
    let told = |from, rows| Told { range: Some(Range { lower: day(from), upper: day(from + 1) }), rows };
    assert_eq!(spread.report(), [told(1, 1), told(3, 2)]);
    assert_eq!((spread.finite, spread.infinite, spread.without_time, spread.rows()), (3, 2, 1, 6));
    assert_eq!(spread.ends, Some((day(1), day(3).plus(HOUR))));
}

#[test]
fn twenty_ranges_are_told_and_the_rest_is_summed_up() {
    // Day 50 has the most rows, the days from 0 on have one each.
    let keys = (0..30).map(day).chain((0..9).map(|hour| day(50).plus(hour * HOUR)));
    let told = spread(keys.map(Some)).report();
    assert_eq!(told.len(), TOLD + 1);
    assert_eq!(told[TOLD - 1], Told { range: Some(Range { lower: day(50), upper: day(51) }), rows: 9 });
    assert_eq!(told[TOLD], Told { range: None, rows: 11 });
    assert!(told[..TOLD].windows(2).all(|pair| pair[0].range.unwrap().lower < pair[1].range.unwrap().lower));
}

#[test]
fn rows_all_over_time_cost_no_memory() {
    let spread = spread((0..TELL_APART as i64 + 500).map(|number| Some(day(number))));
    assert_eq!(spread.ranges.len(), TELL_APART);
    assert_eq!(spread.report().iter().map(|line| line.rows).sum::<u64>(), TELL_APART as u64 + 500);
}

#[test]
fn rows_without_a_place_are_named_by_a_condition() {
    let spread = spread([None, Some(Timestamp::INFINITY), Some(day(1)), Some(day(9)), Some(day(9))]);
    let found = misplaced(&spread, Key::Instant, "at", day(5));
    let conditions: Vec<(u64, &str)> =
        found.iter().map(|(rows, text)| (*rows, text.split(": ").next().unwrap())).collect();
    assert_eq!(
        conditions,
        [(1, "at IS NULL"), (1, "at IN ('-infinity', 'infinity')"), (2, "at >= '2000-01-06 00:00:00+00'")]
    );
}

#[test]
fn a_drain_is_one_transaction() {
    let columns = ["at".to_owned(), "\"Note\"".to_owned()];
    let plain = Drain {
        table: "public.events",
        default: "public.rest",
        key: Key::Instant,
        key_column: "at",
        zone: "UTC",
        columns: &columns,
        feeds_rollups: false,
        register: None,
    };
    assert_eq!(
        drain(&plain),
        "BEGIN; SET LOCAL lock_timeout = '1s'; SET LOCAL row_security = off; \
         LOCK TABLE ONLY public.events, ONLY public.rest IN ACCESS EXCLUSIVE MODE; \
         CREATE TEMP TABLE tally_default_rows ON COMMIT DROP AS SELECT at, \"Note\" FROM public.rest; \
         ALTER TABLE public.events DETACH PARTITION public.rest; TRUNCATE public.rest; \
         SELECT tally.ensure_partitions('public.events', min(at), max(at) + interval '1 microsecond') FROM pg_temp.tally_default_rows; \
         INSERT INTO public.events (at, \"Note\") OVERRIDING SYSTEM VALUE SELECT at, \"Note\" FROM pg_temp.tally_default_rows; COMMIT;"
    );
    let fed = drain(&Drain { feeds_rollups: true, register: Some("SELECT 1;"), ..plain });
    let place = |part: &str| fed.find(part).unwrap_or_else(|| panic!("{part}: {fed}"));
    assert!(place("DELETE FROM public.rest;") < place("DETACH") && !fed.contains("TRUNCATE"));
    assert!(place("DETACH") < place("SELECT 1; SELECT tally.ensure"));
}
