//! Conversion: how a plain table becomes the first partition of a partitioned one, without a row copied.
//!
//! ```text
//!   CHECK NOT VALID -> VALIDATE -> wider unique indexes, CONCURRENTLY -> swap -> policy
//!   col < T            one scan     one at a time                        one short transaction
//! ```
//!
//! What is to be done next follows from the record **and** from what the catalogs say is there, so a crash at any moment leads to no
//! other end.

mod refusal;

pub use refusal::Refusal;

use crate::bucket::{Grid, Timestamp};

/// The constraint that lets ATTACH believe, without a look, that all rows lie before the boundary.
pub const CHECK: &str = "tally_conversion";

/// What is recorded of a table that is being converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// On its way to the swap.
    Preparing,
    /// The swap has happened: the set has no policy yet.
    Swapped,
    /// To become again what it was.
    Cancelling,
}

impl State {
    const ALL: [(State, &'static str); 3] =
        [(State::Preparing, "preparing"), (State::Swapped, "swapped"), (State::Cancelling, "cancelling")];

    /// As it is written in `tally.conversions`.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(state, _)| *state == self).map_or("", |(_, name)| name)
    }

    pub fn named(name: &str) -> Option<State> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(state, _)| *state)
    }
}

/// What the catalogs say about something that the conversion makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    Missing,
    /// A constraint that is not validated, or an index that a failed attempt left behind.
    Invalid,
    Valid,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    AddCheck,
    Validate,
    /// Drop the invalid index of this number.
    DropIndex(usize),
    /// Build the index of this number.
    BuildIndex(usize),
    Swap,
    /// The boundary is too near: drop the CHECK, and choose another one.
    StartOver,
    Register,
    Cancel,
}

/// The next step. `is_late` says that the clock is within one width of the boundary.
pub fn next(state: State, check: Made, indexes: &[Made], is_late: bool) -> Step {
    match state {
        State::Swapped => return Step::Register,
        State::Cancelling => return Step::Cancel,
        State::Preparing if is_late => return Step::StartOver,
        State::Preparing => {}
    }
    match check {
        Made::Missing => return Step::AddCheck,
        Made::Invalid => return Step::Validate,
        Made::Valid => {}
    }
    match indexes.iter().position(|index| *index != Made::Valid) {
        Some(at) if indexes[at] == Made::Invalid => Step::DropIndex(at),
        Some(at) => Step::BuildIndex(at),
        None => Step::Swap,
    }
}

/// Where the table ends and new partitions begin: the first bound of the grid that leaves two widths and ten times what the scan and
/// the indexes are expected to take. `now` is in values of the key.
pub fn boundary(grid: &Grid<'_>, width: i64, now: Timestamp, bytes: i64, indexes: usize) -> Timestamp {
    let earliest = now.plus(width.saturating_mul(2)).plus(duration(bytes, indexes).saturating_mul(10));
    let floor = grid.floor(earliest);
    if floor < earliest { grid.next(floor) } else { floor }
}

/// What a scan of the table and so many unique indexes take, in microseconds: at least 10 s, and 1 s a gigabyte for the scan, 10 s for
/// each index. (2 million rows of 65 bytes: 0.08 to 0.2 s and 0.5 to 1.3 s.)
fn duration(bytes: i64, indexes: usize) -> i64 {
    let seconds_per_gigabyte = 1 + 10 * i64::try_from(indexes).unwrap_or(i64::MAX / 1000);
    10_000_000_i64.saturating_add((bytes / 1000).saturating_mul(seconds_per_gigabyte))
}

/// The definition of an index or of a unique constraint with one more column (written as in SQL) behind its keys: what PostgreSQL
/// prints has these in its first parentheses outside of quotes.
pub fn widened(definition: &str, column: &str) -> Option<String> {
    let (mut depth, mut quote) = (0_u32, None);
    for (at, c) in definition.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '(') => depth += 1,
            (None, ')') if depth == 1 => {
                let (keys, rest) = definition.split_at(at);
                return Some(format!("{keys}, {column}{rest}"));
            }
            (None, ')') => depth = depth.checked_sub(1)?,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::{DAY, HOUR, Utc, Width};

    #[test]
    fn every_state_and_place_leads_to_the_end() {
        for (state, name) in State::ALL {
            assert_eq!(State::named(name), Some(state));
            assert_eq!(state.name(), name);
        }
        for check in [Made::Missing, Made::Invalid, Made::Valid] {
            for index in [Made::Missing, Made::Invalid, Made::Valid] {
                let (mut check, mut indexes) = (check, [index, Made::Missing]);
                let mut steps = 0;
                loop {
                    match next(State::Preparing, check, &indexes, false) {
                        Step::AddCheck => check = Made::Invalid,
                        Step::Validate => check = Made::Valid,
                        Step::DropIndex(at) => indexes[at] = Made::Missing,
                        Step::BuildIndex(at) => indexes[at] = Made::Valid,
                        Step::Swap => break,
                        other => panic!("{other:?}"),
                    }
                    steps += 1;
                    assert!(steps < 10);
                }
                assert_eq!((check, indexes), (Made::Valid, [Made::Valid; 2]));
                assert_eq!(next(State::Preparing, check, &indexes, true), Step::StartOver);
                assert_eq!(next(State::Cancelling, check, &indexes, true), Step::Cancel);
                assert_eq!(next(State::Swapped, check, &indexes, true), Step::Register);
            }
        }
    }

    #[test]
    fn the_boundary_leaves_two_widths_and_time_for_the_work() {
        let grid = Grid::new(Width::from_interval(0, 1, 0).expect("a width"), &Utc);
        let now = Timestamp(10 * DAY + 7 * HOUR);
        assert_eq!(boundary(&grid, DAY, now, 0, 0), Timestamp(13 * DAY));
        // On the grid but for the time that the work takes.
        assert_eq!(boundary(&grid, DAY, Timestamp(10 * DAY), 0, 0), Timestamp(13 * DAY));
        // A terabyte with one index: 11,000 s, and ten times that are 30 hours.
        assert_eq!(boundary(&grid, DAY, now, 1_000_000_000_000, 1), Timestamp(14 * DAY));
    }

    #[test]
    fn the_column_comes_behind_the_keys() {
        let wide = |definition| widened(definition, "at").expect("keys");
        assert_eq!(wide("PRIMARY KEY (id)"), "PRIMARY KEY (id, at)");
        assert_eq!(
            wide("UNIQUE NULLS NOT DISTINCT (a, b) INCLUDE (c) DEFERRABLE"),
            "UNIQUE NULLS NOT DISTINCT (a, b, at) INCLUDE (c) DEFERRABLE"
        );
        assert_eq!(
            wide(
                r#"CREATE UNIQUE INDEX "x ("" (" ON public."(t" USING btree (lower((a)::text), f(b, ')'), "c)") WHERE (d > 0)"#
            ),
            r#"CREATE UNIQUE INDEX "x ("" (" ON public."(t" USING btree (lower((a)::text), f(b, ')'), "c)", at) WHERE (d > 0)"#
        );
        assert_eq!(widened("nothing", "at"), None);
        assert_eq!(widened(") (", "at"), None);
    }
}
