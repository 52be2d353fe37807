//! Where rows go: the section `target`.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The table, as in SQL: `public.events`, `"Odd Name"`.
    pub table: String,
    #[serde(default)]
    pub unknown_fields: UnknownFields,
    /// What differs from "a column takes the field of its own name".
    #[serde(default)]
    pub columns: BTreeMap<String, ColumnRule>,
}

/// What happens to fields that no column takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum UnknownFields {
    #[default]
    Ignore,
    Reject,
    /// They are kept, as one JSON object, in this jsonb column.
    Column(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColumnRule {
    /// The field, when it has another name than the column; or `_topic`, `_partition`, `_offset`, `_timestamp`, `_key`, `_headers`.
    pub from: Option<String>,
    /// A message without a value for this column is a dead letter. NOT NULL columns are always required.
    #[serde(default)]
    pub required: bool,
    /// A string of digits is taken as a number.
    #[serde(default)]
    pub digits_in_string: bool,
    /// How a time is written.
    pub time: Option<TimeFormat>,
    /// How the bytes of a bytea are written.
    pub bytes: Option<BytesFormat>,
    /// What an absent value becomes.
    pub default: Option<ColumnDefault>,
    /// Longest text, in characters.
    pub max_length: Option<u32>,
    /// The column is not written at all; PostgreSQL fills it with its default.
    #[serde(default)]
    pub skip: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeFormat {
    #[default]
    Rfc3339OrEpochMs,
    Rfc3339,
    EpochMs,
    EpochS,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BytesFormat {
    /// `\x` and two hexadecimal digits for each byte, as PostgreSQL prints it.
    #[default]
    Hex,
    /// The alphabet of RFC 4648, section 4, with padding.
    Base64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ColumnDefault {
    BrokerTimestamp,
}

impl<'de> Deserialize<'de> for UnknownFields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Choice;
        impl<'de> Visitor<'de> for Choice {
            type Value = UnknownFields;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("\"ignore\", \"reject\" or { column = \"name\" }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<UnknownFields, E> {
                match text {
                    "ignore" => Ok(UnknownFields::Ignore),
                    "reject" => Ok(UnknownFields::Reject),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<UnknownFields, A::Error> {
                #[derive(Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Column {
                    column: String,
                }
                let column = Column::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(UnknownFields::Column(column.column))
            }
        }
        deserializer.deserialize_any(Choice)
    }
}
