use super::*;
use jiff::{civil, tz::TimeZone};
use proptest::prelude::*;

/// A zone of the IANA database, as jiff brings it.
pub(crate) struct Iana(TimeZone);

impl Iana {
    pub(crate) fn new(name: &str) -> Self {
        Self(TimeZone::get(name).expect("a zone of the database"))
    }
}

/// Seconds from 1970-01-01 to 2000-01-01.
const UNIX: i64 = 946_684_800;

impl Zone for Iana {
    fn rule(&self, at: Timestamp) -> Rule {
        let at = jiff::Timestamp::from_second(at.0.div_euclid(SECOND) + UNIX).expect("a time in jiff's range");
        let until = self.0.following(at).next().map_or(Timestamp::INFINITY, |next| from_jiff(next.timestamp()));
        Rule { offset: i64::from(self.0.to_offset(at).seconds()) * SECOND, until }
    }
}

fn from_jiff(at: jiff::Timestamp) -> Timestamp {
    Timestamp((at.as_second() - UNIX) * SECOND)
}

fn utc(text: &str) -> Timestamp {
    from_jiff(format!("{text}Z").parse().expect("a time"))
}

/// An independent way to the same bound: jiff takes the later offset in a gap and the earlier one in a fold.
fn start_of_day(zone: &Iana, date: Date) -> Timestamp {
    let (year, month, day) = date.civil();
    let date = civil::date(year as i16, month as i8, day as i8);
    from_jiff(date.to_zoned(zone.0.clone()).expect("in range").timestamp())
}

fn date(year: i64, month: i64, day: i64) -> Date {
    Date::from_civil(year, month, day)
}

#[test]
fn a_date_that_has_no_midnight_starts_at_its_first_instant() {
    let cairo = Iana::new("Africa/Cairo");
    assert_eq!(first_instant(&cairo, date(2023, 4, 28).midnight()), utc("2023-04-27T22:00:00"));
}

#[test]
fn a_date_that_has_two_midnights_starts_at_the_first() {
    let havana = Iana::new("America/Havana");
    let grid = Grid::new(Width::Day, &havana);
    assert_eq!(grid.floor(utc("2025-11-02T04:30:00")), utc("2025-11-02T04:00:00"));
    assert_eq!(grid.floor(utc("2025-11-02T05:00:00")), utc("2025-11-02T04:00:00"));
    assert_eq!(grid.next(utc("2025-11-02T04:00:00")), utc("2025-11-03T05:00:00"), "a day of 25 hours");
}

#[test]
fn a_date_that_does_not_exist_has_no_bucket() {
    let apia = Iana::new("Pacific/Apia");
    let grid = Grid::new(Width::Day, &apia);
    let (last, after) = (utc("2011-12-29T10:00:00"), utc("2011-12-30T10:00:00"));
    assert_eq!(grid.next(last), after);
    assert_eq!(grid.floor(after), after);
    assert_eq!(grid.next(after), utc("2011-12-31T10:00:00"));
}

#[test]
fn clocks_that_go_back_over_midnight_do_not_return_to_the_bucket_of_yesterday() {
    // Until 2011 Newfoundland changed its clocks at 00:01, back to 23:01 of the day before.
    let zone = Iana::new("America/St_Johns");
    let grid = Grid::new(Width::Day, &zone);
    let start = utc("2010-11-07T02:30:00");
    assert_eq!(grid.floor(utc("2010-11-07T02:45:00")), start, "it is 23:15 of the 6th again");
    assert_eq!(grid.next(utc("2010-11-07T02:45:00")), utc("2010-11-08T03:30:00"));
}

#[test]
fn months_in_berlin_begin_at_local_midnight_in_summer_and_winter() {
    let berlin = Iana::new("Europe/Berlin");
    let grid = Grid::new(Width::Months(1), &berlin);
    let mut at = utc("2025-12-31T23:00:00");
    for expected in ["2026-01-31T23", "2026-02-28T23", "2026-03-31T22", "2026-04-30T22", "2026-05-31T22"] {
        at = grid.next(at);
        assert_eq!(at, utc(&format!("{expected}:00:00")));
    }
}

#[test]
fn hours_in_berlin_repeat_in_october_and_none_is_lost() {
    let berlin = Iana::new("Europe/Berlin");
    let grid = Grid::new(Width::from_interval(0, 0, HOUR).unwrap(), &berlin);
    let mut at = utc("2026-10-24T22:00:00");
    for _ in 0..25 {
        assert_eq!(grid.next(at).since(at), HOUR);
        at = grid.next(at);
    }
    assert_eq!(at, utc("2026-10-25T23:00:00"), "the day has 25 hours");
}

#[test]
fn the_grid_of_hours_begins_at_local_midnight_of_2000() {
    let kolkata = Iana::new("Asia/Kolkata");
    let grid = Grid::new(Width::Exact(6 * HOUR), &kolkata);
    assert_eq!(grid.floor(utc("2026-01-01T00:00:00")), utc("2025-12-31T18:30:00"));
}

#[test]
fn weeks_begin_on_monday_and_quarters_in_january() {
    let monday = date(2026, 11, 23).midnight();
    assert_eq!(Grid::new(Width::Week, &Utc).floor(utc("2026-11-29T23:59:59")), monday);
    assert_eq!(Grid::new(Width::Months(3), &Utc).floor(monday), date(2026, 10, 1).midnight());
    assert_eq!(Grid::new(Width::Months(6), &Utc).next(monday), date(2027, 1, 1).midnight());
    assert_eq!(Grid::new(Width::Months(12), &Utc).next(monday), date(2027, 1, 1).midnight());
    assert_eq!(Grid::new(Width::Months(12), &Utc).floor(date(1999, 12, 31).midnight()), date(1999, 1, 1).midnight());
}

#[test]
fn only_widths_with_a_grid_are_allowed() {
    for (months, days, microseconds) in
        [(0, 0, MINUTE), (0, 0, 12 * HOUR), (0, 1, 0), (0, 7, 0), (1, 0, 0), (3, 0, 0), (6, 0, 0), (12, 0, 0)]
    {
        assert!(Width::from_interval(months, days, microseconds).is_some());
    }
    for (months, days, microseconds) in [
        (0, 0, 0),
        (0, 0, -HOUR),
        (0, 0, MINUTE / 2),
        (0, 0, 7 * MINUTE),
        (0, 0, DAY),
        (0, 1, HOUR),
        (0, 2, 0),
        (0, 30, 0),
        (1, 1, 0),
        (2, 0, 0),
        (24, 0, 0),
    ] {
        assert_eq!(Width::from_interval(months, days, microseconds), None);
    }
}

#[test]
fn times_are_written_as_iso_8601() {
    assert_eq!(utc("2026-11-24T06:05:04").to_string(), "2026-11-24 06:05:04");
    assert_eq!(Timestamp(-1).to_string(), "1999-12-31 23:59:59.999999");
    assert_eq!(date(0, 12, 31).midnight().to_string(), "0001-12-31 00:00:00 BC");
    assert_eq!(Timestamp::INFINITY.to_string(), "infinity");
}

/// Every zone, around every change of its clocks between 1970 and 2100, and on the first of each year.
#[test]
fn days_of_every_zone_begin_at_the_first_instant_of_their_date() {
    let (from, to) = (utc("1970-01-02T00:00:00"), utc("2100-01-01T00:00:00"));
    let mut compared = 0;
    for name in jiff::tz::db().available() {
        let Ok(zone) = TimeZone::get(name.as_str()).map(Iana) else { continue };
        let grid = Grid::new(Width::Day, &zone);
        let mut moments: Vec<_> = (1971..2100).map(|year| date(year, 1, 1).midnight()).collect();
        let mut at = from;
        while at < to {
            moments.push(at);
            at = zone.rule(at).until;
        }
        for moment in moments {
            let around = wall_clock(&zone, moment).date();
            for day in around.0 - 2..=around.0 + 2 {
                let (bound, after) = (start_of_day(&zone, Date(day)), start_of_day(&zone, Date(day + 1)));
                if bound == after {
                    continue; // a missing day
                }
                let context = || format!("{} {:?}", name.as_str(), Date(day).civil());
                assert_eq!(first_instant(&zone, Date(day).midnight()), bound, "{}", context());
                assert_eq!(grid.next(bound), after, "{}", context());
                assert_eq!(grid.floor(after.minus(1)), bound, "{}", context());
                compared += 1;
            }
        }
    }
    assert!(compared > 100_000, "only {compared} days compared: is the time zone database there?");
}

fn widths() -> impl Strategy<Value = Width> {
    prop_oneof![
        (1..=1440i64).prop_filter_map("a divisor of a day", |minutes| Width::from_interval(0, 0, minutes * MINUTE)),
        Just(Width::Day),
        Just(Width::Week),
        prop_oneof![Just(1), Just(3), Just(6), Just(12)].prop_map(Width::Months),
    ]
}

proptest! {
    #[test]
    fn a_date_survives_the_way_through_the_calendar(days in -3_000_000i64..3_000_000) {
        let (year, month, day) = Date(days).civil();
        prop_assert_eq!(Date::from_civil(year, month, day), Date(days));
    }

    /// A zone as wild as one likes: every instant is in exactly one bucket, and the buckets touch.
    #[test]
    fn buckets_cover_the_time_line_without_gap_or_overlap(
        width in widths(),
        changes in proptest::collection::btree_map(-400i64..400, -24i64..24, 0..20),
        at in -500 * DAY..500 * DAY,
    ) {
        let zone = Table(changes.into_iter().map(|(day, hours)| (Timestamp(day * DAY + 7 * HOUR), hours * HOUR)).collect());
        let grid = Grid::new(width, &zone);
        let (start, end) = (grid.floor(Timestamp(at)), grid.next(Timestamp(at)));
        prop_assert!(start <= Timestamp(at) && Timestamp(at) < end);
        prop_assert_eq!(grid.floor(start), start);
        prop_assert_eq!(grid.next(start), end);
        prop_assert_eq!(grid.floor(end), end);
        prop_assert_eq!(grid.floor(end.minus(1)), start);
    }
}

/// A zone given as a table: from when which offset holds.
struct Table(Vec<(Timestamp, i64)>);

impl Zone for Table {
    fn rule(&self, at: Timestamp) -> Rule {
        let next = self.0.partition_point(|(from, _)| *from <= at);
        Rule {
            offset: if next == 0 { 0 } else { self.0[next - 1].1 },
            until: self.0.get(next).map_or(Timestamp::INFINITY, |(from, _)| *from),
        }
    }
}
