//! A row of a Parquet file as a JSON object. What JSON has no form for is a string: times as in RFC 3339, bytes as `\x..` in
//! hexadecimal, NaN and infinities by name.

use std::fmt::{Display, Write as _};

use jiff::SignedDuration;
use jiff::civil::{Date, Time, date};
use parquet::basic::{ConvertedType, LogicalType, TimeUnit};
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde::de::IgnoredAny;

/// What the value of a column means, as far as the value does not say it itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Plain,
    /// A time: what it counts, and whether it has a zone (UTC).
    Timestamp(Unit, bool),
    Uuid,
    /// Text that is JSON.
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Milliseconds,
    Microseconds,
    Nanoseconds,
}

impl Form {
    /// The form of an outermost field. `utc`: a time without a zone is one of UTC.
    pub(super) fn of(field: &Type, utc: bool) -> Self {
        if field.is_group() {
            return Self::Plain;
        }
        match (field.get_basic_info().logical_type_ref(), field.get_basic_info().converted_type()) {
            (Some(LogicalType::Timestamp(time)), _) => {
                let unit = match time.unit {
                    TimeUnit::MILLIS => Unit::Milliseconds,
                    TimeUnit::MICROS => Unit::Microseconds,
                    TimeUnit::NANOS => Unit::Nanoseconds,
                };
                Self::Timestamp(unit, utc || time.is_adjusted_to_u_t_c)
            }
            // The older way to say it, which means UTC.
            (None, ConvertedType::TIMESTAMP_MILLIS) => Self::Timestamp(Unit::Milliseconds, true),
            (None, ConvertedType::TIMESTAMP_MICROS) => Self::Timestamp(Unit::Microseconds, true),
            (Some(LogicalType::Uuid), _) => Self::Uuid,
            (Some(LogicalType::Json), _) | (None, ConvertedType::JSON) => Self::Json,
            _ => Self::Plain,
        }
    }
}

/// Appends a row.
pub(super) fn object(out: &mut Vec<u8>, row: &Row, forms: &[Form]) {
    out.push(b'{');
    for (index, (name, field)) in row.get_column_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        json(out, name);
        out.push(b':');
        value(out, field, forms.get(index).copied().unwrap_or(Form::Plain));
    }
    out.push(b'}');
}

/// Appends a value.
pub(super) fn value(out: &mut Vec<u8>, field: &Field, form: Form) {
    match (field, form) {
        (Field::Null, _) => out.extend_from_slice(b"null"),
        (
            Field::Long(count) | Field::TimestampMillis(count) | Field::TimestampMicros(count),
            Form::Timestamp(unit, zone),
        ) => {
            timestamp(out, *count, unit, zone);
        }
        (Field::TimestampMillis(count), _) => timestamp(out, *count, Unit::Milliseconds, false),
        (Field::TimestampMicros(count), _) => timestamp(out, *count, Unit::Microseconds, false),
        (Field::Str(text), Form::Json) if serde_json::from_str::<IgnoredAny>(text).is_ok() => {
            out.extend_from_slice(text.as_bytes());
        }
        (Field::Bytes(bytes), Form::Uuid) if bytes.data().len() == 16 => {
            string(out, uuid::Uuid::from_slice(bytes.data()).unwrap_or_default());
        }
        (Field::Str(text), _) => json(out, text),
        (Field::Bool(value), _) => json(out, value),
        (Field::Byte(value), _) => json(out, value),
        (Field::Short(value), _) => json(out, value),
        (Field::Int(value), _) => json(out, value),
        (Field::Long(value), _) => json(out, value),
        (Field::UByte(value), _) => json(out, value),
        (Field::UShort(value), _) => json(out, value),
        (Field::UInt(value), _) => json(out, value),
        (Field::ULong(value), _) => json(out, value),
        (Field::Float16(value), _) => float(out, value.to_f64()),
        // The shortest digits that give the value back, in its own precision.
        (Field::Float(value), _) if value.is_finite() => json(out, value),
        (Field::Float(value), _) => float(out, f64::from(*value)),
        (Field::Double(value), _) => float(out, *value),
        (Field::Decimal(_), _) => out.extend_from_slice(field.to_string().as_bytes()),
        (Field::Bytes(bytes), _) => {
            let hex = bytes.data().iter().fold(String::from("\\x"), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            });
            json(out, &hex);
        }
        (Field::Date(days), _) => match day(*days) {
            Some(day) => string(out, day),
            None => string(out, days),
        },
        (Field::TimeMillis(time), _) => time_of_day(out, i64::from(*time) * 1_000),
        (Field::TimeMicros(time), _) => time_of_day(out, *time),
        (Field::Group(row), _) => object(out, row, &[]),
        (Field::ListInternal(list), _) => {
            out.push(b'[');
            for (index, element) in list.elements().iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                value(out, element, Form::Plain);
            }
            out.push(b']');
        }
        (Field::MapInternal(map), _) => {
            out.push(b'{');
            for (index, (key, element)) in map.entries().iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                match key {
                    Field::Str(key) => json(out, key),
                    key => string(out, key),
                }
                out.push(b':');
                value(out, element, Form::Plain);
            }
            out.push(b'}');
        }
    }
}

/// Appends a text as a string.
pub(super) fn text(out: &mut Vec<u8>, text: &str) {
    json(out, text);
}

fn json(out: &mut Vec<u8>, value: impl serde::Serialize) {
    serde_json::to_writer(out, &value).expect("a plain value is JSON, and memory takes it");
}

fn string(out: &mut Vec<u8>, value: impl Display) {
    json(out, value.to_string());
}

fn float(out: &mut Vec<u8>, value: f64) {
    if value.is_finite() {
        json(out, value);
    } else if value.is_nan() {
        string(out, "NaN");
    } else {
        string(out, if value > 0.0 { "Infinity" } else { "-Infinity" });
    }
}

fn day(days: i32) -> Option<Date> {
    date(1970, 1, 1).checked_add(SignedDuration::from_hours(i64::from(days) * 24)).ok()
}

/// A count that is no time of a day, or no time at all, stays a number within quotes: no column takes it for something else.
fn time_of_day(out: &mut Vec<u8>, microseconds: i64) {
    match Time::midnight().checked_add(SignedDuration::from_micros(microseconds)) {
        Ok(time) => string(out, time),
        Err(_) => string(out, microseconds),
    }
}

fn timestamp(out: &mut Vec<u8>, count: i64, unit: Unit, has_zone: bool) {
    let (per_second, digits) = match unit {
        Unit::Milliseconds => (1_000, 3),
        Unit::Microseconds => (1_000_000, 6),
        Unit::Nanoseconds => (1_000_000_000, 9),
    };
    let (days, rest) = (count.div_euclid(86_400 * per_second), count.rem_euclid(86_400 * per_second));
    match i32::try_from(days).ok().and_then(day) {
        Some(day) if day.year() >= 0 => {
            let (seconds, fraction) = (rest / per_second, rest % per_second);
            out.push(b'"');
            number(out, i64::from(day.year()), 4);
            for (before, part) in [(b'-', i64::from(day.month())), (b'-', i64::from(day.day()))] {
                out.push(before);
                number(out, part, 2);
            }
            for (before, part) in [(b'T', seconds / 3_600), (b':', seconds / 60 % 60), (b':', seconds % 60)] {
                out.push(before);
                number(out, part, 2);
            }
            if fraction > 0 {
                out.push(b'.');
                number(out, fraction, digits);
                while out.last() == Some(&b'0') {
                    out.pop();
                }
            }
            out.extend_from_slice(if has_zone { b"Z\"" } else { b"\"" });
        }
        // A year before 0, which is written with a sign.
        Some(day) => {
            let time = day.to_datetime(Time::midnight()).checked_add(match unit {
                Unit::Milliseconds => SignedDuration::from_millis(rest),
                Unit::Microseconds => SignedDuration::from_micros(rest),
                Unit::Nanoseconds => SignedDuration::from_nanos(rest),
            });
            match time {
                Ok(time) if has_zone => string(out, format_args!("{time}Z")),
                Ok(time) => string(out, time),
                Err(_) => string(out, count),
            }
        }
        None => string(out, count),
    }
}

/// Appends a number with so many digits.
fn number(out: &mut Vec<u8>, mut number: i64, digits: usize) {
    let start = out.len();
    out.resize(start + digits, b'0');
    for digit in out[start..].iter_mut().rev() {
        *digit += (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// As the library for times writes them, years before 0 among them.
        #[test]
        fn times_are_written_as_by_jiff(
            count in prop_oneof![any::<i64>(), -70_000_000_000_000_000..300_000_000_000_000_000i64, -100_000_000_000_000..100_000_000_000_000i64],
            unit in 0..3usize,
            has_zone: bool,
        ) {
            let (unit, since) = [
                (Unit::Milliseconds, SignedDuration::from_millis(count)),
                (Unit::Microseconds, SignedDuration::from_micros(count)),
                (Unit::Nanoseconds, SignedDuration::from_nanos(count)),
            ][unit];
            let time: Result<jiff::civil::DateTime, _> = date(1970, 1, 1).at(0, 0, 0, 0).checked_add(since);
            let expected = match time {
                Ok(time) => format!("\"{time}{}\"", if has_zone { "Z" } else { "" }),
                Err(_) => format!("\"{count}\""),
            };
            let mut out = Vec::new();
            timestamp(&mut out, count, unit, has_zone);
            prop_assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
