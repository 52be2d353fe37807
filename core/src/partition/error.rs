//! Why a set is refused.

use crate::bucket::Timestamp;
use crate::error::Explain;
use crate::partition::{Interval, Range, default};
use std::fmt;

/// How a request about a partition set can be wrong. Tables, partitions and roles are named as SQL would write them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    NotATable { table: String },
    NotPartitioned { table: String },
    Temporary { table: String },
    IsPartition { table: String },
    NotByRange { table: String, strategy: &'static str },
    SeveralColumns { table: String, columns: usize },
    KeyIsExpression { table: String },
    KeyType { column: String, type_name: String },
    KeyOrder { column: String },
    KeyNullable { table: String, column: String },
    DefaultPartition { table: String, partition: String },
    DefaultNotEmpty { table: String, partition: String, rows: u64, advice: String },
    LastIsMaxvalue { table: String, partition: String },
    SubPartitioned { partition: String },
    ForeignPartition { partition: String },
    Width { width: Interval },
    DateWidth { width: Interval },
    TimeZone { name: String },
    AmbiguousTimeZone { name: String },
    Negative { argument: &'static str, value: Interval },
    RetentionBelowLateness { retention: Interval, lateness: Interval },
    RetentionUnderWay { table: String, partition: String },
    OwnerCannotCreate { owner: String, schema: String },
    OwnerCannotLogIn { owner: String },
    NotOwner { table: String },
    AlreadyRegistered { table: String },
    NotRegistered { table: String },
    RangeEmptyOrInfinite { lower: Timestamp, upper: Timestamp },
    RangeTooFar,
    TooManyPartitions { range: Range, most: usize },
    TooManyLocks { partitions: usize, fit: usize },
    TargetLocked { table: String, others: String, who: String },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotATable { table } => write!(f, "{table} is not a table"),
            Self::NotPartitioned { table } => write!(f, "table {table} is not partitioned"),
            Self::Temporary { table } => write!(f, "table {table} is temporary"),
            Self::IsPartition { table } => write!(f, "table {table} is a partition itself"),
            Self::NotByRange { table, strategy } => {
                write!(f, "table {table} is partitioned by {strategy}, not by range")
            }
            Self::SeveralColumns { table, columns } => write!(f, "table {table} is partitioned by {columns} columns"),
            Self::KeyIsExpression { table } => write!(f, "table {table} is partitioned by an expression"),
            Self::KeyType { column, type_name } => write!(f, "partition key {column} has type {type_name}"),
            Self::KeyOrder { column } => write!(f, "partition key {column} has an operator class of its own"),
            Self::KeyNullable { column, .. } => write!(f, "partition key {column} may be null"),
            Self::DefaultPartition { table, partition } => {
                write!(f, "table {table} has the default partition {partition}")
            }
            Self::DefaultNotEmpty { table, partition, rows, .. } => {
                write!(f, "default partition {partition} of table {table} has {rows} rows")
            }
            Self::LastIsMaxvalue { table, partition } => {
                write!(f, "partition {partition} of table {table} ends at MAXVALUE")
            }
            Self::SubPartitioned { partition } => write!(f, "partition {partition} is partitioned itself"),
            Self::ForeignPartition { partition } => write!(f, "partition {partition} is a foreign table"),
            Self::Width { width } => write!(f, "partition width {width} is not allowed"),
            Self::DateWidth { width } => write!(f, "partition width {width} is too small for a key of type date"),
            Self::TimeZone { name } => write!(f, "time zone \"{name}\" is not known"),
            Self::AmbiguousTimeZone { name } => {
                write!(f, "time zone \"{name}\" is also an abbreviation, and that means other times")
            }
            Self::Negative { argument, value } => write!(f, "{argument} must not be negative, but is {value}"),
            Self::RetentionBelowLateness { retention, lateness } => {
                write!(f, "retention of {retention} is shorter than the lateness of {lateness}")
            }
            Self::RetentionUnderWay { table, partition } => {
                write!(f, "partition {partition} of table {table} is being removed by retention")
            }
            Self::OwnerCannotCreate { owner, schema } => {
                write!(f, "owner {owner} of the table may not create tables in schema {schema}")
            }
            Self::OwnerCannotLogIn { owner } => write!(f, "owner {owner} of the table may not log in"),
            Self::NotOwner { table } => write!(f, "must be owner of table {table}"),
            Self::AlreadyRegistered { table } => write!(f, "table {table} has a partition policy already"),
            Self::NotRegistered { table } => write!(f, "table {table} has no partition policy"),
            Self::RangeEmptyOrInfinite { lower, upper } => {
                write!(f, "range from {lower} to {upper} is empty or infinite")
            }
            Self::RangeTooFar => f.write_str("range reaches beyond the years 1 to 9999"),
            Self::TooManyPartitions { range, most } => {
                write!(f, "range from {} to {} needs more than {most} partitions", range.lower, range.upper)
            }
            Self::TooManyLocks { partitions, fit } => {
                write!(f, "{partitions} partitions do not fit into one transaction, only {fit}")
            }
            Self::TargetLocked { table, others, .. } => {
                write!(f, "could not lock {others}, connected with table {table} by foreign keys")
            }
        }
    }
}

impl Explain for Error {
    fn sqlstate(&self) -> &'static str {
        match self {
            Self::NotATable { .. } | Self::NotPartitioned { .. } | Self::IsPartition { .. } => "42809",
            Self::Temporary { .. }
            | Self::NotByRange { .. }
            | Self::SeveralColumns { .. }
            | Self::KeyIsExpression { .. }
            | Self::KeyType { .. }
            | Self::KeyOrder { .. }
            | Self::SubPartitioned { .. }
            | Self::ForeignPartition { .. } => "0A000",
            Self::KeyNullable { .. }
            | Self::DefaultPartition { .. }
            | Self::DefaultNotEmpty { .. }
            | Self::LastIsMaxvalue { .. }
            | Self::OwnerCannotLogIn { .. }
            | Self::RetentionUnderWay { .. } => "55000",
            Self::Width { .. }
            | Self::DateWidth { .. }
            | Self::TimeZone { .. }
            | Self::AmbiguousTimeZone { .. }
            | Self::Negative { .. } => "22023",
            Self::RangeEmptyOrInfinite { .. } | Self::RetentionBelowLateness { .. } => "22023",
            Self::RangeTooFar => "22008",
            Self::OwnerCannotCreate { .. } | Self::NotOwner { .. } => "42501",
            Self::AlreadyRegistered { .. } => "42710",
            Self::NotRegistered { .. } => "42704",
            Self::TooManyPartitions { .. } | Self::TooManyLocks { .. } => "54000",
            Self::TargetLocked { .. } => "55P03",
        }
    }

    fn detail(&self) -> Option<String> {
        Some(match self {
            Self::DefaultPartition { .. } => {
                "Attaching a partition would scan the default partition under ACCESS EXCLUSIVE, which stalls readers."
                    .into()
            }
            Self::TargetLocked { who, .. } => format!("They are used by {who}."),
            Self::OwnerCannotLogIn { .. } => "Background workers connect as the owner of the table.".into(),
            Self::TooManyLocks { .. } => {
                "Every new table and index takes a place in the lock table until the commit.".into()
            }
            Self::KeyNullable { .. } => {
                "A row without a time has no partition, and no default partition is made for it.".into()
            }
            _ => return None,
        })
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotATable { .. } => "Name a partitioned table.".into(),
            Self::NotPartitioned { .. } => {
                "Create it with PARTITION BY RANGE (a column of type timestamptz, timestamp or date).".into()
            }
            Self::Temporary { .. } => "Use a permanent or unlogged table.".into(),
            Self::IsPartition { .. } => "Name the partitioned table at the top.".into(),
            Self::NotByRange { .. } | Self::SeveralColumns { .. } | Self::KeyIsExpression { .. } => {
                "Use PARTITION BY RANGE on one plain column of type timestamptz, timestamp or date.".into()
            }
            Self::KeyType { .. } => "Use a key of type timestamptz, timestamp or date; integer and uuid keys come later.".into(),
            Self::KeyOrder { .. } => "Use the default operator class of the type in PARTITION BY RANGE.".into(),
            Self::KeyNullable { table, column } => format!("ALTER TABLE {table} ALTER COLUMN {column} SET NOT NULL;"),
            Self::DefaultPartition { table, partition } => format!(
                "If it is empty, at a quiet moment: {}; otherwise tally.plan_partition_by_time with the same arguments, or next_sql of \
                 tally.partition_status, leads its rows to partitions of their range.",
                default::detach(table, partition)
            ),
            Self::DefaultNotEmpty { advice, .. } => advice.clone(),
            Self::LastIsMaxvalue { table, partition } => format!(
                "Partitions are added after the last one, so it needs an end: ALTER TABLE {table} DETACH PARTITION {partition}; \
                 and attach it again with an upper bound."
            ),
            Self::SubPartitioned { .. } => "Sub-partitioned sets come later; use plain tables as partitions.".into(),
            Self::ForeignPartition { .. } => "Detach it, or keep this set without a policy.".into(),
            Self::Width { .. } => {
                "Use a divisor of a day from 1 minute to 12 hours, or 1 day, 1 week, 1, 3 or 6 months, 1 year.".into()
            }
            Self::DateWidth { .. } => "Use 1 day, 1 week, 1, 3 or 6 months, or 1 year.".into(),
            Self::TimeZone { .. } => {
                "Use a name of pg_timezone_names, such as Europe/Berlin; abbreviations and POSIX rules have no fixed calendar."
                    .into()
            }
            Self::AmbiguousTimeZone { .. } => {
                "AT TIME ZONE and date_trunc take it for a fixed distance from UTC, without summer time. Use the name of a place, such as Europe/Berlin."
                    .into()
            }
            Self::Negative { .. } => "Give zero or a positive interval.".into(),
            Self::RetentionBelowLateness { .. } => {
                "Rows as late as lateness must find a partition, so keep at least that; leave retention out to keep everything.".into()
            }
            Self::RetentionUnderWay { table, .. } => format!(
                "Bring what is to stay back with tally.undo_retention, or wait for the end of the grace: SELECT * FROM tally.retirements \
                 WHERE parent = {}::regclass;",
                crate::ident::literal(table)
            ),
            Self::OwnerCannotCreate { owner, schema } => format!("GRANT CREATE ON SCHEMA {schema} TO {owner};"),
            Self::OwnerCannotLogIn { owner } => format!("ALTER ROLE {owner} LOGIN;"),
            Self::AlreadyRegistered { .. } => {
                "Change it with tally.set_partition_policy, or forget it with tally.unregister_partitions first.".into()
            }
            Self::NotRegistered { table } => format!("SELECT tally.partition_by_time('{}', '1 day');", table.replace('\'', "''")),
            Self::RangeEmptyOrInfinite { .. } => "Give two finite times, the earlier one first.".into(),
            Self::TooManyPartitions { .. } => "Ask for shorter ranges one after another, or raise tally.premake_max.".into(),
            Self::TooManyLocks { .. } => {
                "Ask for less (a smaller lateness, a shorter range, a wider partition), or raise max_locks_per_transaction.".into()
            }
            Self::TargetLocked { .. } => "Call this again when they are quiet; a job tries again by itself.".into(),
            Self::NotOwner { .. } | Self::RangeTooFar => return None,
        })
    }
}
