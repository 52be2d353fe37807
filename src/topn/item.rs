//! Values as items: their text, the same for all values that are equal.

use crate::error::Error;
use crate::pg::function::Call;
use crate::pg::types::{Output, justified_interval};
use crate::pg::varlena::Bytes;
use std::io::Write as _;
use std::ops::Deref;
use tally_core::sketch::canon;
use tally_core::topn::text;

/// How the text of an argument is made.
#[derive(Clone, Copy)]
pub(super) enum Form {
    /// The bytes are the text.
    Text,
    PaddedText,
    Name,
    Integer16,
    Integer32,
    Integer64,
    /// By the output function of the type, and then without what differs between equal numbers.
    Number(Output),
    /// The same for intervals.
    Interval(Output),
    Other(Output),
}

/// The form of an argument.
///
/// # Errors
/// Nothing is known of its type.
pub(super) fn form(call: Call<'_>, position: usize) -> Result<Form, Error> {
    let oid =
        call.base_type(position).ok_or_else(|| Error::new("42804", "could not determine the type of an argument"))?;
    Ok(match oid.to_u32() {
        25 | 1043 => Form::Text,
        1042 => Form::PaddedText,
        19 => Form::Name,
        21 => Form::Integer16,
        23 => Form::Integer32,
        20 => Form::Integer64,
        700 | 701 | 1700 => Form::Number(Output::of(call, oid)),
        1186 => Form::Interval(Output::of(call, oid)),
        _ => Form::Other(Output::of(call, oid)),
    })
}

/// Room for the digits of a bigint and its sign.
const DIGITS: usize = 20;

/// The text of a value, wherever it is.
pub(super) enum Item<'c> {
    Stored(Bytes<'c>),
    Padded(Bytes<'c>),
    Written(&'c [u8]),
    Digits([u8; DIGITS], usize),
}

impl Deref for Item<'_> {
    type Target = [u8];

    #[inline(always)]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Stored(bytes) => bytes,
            Self::Padded(bytes) => canon::without_padding(bytes),
            Self::Written(text) => text,
            Self::Digits(digits, length) => &digits[..*length],
        }
    }
}

impl Item<'_> {
    fn digits(value: i64) -> Self {
        let mut digits = [0; DIGITS];
        let mut rest = &mut digits[..];
        // There is room for every value.
        let _ = write!(rest, "{value}");
        let length = DIGITS - rest.len();
        Self::Digits(digits, length)
    }
}

/// The text of an argument that is not NULL.
#[inline(always)]
pub(super) fn item<'c>(call: Call<'c>, position: usize, form: Form) -> Item<'c> {
    match form {
        Form::Text => Item::Stored(call.bytes(position)),
        Form::PaddedText => Item::Padded(call.bytes(position)),
        Form::Name => Item::Written(canon::name(call.fixed::<64>(position))),
        Form::Integer16 => Item::digits(i64::from(call.int16(position))),
        Form::Integer32 => Item::digits(i64::from(call.int32(position))),
        Form::Integer64 => Item::digits(call.int64(position)),
        Form::Number(output) => Item::Written(text::number(output.text(call.datum(position)))),
        Form::Interval(output) => Item::Written(output.text(justified_interval(call.datum(position)))),
        Form::Other(output) => Item::Written(output.text(call.datum(position))),
    }
}
