//! Rows in a DEFAULT partition: in which ranges they lie, and how they get to partitions of their own.
//!
//! A DEFAULT partition cannot be emptied while it is attached: no partition can be made for a range of which it has rows. So its rows are
//! put aside, it is detached, and they are inserted again, in one transaction that keeps everybody else away from the table.

use crate::bucket::{Grid, Timestamp};
use crate::ident::literal;
use crate::partition::{Key, Range, sql};
use std::collections::BTreeMap;

/// Ranges that are told one by one.
const TOLD: usize = 20;
/// Ranges that are told apart while rows are counted, so that rows all over time cost no memory.
const TELL_APART: usize = 100_000;

/// How many rows lie where.
#[derive(Debug)]
pub struct Spread<'a> {
    grid: Grid<'a>,
    ranges: BTreeMap<Timestamp, Counted>,
    /// Where the last row was: the next one is often there too.
    current: Option<Range>,
    beyond: u64,
    pub without_time: u64,
    pub infinite: u64,
    pub finite: u64,
    /// From the first finite row to the last one, both inclusive.
    pub ends: Option<(Timestamp, Timestamp)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counted {
    upper: Timestamp,
    rows: u64,
}

/// A line of the report; no range: all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    pub range: Option<Range>,
    pub rows: u64,
}

impl<'a> Spread<'a> {
    pub fn new(grid: Grid<'a>) -> Self {
        Self {
            grid,
            ranges: BTreeMap::new(),
            current: None,
            beyond: 0,
            without_time: 0,
            infinite: 0,
            finite: 0,
            ends: None,
        }
    }

    pub fn add(&mut self, key: Option<Timestamp>) {
        let Some(at) = key else {
            self.without_time += 1;
            return;
        };
        if !at.is_finite() {
            self.infinite += 1;
            return;
        }
        self.finite += 1;
        let (first, last) = self.ends.unwrap_or((at, at));
        self.ends = Some((first.min(at), last.max(at)));
        let range = match self.current {
            Some(range) if range.lower <= at && at < range.upper => range,
            _ => Range { lower: self.grid.floor(at), upper: self.grid.next(at) },
        };
        self.current = Some(range);
        let is_full = self.ranges.len() >= TELL_APART;
        match self.ranges.get_mut(&range.lower) {
            Some(counted) => counted.rows += 1,
            None if is_full => self.beyond += 1,
            None => {
                self.ranges.insert(range.lower, Counted { upper: range.upper, rows: 1 });
            }
        }
    }

    pub fn rows(&self) -> u64 {
        self.finite + self.infinite + self.without_time
    }

    /// The ranges with the most rows, in order of time, and what is left in one line.
    pub fn report(&self) -> Vec<Told> {
        let mut told: Vec<Told> = self
            .ranges
            .iter()
            .map(|(lower, counted)| Told {
                range: Some(Range { lower: *lower, upper: counted.upper }),
                rows: counted.rows,
            })
            .collect();
        told.sort_by_key(|line| std::cmp::Reverse(line.rows));
        let others = told.split_off(told.len().min(TOLD));
        told.sort_by_key(|line| line.range.map(|range| range.lower));
        let rows = self.beyond + others.iter().map(|line| line.rows).sum::<u64>();
        if rows > 0 {
            told.push(Told { range: None, rows });
        }
        told
    }
}

/// What the statements need that take the rows out of a DEFAULT partition. Names are written as in SQL.
#[derive(Clone, Debug)]
pub struct Drain<'a> {
    pub table: &'a str,
    pub default: &'a str,
    pub key: Key,
    pub key_column: &'a str,
    pub zone: &'a str,
    /// Those that an INSERT may name.
    pub columns: &'a [String],
    /// The table feeds rollups, which have to see the rows go and come.
    pub feeds_rollups: bool,
    /// The call that registers the set, if it is none yet.
    pub register: Option<&'a str>,
}

/// One transaction, which leaves the default partition as an empty table of its own. Whoever is in the way for longer than a second makes
/// it fail, and nothing has happened.
pub fn drain(drain: &Drain<'_>) -> String {
    const ASIDE: &str = "pg_temp.tally_default_rows";
    let Drain { table, default, key, key_column, zone, .. } = *drain;
    let columns = drain.columns.join(", ");
    let zone = literal(zone);
    let (from, to) = match key {
        Key::Instant => (format!("min({key_column})"), format!("max({key_column}) + interval '1 microsecond'")),
        // The clocks may skip an hour or repeat it.
        Key::WallClock => (
            format!("(min({key_column}) - interval '1 hour') AT TIME ZONE {zone}"),
            format!("(max({key_column}) + interval '1 hour') AT TIME ZONE {zone}"),
        ),
        Key::Date => (
            format!("min({key_column})::timestamp AT TIME ZONE {zone}"),
            format!("(max({key_column}) + 1)::timestamp AT TIME ZONE {zone}"),
        ),
    };
    let mut statements = vec![
        "BEGIN".to_owned(),
        "SET LOCAL lock_timeout = '1s'".into(),
        // Rows that a policy hides would not be put aside, and be lost with the rest.
        "SET LOCAL row_security = off".into(),
        format!("LOCK TABLE ONLY {table}, ONLY {default} IN ACCESS EXCLUSIVE MODE"),
        format!("CREATE TEMP TABLE tally_default_rows ON COMMIT DROP AS SELECT {columns} FROM {default}"),
    ];
    if drain.feeds_rollups {
        statements.push(format!("DELETE FROM {default}"));
    }
    statements.push(detach(table, default));
    if !drain.feeds_rollups {
        statements.push(format!("TRUNCATE {default}"));
    }
    statements.extend(drain.register.map(|register| register.trim_end_matches(';').to_owned()));
    statements.push(format!("SELECT tally.ensure_partitions({}, {from}, {to}) FROM {ASIDE}", literal(table)));
    statements.push(format!("INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {ASIDE}"));
    statements.push("COMMIT".into());
    statements.iter().map(|statement| format!("{statement};")).collect::<Vec<_>>().join(" ")
}

/// The plain statement: CONCURRENTLY is refused for and beside a DEFAULT partition.
pub fn detach(table: &str, default: &str) -> String {
    format!("ALTER TABLE {table} DETACH PARTITION {default}")
}

/// Rows that no partition can be made for, or none that is wanted: a condition that finds them, and what to do.
pub fn misplaced(spread: &Spread<'_>, key: Key, key_column: &str, believable: Timestamp) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    if spread.without_time > 0 {
        found.push((spread.without_time, format!("{key_column} IS NULL: no partition is for rows without a time")));
    }
    if spread.infinite > 0 {
        let condition = format!("{key_column} IN ('-infinity', 'infinity')");
        found.push((spread.infinite, format!("{condition}: no partition reaches that far")));
    }
    let late = spread.ranges.range(believable..).map(|(_, counted)| counted.rows).sum();
    if late > 0 {
        let condition = format!("{key_column} >= {}", sql::bound(key, believable));
        found.push((late, format!("{condition}: later than far_future, most likely by mistake")));
    }
    found
}

#[cfg(test)]
mod tests;
