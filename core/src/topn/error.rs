//! How a request on a top-N sketch can be wrong.
#![forbid(unsafe_code)]

use super::{MAX_COUNTERS, MAX_ITEM, MAX_TOTAL};
use crate::error::Explain;
use std::fmt;

/// What an item, a stored value or a parameter is refused for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The number of counters that a user has asked for.
    Counters(i64),
    /// The size in bytes of an item that is to be added.
    ItemTooLong(usize),
    TotalTooLarge,
    /// The memory of a state would exceed what PostgreSQL allocates at once.
    StateTooLarge,
    /// The first byte.
    UnknownVersion(u8),
    UnknownOptions(u8),
    Truncated,
    /// Bytes after the last entry.
    TooManyBytes(usize),
    NumberTooLarge,
    NumberNotShortest,
    StoredCounters(u32),
    StoredTotal,
    /// More than two entries per counter.
    TooManyEntries(u64),
    StoredItemTooLong(u64),
    /// An entry whose item was never seen.
    NeverSeen,
    /// An item whose error exceeds that of the sketch.
    EntryError,
    /// An item that cannot have occurred more often than an absent one.
    BelowError,
    Order,
    DuplicateItem,
    /// The items together occurred more often than the total says.
    Sum,
    /// An error that no sequence of evictions can have led to.
    SketchError,
    /// What is wrong with a JSON text, and where.
    Json(String),
    /// A JSON text names an item with the character U+0000.
    ZeroCharacter,
    /// Bytes that one process of a parallel query sent to another.
    State(&'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Counters(given) => {
                write!(f, "number of topn counters must be between 1 and {MAX_COUNTERS}, not {given}")
            }
            Self::ItemTooLong(bytes) => write!(f, "item of {bytes} bytes is too long for topn"),
            Self::TotalTooLarge => write!(f, "total of topn would exceed {MAX_TOTAL}"),
            Self::StateTooLarge => f.write_str("items of topn would need more than 1 GB of memory"),
            Self::UnknownVersion(byte) => write!(f, "unknown topn version {byte:#04x}"),
            Self::UnknownOptions(options) => write!(f, "unknown topn options {options}"),
            Self::Truncated => f.write_str("topn value ends too early"),
            Self::TooManyBytes(bytes) => write!(f, "topn value has {bytes} bytes after its last item"),
            Self::NumberTooLarge => f.write_str("number in topn value has more than 64 bits"),
            Self::NumberNotShortest => f.write_str("number in topn value is not written in its shortest form"),
            Self::StoredCounters(counters) => write!(f, "topn value cannot have {counters} counters"),
            Self::StoredTotal => write!(f, "total of topn value exceeds {MAX_TOTAL}"),
            Self::TooManyEntries(entries) => {
                write!(f, "topn value cannot have {entries} items: that is more than two per counter")
            }
            Self::StoredItemTooLong(bytes) => write!(f, "topn value cannot have an item of {bytes} bytes"),
            Self::NeverSeen => f.write_str("topn value has an item that never occurred"),
            Self::EntryError => f.write_str("error of an item exceeds the error of its topn value"),
            Self::BelowError => f.write_str("frequency of an item does not exceed the error of its topn value"),
            Self::Order => {
                f.write_str("items of topn value are not ordered by descending frequency and ascending bytes")
            }
            Self::DuplicateItem => f.write_str("topn value has an item twice"),
            Self::Sum => f.write_str("frequencies of topn value exceed its total"),
            Self::SketchError => {
                f.write_str("error of topn value is too large for its total and its number of counters")
            }
            Self::Json(found) => write!(f, "invalid JSON for topn: {found}"),
            Self::ZeroCharacter => f.write_str("item of topn cannot contain the character \\u0000"),
            Self::State(found) => write!(f, "invalid state of a topn aggregate: {found}"),
        }
    }
}

impl Explain for Error {
    fn sqlstate(&self) -> &'static str {
        match self {
            Self::Counters(_) => "22023",
            Self::ItemTooLong(_) | Self::StateTooLarge => "54000",
            Self::TotalTooLarge => "22003",
            Self::Json(_) => "22P02",
            Self::ZeroCharacter => "22P05",
            Self::State(_) => "22P03",
            _ => "22000",
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Counters(_) => {
                "A sketch with k counters finds every item that makes up more than 1 / (k + 1) of all values."
            }
            Self::ItemTooLong(_) => {
                return Some(format!(
                    "An item has at most {MAX_ITEM} bytes. Count a prefix or a hash of longer values, such as md5(x)."
                ));
            }
            Self::StateTooLarge => "Use fewer counters or shorter items.",
            Self::Json(_) => {
                "The value is a JSON object of items and how often they occurred, such as {\"a\": 3, \"b\": 1}."
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
