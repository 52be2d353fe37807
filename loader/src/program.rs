//! The column program: what each column of the target is made from, compiled once from catalog and configuration and then run
//! for each message. Printing it is what `check` is for.

use std::fmt;

use crate::catalog::{Leaves, Table, TableColumn, TableDefault};
use crate::config::{ColumnDefault, ColumnRule, OnTombstone, Target, TimeFormat, UnknownFields};
use crate::{Error, Result};

/// How to make a row of the target out of a message.
#[derive(Clone, Debug)]
pub struct Program {
    /// The columns that COPY names, in this order.
    pub columns: Vec<Column>,
    /// Which column takes a field.
    fields: Vec<(Box<str>, usize)>,
    pub unknown: Unknown,
    pub tombstone: OnTombstone,
    pub leaves: Leaves,
    /// The column with the partition key, when it is written and its leaves are known.
    pub leaf_key: Option<usize>,
    pub copy: String,
    pub table: String,
    pub table_oid: u32,
    pub fingerprint: i64,
    /// Columns that PostgreSQL fills, with the reason.
    pub left_out: Vec<(String, String)>,
    /// Larger values are dead letters.
    pub max_value: usize,
    /// Whether any column is made from the headers.
    pub headers: bool,
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
    pub kind: Kind,
    pub from: From,
    /// No value: the message is a dead letter.
    pub required: bool,
    pub digits_in_string: bool,
    pub absent: Absent,
}

/// How a value is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    /// With the column's (precision, scale).
    Numeric(Option<(i32, i32)>),
    /// With the longest length in characters; when that is the type's own limit, PostgreSQL cuts blanks beyond it.
    Text {
        limit: Option<u32>,
        blanks_are_cut: bool,
    },
    Time(TimeFormat),
    Uuid,
    Json,
    Jsonb,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    Field(String),
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
                Some(column) if column.base == "jsonb" => {}
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
        let mut fields: Vec<(Box<str>, usize)> = Vec::new();
        for (index, column) in columns.iter().enumerate() {
            if let From::Field(field) = &column.from {
                if let Some((_, other)) = fields.iter().find(|(name, _)| **name == **field) {
                    return Err(Error::unfit(format!(
                        "columns \"{}\" and \"{}\" both take the field \"{field}\", which is not built yet",
                        columns[*other].name, column.name
                    )));
                }
                fields.push((field.as_str().into(), index));
            }
        }
        if columns.is_empty() {
            return Err(Error::unfit(format!("no column of {} is written", table.name)));
        }
        let names: Vec<String> = columns.iter().map(|column| quote(&column.name)).collect();
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
            copy: format!("COPY {} ({}) FROM STDIN (FORMAT binary)", table.name, names.join(", ")),
            headers: columns.iter().any(|column| column.from == From::Pseudo(Pseudo::Headers)),
            columns,
            fields,
            tombstone,
            leaves: table.leaves.clone(),
            leaf_key,
            table: table.name.clone(),
            table_oid: table.oid,
            fingerprint: table.fingerprint,
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

    /// The column that takes a field. Producers write their fields in one order, so the search starts where the last one
    /// ended; `hint` is that place and moves on.
    pub fn column_of(&self, field: &str, hint: &mut usize) -> Option<usize> {
        let count = self.fields.len();
        for step in 0..count {
            let mut at = *hint + step;
            if at >= count {
                at -= count;
            }
            let (name, column) = &self.fields[at];
            if **name == *field {
                *hint = if at + 1 == count { 0 } else { at + 1 };
                return Some(*column);
            }
        }
        None
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
        None => From::Field(column.name.clone()),
        Some("_topic") => From::Pseudo(Pseudo::Topic),
        Some("_partition") => From::Pseudo(Pseudo::Partition),
        Some("_offset") => From::Pseudo(Pseudo::Offset),
        Some("_timestamp") => From::Pseudo(Pseudo::Timestamp),
        Some("_key") => From::Pseudo(Pseudo::Key),
        Some("_headers") => From::Pseudo(Pseudo::Headers),
        Some(path) if path.contains(['.', '[']) => {
            return unfit("a path into nested objects is not built yet; name a field of the outermost object");
        }
        Some(field) => From::Field(field.to_owned()),
    };
    let kind = match column.base.as_str() {
        "bool" => Kind::Bool,
        "int2" => Kind::Int2,
        "int4" => Kind::Int4,
        "int8" => Kind::Int8,
        "float4" => Kind::Float4,
        "float8" => Kind::Float8,
        // The scale has 11 bits and a sign since PostgreSQL 15; before, it was never negative.
        "numeric" if column.typmod >= 4 => {
            let typmod = column.typmod - 4;
            Kind::Numeric(Some(((typmod >> 16) & 0xffff, ((typmod & 0x7ff) ^ 1024) - 1024)))
        }
        "numeric" => Kind::Numeric(None),
        "text" => Kind::Text { limit: rule.max_length, blanks_are_cut: false },
        "varchar" | "bpchar" => {
            let declared = (column.typmod >= 4).then_some(column.typmod as u32 - 4);
            match (declared, rule.max_length) {
                (Some(own), Some(ours)) if ours < own => Kind::Text { limit: Some(ours), blanks_are_cut: false },
                (Some(own), _) => Kind::Text { limit: Some(own), blanks_are_cut: true },
                (None, ours) => Kind::Text { limit: ours, blanks_are_cut: false },
            }
        }
        "timestamptz" | "timestamp" => Kind::Time(rule.time.unwrap_or_default()),
        "uuid" => Kind::Uuid,
        "json" => Kind::Json,
        "jsonb" => Kind::Jsonb,
        _ => {
            return Err(Error::unfit_hint(
                format!("column \"{}\" has type {}, which tally-loader cannot write yet", column.name, column.declared),
                format!("Leave it to its default: columns.{} = {{ skip = true }}.", quote_key(&column.name)),
            ));
        }
    };
    let is_text = matches!(kind, Kind::Text { .. });
    let is_time = matches!(kind, Kind::Time(_));
    let is_number =
        matches!(kind, Kind::Int2 | Kind::Int4 | Kind::Int8 | Kind::Float4 | Kind::Float8 | Kind::Numeric(_));
    if rule.time.is_some() && !is_time {
        return unfit("time is for timestamp columns");
    }
    if rule.max_length.is_some() && !is_text {
        return unfit("max_length is for text columns");
    }
    if rule.digits_in_string && !is_number {
        return unfit("digits_in_string is for numbers");
    }
    if rule.default == Some(ColumnDefault::BrokerTimestamp) && !is_time {
        return unfit("default = \"broker-timestamp\" is for timestamp columns");
    }
    if let From::Pseudo(pseudo) = &from {
        let fits = match pseudo {
            Pseudo::Topic | Pseudo::Key => is_text,
            Pseudo::Partition => matches!(kind, Kind::Int4 | Kind::Int8),
            Pseudo::Offset => kind == Kind::Int8,
            Pseudo::Timestamp => is_time,
            Pseudo::Headers => kind == Kind::Jsonb,
        };
        if !fits {
            return unfit(&format!("type {} cannot hold {pseudo}", column.declared));
        }
    }
    Ok(Column {
        name: column.name.clone(),
        declared: column.declared.clone(),
        kind,
        from,
        required: rule.required || column.not_null,
        digits_in_string: rule.digits_in_string,
        absent: match (&rule.default, &column.default) {
            (Some(ColumnDefault::BrokerTimestamp), _) => Absent::BrokerTimestamp,
            (None, TableDefault::Constant { bytes, .. }) => Absent::Constant(bytes.clone()),
            _ => Absent::Null,
        },
    })
}

/// An SQL identifier, always quoted.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A TOML key, quoted where it has to be.
fn quote_key(name: &str) -> String {
    if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-') && !name.is_empty() {
        name.to_owned()
    } else {
        format!("{name:?}")
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
                From::Field(field) => format!("field \"{field}\""),
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
            if column.digits_in_string {
                write!(formatter, ", digits in a string are a number")?;
            }
            writeln!(formatter)?;
        }
        for (name, reason) in &self.left_out {
            writeln!(formatter, "  {} not written: {reason}", quote(name))?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn column(name: &str, base: &str) -> TableColumn {
        TableColumn {
            name: name.into(),
            declared: base.into(),
            base: base.into(),
            typmod: -1,
            ..TableColumn::default()
        }
    }

    pub(crate) fn table(columns: Vec<TableColumn>) -> Table {
        Table { name: "public.events".into(), columns, ..Table::default() }
    }

    pub(crate) fn target(rules: &str) -> Target {
        toml::from_str(&format!("table = \"public.events\"\n{rules}")).unwrap()
    }

    pub(crate) fn compile(table: &Table, rules: &str) -> Result<Program> {
        Program::compile(table, &target(rules), OnTombstone::Skip, 1 << 20)
    }

    fn message(table: &Table, rules: &str) -> String {
        compile(table, rules).unwrap_err().to_string()
    }

    #[test]
    fn columns_take_the_field_of_their_name_and_defaults_stay_with_postgres() {
        let mut id = column("event_id", "int8");
        id.default = TableDefault::Computed("nextval('events_event_id_seq'::regclass)".into());
        let mut always = column("n", "int4");
        always.default = TableDefault::Identity;
        let mut generated = column("g", "int4");
        generated.default = TableDefault::Generated;
        let table = table(vec![id, column("customer_id", "int8"), column("tally_tag", "int8"), always, generated]);
        let program = compile(&table, "").unwrap();
        assert_eq!(program.copy, "COPY public.events (\"customer_id\") FROM STDIN (FORMAT binary)");
        assert_eq!(program.left_out.len(), 4);
        let program = compile(&table, "columns.event_id = { from = \"id\" }").unwrap();
        assert_eq!(program.columns[0].from, From::Field("id".into()));
        assert!(message(&table, "columns.tally_tag = {}").contains("row tag"));
        assert!(message(&table, "columns.g = {}").contains("generated"));
    }

    #[test]
    fn a_type_that_cannot_be_written_is_named_with_its_column() {
        let mut sketch = column("devices", "tally.hll");
        sketch.declared = "tally.hll".into();
        let table = table(vec![column("a", "int4"), sketch]);
        let error = compile(&table, "").unwrap_err();
        assert_eq!(error.to_string(), "column \"devices\" has type tally.hll, which tally-loader cannot write yet");
        assert_eq!(error.hint(), Some("Leave it to its default: columns.devices = { skip = true }."));
        assert_eq!(error.code(), 3);
        assert!(compile(&table, "columns.devices = { skip = true }").is_ok());
    }

    #[test]
    fn rules_that_do_not_fit_are_refused() {
        let table = table(vec![column("a", "int4"), column("t", "text"), column("j", "jsonb")]);
        for (rules, expected) in [
            ("columns.b = {}", "no such column"),
            ("columns.a = { time = \"rfc3339\" }", "time is for"),
            ("columns.a = { max_length = 3 }", "max_length is for"),
            ("columns.t = { digits_in_string = true }", "digits_in_string is for"),
            ("columns.t = { default = \"broker-timestamp\" }", "broker-timestamp"),
            ("columns.t = { from = \"_offset\" }", "cannot hold _offset"),
            ("columns.t = { from = \"a.b\" }", "not built yet"),
            ("columns.t = { from = \"a\" }", "both take the field"),
            ("columns.a = { skip = true, required = true }", "skip cannot be combined"),
            ("unknown_fields = { column = \"t\" }", "not jsonb"),
            ("unknown_fields = { column = \"x\" }", "no column"),
        ] {
            assert!(message(&table, rules).contains(expected), "{rules}: {}", message(&table, rules));
        }
        assert!(compile(&table, "unknown_fields = { column = \"j\" }").is_ok());
    }

    #[test]
    fn typmods_give_precision_and_length() {
        let mut number = column("n", "numeric");
        number.typmod = 4 + ((10 << 16) | 2);
        let mut negative = column("m", "numeric");
        negative.typmod = 4 + ((3 << 16) | (0x7ff & -2i32));
        let mut text = column("v", "varchar");
        text.typmod = 4 + 20;
        let program = compile(&table(vec![number, negative, text]), "").unwrap();
        assert_eq!(program.columns[0].kind, Kind::Numeric(Some((10, 2))));
        assert_eq!(program.columns[1].kind, Kind::Numeric(Some((3, -2))));
        assert_eq!(program.columns[2].kind, Kind::Text { limit: Some(20), blanks_are_cut: true });
    }

    #[test]
    fn fields_are_found_in_any_order() {
        let program = compile(&table(vec![column("a", "int4"), column("b", "int4"), column("c", "int4")]), "").unwrap();
        let mut hint = 0;
        for (field, expected) in [
            ("a", Some(0)),
            ("b", Some(1)),
            ("c", Some(2)),
            ("a", Some(0)),
            ("c", Some(2)),
            ("b", Some(1)),
            ("x", None),
        ] {
            assert_eq!(program.column_of(field, &mut hint), expected);
        }
    }
}
