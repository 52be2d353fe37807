//! One value, not an array, into the bytes of one column.

use base64::Engine;

use super::Reason;
use crate::config::{BytesFormat, TimeFormat};
use crate::copy::{self, ParseError};
use crate::kind::Kind;

/// Why a value does not fit its column.
pub(super) type Failure = (Reason, &'static str);

/// Nesting that jsonb takes for sure: the server's own limit depends on the size of its stack.
const MAXIMUM_DEPTH: usize = 1_000;

const TOO_LARGE: Failure = (Reason::OutOfRange, "an integer that the column cannot hold");
const NO_TIME: Failure = (Reason::OutOfRange, "a time that PostgreSQL cannot store");
const NUL: Failure = (Reason::BadText, "text with a NUL character, which PostgreSQL cannot store");

/// What is said of a value of another type.
#[cold]
pub(super) fn wrong_type(kind: &Kind, digits_in_string: bool) -> Failure {
    let expected = match kind {
        Kind::Bool => "expected true or false",
        Kind::Int2 | Kind::Int4 | Kind::Int8 | Kind::Oid if digits_in_string => {
            "expected an integer, or a string of digits"
        }
        Kind::Int2 | Kind::Int4 | Kind::Int8 | Kind::Oid => "expected an integer",
        Kind::Float4 | Kind::Float8 | Kind::Numeric(_) => "expected a number",
        Kind::Text { .. } => "expected a string",
        Kind::Enum(_) => "expected a string that is a label of the enum",
        Kind::Timestamp(TimeFormat::EpochMs) => "expected milliseconds since 1970",
        Kind::Timestamp(TimeFormat::EpochS) => "expected seconds since 1970",
        Kind::Timestamp(TimeFormat::Rfc3339) => "expected a time such as \"2026-01-31T12:00:00Z\"",
        Kind::Timestamp(TimeFormat::Rfc3339OrEpochMs) => {
            "expected a time such as \"2026-01-31T12:00:00Z\", or milliseconds since 1970"
        }
        Kind::Date => "expected a date such as \"2026-01-31\"",
        Kind::Time => "expected a time of day such as \"12:30:00\"",
        Kind::Timetz => "expected a time of day with its zone such as \"12:30:00+02:00\"",
        Kind::Interval => "expected an interval such as \"P1DT2H\" or \"1 day 02:00:00\"",
        Kind::Uuid => "expected a UUID",
        Kind::Bytea(BytesFormat::Hex) => "expected bytes in hexadecimal such as \"\\x00ff\"",
        Kind::Bytea(BytesFormat::Base64) => "expected bytes in base64",
        Kind::Json | Kind::Jsonb => "expected JSON",
        Kind::Inet => "expected an IP address, with or without /bits",
        Kind::Cidr => "expected a network such as \"10.0.0.0/8\", without bits right of its mask",
        Kind::Array(..) => "expected an array",
        Kind::Input => "expected a string with what PostgreSQL prints for the type",
    };
    (Reason::WrongType, expected)
}

/// Appends an integer of the message.
#[inline(always)]
pub(super) fn integer(out: &mut Vec<u8>, value: i128, kind: &Kind) -> Result<(), Failure> {
    match kind {
        Kind::Int2 => copy::fixed(out, i16::try_from(value).map_err(|_| TOO_LARGE)?.to_be_bytes()),
        Kind::Int4 => copy::fixed(out, i32::try_from(value).map_err(|_| TOO_LARGE)?.to_be_bytes()),
        Kind::Int8 => copy::fixed(out, i64::try_from(value).map_err(|_| TOO_LARGE)?.to_be_bytes()),
        Kind::Oid => copy::fixed(out, u32::try_from(value).map_err(|_| TOO_LARGE)?.to_be_bytes()),
        Kind::Timestamp(TimeFormat::Rfc3339OrEpochMs | TimeFormat::EpochMs) => {
            let time = i64::try_from(value).ok().and_then(copy::from_unix_milliseconds).ok_or(NO_TIME)?;
            copy::fixed(out, time.to_be_bytes());
        }
        Kind::Timestamp(TimeFormat::EpochS) => {
            let time = i64::try_from(value).ok().and_then(copy::from_unix_seconds).ok_or(NO_TIME)?;
            copy::fixed(out, time.to_be_bytes());
        }
        kind => return Err(wrong_type(kind, false)),
    }
    Ok(())
}

/// Appends what the parser takes for a floating-point number where none is expected: integers beyond 64 bits, and `-0`.
pub(super) fn float_for_integer(out: &mut Vec<u8>, value: f64, kind: &Kind) -> Result<(), Failure> {
    if !kind.is_integer() {
        return Err(wrong_type(kind, false));
    }
    if value == 0.0 && value.is_sign_negative() {
        integer(out, 0, kind)
    } else if value.abs() >= i64::MAX as f64 {
        Err(TOO_LARGE)
    } else {
        Err(wrong_type(kind, false))
    }
}

/// Appends a string.
pub(super) fn string(out: &mut Vec<u8>, value: &str, kind: &Kind, digits_in_string: bool) -> Result<(), Failure> {
    if matches!(kind, Kind::Text { .. } | Kind::Input) && value.as_bytes().contains(&0) {
        return Err(NUL);
    }
    verbatim(out, value, kind, digits_in_string)
}

/// Appends a string that stands in JSON as it is, without escapes: no NUL can be in it.
#[inline(always)]
pub(super) fn verbatim(out: &mut Vec<u8>, value: &str, kind: &Kind, digits_in_string: bool) -> Result<(), Failure> {
    match kind {
        Kind::Text { limit, blanks_are_cut } => text(out, value, *limit, *blanks_are_cut),
        Kind::Timestamp(TimeFormat::Rfc3339 | TimeFormat::Rfc3339OrEpochMs) => {
            let time = copy::rfc3339(value).ok_or_else(|| wrong_type(kind, digits_in_string))?;
            copy::fixed(out, time.to_be_bytes());
            Ok(())
        }
        Kind::Int2 | Kind::Int4 | Kind::Int8 | Kind::Oid if digits_in_string => {
            integer(out, digits(value).ok_or_else(|| wrong_type(kind, digits_in_string))?, kind)
        }
        kind => rarer_string(out, value, kind),
    }
}

/// Apart from the types above, which most columns have, so that those stay small and fast.
#[inline(never)]
fn rarer_string(out: &mut Vec<u8>, value: &str, kind: &Kind) -> Result<(), Failure> {
    let no = || wrong_type(kind, false);
    match kind {
        Kind::Uuid => copy::field(out, uuid::Uuid::try_parse(value).map_err(|_| no())?.as_bytes()),
        Kind::Enum(labels) if labels.iter().any(|label| label == value) => copy::field(out, value.as_bytes()),
        Kind::Date => copy::field(out, &copy::date(value).ok_or_else(no)?.to_be_bytes()),
        Kind::Time => copy::field(out, &copy::time(value).ok_or_else(no)?.to_be_bytes()),
        Kind::Timetz => {
            let (time, zone) = copy::timetz(value).ok_or_else(no)?;
            let mut bytes = [0; 12];
            bytes[..8].copy_from_slice(&time.to_be_bytes());
            bytes[8..].copy_from_slice(&zone.to_be_bytes());
            copy::field(out, &bytes);
        }
        Kind::Interval => {
            let (time, days, months) = copy::interval(value).map_err(|error| match error {
                ParseError::Syntax => no(),
                ParseError::Range => (Reason::OutOfRange, "an interval that PostgreSQL cannot store"),
            })?;
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&time.to_be_bytes());
            bytes[8..12].copy_from_slice(&days.to_be_bytes());
            bytes[12..].copy_from_slice(&months.to_be_bytes());
            copy::field(out, &bytes);
        }
        Kind::Bytea(BytesFormat::Hex) => {
            let bytes = value.strip_prefix("\\x").and_then(hexadecimal).ok_or_else(no)?;
            copy::field(out, &bytes);
        }
        Kind::Bytea(BytesFormat::Base64) => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(value).map_err(|_| no())?;
            copy::field(out, &bytes);
        }
        Kind::Inet => copy::field(out, &copy::address(value, false).ok_or_else(no)?),
        Kind::Cidr => copy::field(out, &copy::address(value, true).ok_or_else(no)?),
        Kind::Input => copy::field(out, value.as_bytes()),
        _ => return Err(no()),
    }
    Ok(())
}

/// Appends the value of a kind that is read as the JSON text itself; `false` is NULL, and then nothing is appended.
pub(super) fn raw(out: &mut Vec<u8>, raw: &str, kind: &Kind, digits_in_string: bool) -> Result<bool, Failure> {
    if raw == "null" {
        return Ok(false);
    }
    match kind {
        Kind::Json => copy::field(out, raw.as_bytes()),
        Kind::Jsonb => {
            check_jsonb(raw)?;
            copy::jsonb(out, raw.as_bytes());
        }
        kind => {
            let text = match raw.as_bytes().first() {
                Some(b'-' | b'0'..=b'9') => raw,
                Some(b'"') if digits_in_string => raw[1..].strip_suffix('"').unwrap_or_default(),
                _ => return Err(wrong_type(kind, digits_in_string)),
            };
            number_field(out, text, kind, digits_in_string)?;
        }
    }
    Ok(true)
}

pub(super) fn number_field(out: &mut Vec<u8>, text: &str, kind: &Kind, digits_in_string: bool) -> Result<(), Failure> {
    number(out, text, kind).map_err(|error| match error {
        ParseError::Syntax => wrong_type(kind, digits_in_string),
        ParseError::Range => (Reason::OutOfRange, "a number that the column cannot hold"),
    })
}

/// A string of digits with at most a minus before it; values beyond any column's range stay beyond it.
pub(super) fn digits(text: &str) -> Option<i128> {
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

fn hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

/// Appends text after the check that the server would fail the whole COPY for.
#[inline(always)]
fn text(out: &mut Vec<u8>, text: &str, limit: Option<u32>, blanks_are_cut: bool) -> Result<(), Failure> {
    if let Some(limit) = limit
        && text.len() > limit as usize
        && let Some((end, _)) = text.char_indices().nth(limit as usize)
        && !(blanks_are_cut && text[end..].bytes().all(|byte| byte == b' '))
    {
        return Err((Reason::TooLong, "text that is longer than the column allows"));
    }
    copy::field(out, text.as_bytes());
    Ok(())
}

fn number(out: &mut Vec<u8>, number: &str, kind: &Kind) -> Result<(), ParseError> {
    if let Kind::Numeric(limit) = kind {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        copy::numeric(out, number, *limit)?;
        let length = (out.len() - start - 4) as i32;
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
        return Ok(());
    }
    // Rust's parser also knows "inf", "nan", "+1" and ".5".
    let plain = number.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'))
        && matches!(number.strip_prefix('-').unwrap_or(number).bytes().next(), Some(b'0'..=b'9'));
    if !plain {
        return Err(ParseError::Syntax);
    }
    plain_number(out, number, kind)
}

/// Appends a number as JSON writes it.
pub(super) fn json_number(out: &mut Vec<u8>, text: &str, kind: &Kind) -> Result<(), ParseError> {
    match kind {
        Kind::Numeric(_) => number(out, text, kind),
        kind => plain_number(out, text, kind),
    }
}

/// Appends a floating-point number that is written as JSON has it.
fn plain_number(out: &mut Vec<u8>, number: &str, kind: &Kind) -> Result<(), ParseError> {
    // As text input does: neither infinity for what is too large nor zero for what is too small.
    let is_zero = || {
        let mantissa = number.split(['e', 'E']).next().unwrap_or_default();
        mantissa.bytes().all(|byte| matches!(byte, b'0' | b'-' | b'.'))
    };
    if *kind == Kind::Float4 {
        let value: f32 = number.parse().map_err(|_| ParseError::Syntax)?;
        if value.is_infinite() || (value == 0.0 && !is_zero()) {
            return Err(ParseError::Range);
        }
        copy::fixed(out, value.to_be_bytes());
    } else {
        let value: f64 = number.parse().map_err(|_| ParseError::Syntax)?;
        if value.is_infinite() || (value == 0.0 && !is_zero()) {
            return Err(ParseError::Range);
        }
        copy::fixed(out, value.to_be_bytes());
    }
    Ok(())
}

/// What is valid JSON and yet no jsonb: NUL characters, and nesting that is too deep.
pub(super) fn check_jsonb(text: &str) -> Result<(), Failure> {
    let bytes = text.as_bytes();
    // The common case: too short to be deep, and nothing is escaped.
    if bytes.len() <= MAXIMUM_DEPTH && !bytes.contains(&b'\\') {
        return Ok(());
    }
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
