//! A row of a Parquet file as a JSON object. What JSON has no form for is a string: times as in RFC 3339, bytes as `\x..` in
//! hexadecimal, NaN and infinities by name.

use std::fmt::{Display, Write as _};

use jiff::SignedDuration;
use jiff::civil::{Date, DateTime, Time, date};
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

fn value(out: &mut Vec<u8>, field: &Field, form: Form) {
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
    let since = match unit {
        Unit::Milliseconds => SignedDuration::from_millis(count),
        Unit::Microseconds => SignedDuration::from_micros(count),
        Unit::Nanoseconds => SignedDuration::from_nanos(count),
    };
    let time: Result<DateTime, _> = date(1970, 1, 1).at(0, 0, 0, 0).checked_add(since);
    match time {
        Ok(time) if has_zone => string(out, format_args!("{time}Z")),
        Ok(time) => string(out, time),
        Err(_) => string(out, count),
    }
}
