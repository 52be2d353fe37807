//! A message becomes a row in COPY's binary form, a dead letter or a skip. The JSON is never held as a tree: each field is
//! encoded the moment the parser meets it (`decode::value`), and the row is put together in the order of the columns.

mod value;

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::catalog::{Leaves, integer};
use crate::config::OnTombstone;
use crate::copy;
use crate::message::Message;
use crate::program::{Absent, From, Kind, Program, Pseudo, Unknown};
use value::ValueSeed;

/// Why a message is no row. The names are those in `tally.dead_letters.reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    NotJson,
    NotObject,
    MissingRequired,
    WrongType,
    OutOfRange,
    TooLong,
    BadText,
    NoPartition,
    TooLarge,
    Tombstone,
    UnknownField,
    Constraint,
}

impl Reason {
    pub const ALL: [Self; 12] = [
        Self::NotJson,
        Self::NotObject,
        Self::MissingRequired,
        Self::WrongType,
        Self::OutOfRange,
        Self::TooLong,
        Self::BadText,
        Self::NoPartition,
        Self::TooLarge,
        Self::Tombstone,
        Self::UnknownField,
        Self::Constraint,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotJson => "not_json",
            Self::NotObject => "not_object",
            Self::MissingRequired => "missing_required",
            Self::WrongType => "wrong_type",
            Self::OutOfRange => "out_of_range",
            Self::TooLong => "too_long",
            Self::BadText => "bad_text",
            Self::NoPartition => "no_partition",
            Self::TooLarge => "too_large",
            Self::Tombstone => "tombstone",
            Self::UnknownField => "unknown_field",
            Self::Constraint => "constraint",
        }
    }
}

/// A message that is no row, with the column or field at fault. `error` never repeats the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub reason: Reason,
    pub column: Option<String>,
    pub sqlstate: Option<String>,
    pub error: String,
}

impl Rejection {
    pub fn new(reason: Reason, column: Option<&str>, error: impl Into<String>) -> Self {
        Self { reason, column: column.map(str::to_owned), sqlstate: None, error: error.into() }
    }
}

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A row was appended.
    Row,
    /// Left out on purpose: a tombstone.
    Skip,
    Dead(Rejection),
}

/// Where the bytes of a column are, during one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Absent,
    Null,
    /// Length and bytes, in the scratch buffer.
    At(u32, u32),
}

/// Decodes messages; it holds buffers, so that a message costs no allocation.
#[derive(Debug, Default)]
pub struct Decoder {
    slots: Vec<Slot>,
    scratch: Vec<u8>,
    /// The object of unknown fields, being built.
    unknown: Vec<u8>,
    hint: usize,
}

impl Decoder {
    /// Appends the row of a message to `out`, or says why there is none; then `out` is as before.
    pub fn decode(&mut self, program: &Program, topic: &str, message: Message<'_>, out: &mut Vec<u8>) -> Outcome {
        self.slots.clear();
        self.slots.resize(program.columns.len(), Slot::Absent);
        self.scratch.clear();
        self.unknown.clear();
        self.hint = 0;
        match (message.value, program.tombstone) {
            (None, OnTombstone::Skip) => return Outcome::Skip,
            (None, OnTombstone::DeadLetter) => {
                return Outcome::Dead(Rejection::new(Reason::Tombstone, None, "the message has no value"));
            }
            (None, OnTombstone::Row) => {}
            (Some(value), _) if value.len() > program.max_value => {
                let error = format!("the value has {} bytes, more than {}", value.len(), program.max_value);
                return Outcome::Dead(Rejection::new(Reason::TooLarge, None, error));
            }
            (Some(value), _) => {
                if let Err(rejection) = self.parse(program, value) {
                    return Outcome::Dead(rejection);
                }
            }
        }
        match self.assemble(program, topic, message, out) {
            Ok(()) => Outcome::Row,
            Err((start, rejection)) => {
                out.truncate(start);
                Outcome::Dead(rejection)
            }
        }
    }

    fn parse(&mut self, program: &Program, value: &[u8]) -> Result<(), Rejection> {
        let text = std::str::from_utf8(value).map_err(|_| {
            // An object with a broken string, or something binary altogether.
            match value.trim_ascii_start().first() {
                Some(b'{') => Rejection::new(Reason::BadText, None, "the message is not valid UTF-8"),
                _ => Rejection::new(Reason::NotJson, None, "the message is neither JSON nor text"),
            }
        })?;
        let mut rejection = None;
        let mut json = serde_json::Deserializer::from_str(text);
        let row = Row { program, decoder: self, rejection: &mut rejection };
        let Err(error) = row.deserialize(&mut json).and_then(|()| json.end()) else { return Ok(()) };
        // A field can be wrong in a message that is no JSON further on: the whole decides.
        if let Err(error) = serde_json::from_str::<IgnoredAny>(text) {
            return Err(Rejection::new(Reason::NotJson, None, error.to_string()));
        }
        Err(rejection.unwrap_or_else(|| {
            if error.is_data() && text.trim_ascii_start().as_bytes().first() != Some(&b'{') {
                Rejection::new(Reason::NotObject, None, "the message is JSON, but no object")
            } else {
                // The grammar is right, so it is a string with half of a surrogate pair.
                Rejection::new(Reason::BadText, None, error.to_string())
            }
        }))
    }

    /// Puts the row together in the order of the columns. On failure it says where the row began.
    fn assemble(
        &mut self,
        program: &Program,
        topic: &str,
        message: Message<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), (usize, Rejection)> {
        let start = out.len();
        if let Unknown::Keep(column) = program.unknown
            && !self.unknown.is_empty()
        {
            self.unknown.push(b'}');
            let at = self.scratch.len();
            copy::jsonb(&mut self.scratch, &self.unknown);
            self.slots[column] = Slot::At(at as u32, self.scratch.len() as u32);
        }
        copy::row(out, program.columns.len());
        for (index, column) in program.columns.iter().enumerate() {
            let field = out.len();
            match (self.slots[index], &column.from, &column.absent) {
                (Slot::At(from, to), _, _) => out.extend_from_slice(&self.scratch[from as usize..to as usize]),
                (_, From::Pseudo(pseudo), _) => {
                    pseudo_field(out, *pseudo, column.kind, topic, message)
                        .map_err(|(reason, error)| (start, Rejection::new(reason, Some(&column.name), error)))?;
                }
                (_, _, Absent::BrokerTimestamp) => match message.time.and_then(copy::from_unix_milliseconds) {
                    Some(time) => copy::field(out, &time.to_be_bytes()),
                    None => out.extend_from_slice(copy::NULL),
                },
                (Slot::Absent, _, Absent::Constant(bytes)) => copy::field(out, bytes),
                _ => out.extend_from_slice(copy::NULL),
            }
            if column.required && out[field..field + 4] == *copy::NULL {
                let error = "the message has no value for this column";
                return Err((start, Rejection::new(Reason::MissingRequired, Some(&column.name), error)));
            }
            if program.leaf_key == Some(index)
                && let Leaves::Range(leaves) = &program.leaves
                && !integer(&out[field + 4..]).is_some_and(|key| leaves.accepts(key))
            {
                let error = format!("no partition of {} takes this value", program.table);
                return Err((start, Rejection::new(Reason::NoPartition, Some(&column.name), error)));
            }
        }
        Ok(())
    }
}

fn pseudo_field(
    out: &mut Vec<u8>,
    pseudo: Pseudo,
    kind: Kind,
    topic: &str,
    message: Message<'_>,
) -> Result<(), (Reason, &'static str)> {
    match (pseudo, kind) {
        (Pseudo::Topic, _) => copy::field(out, topic.as_bytes()),
        (Pseudo::Partition, Kind::Int8) => copy::field(out, &i64::from(message.part).to_be_bytes()),
        (Pseudo::Partition, _) => copy::field(out, &message.part.to_be_bytes()),
        (Pseudo::Offset, _) => copy::field(out, &message.offset.to_be_bytes()),
        (Pseudo::Timestamp, _) => {
            let time = message.time.and_then(copy::from_unix_milliseconds).map(i64::to_be_bytes);
            copy::nullable(out, time.as_ref().map(|bytes| &bytes[..]));
        }
        (Pseudo::Key, kind) => match message.key {
            None => copy::nullable(out, None),
            Some(key) => {
                let text = std::str::from_utf8(key).map_err(|_| (Reason::BadText, "the key is not valid UTF-8"))?;
                value::text(out, text, kind)?;
            }
        },
        (Pseudo::Headers, _) => match message.headers {
            None => copy::nullable(out, None),
            Some(headers) => copy::jsonb(out, headers),
        },
    }
    Ok(())
}

/// The outermost object.
struct Row<'a> {
    program: &'a Program,
    decoder: &'a mut Decoder,
    rejection: &'a mut Option<Rejection>,
}

impl<'de> DeserializeSeed<'de> for Row<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Row<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { program, decoder, rejection } = self;
        loop {
            let key = FieldName { program, hint: &mut decoder.hint, unknown: &mut decoder.unknown };
            let Some(field) = map.next_key_seed(key)? else { return Ok(()) };
            match field {
                Field::Column(index) => {
                    let start = decoder.scratch.len();
                    let column = &program.columns[index];
                    let mut failure = None;
                    let seed = ValueSeed { column, out: &mut decoder.scratch, failure: &mut failure };
                    let value = map.next_value_seed(seed);
                    if let Some((reason, error)) = failure {
                        *rejection = Some(Rejection::new(reason, Some(&column.name), error));
                    }
                    // A field that comes twice: the last one wins.
                    decoder.slots[index] =
                        if value? { Slot::At(start as u32, decoder.scratch.len() as u32) } else { Slot::Null };
                }
                Field::Ignored => {
                    map.next_value::<IgnoredAny>()?;
                }
                Field::Refused(name) => {
                    *rejection = Some(Rejection::new(Reason::UnknownField, Some(&name), "no column takes this field"));
                    return Err(A::Error::custom("unknown field"));
                }
                Field::Kept => {
                    let raw: &RawValue = map.next_value()?;
                    if let Err((reason, error)) = value::check_jsonb(raw.get()) {
                        let column = match program.unknown {
                            Unknown::Keep(column) => Some(program.columns[column].name.as_str()),
                            _ => None,
                        };
                        *rejection = Some(Rejection::new(reason, column, error));
                        return Err(A::Error::custom(error));
                    }
                    decoder.unknown.extend_from_slice(raw.get().as_bytes());
                }
            }
        }
    }
}

enum Field {
    Column(usize),
    Ignored,
    Refused(String),
    /// Its name is written to the object of unknown fields already.
    Kept,
}

struct FieldName<'a> {
    program: &'a Program,
    hint: &'a mut usize,
    unknown: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for FieldName<'_> {
    type Value = Field;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Field, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for FieldName<'_> {
    type Value = Field;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the name of a field")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Field, E> {
        if let Some(index) = self.program.column_of(name, self.hint) {
            return Ok(Field::Column(index));
        }
        Ok(match self.program.unknown {
            Unknown::Ignore => Field::Ignored,
            Unknown::Reject => Field::Refused(name.chars().filter(|c| *c != '\0').take(200).collect()),
            Unknown::Keep(_) => {
                self.unknown.push(if self.unknown.is_empty() { b'{' } else { b',' });
                // jsonb has no NUL; the replacement is what a reader of the row can still recognise.
                let name = name.replace('\0', "\u{fffd}");
                serde_json::to_writer(&mut *self.unknown, &name).map_err(E::custom)?;
                self.unknown.push(b':');
                Field::Kept
            }
        })
    }
}

#[cfg(test)]
mod tests;
