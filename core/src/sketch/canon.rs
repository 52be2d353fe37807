//! Values that are equal in SQL have one byte form, whatever their type: `1::integer` and `1::bigint` are one element of a
//! sketch, and so are `1.0` and `1.00`. Fixed for ever, like the hash.
//!
//! Types whose values are one fixed-size word are hashed at once. The others are written as bytes, which are hashed then; the
//! parts of a value (elements, columns, bounds) are written one after the other, each with its length, so that no two values that differ
//! share a byte form.
#![forbid(unsafe_code)]

mod jsonb;

use super::hash;
pub use jsonb::jsonb;

/// How the bytes of a type are formed. Reading a value is up to whoever knows how it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Form {
    /// One byte, 0 or 1.
    Boolean,
    /// One byte.
    Byte,
    /// Sign-extended to 8 bytes: all integers, and date.
    Integer16,
    Integer32,
    /// 8 bytes as they are: bigint, the microseconds of a time, money.
    Word64,
    /// Zero-extended to 8 bytes.
    Unsigned32,
    /// As a double.
    Real,
    /// One zero, one NaN.
    Double,
    /// 16 bytes as they are.
    Uuid,
    /// 6 and 8 bytes as they are.
    MacAddress,
    MacAddress8,
    /// The bytes of a string, if its collation is deterministic: equal strings then have equal bytes.
    Text,
    /// The same without the blanks at its end.
    PaddedText,
    /// The bytes of a string up to its first zero byte, so that a name equals the same text.
    Name,
    /// The bytes as they are.
    Bytes,
    Numeric,
    Interval,
    TimeWithZone,
    Network,
    Bits,
    Jsonb,
    /// The value is a hash already.
    Hash,
}

impl Form {
    /// The form of a built-in type, by its oid. These are part of PostgreSQL's catalog and never change.
    pub fn of_type(oid: u32) -> Option<Self> {
        Some(match oid {
            16 => Self::Boolean,
            // "char"
            18 => Self::Byte,
            21 => Self::Integer16,
            // integer, date
            23 | 1082 => Self::Integer32,
            // bigint, timestamp, timestamptz, time, money, xid8, pg_lsn
            20 | 1114 | 1184 | 1083 | 790 | 5069 | 3220 => Self::Word64,
            // oid, xid, cid, regproc, regprocedure, regoper, regoperator, regclass, regtype, regconfig, regdictionary,
            // regnamespace, regrole, regcollation
            26 | 28 | 29 | 24 | 2202 | 2203 | 2204 | 2205 | 2206 | 3734 | 3769 | 4089 | 4096 | 4191 => Self::Unsigned32,
            700 => Self::Real,
            701 => Self::Double,
            2950 => Self::Uuid,
            829 => Self::MacAddress,
            774 => Self::MacAddress8,
            // text, varchar
            25 | 1043 => Self::Text,
            1042 => Self::PaddedText,
            19 => Self::Name,
            17 => Self::Bytes,
            1700 => Self::Numeric,
            1186 => Self::Interval,
            1266 => Self::TimeWithZone,
            // inet, cidr
            869 | 650 => Self::Network,
            // bit, varbit
            1560 | 1562 => Self::Bits,
            3802 => Self::Jsonb,
            _ => return None,
        })
    }

    /// Does equality of values depend on a collation?
    pub fn is_collated(self) -> bool {
        matches!(self, Self::Text | Self::PaddedText | Self::Name)
    }
}

/// The hash of a boolean.
#[inline(always)]
pub fn boolean(value: bool) -> u64 {
    byte(u8::from(value))
}

/// The hash of a `"char"`.
#[inline(always)]
pub fn byte(value: u8) -> u64 {
    hash::short(u64::from(value), 1, 0)
}

/// The hash of a smallint, integer, bigint, date or time, sign-extended.
#[inline(always)]
pub fn integer(value: i64) -> u64 {
    hash::short(value as u64, 8, 0)
}

/// The hash of a real or double precision.
#[inline(always)]
pub fn double(value: f64) -> u64 {
    hash::short(double_bits(value), 8, 0)
}

/// The bits of a double, the same for both zeros and for all NaNs.
#[inline(always)]
pub fn double_bits(value: f64) -> u64 {
    if value.is_nan() {
        0x7ff8_0000_0000_0000
    } else if value == 0.0 {
        0
    } else {
        value.to_bits()
    }
}

/// The hash of the payload of a text, varchar, bytea or uuid.
pub fn payload(value: &[u8]) -> u64 {
    hash::bytes(value, 0)
}

/// A name: its buffer is padded with zero bytes.
pub fn name(buffer: &[u8]) -> &[u8] {
    let end = buffer.iter().position(|byte| *byte == 0).unwrap_or(buffer.len());
    &buffer[..end]
}

/// A `char(n)` without the blanks at its end, which do not count.
pub fn without_padding(value: &[u8]) -> &[u8] {
    let end = value.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    &value[..end]
}

/// Writes a part of a value: whether it is there, its length, and what `write` writes.
///
/// # Errors
/// Those of `write`.
pub fn part<E>(out: &mut Vec<u8>, write: Option<impl FnOnce(&mut Vec<u8>) -> Result<(), E>>) -> Result<(), E> {
    let Some(write) = write else {
        out.push(0);
        return Ok(());
    };
    out.push(1);
    with_length(out, write)
}

/// Writes the length of what `write` writes before it.
fn with_length<E>(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
    let start = out.len();
    count(out, 0);
    write(out)?;
    // PostgreSQL has no value of 4 GB.
    let length = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    Ok(())
}

/// Writes a number of things, or of bytes.
pub fn count(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_le_bytes());
}

/// Writes a numeric, from its stored payload: a class, and for numbers other than 0 the weight of the first digit and the base-10000
/// digits without zeros at either end. The number of digits behind the point that it is shown with does not count.
pub fn numeric(payload: &[u8], out: &mut Vec<u8>) {
    const ZERO: u8 = 0;
    const POSITIVE: u8 = 1;
    const NEGATIVE: u8 = 2;
    const NAN: u8 = 3;
    const INFINITY: u8 = 4;
    const MINUS_INFINITY: u8 = 5;
    let words = payload.as_chunks::<2>().0;
    let Some((head, rest)) = words.split_first().map(|(head, rest)| (u16::from_ne_bytes(*head), rest)) else {
        out.push(ZERO);
        return;
    };
    let (is_negative, weight, digits) = match head & 0xC000 {
        0xC000 => {
            out.push(match head & 0xF000 {
                0xD000 => INFINITY,
                0xF000 => MINUS_INFINITY,
                _ => NAN,
            });
            return;
        }
        // The short form: the weight is in the low 7 bits, of which the highest is its sign.
        0x8000 => (head & 0x2000 != 0, ((head & 0x7F) as i16) << 9 >> 9, rest),
        sign => {
            let Some((weight, digits)) = rest.split_first() else {
                out.push(ZERO);
                return;
            };
            (sign == 0x4000, i16::from_ne_bytes(*weight), digits)
        }
    };
    let is_digit = |digit: &[u8; 2]| *digit != [0, 0];
    let (Some(first), Some(last)) = (digits.iter().position(is_digit), digits.iter().rposition(is_digit)) else {
        out.push(ZERO);
        return;
    };
    out.push(if is_negative { NEGATIVE } else { POSITIVE });
    out.extend_from_slice(&weight.wrapping_sub(first as i16).to_le_bytes());
    for digit in &digits[first..=last] {
        out.extend_from_slice(&u16::from_ne_bytes(*digit).to_le_bytes());
    }
}

/// Writes an interval, from its 16 bytes, as the microseconds that it is compared by: months of 30 days, days of 24 hours.
pub fn interval(value: &[u8; 16], out: &mut Vec<u8>) {
    let [a, b, c, d, e, f, g, h, day @ .., m, o, n, t] = *value;
    let time = i64::from_ne_bytes([a, b, c, d, e, f, g, h]);
    let (days, months) = (i32::from_ne_bytes(day), i32::from_ne_bytes([m, o, n, t]));
    let days = i128::from(months) * 30 + i128::from(days);
    out.extend_from_slice(&(days * 86_400_000_000 + i128::from(time)).to_le_bytes());
}

/// Writes a time with its zone, from its 12 bytes.
pub fn time_with_zone(value: &[u8; 12], out: &mut Vec<u8>) {
    let [a, b, c, d, e, f, g, h, zone @ ..] = *value;
    out.extend_from_slice(&i64::from_ne_bytes([a, b, c, d, e, f, g, h]).to_le_bytes());
    out.extend_from_slice(&i32::from_ne_bytes(zone).to_le_bytes());
}

/// Writes an inet or cidr, from its stored payload: 4 or 6, length of the prefix, address.
pub fn network(payload: &[u8], out: &mut Vec<u8>) {
    /// PostgreSQL stores AF_INET, 2 everywhere; the other one is 3.
    const VERSION_4: u8 = 2;
    let Some(([family, prefix], address)) = payload.split_first_chunk() else { return };
    let (version, length) = if *family == VERSION_4 { (4, 4) } else { (6, 16) };
    out.extend_from_slice(&[version, *prefix]);
    out.extend_from_slice(address.get(..length).unwrap_or(address));
}

/// Writes a bit string, from its stored payload: number of bits, bytes.
pub fn bits(payload: &[u8], out: &mut Vec<u8>) {
    let Some((length, bytes)) = payload.split_first_chunk() else { return };
    count(out, u32::from_ne_bytes(*length));
    out.extend_from_slice(bytes);
}
