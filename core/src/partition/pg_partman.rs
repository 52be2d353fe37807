//! Sets that pg_partman has maintained: which of its settings mean the same here, and what it does that tally will not.
//!
//! Its table of settings is somebody else's: every text in it is told or quoted, and never becomes a part of a statement.

use crate::bucket::{DAY, Width};
use crate::error::Explain;
use crate::ident::literal;
use crate::partition::Interval;
use crate::partition::check::{Arguments, Request};
use std::fmt;

/// The row of a set in pg_partman's `part_config`, as far as this version of it has the columns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The table that the row is in, as SQL names it.
    pub table: String,
    /// The set in there: schema and name with a dot between, without quotes.
    pub parent: String,
    pub partition_interval: Option<String>,
    pub premake: Option<i32>,
    pub retention: Option<String>,
    pub retention_schema: Option<String>,
    pub retention_keep_table: Option<bool>,
    pub automatic_maintenance: Option<String>,
    pub infinite_time_partitions: Option<bool>,
    pub undo_in_progress: Option<bool>,
    pub constraint_columns: Vec<String>,
    pub template_table: Option<String>,
    /// Indexes of the template table that the set itself has not.
    pub template_indexes: Vec<String>,
}

/// Reads an interval as PostgreSQL writes it.
pub type Parse<'a> = &'a dyn Fn(&str) -> Option<Interval>;

impl Config {
    /// Does pg_partman still work on the set by itself? Only `off` says no.
    pub fn is_automatic(&self) -> bool {
        self.automatic_maintenance.as_deref() != Some("off")
    }

    /// Ends that.
    pub fn switch_off(&self) -> String {
        format!(
            "UPDATE {} SET automatic_maintenance = 'off' WHERE parent_table = {};",
            self.table,
            literal(&self.parent)
        )
    }

    /// Retention there detaches a partition and keeps its table for ever, unless it is told to drop it. Here every removed
    /// partition is dropped after a grace, so the one does not stand for the other.
    fn keeps_tables(&self) -> bool {
        self.retention_schema.is_some() || self.retention_keep_table != Some(false)
    }

    /// The arguments of a policy, with the settings of pg_partman for those that were left out, where they mean the same.
    pub fn complete(&self, arguments: &Arguments, parse: Parse<'_>) -> Result<Request, Refusal> {
        if self.undo_in_progress == Some(true) {
            return Err(Refusal::UndoInProgress { parent: self.parent.clone() });
        }
        let unreadable =
            |column, text: &str| Refusal::NoInterval { table: self.table.clone(), column, text: shorten(text) };
        let interval = self.partition_interval.as_deref().and_then(parse).map(in_days);
        let width = match (arguments.width, interval) {
            (Some(width), _) => width,
            (None, Some(interval)) if is_width(interval) => interval,
            (None, Some(_)) => {
                return Err(Refusal::Width { text: shorten(self.partition_interval.as_deref().unwrap_or_default()) });
            }
            (None, None) => {
                return Err(unreadable("partition_interval", self.partition_interval.as_deref().unwrap_or_default()));
            }
        };
        let retention = match (arguments.retention, self.retention.as_deref()) {
            (None, Some(text)) if !self.keeps_tables() => {
                let retention = parse(text).ok_or_else(|| unreadable("retention", text))?;
                if retention.length() < arguments.lateness.length() {
                    return Err(Refusal::Retention { retention, lateness: arguments.lateness });
                }
                Some(retention)
            }
            (given, _) => given,
        };
        let premake = || Some(times(interval?, self.premake?));
        let premake = arguments.premake.or_else(premake);
        Ok(Arguments { retention, premake, ..*arguments }.with_width(width))
    }

    /// What pg_partman does and tally will not, a sentence each.
    pub fn differences(&self, set: &Taken<'_>) -> Vec<String> {
        let mut found = Vec::new();
        if let Some(default) = set.default {
            found.push(format!(
                "pg_partman keeps rows without a partition in {default}; here they are refused (SQLSTATE 23514), and tally.partition_status \
                 says what is accepted"
            ));
        }
        if let Some(retention) = self.retention.as_deref().map(shorten) {
            let keeps = match &self.retention_schema {
                Some(schema) => {
                    format!(
                        "pg_partman moves tables older than {retention} to schema {} and keeps them",
                        shorten(schema)
                    )
                }
                None => {
                    format!("pg_partman detaches tables older than {retention} and keeps them (retention_keep_table)")
                }
            };
            found.push(match (self.keeps_tables(), set.retires) {
                (true, false) => format!(
                    "{keeps}: not taken over, because tally drops them after a grace; for that give retention"
                ),
                (true, true) => format!("{keeps}; tally drops them when the grace is over"),
                (false, _) => format!(
                    "pg_partman drops partitions older than {retention} at once; tally keeps them in tally_trash until the grace is over"
                ),
            });
        }
        if self.infinite_time_partitions != Some(true) {
            found.push(
                "pg_partman stops ahead of the newest row (infinite_time_partitions); tally follows the clock, with or without rows"
                    .into(),
            );
        }
        if let Some(template) = &self.template_table
            && !self.template_indexes.is_empty()
        {
            found.push(format!(
                "pg_partman makes indexes like those of its template table {}: new partitions get those of the table itself, without {}; \
                 create them on it",
                shorten(template),
                self.template_indexes.join(", ")
            ));
        }
        if !self.constraint_columns.is_empty() {
            found.push(format!(
                "pg_partman adds constraints on old values of {} (constraint_cols); tally adds none, and drops none",
                shorten(&self.constraint_columns.join(", "))
            ));
        }
        if let Some(end) = set.ends_at {
            found.push(format!(
                "pg_partman takes bounds from the time zone of whoever runs it: the last partition ends at {end}, which is no bound in \
                 {}; the first new one is shorter, unless time_zone names the zone that was meant",
                set.zone
            ));
        }
        found
    }

    /// Has it a retention that the new policy has not?
    pub fn leaves_retention(&self, retires: bool) -> bool {
        self.retention.is_some() && !retires
    }
}

/// A set that is being taken over, under its new policy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taken<'a> {
    pub default: Option<&'a str>,
    /// Has the policy a retention?
    pub retires: bool,
    /// Where the last partition ends, if that is no bound of the new grid.
    pub ends_at: Option<&'a str>,
    pub zone: &'a str,
}

/// A day and a week may be written in hours.
fn in_days(interval: Interval) -> Interval {
    let Interval { months, days, microseconds } = interval;
    match i32::try_from(microseconds / DAY) {
        Ok(more) if microseconds % DAY == 0 => Interval { months, days: days.saturating_add(more), microseconds: 0 },
        _ => interval,
    }
}

fn is_width(interval: Interval) -> bool {
    Width::from_interval(interval.months, interval.days, interval.microseconds).is_some()
}

fn times(interval: Interval, count: i32) -> Interval {
    let count = count.max(0);
    Interval {
        months: interval.months.saturating_mul(count),
        days: interval.days.saturating_mul(count),
        microseconds: interval.microseconds.saturating_mul(i64::from(count)),
    }
}

/// Of a text that somebody else wrote, as much as a message needs.
fn shorten(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text.to_owned(),
    }
}

/// Why a set cannot be taken over from pg_partman as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    UndoInProgress { parent: String },
    NoInterval { table: String, column: &'static str, text: String },
    Width { text: String },
    Retention { retention: Interval, lateness: Interval },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UndoInProgress { parent } => write!(f, "pg_partman is undoing the partitions of {parent}"),
            Self::NoInterval { table, column, text } => write!(f, "{column} \"{text}\" in {table} is no interval"),
            Self::Width { text } => write!(f, "pg_partman's partition_interval \"{text}\" is not allowed as a width"),
            Self::Retention { retention, lateness } => {
                write!(f, "pg_partman's retention of {retention} is shorter than the lateness of {lateness}")
            }
        }
    }
}

impl Explain for Refusal {
    fn sqlstate(&self) -> &'static str {
        match self {
            Self::UndoInProgress { .. } => "55000",
            Self::NoInterval { .. } | Self::Width { .. } | Self::Retention { .. } => "22023",
        }
    }

    fn detail(&self) -> Option<String> {
        None
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::UndoInProgress { .. } => {
                "Let undo_partition come to its end, or set undo_in_progress to false in part_config to give it up.".into()
            }
            Self::NoInterval { column: "retention", .. } => "Give retention; '0' keeps everything.".into(),
            Self::NoInterval { .. } => "Give partition_width.".into(),
            Self::Width { .. } => "Give partition_width: a divisor of a day from 1 minute to 12 hours, or 1 day, 1 week, 1, 3 or 6 months, \
                                   1 year. Partitions that are there keep their bounds."
                .into(),
            Self::Retention { .. } => {
                "Rows as late as lateness must find a partition: give a smaller lateness, or a retention ('0' keeps everything).".into()
            }
        })
    }
}

#[cfg(test)]
mod tests;
