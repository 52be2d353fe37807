//! The same rows as the text of `COPY .. FROM STDIN (FORMAT text)`, for tables with a type that only its input function can
//! read. Values are printed from their binary form, so both formats store what the same checks have passed.
//!
//! A row is a line: columns end with a tab, NULL is `\N`, and backslash, tab and line breaks are escaped (PostgreSQL
//! documentation, "COPY", section "Text Format"). So the lines that the server counts are rows.

use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::civil;
use super::network::IPV4;
use crate::kind::Kind;

/// Appends the line of a row in binary form, whose columns are of these kinds. `None` when the bytes are not those of the kinds,
/// which the encoder never writes; then `out` is as before.
pub fn line<'a>(out: &mut Vec<u8>, row: &[u8], kinds: impl Iterator<Item = &'a Kind>) -> Option<()> {
    let start = out.len();
    let mut bytes = Bytes(row.get(2..)?);
    let mut plain = Vec::new();
    for (index, kind) in kinds.enumerate() {
        if index > 0 {
            out.push(b'\t');
        }
        plain.clear();
        let printed = bytes.field().and_then(|value| match value {
            Some(value) => print(&mut plain, kind, value).map(|()| escape(out, &plain)),
            None => {
                out.extend_from_slice(b"\\N");
                Some(())
            }
        });
        if printed.is_none() {
            out.truncate(start);
            return None;
        }
    }
    out.push(b'\n');
    Some(())
}

fn escape(out: &mut Vec<u8>, text: &[u8]) {
    for &byte in text {
        match byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            byte => out.push(byte),
        }
    }
}

/// Prints a value in binary form as the text that the type's input function reads, whatever the settings of the session but for
/// `TimeZone = UTC` and `DateStyle = ISO`.
pub fn print(out: &mut Vec<u8>, kind: &Kind, value: &[u8]) -> Option<()> {
    // Writing to a vector cannot fail.
    macro_rules! put { ($($argument:tt)*) => { write!(out, $($argument)*).ok() } }
    let mut bytes = Bytes(value);
    match kind {
        Kind::Bool => put!("{}", if bytes.array::<1>()? == [0] { "f" } else { "t" }),
        Kind::Int2 => put!("{}", i16::from_be_bytes(bytes.array()?)),
        Kind::Int4 => put!("{}", bytes.i32()?),
        Kind::Int8 => put!("{}", bytes.i64()?),
        Kind::Oid => put!("{}", bytes.u32()?),
        // The shortest digits that give the same number again.
        Kind::Float4 => put!("{:e}", f32::from_be_bytes(bytes.array()?)),
        Kind::Float8 => put!("{:e}", f64::from_be_bytes(bytes.array()?)),
        Kind::Numeric(_) => numeric(out, &mut bytes),
        Kind::Text { .. } | Kind::Enum(_) | Kind::Json | Kind::Input => put(out, value),
        Kind::Jsonb => put(out, value.strip_prefix(&[1])?),
        Kind::Timestamp(_) => match bytes.i64()? {
            i64::MIN => put!("-infinity"),
            i64::MAX => put!("infinity"),
            time => {
                let era = date(out, time.div_euclid(DAY))?;
                put!(" ")?;
                clock(out, time.rem_euclid(DAY).unsigned_abs())?;
                put!("+00{era}")
            }
        },
        Kind::Date => match bytes.i32()? {
            i32::MIN => put!("-infinity"),
            i32::MAX => put!("infinity"),
            days => date(out, days.into()).and_then(|era| put!("{era}")),
        },
        Kind::Time => clock(out, bytes.i64()?.unsigned_abs()),
        Kind::Timetz => {
            clock(out, bytes.i64()?.unsigned_abs())?;
            let west = bytes.i32()?;
            let east = west.unsigned_abs();
            put!("{}{:02}:{:02}:{:02}", if west > 0 { '-' } else { '+' }, east / 3_600, east / 60 % 60, east % 60)
        }
        Kind::Interval => {
            let (time, days, months) = (bytes.i64()?, bytes.i32()?, bytes.i32()?);
            match (time, days, months) {
                (i64::MIN, i32::MIN, i32::MIN) => put!("-infinity"),
                (i64::MAX, i32::MAX, i32::MAX) => put!("infinity"),
                _ => {
                    put!("{months} mons {days} days {}", if time < 0 { "-" } else { "" })?;
                    clock(out, time.unsigned_abs())
                }
            }
        }
        Kind::Uuid => put!("{}", uuid::Uuid::from_bytes(bytes.array()?)),
        Kind::Bytea(_) => {
            put!("\\x")?;
            value.iter().try_for_each(|byte| put!("{byte:02x}"))
        }
        Kind::Inet | Kind::Cidr => {
            let [family, bits, _, _] = bytes.array()?;
            match family {
                IPV4 => put!("{}/{bits}", Ipv4Addr::from(bytes.array::<4>()?)),
                _ => put!("{}/{bits}", Ipv6Addr::from(bytes.array::<16>()?)),
            }
        }
        Kind::Array(element, _) => array(out, element, &mut bytes),
    }
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    out.extend_from_slice(bytes);
    Some(())
}

const DAY: i64 = 86_400_000_000;

/// Prints a date, and returns what has to follow it at the end.
fn date(out: &mut Vec<u8>, days: i64) -> Option<&'static str> {
    let (year, month, day) = civil(days);
    let (year, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    write!(out, "{year:04}-{month:02}-{day:02}").ok().map(|()| era)
}

fn clock(out: &mut Vec<u8>, time: u64) -> Option<()> {
    let (seconds, fraction) = (time / 1_000_000, time % 1_000_000);
    write!(out, "{:02}:{:02}:{:02}.{fraction:06}", seconds / 3_600, seconds / 60 % 60, seconds % 60).ok()
}

/// All digits down to the display scale as an integer, and an exponent: never longer than what the number was made from, while
/// `1e131071` in full would be.
fn numeric(out: &mut Vec<u8>, bytes: &mut Bytes<'_>) -> Option<()> {
    let (count, weight) = (i64::from(bytes.u16()?), i64::from(bytes.u16()? as i16));
    let (sign, scale) = (bytes.u16()?, i64::from(bytes.u16()?));
    match sign {
        0xc000 => return put(out, b"NaN"),
        0xd000 => return put(out, b"Infinity"),
        0xf000 => return put(out, b"-Infinity"),
        0x4000 => out.push(b'-'),
        _ => {}
    }
    if count == 0 {
        return write!(out, "0e-{scale}").ok();
    }
    let start = out.len();
    for group in 0..count {
        let digits = bytes.u16()?;
        if group == 0 { write!(out, "{digits}").ok()? } else { write!(out, "{digits:04}").ok()? }
    }
    // The exponent of the last digit written; digits below the scale can only be zeros, and zeros up to it are written.
    let mut exponent = (weight - count + 1) * 4;
    while exponent < -scale && out.len() > start && out.last() == Some(&b'0') {
        out.pop();
        exponent += 1;
    }
    while exponent > -scale && scale > 0 {
        out.push(b'0');
        exponent -= 1;
    }
    write!(out, "e{exponent}").ok()
}

/// `{"1",NULL}`, with all elements quoted, and with bounds before it when they do not begin at 1.
fn array(out: &mut Vec<u8>, element: &Kind, bytes: &mut Bytes<'_>) -> Option<()> {
    let (dimensions, _, _) = (bytes.u32()?, bytes.u32()?, bytes.u32()?);
    let mut lengths = Vec::new();
    let mut bounds = Vec::new();
    for _ in 0..dimensions {
        let (length, lower) = (bytes.u32()?, bytes.i32()?);
        lengths.push(length);
        bounds.push((lower, i64::from(lower) + i64::from(length) - 1));
    }
    if bounds.iter().any(|(lower, _)| *lower != 1) {
        for (lower, upper) in bounds {
            write!(out, "[{lower}:{upper}]").ok()?;
        }
        out.push(b'=');
    }
    if lengths.is_empty() {
        return put(out, b"{}");
    }
    elements(out, element, &lengths, bytes)
}

fn elements(out: &mut Vec<u8>, element: &Kind, lengths: &[u32], bytes: &mut Bytes<'_>) -> Option<()> {
    let (length, inner) = lengths.split_first()?;
    out.push(b'{');
    let mut plain = Vec::new();
    for index in 0..*length {
        if index > 0 {
            out.push(b',');
        }
        if !inner.is_empty() {
            elements(out, element, inner, bytes)?;
            continue;
        }
        let Some(value) = bytes.field()? else {
            out.extend_from_slice(b"NULL");
            continue;
        };
        plain.clear();
        print(&mut plain, element, value)?;
        out.push(b'"');
        for &byte in &plain {
            if matches!(byte, b'"' | b'\\') {
                out.push(b'\\');
            }
            out.push(byte);
        }
        out.push(b'"');
    }
    out.push(b'}');
    Some(())
}

/// What is still to be read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(*head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_be_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_be_bytes)
    }

    /// A field with its length; `Some(None)` is NULL.
    fn field(&mut self) -> Option<Option<&'a [u8]>> {
        let Ok(length) = usize::try_from(self.i32()?) else { return Some(None) };
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(Some(head))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{BytesFormat, TimeFormat};
    use crate::copy::{NULL, address, array_header, field, row};

    #[track_caller]
    fn prints(kind: Kind, value: &[u8], expected: &str) {
        let mut out = Vec::new();
        assert_eq!(print(&mut out, &kind, value), Some(()), "{kind:?}");
        assert_eq!(String::from_utf8(out).unwrap(), expected, "{kind:?}");
        // Bytes that end too early are noticed, for all types of a fixed length.
        if !matches!(kind, Kind::Text { .. } | Kind::Bytea(_) | Kind::Input) {
            assert_eq!(print(&mut Vec::new(), &kind, &value[..value.len() - 1]), None, "{kind:?}");
        }
    }

    fn number(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        crate::copy::numeric(&mut out, text, None).unwrap();
        out
    }

    #[test]
    fn values_are_printed_from_their_bytes() {
        prints(Kind::Bool, &[1], "t");
        prints(Kind::Int2, &(-7i16).to_be_bytes(), "-7");
        prints(Kind::Oid, &u32::MAX.to_be_bytes(), "4294967295");
        prints(Kind::Float8, &0.1f64.to_be_bytes(), "1e-1");
        prints(Kind::Float4, &(-0f32).to_be_bytes(), "-0e0");
        for (text, expected) in [
            ("0", "0e-0"),
            ("0.00", "0e-2"),
            ("-12345.678", "-12345678e-3"),
            ("1.10", "110e-2"),
            ("1e131071", "1000e131068"),
            ("1e-16383", "1e-16383"),
            ("10000.0", "100000e-1"),
            ("1e3", "1000e0"),
            ("12e4", "12e4"),
        ] {
            prints(Kind::Numeric(None), &number(text), expected);
        }
        let timestamp = Kind::Timestamp(TimeFormat::default());
        prints(timestamp.clone(), &(-1i64).to_be_bytes(), "1999-12-31 23:59:59.999999+00");
        prints(timestamp.clone(), &(-211_813_488_000_000_000i64).to_be_bytes(), "4714-11-24 00:00:00.000000+00 BC");
        prints(timestamp, &i64::MAX.to_be_bytes(), "infinity");
        prints(Kind::Date, &(-730_120i32).to_be_bytes(), "0001-12-31 BC");
        prints(Kind::Time, &DAY.to_be_bytes(), "24:00:00.000000");
        prints(Kind::Timetz, b"\0\0\0\0\0\0\0\0\xff\xff\xe3\xe0", "00:00:00.000000+02:00:00");
        prints(
            Kind::Interval,
            &[[0xff; 8], [0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]].concat(),
            "-1 mons 1 days -00:00:00.000001",
        );
        prints(Kind::Uuid, &[0x11; 16], "11111111-1111-1111-1111-111111111111");
        prints(Kind::Bytea(BytesFormat::Base64), b"\x00\xff", "\\x00ff");
        prints(Kind::Inet, &address("10.1.2.3/8", false).unwrap(), "10.1.2.3/8");
        prints(Kind::Cidr, &address("2001:db8::/32", true).unwrap(), "2001:db8::/32");
    }

    #[test]
    fn arrays_quote_every_element() {
        let text = Kind::Array(Box::new(Kind::Text { limit: None, blanks_are_cut: false }), 25);
        let mut value = array_header(25, &[2, 2], true);
        field(&mut value, b"a\"\\,");
        value.extend_from_slice(NULL);
        field(&mut value, b"NULL");
        field(&mut value, b"");
        prints(text.clone(), &value, r#"{{"a\"\\,",NULL},{"NULL",""}}"#);
        prints(text.clone(), &array_header(25, &[], false), "{}");
        // The lower bounds of a column's default may be anything.
        let mut value = array_header(23, &[1], false);
        value[16..20].copy_from_slice(&(-1i32).to_be_bytes());
        field(&mut value, &7i32.to_be_bytes());
        prints(Kind::Array(Box::new(Kind::Int4), 23), &value, r#"[-1:-1]={"7"}"#);
    }

    #[test]
    fn a_row_is_one_line_whatever_it_holds() {
        let text = Kind::Text { limit: None, blanks_are_cut: false };
        let mut bytes = Vec::new();
        row(&mut bytes, 4);
        field(&mut bytes, b"a\tb\nc\rd\\.");
        bytes.extend_from_slice(NULL);
        field(&mut bytes, b"\\N");
        field(&mut bytes, b"");
        let mut out = b"before".to_vec();
        line(&mut out, &bytes, [&text; 4].into_iter()).unwrap();
        assert_eq!(out, b"beforea\\tb\\nc\\rd\\\\.\t\\N\t\\\\N\t\n");
        assert_eq!(line(&mut out, &bytes, [&text, &text, &Kind::Int4, &text].into_iter()), None);
        assert!(out.ends_with(b"\t\n"), "nothing is left of a row that cannot be printed");
    }
}
