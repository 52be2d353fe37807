//! A field of a text format such as CSV into the bytes of one column. What PostgreSQL's own COPY takes from text is taken here,
//! as far as it means one thing only.

use serde::de::{DeserializeSeed, IgnoredAny};

use super::array::Builder;
use super::literal;
use super::scalar::{self, Failure, check_jsonb, digits, number_field, wrong_type};
use super::value::ValueSeed;
use crate::copy;
use crate::kind::Kind;
use crate::program::Column;

/// Appends length and bytes of a value that is not NULL; after an error whatever was appended is of no use. `utc`: a time without
/// a zone is one of UTC.
pub(super) fn value(out: &mut Vec<u8>, text: &str, column: &Column, utc: bool) -> Result<(), Failure> {
    match &column.kind {
        Kind::Timestamp(_) => scalar(out, text, &column.kind, utc || column.is_without_zone),
        Kind::Array(element, oid) => array(out, text, element, *oid, utc || column.is_without_zone),
        kind => scalar(out, text, kind, utc),
    }
}

/// The same for one that is no array.
pub(super) fn scalar(out: &mut Vec<u8>, text: &str, kind: &Kind, utc: bool) -> Result<(), Failure> {
    match kind {
        Kind::Bool => {
            let value = boolean(text.trim_ascii()).ok_or_else(|| wrong_type(kind, false))?;
            copy::field(out, &[value.into()]);
            Ok(())
        }
        Kind::Int2 | Kind::Int4 | Kind::Int8 | Kind::Oid => {
            let text = without_plus(text.trim_ascii());
            // Nearly always it fits; what does not is looked at again to say why.
            let value = text.parse::<i64>().map(i128::from).ok().or_else(|| digits(text));
            scalar::integer(out, value.ok_or_else(|| wrong_type(kind, false))?, kind)
        }
        Kind::Float4 | Kind::Float8 | Kind::Numeric(_) => {
            let text = text.trim_ascii();
            match special(kind, text) {
                Some(bytes) => {
                    copy::field(out, &bytes);
                    Ok(())
                }
                None => number_field(out, without_plus(text), kind, false),
            }
        }
        Kind::Timestamp(_) => {
            let text = text.trim_ascii();
            match (digits(text), infinite(text)) {
                (Some(value), _) => scalar::integer(out, value, kind),
                (None, Some(is_late)) => {
                    copy::field(out, &(if is_late { i64::MAX } else { i64::MIN }).to_be_bytes());
                    Ok(())
                }
                (None, None) => time(out, text, kind, utc),
            }
        }
        Kind::Date => match infinite(text.trim_ascii()) {
            Some(is_late) => {
                copy::field(out, &(if is_late { i32::MAX } else { i32::MIN }).to_be_bytes());
                Ok(())
            }
            None => scalar::string(out, text.trim_ascii(), kind, false),
        },
        Kind::Time | Kind::Timetz | Kind::Interval => scalar::string(out, text.trim_ascii(), kind, false),
        Kind::Json | Kind::Jsonb => {
            serde_json::from_str::<IgnoredAny>(text).map_err(|_| wrong_type(kind, false))?;
            if *kind == Kind::Json {
                copy::field(out, text.as_bytes());
            } else {
                check_jsonb(text)?;
                copy::jsonb(out, text.as_bytes());
            }
            Ok(())
        }
        kind => scalar::string(out, text, kind, false),
    }
}

/// An array as PostgreSQL writes it, or as JSON.
fn array(out: &mut Vec<u8>, text: &str, element: &Kind, oid: u32, utc: bool) -> Result<(), Failure> {
    let text = text.trim_ascii();
    match text.strip_prefix('{') {
        Some(text) => literal::array(Builder::new(element, oid, true, out), text, utc),
        None if text.starts_with('[') => {
            let kind = Kind::Array(Box::new(element.clone()), oid);
            let mut failure = None;
            let mut json = serde_json::Deserializer::from_str(text);
            let seed = ValueSeed::<false> { kind: &kind, digits_in_string: true, out, failure: &mut failure };
            seed.deserialize(&mut json)
                .and_then(|_| json.end())
                .map_err(|_| failure.unwrap_or_else(|| wrong_type(&kind, true)))
        }
        None => Err(literal::NO_ARRAY),
    }
}

/// The spellings of PostgreSQL: any beginning of true, false, yes and no; on, off; 1 and 0; in either case.
fn boolean(text: &str) -> Option<bool> {
    let begins = |word: &str, least: usize| {
        text.len() >= least && word.get(..text.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(text))
    };
    if begins("true", 1) || begins("yes", 1) || begins("on", 2) || text == "1" {
        Some(true)
    } else if begins("false", 1) || begins("no", 1) || begins("off", 2) || text == "0" {
        Some(false)
    } else {
        None
    }
}

fn without_plus(text: &str) -> &str {
    text.strip_prefix('+').filter(|rest| !rest.starts_with(['+', '-'])).unwrap_or(text)
}

/// NaN and the infinities, as PostgreSQL writes them. A numeric with a precision holds NaN only.
fn special(kind: &Kind, text: &str) -> Option<Vec<u8>> {
    let is_one_of = |words: &[&str]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    let (float, sign) = if is_one_of(&["nan"]) {
        (f64::NAN, 0xC000u16)
    } else if is_one_of(&["infinity", "inf"]) {
        (f64::INFINITY, 0xD000)
    } else if is_one_of(&["-infinity", "-inf"]) {
        (f64::NEG_INFINITY, 0xF000)
    } else {
        return None;
    };
    match kind {
        Kind::Float4 => Some((float as f32).to_be_bytes().to_vec()),
        Kind::Float8 => Some(float.to_be_bytes().to_vec()),
        Kind::Numeric(limit) if float.is_nan() || limit.is_none() => {
            // No digits, weight 0, the sign, display scale 0.
            Some([0, 0, sign, 0].iter().flat_map(|word| word.to_be_bytes()).collect())
        }
        _ => None,
    }
}

/// Whether a time or date is the end of all, or the beginning; `None` for any other.
fn infinite(text: &str) -> Option<bool> {
    if text.eq_ignore_ascii_case("infinity") {
        Some(true)
    } else {
        text.eq_ignore_ascii_case("-infinity").then_some(false)
    }
}

/// RFC 3339, and what PostgreSQL writes: `+00` for a zone of whole hours. `utc`: without a zone it is one of UTC.
fn time(out: &mut Vec<u8>, text: &str, kind: &Kind, utc: bool) -> Result<(), Failure> {
    let bytes = text.as_bytes();
    let short_zone = bytes.len() > 19 && matches!(bytes[bytes.len() - 3], b'+' | b'-');
    let has_zone = bytes.len() > 19 && bytes[19..].iter().any(|byte| matches!(byte, b'Z' | b'z' | b'+' | b'-'));
    let missing = if short_zone {
        ":00"
    } else if !has_zone && utc {
        "Z"
    } else {
        ""
    };
    // No time that a column takes is longer.
    let mut buffer = [0; 64];
    let completed = match buffer.get_mut(..text.len() + missing.len()) {
        Some(buffer) if !missing.is_empty() => {
            buffer[..text.len()].copy_from_slice(bytes);
            buffer[text.len()..].copy_from_slice(missing.as_bytes());
            std::str::from_utf8(buffer).unwrap_or(text)
        }
        _ => text,
    };
    scalar::string(out, completed, kind, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::TableColumn;
    use crate::decode::Reason;
    use crate::program::tests::{column, compile, table};

    /// The bytes of a value without their length.
    fn encode(base: &str, text: &str) -> Result<Vec<u8>, Reason> {
        encode_with(base, "", text, false)
    }

    fn encode_with(base: &str, rules: &str, text: &str, utc: bool) -> Result<Vec<u8>, Reason> {
        let mut column = column("a", base);
        if base == "timestamp" {
            column.declared = "timestamp without time zone".into();
        }
        let program = compile(&table(vec![column]), rules).unwrap();
        let mut out = Vec::new();
        match value(&mut out, text, &program.columns[0], utc) {
            Ok(()) => {
                assert_eq!(i32::from_be_bytes(out[..4].try_into().unwrap()) as usize, out.len() - 4);
                Ok(out.split_off(4))
            }
            Err((reason, _)) => Err(reason),
        }
    }

    #[test]
    fn integers_are_digits_and_nothing_else() {
        assert_eq!(encode("int4", "42").unwrap(), 42i32.to_be_bytes());
        assert_eq!(encode("int2", " -7 ").unwrap(), (-7i16).to_be_bytes());
        assert_eq!(encode("int8", "+9223372036854775807").unwrap(), i64::MAX.to_be_bytes());
        for (base, text, reason) in [
            ("int2", "32768", Reason::OutOfRange),
            ("int8", "99999999999999999999999999999999999999999999", Reason::OutOfRange),
            ("int4", "1.0", Reason::WrongType),
            ("int4", "", Reason::WrongType),
            ("int4", "+-1", Reason::WrongType),
            ("int4", "++1", Reason::WrongType),
            ("int4", "-", Reason::WrongType),
            ("int4", "1 2", Reason::WrongType),
            ("int4", "0x1F", Reason::WrongType),
        ] {
            assert_eq!(encode(base, text), Err(reason), "{text}");
        }
    }

    #[test]
    fn numbers_keep_their_digits_and_know_nan() {
        assert_eq!(encode("float8", "1.5e3").unwrap(), 1500f64.to_be_bytes());
        assert_eq!(encode("float4", "-Infinity").unwrap(), f32::NEG_INFINITY.to_be_bytes());
        assert!(f64::from_be_bytes(encode("float8", "NaN").unwrap().try_into().unwrap()).is_nan());
        // One digit group of 12, then 34: weight 0, scale 2.
        assert_eq!(encode("numeric", "12.34").unwrap(), [0, 2, 0, 0, 0, 0, 0, 2, 0, 12, 0x0d, 0x48]);
        assert_eq!(encode("numeric", "NaN").unwrap(), [0, 0, 0, 0, 0xc0, 0, 0, 0]);
        for text in ["1,5", "", "--1", "+-1", "e5", "12abc"] {
            assert_eq!(encode("numeric", text), Err(Reason::WrongType), "{text}");
            assert_eq!(encode("float8", text), Err(Reason::WrongType), "{text}");
        }
        assert_eq!(encode("float8", "1e400"), Err(Reason::OutOfRange));
    }

    #[test]
    fn booleans_are_spelled_as_in_postgresql() {
        for text in ["t", "TRUE", "tr", "y", "yes", "on", "1"] {
            assert_eq!(encode("bool", text).unwrap(), [1], "{text}");
        }
        for text in ["f", "False", "n", "no", "off", "of", "0"] {
            assert_eq!(encode("bool", text).unwrap(), [0], "{text}");
        }
        for text in ["", "o", "2", "truely", "nope"] {
            assert_eq!(encode("bool", text), Err(Reason::WrongType), "{text}");
        }
    }

    #[test]
    fn a_time_needs_a_zone_unless_the_column_has_none() {
        let second = 1_000_000i64.to_be_bytes();
        for text in ["2000-01-01T00:00:01Z", "2000-01-01 00:00:01+00", "2000-01-01 02:00:01+02:00", "946684801000"] {
            assert_eq!(encode("timestamptz", text).unwrap(), second, "{text}");
        }
        assert_eq!(encode("timestamptz", "2000-01-01 01:30:01.5-01").unwrap(), 9_001_500_000i64.to_be_bytes());
        assert_eq!(encode("timestamptz", "2000-01-01 00:00:01"), Err(Reason::WrongType));
        assert_eq!(encode_with("timestamptz", "", "2000-01-01 00:00:01", true).unwrap(), second);
        assert_eq!(encode("timestamp", "2000-01-01 00:00:01").unwrap(), second);
        assert_eq!(
            encode_with("timestamptz", "columns.a = { time = \"epoch-s\" }", "946684801", false).unwrap(),
            second
        );
        assert_eq!(
            encode_with("timestamptz", "columns.a = { time = \"rfc3339\" }", "946684801", false),
            Err(Reason::WrongType)
        );
        assert_eq!(encode("timestamptz", "99999999999999999999"), Err(Reason::OutOfRange));
    }

    #[test]
    fn text_is_taken_as_it_is() {
        assert_eq!(encode("text", " 42 ").unwrap(), b" 42 ");
        assert_eq!(encode("text", "").unwrap(), b"");
        assert_eq!(encode("text", "a\0b"), Err(Reason::BadText));
        assert_eq!(encode_with("text", "columns.a = { max_length = 1 }", "ab", false), Err(Reason::TooLong));
        assert_eq!(encode("uuid", "00000000-0000-0000-0000-00000000002a").unwrap()[15], 42);
        assert_eq!(encode("jsonb", "{\"a\": [1]}").unwrap(), b"\x01{\"a\": [1]}");
        assert_eq!(encode("json", "{"), Err(Reason::WrongType));
    }

    #[test]
    fn every_kind_takes_what_copy_takes() {
        for (base, text, expected) in [
            ("oid", "4294967295", &u32::MAX.to_be_bytes()[..]),
            ("date", " 2000-01-02 ", &1i32.to_be_bytes()),
            ("date", "infinity", &i32::MAX.to_be_bytes()),
            ("timestamptz", "-Infinity", &i64::MIN.to_be_bytes()),
            ("time", "00:00:01", &1_000_000i64.to_be_bytes()),
            ("timetz", "00:00:00+00", &[0; 12]),
            ("interval", "1 mon", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
            ("bytea", "\\x00ff", b"\x00\xff"),
            ("inet", "10.1.2.3", &copy::address("10.1.2.3", false).unwrap()),
            ("cidr", "10.0.0.0/8", &copy::address("10.0.0.0/8", true).unwrap()),
            ("json", "null", b"null"),
            ("jsonb", " [1]", b"\x01 [1]"),
        ] {
            assert_eq!(encode(base, text).unwrap(), expected, "{base} {text}");
        }
        for (base, text) in [
            ("oid", "x"),
            ("date", "1/2/2000"),
            ("time", "25:00"),
            ("interval", "soon"),
            ("bytea", "\\xf"),
            ("inet", "10.1.2"),
            ("cidr", "10.1.2.3/8"),
            ("jsonb", "1 2"),
            ("uuid", ""),
        ] {
            assert_eq!(encode(base, text), Err(Reason::WrongType), "{base} {text}");
        }
        assert_eq!(encode("oid", "-1"), Err(Reason::OutOfRange));
        assert_eq!(encode_with("bytea", "columns.a = { bytes = \"base64\" }", "AP8=", false).unwrap(), b"\x00\xff");
    }

    #[test]
    fn arrays_are_written_as_postgresql_or_json_does() {
        let array = |base: &str, declared: &str, text: &str| {
            let column = TableColumn { element: Some(77), declared: declared.into(), ..column("a", base) };
            let program = compile(&table(vec![column]), "").unwrap();
            let mut out = Vec::new();
            value(&mut out, text, &program.columns[0], false).map(|()| out).map_err(|why| why.0)
        };
        let numbers = array("int4", "integer[]", "{1,NULL}").unwrap();
        assert_eq!(numbers[..20], [&32i32.to_be_bytes()[..], &copy::array_header(77, &[2], true)[..16]].concat());
        assert_eq!(array("int4", "integer[]", " [1, null] ").unwrap(), numbers);
        let times = array("timestamp", "timestamp without time zone[]", "{\"2000-01-01 00:00:01\"}").unwrap();
        assert_eq!(times[times.len() - 8..], 1_000_000i64.to_be_bytes());
        for text in ["", "null", "1", "[1:1]={1}", "[1", "{1} 2", "{\"2000-01-01 00:00:01\"}"] {
            assert_eq!(array("timestamptz", "timestamptz[]", text), Err(Reason::WrongType), "{text}");
        }
    }
}
