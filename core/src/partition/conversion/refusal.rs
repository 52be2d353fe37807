//! Why a table cannot be converted.

use crate::error::Explain;
use std::fmt;

/// What is in the way. Names are written as in SQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    NotATable { name: String },
    AlreadyPartitioned { table: String },
    IsPartition { table: String },
    Temporary { table: String },
    Unlogged { table: String },
    Foreign { table: String },
    Typed { table: String },
    Inheritance { table: String },
    OfExtension { table: String, extension: String },
    NoColumn { table: String, column: String },
    ColumnType { column: String, type_name: String },
    GeneratedColumn { column: String },
    UniqueWithoutTime { table: String, key: String, column: String },
    Exclusion { constraint: String },
    NotValidated { table: String, constraint: String },
    NoInherit { table: String, constraint: String },
    IncomingForeignKey { constraint: String, from: String },
    ViewOfOther { view: String, owner: String },
    MaterializedView { view: String },
    RowTypeUsed { table: String, by: String },
    Dependent { table: String, by: String },
    TransitionTable { trigger: String },
    PublicationOfOther { publication: String, owner: String },
    PublicationOfLeaves { publication: String },
    Subscribed { table: String },
    NullTimes { table: String, column: String },
    LateTimes { table: String, column: String, boundary: String },
    UnderWay { table: String },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotATable { name } => write!(f, "{name} is not a table"),
            Self::AlreadyPartitioned { table } => write!(f, "table {table} is partitioned already"),
            Self::IsPartition { table } => write!(f, "table {table} is a partition"),
            Self::Temporary { table } => write!(f, "table {table} is temporary"),
            Self::Unlogged { table } => write!(f, "table {table} is unlogged"),
            Self::Foreign { table } => write!(f, "{table} is a foreign table"),
            Self::Typed { table } => write!(f, "table {table} was created OF a type"),
            Self::Inheritance { table } => write!(f, "table {table} inherits, or is inherited from"),
            Self::OfExtension { table, extension } => write!(f, "table {table} belongs to the extension {extension}"),
            Self::NoColumn { table, column } => write!(f, "column {column} of table {table} does not exist"),
            Self::ColumnType { column, type_name } => write!(f, "column {column} has type {type_name}"),
            Self::GeneratedColumn { column } => write!(f, "column {column} is generated from other columns"),
            Self::UniqueWithoutTime { key, column, .. } => write!(f, "{key} is unique without the column {column}"),
            Self::Exclusion { constraint } => write!(f, "constraint {constraint} excludes rows by operators"),
            Self::NotValidated { table, constraint } => {
                write!(f, "constraint {constraint} of table {table} is not validated")
            }
            Self::NoInherit { table, constraint } => {
                write!(f, "constraint {constraint} of table {table} is NO INHERIT")
            }
            Self::IncomingForeignKey { constraint, from } => {
                write!(f, "foreign key {constraint} of table {from} refers to the table")
            }
            Self::ViewOfOther { view, owner } => write!(f, "view {view} on the table belongs to {owner}"),
            Self::MaterializedView { view } => write!(f, "materialized view {view} reads the table"),
            Self::RowTypeUsed { table, by } => write!(f, "the row type of table {table} is used by {by}"),
            Self::Dependent { table, by } => write!(f, "{by} depends on table {table}"),
            Self::TransitionTable { trigger } => write!(f, "row trigger {trigger} has a transition table"),
            Self::PublicationOfOther { publication, owner } => {
                write!(f, "publication {publication} of the table belongs to {owner}")
            }
            Self::PublicationOfLeaves { publication } => {
                write!(f, "publication {publication} would publish the table under the names of its partitions")
            }
            Self::Subscribed { table } => write!(f, "a subscription writes to table {table}"),
            Self::NullTimes { table, column } => write!(f, "column {column} of table {table} is null in some rows"),
            Self::LateTimes { table, column, boundary } => {
                write!(f, "column {column} of table {table} is {boundary} or later in some rows")
            }
            Self::UnderWay { table } => write!(f, "table {table} is being converted already"),
        }
    }
}

impl Explain for Refusal {
    fn sqlstate(&self) -> &'static str {
        match self {
            Self::NotATable { .. }
            | Self::AlreadyPartitioned { .. }
            | Self::IsPartition { .. }
            | Self::Foreign { .. } => "42809",
            Self::Temporary { .. }
            | Self::Unlogged { .. }
            | Self::Typed { .. }
            | Self::Inheritance { .. }
            | Self::Exclusion { .. }
            | Self::MaterializedView { .. }
            | Self::TransitionTable { .. } => "0A000",
            Self::NoColumn { .. } => "42703",
            Self::ColumnType { .. } => "42804",
            Self::GeneratedColumn { .. } | Self::UniqueWithoutTime { .. } | Self::NoInherit { .. } => "42P16",
            Self::OfExtension { .. }
            | Self::IncomingForeignKey { .. }
            | Self::RowTypeUsed { .. }
            | Self::Dependent { .. } => "2BP01",
            Self::ViewOfOther { .. } | Self::PublicationOfOther { .. } => "42501",
            Self::NotValidated { .. } | Self::PublicationOfLeaves { .. } | Self::Subscribed { .. } => "55000",
            Self::NullTimes { .. } => "23502",
            Self::LateTimes { .. } => "23514",
            Self::UnderWay { .. } => "42710",
        }
    }

    fn detail(&self) -> Option<String> {
        Some(match self {
            Self::UniqueWithoutTime { .. } => {
                "A unique key of a partitioned table contains the column that it is partitioned by.".into()
            }
            Self::PublicationOfLeaves { .. } => {
                "Subscribers have no tables of these names, and replication would stop.".into()
            }
            Self::Subscribed { .. } => "It would go on with the table and not with its name, and miss rows.".into(),
            Self::ViewOfOther { .. } => "Views follow the table and not its name, so they have to be replaced.".into(),
            _ => return None,
        })
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotATable { .. } => "Name an ordinary table.".into(),
            Self::AlreadyPartitioned { .. } => "Give it a policy: SELECT tally.partition_by_time(..).".into(),
            Self::IsPartition { .. } => {
                "Detach it first, or convert nothing: its parent is partitioned already.".into()
            }
            Self::Temporary { .. } => "Use a permanent table.".into(),
            Self::Unlogged { table } => {
                format!("ALTER TABLE {table} SET LOGGED; -- writes the whole table")
            }
            Self::Foreign { .. } => "Convert the table on the server that holds it.".into(),
            Self::Typed { table } => format!("ALTER TABLE {table} NOT OF;"),
            Self::Inheritance { .. } => "End it with ALTER TABLE .. NO INHERIT first.".into(),
            Self::OfExtension { extension, .. } => format!("Only the extension {extension} may change it."),
            Self::NoColumn { .. } => "Name the column of time by which rows are to be partitioned.".into(),
            Self::ColumnType { .. } => "Use a column of type timestamptz, timestamp or date.".into(),
            Self::GeneratedColumn { column } => format!("ALTER TABLE .. ALTER COLUMN {column} DROP EXPRESSION;"),
            Self::UniqueWithoutTime { column, .. } => format!(
                "With widen_keys => true {column} is added to it: it then tells apart no more than one row per value and time, and \
                 ON CONFLICT has to name the column too."
            ),
            Self::Exclusion { constraint } => format!("Drop the constraint {constraint} first."),
            Self::NotValidated { table, constraint } => {
                format!("ALTER TABLE {table} VALIDATE CONSTRAINT {constraint};")
            }
            Self::NoInherit { table, constraint } => {
                format!("ALTER TABLE {table} DROP CONSTRAINT {constraint}; and add it again without NO INHERIT.")
            }
            Self::IncomingForeignKey { constraint, from } => {
                format!("ALTER TABLE {from} DROP CONSTRAINT {constraint};")
            }
            Self::ViewOfOther { view, owner } => {
                format!(
                    "ALTER VIEW {view} OWNER TO the owner of the table, or have {owner} drop it and create it again afterwards."
                )
            }
            Self::MaterializedView { view } => {
                format!("Drop {view} first and create it again afterwards, or use a rollup.")
            }
            Self::RowTypeUsed { .. } | Self::Dependent { .. } => "Drop it first and create it again afterwards.".into(),
            Self::TransitionTable { trigger } => {
                format!("Make {trigger} a statement trigger, or drop it.")
            }
            Self::PublicationOfOther { publication, owner } => format!(
                "ALTER PUBLICATION {publication} OWNER TO the owner of the table, or have {owner} drop the table from it meanwhile."
            ),
            Self::PublicationOfLeaves { publication } => {
                format!("ALTER PUBLICATION {publication} SET (publish_via_partition_root = true);")
            }
            Self::Subscribed { .. } => {
                "Take the table out of the subscription first, and add it again afterwards.".into()
            }
            Self::NullTimes { table, column } => {
                format!("DELETE FROM {table} WHERE {column} IS NULL; or give these rows a time.")
            }
            Self::LateTimes { table, column, boundary } => {
                format!("Look at them: SELECT * FROM {table} WHERE {column} >= '{boundary}';")
            }
            Self::UnderWay { table } => {
                format!(
                    "SELECT * FROM tally.conversions; or, to end it: SELECT tally.cancel_conversion('{}');",
                    table.replace('\'', "''")
                )
            }
        })
    }
}
