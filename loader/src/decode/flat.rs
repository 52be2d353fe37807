//! The way of most messages: one object, its names and most of its strings without escapes. Each byte is looked at once, and a row
//! whose fields come in the order of the columns is written where it stays.
//!
//! Nothing is refused here. A value that is unusual goes to serde_json; a message that is unusual, or wrong, is given up and
//! decoded again the general way (`members`), so that a reason has one origin.

use serde::de::DeserializeSeed;

use super::reader::{Number, Reader};
use super::value::ValueSeed;
use super::{Decoder, Slot, leaf_takes, members, scalar};
use crate::catalog::Leaves;
use crate::copy;
use crate::kind::Kind;
use crate::program::{Absent, Column, Fields, Program, Taken, Unknown};

/// What became of a flat message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flat {
    Row,
    /// Other fields, another order, or a row that is refused: to be put together from the slots.
    Slots,
}

impl Decoder {
    /// Appends the row of a message, or puts its fields into the slots; `None` gives it up, and then `out` and the decoder
    /// hold parts of it.
    #[inline(never)]
    pub(super) fn decode_flat(&mut self, program: &Program, value: &[u8], out: &mut Vec<u8>) -> Option<Flat> {
        let text = std::str::from_utf8(value).ok()?;
        let start = out.len();
        copy::row(out, program.columns.len());
        let base = out.len();
        // The column after the last field, as long as all fields came in the order of the columns.
        let mut next = Some(0);
        self.instead.resize(program.fields.len() + 1, 0);
        let mut reader = Reader::new(text);
        reader.skip_blanks();
        reader.take(b'{')?;
        loop {
            reader.skip_blanks();
            match reader.name(&program.fields, &mut self.hint, &mut self.instead)? {
                Ok(Taken::Whole(index)) => {
                    let (index, column) = (*index, program.columns.get(*index)?);
                    let field = out.len();
                    self.slots[index] = if reader.value(column, out)? {
                        Slot::At((field - base) as u32, (out.len() - base) as u32)
                    } else {
                        out.extend_from_slice(copy::NULL);
                        // What null becomes is not decided here.
                        next = next.filter(|_| !column.required && column.absent != Absent::BrokerTimestamp);
                        Slot::Null
                    };
                    next = next.filter(|next| *next == index).map(|next| next + 1);
                }
                Ok(Taken::Parts(_)) => return None,
                Err(name) => match program.unknown {
                    Unknown::Ignore => reader.skip_value()?,
                    Unknown::Reject => return None,
                    Unknown::Keep(_) => {
                        members::keep_name(&mut self.unknown, name);
                        let raw = reader.raw()?;
                        scalar::check_jsonb(raw).ok()?;
                        self.unknown.extend_from_slice(raw.as_bytes());
                    }
                },
            }
            reader.skip_blanks();
            match reader.rest.split_first()? {
                (b',', rest) => reader.rest = rest,
                (b'}', rest) => {
                    reader.rest = rest;
                    break;
                }
                _ => return None,
            }
        }
        reader.skip_blanks();
        if !reader.rest.is_empty() {
            return None;
        }
        if next == Some(program.columns.len()) && self.leaf_takes(program, &out[base..]) {
            return Some(Flat::Row);
        }
        self.scratch.extend_from_slice(&out[base..]);
        out.truncate(start);
        Some(Flat::Slots)
    }

    /// Whether a leaf takes the row with these fields.
    fn leaf_takes(&self, program: &Program, fields: &[u8]) -> bool {
        let (Some(column), Leaves::Range(_)) = (program.leaf_key, &program.leaves) else { return true };
        match self.slots[column] {
            Slot::At(from, to) => leaf_takes(program, column, &fields[from as usize..to as usize]),
            _ => false,
        }
    }
}

impl<'m> Reader<'m> {
    /// The name of a field with its colon, and the blanks behind: what is taken of the field, or the name that nobody knows.
    /// `hint` is the field after the last one; `instead` tells what came there the last time when it was not that one.
    #[inline(always)]
    fn name<'p>(
        &mut self,
        fields: &'p Fields,
        hint: &mut usize,
        instead: &mut [usize],
    ) -> Option<Result<&'p Taken, &'m str>> {
        let found = if let Some((taken, rest)) = fields.strip(self.rest, *hint) {
            self.rest = rest;
            *hint += 1;
            Ok(taken)
        } else {
            let likely = instead.get_mut(*hint)?;
            if let Some((taken, rest)) = fields.strip(self.rest, *likely) {
                self.rest = rest;
                *hint = *likely + 1;
                Ok(taken)
            } else {
                let name = self.string()?;
                self.skip_blanks();
                self.take(b':')?;
                fields.find_from(name, *hint).ok_or(name).map(|(at, taken)| {
                    *likely = at;
                    *hint = at + 1;
                    taken
                })
            }
        };
        self.skip_blanks();
        Some(found)
    }

    /// Appends length and bytes of a value; `false` is NULL, and then nothing is appended.
    #[inline(always)]
    fn value(&mut self, column: &Column, out: &mut Vec<u8>) -> Option<bool> {
        let kind = &column.kind;
        match self.rest.first()? {
            b'"' if !kind.is_raw() => {
                if let Some(text) = self.string() {
                    scalar::verbatim(out, text, kind, column.digits_in_string).ok()?;
                    return Some(true);
                }
            }
            b'-' | b'0'..=b'9' => {
                let before = self.rest;
                let number = self.number()?;
                if number.write(out, kind)? {
                    return Some(true);
                }
                self.rest = before;
            }
            b'n' => {
                self.rest = self.rest.strip_prefix(b"null")?;
                return Some(false);
            }
            _ => {}
        }
        self.other_value(column, out)
    }

    /// The same for values that are not worth a way of their own.
    #[inline(never)]
    fn other_value(&mut self, column: &Column, out: &mut Vec<u8>) -> Option<bool> {
        let raw = self.raw()?;
        if column.kind.is_raw() {
            return scalar::raw(out, raw, &column.kind, column.digits_in_string).ok();
        }
        let mut json = serde_json::Deserializer::from_str(raw);
        ValueSeed::<false>::new(column, out, &mut None).deserialize(&mut json).ok()
    }

    /// Passes a value over.
    #[inline(always)]
    fn skip_value(&mut self) -> Option<()> {
        match self.rest.first()? {
            b'"' if self.string().is_some() => {}
            b'-' | b'0'..=b'9' => _ = self.number()?,
            _ => _ = self.raw()?,
        }
        Some(())
    }
}

impl Number<'_> {
    /// Appends length and bytes; `false` leaves the number to others.
    #[inline(always)]
    fn write(&self, out: &mut Vec<u8>, kind: &Kind) -> Option<bool> {
        match kind {
            Kind::Float8 => match self.as_double() {
                Some(value) => copy::fixed(out, value.to_be_bytes()),
                None => scalar::json_number(out, self.text, kind).ok()?,
            },
            Kind::Float4 | Kind::Numeric(_) => scalar::json_number(out, self.text, kind).ok()?,
            Kind::Json | Kind::Jsonb => return Some(false),
            kind => match self.as_integer() {
                Some(value) => scalar::integer(out, value.into(), kind).ok()?,
                None => return Some(false),
            },
        }
        Some(true)
    }
}
