//! A message becomes a row in COPY's binary form, a dead letter or a skip. The JSON is never held as a tree: each field is
//! encoded the moment the parser meets it (`decode::value`), and the row is put together in the order of the columns.

mod array;
mod csv;
mod flat;
mod literal;
mod members;
mod reader;
mod scalar;
mod text;
mod value;

use serde::de::{DeserializeSeed, IgnoredAny};

use crate::catalog::{Leaves, integer};
use crate::config::OnTombstone;
use crate::copy;
use crate::kind::Kind;
use crate::message::Message;
use crate::program::{Absent, Format, From, Program, Pseudo, Unknown};
pub use csv::CsvProgram;
use flat::Flat;
use members::Row;

/// Why a message is no row. The names are those in `tally.dead_letters.reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    NotJson,
    NotObject,
    NotCsv,
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
    pub const ALL: [Self; 13] = [
        Self::NotJson,
        Self::NotObject,
        Self::NotCsv,
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
            Self::NotCsv => "not_csv",
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
    /// The row in binary form, before it is printed as text.
    row: Vec<u8>,
    hint: usize,
    /// For flat messages: which field came last time where this one is due in the order of the columns.
    instead: Vec<usize>,
}

impl Decoder {
    /// Appends the row of a message to `out`, or says why there is none; then `out` is as before.
    pub fn decode(&mut self, program: &Program, topic: &str, message: Message<'_>, out: &mut Vec<u8>) -> Outcome {
        self.clear(program);
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
                if program.is_flat {
                    let start = out.len();
                    match self.decode_flat(program, value, out) {
                        Some(Flat::Row) => return Outcome::Row,
                        Some(Flat::Slots) => return self.finish(program, topic, message, out),
                        None => {
                            out.truncate(start);
                            self.clear(program);
                        }
                    }
                }
                if let Err(rejection) = self.parse(program, value) {
                    return Outcome::Dead(rejection);
                }
            }
        }
        self.finish(program, topic, message, out)
    }

    fn clear(&mut self, program: &Program) {
        self.slots.clear();
        self.slots.resize(program.columns.len(), Slot::Absent);
        self.scratch.clear();
        self.unknown.clear();
        self.hint = 0;
    }

    fn finish(&mut self, program: &Program, topic: &str, message: Message<'_>, out: &mut Vec<u8>) -> Outcome {
        if program.format == Format::Text {
            return self.finish_as_text(program, topic, message, out);
        }
        let start = out.len();
        match self.assemble(program, topic, message, out) {
            Ok(()) => Outcome::Row,
            Err(rejection) => {
                out.truncate(start);
                Outcome::Dead(rejection)
            }
        }
    }

    /// Prints the row from its binary form.
    #[inline(never)]
    fn finish_as_text(&mut self, program: &Program, topic: &str, message: Message<'_>, out: &mut Vec<u8>) -> Outcome {
        let mut row = std::mem::take(&mut self.row);
        row.clear();
        let assembled = self.assemble(program, topic, message, &mut row);
        if assembled.is_ok() {
            copy::line(out, &row, program.columns.iter().map(|column| &column.kind))
                .expect("the encoder writes what the printer reads");
        }
        self.row = row;
        match assembled {
            Ok(()) => Outcome::Row,
            Err(rejection) => Outcome::Dead(rejection),
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
            } else if error.to_string().starts_with("number out of range") {
                Rejection::new(Reason::OutOfRange, None, error.to_string())
            } else {
                // The grammar is right, so it is a string with half of a surrogate pair.
                Rejection::new(Reason::BadText, None, error.to_string())
            }
        }))
    }

    /// Puts the row together in the order of the columns.
    #[inline(always)]
    fn assemble(
        &mut self,
        program: &Program,
        topic: &str,
        message: Message<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Rejection> {
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
                    pseudo_field(out, *pseudo, &column.kind, topic, message)
                        .map_err(|(reason, error)| Rejection::new(reason, Some(&column.name), error))?;
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
                return Err(Rejection::new(Reason::MissingRequired, Some(&column.name), error));
            }
            if !leaf_takes(program, index, &out[field..]) {
                let error = format!("no partition of {} takes this value", program.table);
                return Err(Rejection::new(Reason::NoPartition, Some(&column.name), error));
            }
        }
        Ok(())
    }
}

/// Whether a leaf takes a row with this field, which begins with its length, in this column.
fn leaf_takes(program: &Program, column: usize, field: &[u8]) -> bool {
    match &program.leaves {
        Leaves::Range(leaves) if program.leaf_key == Some(column) => {
            integer(&field[4..]).is_some_and(|key| leaves.accepts(key))
        }
        _ => true,
    }
}

fn pseudo_field(
    out: &mut Vec<u8>,
    pseudo: Pseudo,
    kind: &Kind,
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
            Some(key) if matches!(kind, Kind::Bytea(_)) => copy::field(out, key),
            Some(key) => {
                let text = std::str::from_utf8(key).map_err(|_| (Reason::BadText, "the key is not valid UTF-8"))?;
                scalar::string(out, text, kind, false)?;
            }
        },
        (Pseudo::Headers, _) => match message.headers {
            None => copy::nullable(out, None),
            Some(headers) => copy::jsonb(out, headers),
        },
    }
    Ok(())
}

#[cfg(test)]
mod tests;
