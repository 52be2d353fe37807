//! The types that the loader writes itself, as the operation that makes a column's bytes.

use std::sync::Arc;

use crate::catalog::TableColumn;
use crate::config::{BytesFormat, ColumnRule, TimeFormat};

/// How a value is encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    /// With the column's (precision, scale).
    Numeric(Option<(i32, i32)>),
    /// With the longest length in characters; when that is the type's own limit, PostgreSQL cuts blanks beyond it.
    Text {
        limit: Option<u32>,
        blanks_are_cut: bool,
    },
    /// With its labels.
    Enum(Arc<[String]>),
    /// With or without time zone: both are stored as UTC.
    Timestamp(TimeFormat),
    Date,
    /// A time of day.
    Time,
    Timetz,
    Interval,
    Uuid,
    Bytea(BytesFormat),
    Json,
    Jsonb,
    Inet,
    Cidr,
    /// Of elements of a kind, whose type has this oid.
    Array(Box<Kind>, u32),
    /// Any other type: a string with what its input function reads. Only COPY in text format takes it.
    Input,
}

impl Kind {
    /// The kind of a column.
    pub fn of(column: &TableColumn, rule: &ColumnRule) -> Self {
        let Some(kind) = Self::of_type(&column.base, column.typmod, &column.labels, rule) else { return Self::Input };
        match column.element {
            Some(oid) => Self::Array(Box::new(kind), oid),
            None => kind,
        }
    }

    fn of_type(base: &str, typmod: i32, labels: &[String], rule: &ColumnRule) -> Option<Self> {
        Some(match base {
            _ if !labels.is_empty() => Self::Enum(labels.into()),
            "bool" => Self::Bool,
            "int2" => Self::Int2,
            "int4" => Self::Int4,
            "int8" => Self::Int8,
            "oid" => Self::Oid,
            "float4" => Self::Float4,
            "float8" => Self::Float8,
            // The scale has 11 bits and a sign since PostgreSQL 15; before, it was never negative.
            "numeric" if typmod >= 4 => {
                let typmod = typmod - 4;
                Self::Numeric(Some(((typmod >> 16) & 0xffff, ((typmod & 0x7ff) ^ 1024) - 1024)))
            }
            "numeric" => Self::Numeric(None),
            "text" => Self::Text { limit: rule.max_length, blanks_are_cut: false },
            "varchar" | "bpchar" => {
                let declared = (typmod >= 4).then_some(typmod as u32 - 4);
                match (declared, rule.max_length) {
                    (Some(own), Some(ours)) if ours < own => Self::Text { limit: Some(ours), blanks_are_cut: false },
                    (Some(own), _) => Self::Text { limit: Some(own), blanks_are_cut: true },
                    (None, ours) => Self::Text { limit: ours, blanks_are_cut: false },
                }
            }
            "timestamptz" | "timestamp" => Self::Timestamp(rule.time.unwrap_or_default()),
            "date" => Self::Date,
            "time" => Self::Time,
            "timetz" => Self::Timetz,
            "interval" => Self::Interval,
            "uuid" => Self::Uuid,
            "bytea" => Self::Bytea(rule.bytes.unwrap_or_default()),
            "json" => Self::Json,
            "jsonb" => Self::Jsonb,
            "inet" => Self::Inet,
            "cidr" => Self::Cidr,
            _ => return None,
        })
    }

    /// The kind of the single values: of the elements, if this is an array.
    pub fn element(&self) -> &Self {
        match self {
            Self::Array(element, _) => element,
            kind => kind,
        }
    }

    /// Whether the JSON is read as text, so that no digit is lost on the way.
    pub fn is_raw(&self) -> bool {
        matches!(self, Self::Float4 | Self::Float8 | Self::Numeric(_) | Self::Json | Self::Jsonb)
    }

    pub fn is_number(&self) -> bool {
        self.is_integer() || matches!(self, Self::Float4 | Self::Float8 | Self::Numeric(_))
    }

    pub fn is_integer(&self) -> bool {
        matches!(self, Self::Int2 | Self::Int4 | Self::Int8 | Self::Oid)
    }
}
