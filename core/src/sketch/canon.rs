//! Values that are equal in SQL have one byte form, whatever their type: `1::integer` and `1::bigint` are one element of a
//! sketch. Fixed for ever, like the hash.
//!
//! A type without a form of its own is refused for now. Hashing it by PostgreSQL's own function would bind stored sketches
//! to one server version.
#![forbid(unsafe_code)]

use super::hash;

/// How the bytes of a type are formed. Hashing itself needs the value, so it is done by whoever can read the datum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Form {
    /// One byte, 0 or 1.
    Boolean,
    /// Sign-extended to 8 bytes: all integers, and date.
    Integer16,
    Integer32,
    /// 8 bytes as they are: bigint, and the microseconds of a timestamp.
    Word64,
    /// Zero-extended to 8 bytes.
    Unsigned32,
    /// 16 bytes as they are.
    Uuid,
    /// The bytes of a string, if its collation is deterministic: equal strings then have equal bytes.
    Text,
    /// The bytes of a string up to its first zero byte, so that a name equals the same text.
    Name,
    /// The value is a hash already.
    Hash,
}

impl Form {
    /// The form of a built-in type, by its oid. These are part of PostgreSQL's catalog and never change.
    pub fn of_type(oid: u32) -> Option<Self> {
        Some(match oid {
            16 => Self::Boolean,
            21 => Self::Integer16,
            // integer, date
            23 | 1082 => Self::Integer32,
            // bigint, timestamp, timestamptz
            20 | 1114 | 1184 => Self::Word64,
            // oid
            26 => Self::Unsigned32,
            2950 => Self::Uuid,
            // text, varchar
            25 | 1043 => Self::Text,
            19 => Self::Name,
            _ => return None,
        })
    }

    /// Does equality of values depend on a collation?
    pub fn is_collated(self) -> bool {
        matches!(self, Self::Text | Self::Name)
    }
}

/// The hash of a boolean.
#[inline(always)]
pub fn boolean(value: bool) -> u64 {
    hash::short(u64::from(value), 1, 0)
}

/// The hash of a smallint, integer, bigint, date or timestamp, sign-extended.
#[inline(always)]
pub fn integer(value: i64) -> u64 {
    hash::short(value as u64, 8, 0)
}

/// The hash of the payload of a text, varchar or uuid.
pub fn payload(value: &[u8]) -> u64 {
    hash::bytes(value, 0)
}

/// The hash of a name: its buffer is padded with zero bytes.
pub fn name(buffer: &[u8]) -> u64 {
    let end = buffer.iter().position(|byte| *byte == 0).unwrap_or(buffer.len());
    payload(&buffer[..end])
}
