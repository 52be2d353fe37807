//! The objects of a message, from the outermost one inwards along the paths of the columns.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::scalar::check_jsonb;
use super::value::ValueSeed;
use super::{Decoder, Reason, Rejection, Slot};
use crate::program::{Parts, Program, Taken, Unknown};

/// The outermost object.
pub(super) struct Row<'a> {
    pub program: &'a Program,
    pub decoder: &'a mut Decoder,
    pub rejection: &'a mut Option<Rejection>,
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
                // The common case for itself, so that it stays small and fast.
                Field::Taken(Taken::Whole(index)) => {
                    map.next_value_seed(Whole::<true> { program, decoder, rejection, index: *index })?;
                }
                Field::Taken(taken) => map.next_value_seed(Value { program, decoder, rejection, taken })?,
                Field::Ignored => {
                    map.next_value::<IgnoredAny>()?;
                }
                Field::Refused(name) => {
                    *rejection = Some(unknown_field(&name));
                    return Err(A::Error::custom("unknown field"));
                }
                Field::Kept => {
                    let raw: &RawValue = map.next_value()?;
                    if let Err((reason, error)) = check_jsonb(raw.get()) {
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

enum Field<'a> {
    Taken(&'a Taken),
    Ignored,
    Refused(String),
    /// Its name is written to the object of unknown fields already.
    Kept,
}

struct FieldName<'a, 'b> {
    program: &'a Program,
    hint: &'b mut usize,
    unknown: &'b mut Vec<u8>,
}

impl<'de, 'a> DeserializeSeed<'de> for FieldName<'a, '_> {
    type Value = Field<'a>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Field<'a>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'a> Visitor<'_> for FieldName<'a, '_> {
    type Value = Field<'a>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the name of a field")
    }

    #[inline(always)]
    fn visit_str<E: Error>(self, name: &str) -> Result<Field<'a>, E> {
        if let Some(taken) = self.program.fields.find(name, self.hint) {
            return Ok(Field::Taken(taken));
        }
        Ok(match self.program.unknown {
            Unknown::Ignore => Field::Ignored,
            Unknown::Reject => Field::Refused(name.to_owned()),
            Unknown::Keep(_) => {
                keep_name(self.unknown, name);
                Field::Kept
            }
        })
    }
}

pub(super) fn unknown_field(name: &str) -> Rejection {
    let name: String = name.chars().filter(|c| *c != '\0').take(200).collect();
    Rejection::new(Reason::UnknownField, Some(&name), "no column takes this field")
}

/// Begins a member of the object of unknown fields.
pub(super) fn keep_name(unknown: &mut Vec<u8>, name: &str) {
    unknown.push(if unknown.is_empty() { b'{' } else { b',' });
    // jsonb has no NUL; the replacement is what a reader of the row can still recognise.
    let name = serde_json::Value::from(name.replace('\0', "\u{fffd}")).to_string();
    unknown.extend_from_slice(name.as_bytes());
    unknown.push(b':');
}

/// A value that some columns take, or a part of it.
struct Value<'a> {
    program: &'a Program,
    decoder: &'a mut Decoder,
    rejection: &'a mut Option<Rejection>,
    taken: &'a Taken,
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let Self { program, decoder, rejection, taken } = self;
        match taken {
            Taken::Whole(index) => {
                Whole::<false> { program, decoder, rejection, index: *index }.deserialize(deserializer)
            }
            Taken::Parts(parts) => {
                // A field that comes twice: nothing of the first one stays.
                taken.each_column(&mut |index| decoder.slots[index] = Slot::Absent);
                if parts.columns.is_empty() {
                    return Part { program, decoder, rejection, taken: parts }.deserialize(deserializer);
                }
                let raw = <&RawValue as serde::Deserialize>::deserialize(deserializer)?.get();
                let text = || serde_json::Deserializer::from_str(raw);
                for &index in &parts.columns {
                    let whole = Whole::<false> { program, decoder, rejection, index };
                    whole.deserialize(&mut text()).map_err(D::Error::custom)?;
                }
                if parts.is_looked_into() {
                    let part = Part { program, decoder, rejection, taken: parts };
                    part.deserialize(&mut text()).map_err(D::Error::custom)?;
                }
                Ok(())
            }
        }
    }
}

/// A value that one column takes; `IN_ROW` as for [`ValueSeed`].
struct Whole<'a, const IN_ROW: bool> {
    program: &'a Program,
    decoder: &'a mut Decoder,
    rejection: &'a mut Option<Rejection>,
    index: usize,
}

impl<'de, const IN_ROW: bool> DeserializeSeed<'de> for Whole<'_, IN_ROW> {
    type Value = ();

    #[inline(always)]
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let Self { program, decoder, rejection, index } = self;
        let start = decoder.scratch.len();
        let column = &program.columns[index];
        let mut failure = None;
        let value = ValueSeed::<IN_ROW>::new(column, &mut decoder.scratch, &mut failure).deserialize(deserializer);
        if let Some((reason, error)) = failure {
            *rejection = Some(Rejection::new(reason, Some(&column.name), error));
        }
        // A field that comes twice: the last one wins.
        decoder.slots[index] = if value? { Slot::At(start as u32, decoder.scratch.len() as u32) } else { Slot::Null };
        Ok(())
    }
}

/// A value that is looked into. What a path does not reach is absent; a value that has no parts is of the wrong type.
pub(super) struct Part<'a> {
    pub program: &'a Program,
    pub decoder: &'a mut Decoder,
    pub rejection: &'a mut Option<Rejection>,
    pub taken: &'a Parts,
}

impl Part<'_> {
    fn no_parts<T, E: Error>(self) -> Result<T, E> {
        let error = match (self.taken.members.is_empty(), self.taken.elements.is_empty()) {
            (false, true) => "expected an object to look into",
            (true, false) => "expected an array to look into",
            _ => "expected an object or an array to look into",
        };
        let column = self.taken.inner_column().map(|index| self.program.columns[index].name.as_str());
        *self.rejection = Some(Rejection::new(Reason::WrongType, column, error));
        Err(E::custom(error))
    }
}

impl<'de> DeserializeSeed<'de> for Part<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Part<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value with parts")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.no_parts()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.no_parts()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.no_parts()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.no_parts()
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        self.no_parts()
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if self.taken.members.is_empty() {
            return self.no_parts();
        }
        let Self { program, decoder, rejection, taken } = self;
        let mut hint = 0;
        while let Some(found) = map.next_key_seed(MemberName { taken, hint: &mut hint })? {
            match found {
                Some(taken) => map.next_value_seed(Value { program, decoder, rejection, taken })?,
                None => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        if self.taken.elements.is_empty() {
            return self.no_parts();
        }
        let Self { program, decoder, rejection, taken } = self;
        let mut index = 0;
        loop {
            let more = match taken.elements.iter().find(|(other, _)| *other == index) {
                Some((_, taken)) => sequence.next_element_seed(Value { program, decoder, rejection, taken })?.is_some(),
                None => sequence.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                return Ok(());
            }
            index += 1;
        }
    }
}

struct MemberName<'a, 'b> {
    taken: &'a Parts,
    hint: &'b mut usize,
}

impl<'de, 'a> DeserializeSeed<'de> for MemberName<'a, '_> {
    type Value = Option<&'a Taken>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<&'a Taken>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'a> Visitor<'_> for MemberName<'a, '_> {
    type Value = Option<&'a Taken>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the name of a field")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Option<&'a Taken>, E> {
        Ok(self.taken.members.find(name, self.hint))
    }
}
