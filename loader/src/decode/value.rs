//! One JSON value into the bytes of one column, while it is parsed.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::array::Builder;
use super::scalar::{self, Failure};
use crate::kind::Kind;
use crate::program::Column;

/// Appends length and bytes of a value; `false` is NULL, and then nothing is appended. `IN_ROW` is for the fields of the outermost
/// object: compiled apart, their way stays free of calls, which short messages notice.
pub(super) struct ValueSeed<'a, const IN_ROW: bool> {
    pub kind: &'a Kind,
    pub digits_in_string: bool,
    pub out: &'a mut Vec<u8>,
    pub failure: &'a mut Option<Failure>,
}

impl<'a, const IN_ROW: bool> ValueSeed<'a, IN_ROW> {
    pub fn new(column: &'a Column, out: &'a mut Vec<u8>, failure: &'a mut Option<Failure>) -> Self {
        Self { kind: &column.kind, digits_in_string: column.digits_in_string, out, failure }
    }

    fn finish<T, E: Error>(self, result: Result<T, Failure>) -> Result<T, E> {
        result.map_err(|failure| {
            *self.failure = Some(failure);
            E::custom(failure.1)
        })
    }

    fn value<E: Error>(self, result: Result<(), Failure>) -> Result<bool, E> {
        self.finish(result.map(|()| true))
    }

    fn wrong_type<E: Error>(self) -> Result<bool, E> {
        let failure = scalar::wrong_type(self.kind, self.digits_in_string);
        self.finish(Err(failure))
    }
}

impl<'de, const IN_ROW: bool> DeserializeSeed<'de> for ValueSeed<'_, IN_ROW> {
    type Value = bool;

    #[inline(always)]
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        if self.kind.is_raw() {
            // The text itself: no digit may be lost on the way.
            let raw = <&RawValue>::deserialize(deserializer)?.get();
            let result = scalar::raw(self.out, raw, self.kind, self.digits_in_string);
            self.finish(result)
        } else {
            deserializer.deserialize_any(self)
        }
    }
}

impl<'de, const IN_ROW: bool> Visitor<'de> for ValueSeed<'_, IN_ROW> {
    type Value = bool;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<bool, E> {
        if *self.kind != Kind::Bool {
            return self.wrong_type();
        }
        crate::copy::field(self.out, &[value.into()]);
        Ok(true)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<bool, E> {
        let result = scalar::integer(self.out, value.into(), self.kind);
        self.value(result)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<bool, E> {
        let result = scalar::integer(self.out, value.into(), self.kind);
        self.value(result)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<bool, E> {
        let result = scalar::float_for_integer(self.out, value, self.kind);
        self.value(result)
    }

    #[inline(always)]
    fn visit_borrowed_str<E: Error>(self, value: &'de str) -> Result<bool, E> {
        let result = scalar::verbatim(self.out, value, self.kind, self.digits_in_string);
        self.value(result)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<bool, E> {
        let result = scalar::string(self.out, value, self.kind, self.digits_in_string);
        self.value(result)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<bool, A::Error> {
        let Kind::Array(element, oid) = self.kind else { return self.wrong_type() };
        Builder::new(element, *oid, self.digits_in_string, self.out).build(sequence, self.failure)?;
        Ok(true)
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<bool, A::Error> {
        self.wrong_type()
    }
}
