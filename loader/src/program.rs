//! The column program: what each column of the target is made from, compiled once from catalog and configuration and then run
//! for each message. Printing it is what `check` is for.

mod fields;
mod path;

use std::fmt;

use crate::catalog::{Leaves, Table, TableColumn, TableDefault};
use crate::config::{ColumnDefault, ColumnRule, OnTombstone, Target, UnknownFields};
use crate::kind::Kind;
use crate::{Error, Result, copy};

pub use fields::{Fields, Parts, Taken};
pub use path::{Path, Step};

/// How to make a row of the target out of a message.
#[derive(Clone, Debug)]
pub struct Program {
    /// The columns that COPY names, in this order.
    pub columns: Vec<Column>,
    /// Which columns take which fields.
    pub fields: Fields,
    /// Whether rows can be made field by field as they come (`decode::flat`).
    pub is_flat: bool,
    pub format: Format,
    pub unknown: Unknown,
    pub tombstone: OnTombstone,
    pub leaves: Leaves,
    /// The column with the partition key, when it is written and its leaves are known.
    pub leaf_key: Option<usize>,
    pub copy: String,
    /// Qualified and quoted.
    pub table: String,
    /// The name alone, as the server's context has it.
    pub relation: String,
    pub table_oid: u32,
    /// A row may have to wait for another transaction that has an equal key.
    pub is_unique: bool,
    pub fingerprint: i64,
    /// The enums whose labels are part of the fingerprint.
    pub enums: Vec<u32>,
    /// Columns that PostgreSQL fills, with the reason.
    pub left_out: Vec<(String, String)>,
    /// Larger values are dead letters.
    pub max_value: usize,
    /// Whether any column is made from the headers.
    pub headers: bool,
}

/// The format of the whole COPY; it has one for all columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Binary,
    /// A column has a type whose bytes the loader does not know.
    Text,
}

/// What happens to a field that no column takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    Ignore,
    Reject,
    /// It is collected into this column.
    Keep(usize),
}

#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    /// As declared in the table.
    pub declared: String,
    /// Its times have no zone, and one without a zone means what it says.
    pub is_without_zone: bool,
    pub kind: Kind,
    pub from: From,
    /// No value: the message is a dead letter.
    pub required: bool,
    pub digits_in_string: bool,
    pub absent: Absent,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    Field(Path),
    Pseudo(Pseudo),
    /// The fields that no other column takes.
    UnknownFields,
}

/// What a message has beside its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pseudo {
    Topic,
    Partition,
    Offset,
    Timestamp,
    Key,
    Headers,
}

/// What an absent value becomes. A JSON null is a value: NULL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absent {
    Null,
    /// The constant default of the column, as its binary form.
    Constant(Vec<u8>),
    /// The broker's timestamp; also for null.
    BrokerTimestamp,
}

/// Name of the extension's row tag, which only the server may fill.
const ROW_TAG: &str = "tally_tag";

impl Program {
    /// Compiles the program, or says which column stands against it.
    pub fn compile(table: &Table, target: &Target, tombstone: OnTombstone, max_value: usize) -> Result<Self> {
        for name in target.columns.keys() {
            if !table.columns.iter().any(|column| column.name == *name) {
                return Err(Error::unfit(format!("target.columns.{name}: {} has no such column", table.name)));
            }
        }
        let kept = match &target.unknown_fields {
            UnknownFields::Column(name) => Some(name),
            _ => None,
        };
        if let Some(name) = kept {
            match table.columns.iter().find(|column| column.name == *name) {
                Some(column) if column.base == "jsonb" && column.element.is_none() => {}
                Some(column) => {
                    return Err(Error::unfit(format!(
                        "target.unknown_fields: column \"{name}\" has type {}, not jsonb",
                        column.declared
                    )));
                }
                None => {
                    return Err(Error::unfit(format!(
                        "target.unknown_fields: {} has no column \"{name}\"",
                        table.name
                    )));
                }
            }
        }
        let mut columns = Vec::new();
        let mut left_out = Vec::new();
        for column in &table.columns {
            let rule = target.columns.get(&column.name);
            let is_kept = kept == Some(&column.name);
            match left_out_because(column, rule, is_kept)? {
                Some(reason) => left_out.push((column.name.clone(), reason)),
                None => columns.push(compile_column(column, rule.unwrap_or(&ColumnRule::default()), is_kept)?),
            }
        }
        let mut fields = Fields::default();
        for (index, column) in columns.iter().enumerate() {
            if let From::Field(path) = &column.from {
                fields.add(path.steps(), index);
            }
        }
        if columns.is_empty() {
            return Err(Error::unfit(format!("no column of {} is written", table.name)));
        }
        let names: Vec<String> = columns.iter().map(|column| quote(&column.name)).collect();
        let format = match columns.iter().any(|column| column.kind == Kind::Input) {
            true => Format::Text,
            false => Format::Binary,
        };
        for column in columns.iter().filter(|_| format == Format::Text) {
            if let Absent::Constant(bytes) = &column.absent
                && copy::print(&mut Vec::new(), &column.kind, bytes).is_none()
            {
                return Err(Error::Bug(format!("the default of column \"{}\" cannot be printed", column.name)));
            }
        }
        let leaf_key = match &table.leaves {
            Leaves::Range(range) => columns.iter().position(|column| column.name == range.column),
            Leaves::Unknown => None,
        };
        Ok(Self {
            unknown: match &target.unknown_fields {
                UnknownFields::Ignore => Unknown::Ignore,
                UnknownFields::Reject => Unknown::Reject,
                UnknownFields::Column(_) => Unknown::Keep(
                    columns
                        .iter()
                        .position(|column| column.from == From::UnknownFields)
                        .ok_or_else(|| Error::unfit("target.unknown_fields names a column that is not written"))?,
                ),
            },
            copy: format!("COPY {} ({}) FROM STDIN (FORMAT {format})", table.name, names.join(", ")),
            format,
            headers: columns.iter().any(|column| column.from == From::Pseudo(Pseudo::Headers)),
            columns,
            is_flat: format == Format::Binary && fields.are_whole(),
            fields,
            tombstone,
            leaves: table.leaves.clone(),
            leaf_key,
            table: table.name.clone(),
            relation: table.relation.clone(),
            table_oid: table.oid,
            is_unique: table.is_unique,
            fingerprint: table.fingerprint,
            enums: table.enums.clone(),
            left_out,
            max_value,
        })
    }

    /// The same program for other leaves.
    pub fn with_leaves(&self, leaves: Leaves) -> Self {
        let leaf_key = match &leaves {
            Leaves::Range(range) => self.columns.iter().position(|column| column.name == range.column),
            Leaves::Unknown => None,
        };
        Self { leaves, leaf_key, ..self.clone() }
    }

    /// The columns for which the whole COPY is text.
    pub fn text_columns(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| column.kind == Kind::Input)
    }
}

/// Why PostgreSQL fills a column and the loader does not; `None` when the loader writes it.
fn left_out_because(column: &TableColumn, rule: Option<&ColumnRule>, is_kept: bool) -> Result<Option<String>> {
    if rule.is_some_and(|rule| rule.skip) {
        if is_kept || rule.is_some_and(|rule| *rule != ColumnRule { skip: true, ..ColumnRule::default() }) {
            return Err(Error::unfit(format!("target.columns.{}: skip cannot be combined with anything", column.name)));
        }
        return Ok(Some("skip in the configuration".into()));
    }
    let mapped = rule.is_some() || is_kept;
    match &column.default {
        TableDefault::Generated if mapped => {
            Err(Error::unfit(format!("target.columns.{}: a generated column cannot be written", column.name)))
        }
        TableDefault::Generated => Ok(Some("generated".into())),
        _ if column.name == ROW_TAG && mapped => {
            Err(Error::unfit(format!("target.columns.{ROW_TAG}: the row tag is filled by the extension alone")))
        }
        _ if column.name == ROW_TAG => Ok(Some("row tag of the extension".into())),
        TableDefault::Identity if !mapped => Ok(Some("identity".into())),
        TableDefault::Computed(text) if !mapped => Ok(Some(format!("default {text}; map it to take the field"))),
        _ => Ok(None),
    }
}

fn compile_column(column: &TableColumn, rule: &ColumnRule, is_kept: bool) -> Result<Column> {
    let unfit = |what: &str| Err(Error::unfit(format!("target.columns.{}: {what}", column.name)));
    if is_kept && *rule != ColumnRule::default() {
        return unfit("the column of target.unknown_fields takes no other setting");
    }
    let from = match rule.from.as_deref() {
        _ if is_kept => From::UnknownFields,
        None => From::Field(Path::field(&column.name)),
        Some("_topic") => From::Pseudo(Pseudo::Topic),
        Some("_partition") => From::Pseudo(Pseudo::Partition),
        Some("_offset") => From::Pseudo(Pseudo::Offset),
        Some("_timestamp") => From::Pseudo(Pseudo::Timestamp),
        Some("_key") => From::Pseudo(Pseudo::Key),
        Some("_headers") => From::Pseudo(Pseudo::Headers),
        Some(path) => match Path::parse(path) {
            Ok(path) => From::Field(path),
            Err(what) => return unfit(&format!("from = {path:?} is no path such as a.b[0]: {what}")),
        },
    };
    let kind = Kind::of(column, rule);
    let is_text = matches!(kind.element(), Kind::Text { .. });
    let is_time = matches!(kind.element(), Kind::Timestamp(_));
    if rule.time.is_some() && !is_time {
        return unfit("time is for timestamp columns");
    }
    if rule.max_length.is_some() && !is_text {
        return unfit("max_length is for text columns");
    }
    if rule.bytes.is_some() && !matches!(kind.element(), Kind::Bytea(_)) {
        return unfit("bytes is for bytea columns");
    }
    if rule.digits_in_string && !kind.element().is_number() {
        return unfit("digits_in_string is for numbers");
    }
    if rule.default == Some(ColumnDefault::BrokerTimestamp) && !matches!(kind, Kind::Timestamp(_)) {
        return unfit("default = \"broker-timestamp\" is for timestamp columns");
    }
    if let From::Pseudo(pseudo) = &from {
        let fits = match pseudo {
            Pseudo::Topic => matches!(kind, Kind::Text { .. }),
            Pseudo::Key => matches!(kind, Kind::Text { .. } | Kind::Bytea(_)),
            Pseudo::Partition => matches!(kind, Kind::Int4 | Kind::Int8),
            Pseudo::Offset => kind == Kind::Int8,
            Pseudo::Timestamp => matches!(kind, Kind::Timestamp(_)),
            Pseudo::Headers => kind == Kind::Jsonb,
        };
        if !fits {
            return unfit(&format!("type {} cannot hold {pseudo}", column.declared));
        }
    }
    Ok(Column {
        name: column.name.clone(),
        declared: column.declared.clone(),
        is_without_zone: column.declared.trim_end_matches("[]").ends_with("without time zone"),
        from,
        required: rule.required || column.not_null,
        digits_in_string: rule.digits_in_string,
        absent: match (&rule.default, &column.default) {
            (Some(ColumnDefault::BrokerTimestamp), _) => Absent::BrokerTimestamp,
            (None, TableDefault::Constant { input, .. }) if kind == Kind::Input => {
                Absent::Constant(input.clone().into_bytes())
            }
            (None, TableDefault::Constant { bytes, .. }) => Absent::Constant(bytes.clone()),
            _ => Absent::Null,
        },
        kind,
    })
}

/// An SQL identifier, always quoted.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Binary => "binary",
            Self::Text => "text",
        })
    }
}

impl fmt::Display for Pseudo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Topic => "_topic",
            Self::Partition => "_partition",
            Self::Offset => "_offset",
            Self::Timestamp => "_timestamp",
            Self::Key => "_key",
            Self::Headers => "_headers",
        })
    }
}

impl fmt::Display for Program {
    /// One line for each column: what it is and where it comes from.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for column in &self.columns {
            let from = match &column.from {
                From::Field(path) => match path.steps() {
                    [Step::Member(name)] => format!("field \"{name}\""),
                    _ => format!("path {path}"),
                },
                From::Pseudo(pseudo) => pseudo.to_string(),
                From::UnknownFields => "all other fields".to_owned(),
            };
            write!(formatter, "  {} {} <- {from}", quote(&column.name), column.declared)?;
            match &column.absent {
                Absent::BrokerTimestamp => write!(formatter, ", absent: broker timestamp")?,
                Absent::Constant(_) => write!(formatter, ", absent: the column's default")?,
                Absent::Null if column.required => write!(formatter, ", required")?,
                Absent::Null => {}
            }
            if column.kind == Kind::Input {
                write!(formatter, ", as text for the type's input function")?;
            }
            if column.digits_in_string {
                write!(formatter, ", digits in a string are a number")?;
            }
            writeln!(formatter)?;
        }
        if self.format == Format::Text {
            let names: Vec<String> = self.text_columns().map(|column| quote(&column.name)).collect();
            writeln!(formatter, "  COPY in text format, which is slower, because of {}", names.join(", "))?;
        }
        for (name, reason) in &self.left_out {
            writeln!(formatter, "  {} not written: {reason}", quote(name))?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests;
