//! One JSON value into the bytes of one column.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::Reason;
use crate::config::TimeFormat;
use crate::copy::{self, NumericError};
use crate::program::{Column, Kind};

/// Why a value does not fit its column.
pub(super) type Failure = (Reason, &'static str);

/// Nesting that jsonb takes for sure: the server's own limit depends on the size of its stack.
const MAXIMUM_DEPTH: usize = 1_000;

/// Appends length and bytes of a value; `false` is NULL, and then nothing is appended.
pub(super) struct ValueSeed<'a> {
    pub column: &'a Column,
    pub out: &'a mut Vec<u8>,
    pub failure: &'a mut Option<Failure>,
}

impl ValueSeed<'_> {
    fn finish<E: Error>(self, result: Result<(), Failure>) -> Result<bool, E> {
        match result {
            Ok(()) => Ok(true),
            Err(failure) => {
                *self.failure = Some(failure);
                Err(E::custom(failure.1))
            }
        }
    }

    fn integer<E: Error>(self, value: i128) -> Result<bool, E> {
        let result = match self.column.kind {
            Kind::Int2 => i16::try_from(value).map(|value| copy::field(self.out, &value.to_be_bytes())),
            Kind::Int4 => i32::try_from(value).map(|value| copy::field(self.out, &value.to_be_bytes())),
            Kind::Int8 => i64::try_from(value).map(|value| copy::field(self.out, &value.to_be_bytes())),
            Kind::Time(format) => {
                let time = match format {
                    TimeFormat::Rfc3339OrEpochMs | TimeFormat::EpochMs => {
                        i64::try_from(value).ok().and_then(copy::from_unix_milliseconds)
                    }
                    TimeFormat::EpochS => i64::try_from(value).ok().and_then(copy::from_unix_seconds),
                    TimeFormat::Rfc3339 => return self.wrong_type(),
                };
                let result = time
                    .map(|time| copy::field(self.out, &time.to_be_bytes()))
                    .ok_or((Reason::OutOfRange, "a time that PostgreSQL cannot store"));
                return self.finish(result);
            }
            _ => return self.wrong_type(),
        };
        self.finish(result.map_err(|_| (Reason::OutOfRange, "an integer that the column cannot hold")))
    }

    fn wrong_type<E: Error>(self) -> Result<bool, E> {
        let expected = match self.column.kind {
            Kind::Bool => "expected true or false",
            Kind::Int2 | Kind::Int4 | Kind::Int8 if self.column.digits_in_string => {
                "expected an integer, or a string of digits"
            }
            Kind::Int2 | Kind::Int4 | Kind::Int8 => "expected an integer",
            Kind::Float4 | Kind::Float8 | Kind::Numeric(_) => "expected a number",
            Kind::Text { .. } => "expected a string",
            Kind::Time(TimeFormat::EpochMs) => "expected milliseconds since 1970",
            Kind::Time(TimeFormat::EpochS) => "expected seconds since 1970",
            Kind::Time(TimeFormat::Rfc3339) => "expected a time such as \"2026-01-31T12:00:00Z\"",
            Kind::Time(TimeFormat::Rfc3339OrEpochMs) => {
                "expected a time such as \"2026-01-31T12:00:00Z\", or milliseconds since 1970"
            }
            Kind::Uuid => "expected a UUID",
            Kind::Json | Kind::Jsonb => "expected JSON",
        };
        self.finish(Err((Reason::WrongType, expected)))
    }
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        match self.column.kind {
            Kind::Float4 | Kind::Float8 | Kind::Numeric(_) | Kind::Json | Kind::Jsonb => {
                // The text itself: no digit may be lost on the way.
                let raw = <&RawValue>::deserialize(deserializer)?.get();
                if raw == "null" {
                    return Ok(false);
                }
                match self.column.kind {
                    Kind::Json => {
                        copy::field(self.out, raw.as_bytes());
                        Ok(true)
                    }
                    Kind::Jsonb => {
                        let result = check_jsonb(raw).map(|()| copy::jsonb(self.out, raw.as_bytes()));
                        self.finish(result)
                    }
                    kind => {
                        let number = match raw.as_bytes()[0] {
                            b'-' | b'0'..=b'9' => raw,
                            b'"' if self.column.digits_in_string => &raw[1..raw.len() - 1],
                            _ => return self.wrong_type(),
                        };
                        match number_field(self.out, number, kind) {
                            Err(NumericError::Syntax) => self.wrong_type(),
                            Err(NumericError::Range) => {
                                self.finish(Err((Reason::OutOfRange, "a number that the column cannot hold")))
                            }
                            Ok(()) => Ok(true),
                        }
                    }
                }
            }
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = bool;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<bool, E> {
        if self.column.kind != Kind::Bool {
            return self.wrong_type();
        }
        copy::field(self.out, &[value.into()]);
        Ok(true)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<bool, E> {
        self.integer(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<bool, E> {
        self.integer(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<bool, E> {
        // The parser gives integers beyond 64 bits, and "-0", as floating point.
        let is_integer = matches!(self.column.kind, Kind::Int2 | Kind::Int4 | Kind::Int8);
        if is_integer && value == 0.0 && value.is_sign_negative() {
            self.integer(0)
        } else if is_integer && value.abs() >= i64::MAX as f64 {
            self.finish(Err((Reason::OutOfRange, "an integer that the column cannot hold")))
        } else {
            self.wrong_type()
        }
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<bool, E> {
        match self.column.kind {
            kind @ Kind::Text { .. } => {
                let result = text(self.out, value, kind);
                self.finish(result)
            }
            Kind::Time(TimeFormat::Rfc3339 | TimeFormat::Rfc3339OrEpochMs) => match copy::rfc3339(value) {
                Some(time) => {
                    copy::field(self.out, &time.to_be_bytes());
                    Ok(true)
                }
                None => self.wrong_type(),
            },
            Kind::Uuid => match uuid::Uuid::try_parse(value) {
                Ok(uuid) => {
                    copy::field(self.out, uuid.as_bytes());
                    Ok(true)
                }
                Err(_) => self.wrong_type(),
            },
            Kind::Int2 | Kind::Int4 | Kind::Int8 if self.column.digits_in_string => match digits(value) {
                Some(value) => self.integer(value),
                None => self.wrong_type(),
            },
            _ => self.wrong_type(),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<bool, A::Error> {
        self.wrong_type()
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<bool, A::Error> {
        self.wrong_type()
    }
}

/// A string of digits with at most a minus before it; values beyond any column's range stay beyond it.
fn digits(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value = digits.bytes().fold(0i128, |value, byte| (value * 10 + i128::from(byte - b'0')).min(1 << 100));
    Some(if negative { -value } else { value })
}

/// Appends text after the checks that the server would fail the whole COPY for.
pub(super) fn text(out: &mut Vec<u8>, text: &str, kind: Kind) -> Result<(), Failure> {
    if text.as_bytes().contains(&0) {
        return Err((Reason::BadText, "text with a NUL character, which PostgreSQL cannot store"));
    }
    if let Kind::Text { limit: Some(limit), blanks_are_cut } = kind
        && text.len() > limit as usize
        && let Some((end, _)) = text.char_indices().nth(limit as usize)
        && !(blanks_are_cut && text[end..].bytes().all(|byte| byte == b' '))
    {
        return Err((Reason::TooLong, "text that is longer than the column allows"));
    }
    copy::field(out, text.as_bytes());
    Ok(())
}

fn number_field(out: &mut Vec<u8>, number: &str, kind: Kind) -> Result<(), NumericError> {
    if let Kind::Numeric(limit) = kind {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        copy::numeric(out, number, limit)?;
        let length = (out.len() - start - 4) as i32;
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
        return Ok(());
    }
    // Rust's parser also knows "inf", "nan", "+1" and ".5".
    let plain = number.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'))
        && matches!(number.strip_prefix('-').unwrap_or(number).bytes().next(), Some(b'0'..=b'9'));
    if !plain {
        return Err(NumericError::Syntax);
    }
    // As text input does: neither infinity for what is too large nor zero for what is too small.
    let is_zero = || {
        let mantissa = number.split(['e', 'E']).next().unwrap_or_default();
        mantissa.bytes().all(|byte| matches!(byte, b'0' | b'-' | b'.'))
    };
    if kind == Kind::Float4 {
        let value: f32 = number.parse().map_err(|_| NumericError::Syntax)?;
        if value.is_infinite() || (value == 0.0 && !is_zero()) {
            return Err(NumericError::Range);
        }
        copy::field(out, &value.to_be_bytes());
    } else {
        let value: f64 = number.parse().map_err(|_| NumericError::Syntax)?;
        if value.is_infinite() || (value == 0.0 && !is_zero()) {
            return Err(NumericError::Range);
        }
        copy::field(out, &value.to_be_bytes());
    }
    Ok(())
}

/// What is valid JSON and yet no jsonb: NUL characters, and nesting that is too deep.
pub(super) fn check_jsonb(text: &str) -> Result<(), Failure> {
    let bytes = text.as_bytes();
    let (mut depth, mut in_string, mut at) = (0usize, false, 0usize);
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => {
                if bytes[at + 1..].starts_with(b"u0000") {
                    return Err((Reason::BadText, "JSON with a NUL character, which jsonb cannot store"));
                }
                at += 1; // the escaped character, which may be a quote or a backslash
            }
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > MAXIMUM_DEPTH {
                    return Err((Reason::OutOfRange, "JSON that is nested too deeply"));
                }
            }
            b'}' | b']' if !in_string => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    Ok(())
}
