//! A sketch as JSON: an object of items and how often they occurred. It carries no bounds, neither total nor error.
#![forbid(unsafe_code)]

use super::{Error, MAX_TOTAL, Packed};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;

/// Reads a JSON object and hands over each item with its count, in the order of the text: to
/// [`super::State::add_count`].
///
/// An item that is named twice is handed over twice, so that its counts add up. Counts are integers; an item with a
/// count of 0 does not occur.
///
/// # Errors
/// The first one of `each`; a text that is not such an object; an item with the character U+0000, which text cannot
/// hold.
pub fn read<E: From<Error>>(text: &str, each: impl FnMut(&str, u64) -> Result<(), E>) -> Result<(), E> {
    let mut failure = None;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let read = deserializer.deserialize_map(Object { each, failure: &mut failure }).and_then(|()| deserializer.end());
    match (failure, read) {
        (Some(failure), _) => Err(failure),
        (None, Err(error)) => Err(Error::Json(error.to_string()).into()),
        (None, Ok(())) => Ok(()),
    }
}

/// Writes the items with the least that they can have occurred, most frequent first. `text` gives an item in UTF-8.
pub fn write<'a>(packed: &Packed<'a>, text: impl Fn(&'a [u8]) -> Cow<'a, str>) -> String {
    // The keys are strings, and memory takes everything.
    serde_json::to_string(&Frequencies(packed, text)).unwrap_or_default()
}

struct Object<'f, F, E> {
    each: F,
    /// The error of `each`: the parser can only be told that there was one.
    failure: &'f mut Option<E>,
}

impl<'de, F, E> Visitor<'de> for Object<'_, F, E>
where
    F: FnMut(&str, u64) -> Result<(), E>,
    E: From<Error>,
{
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of items and counts")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some((item, Count(count))) = map.next_entry::<String, Count>()? {
            let done = if item.contains('\0') { Err(Error::ZeroCharacter.into()) } else { (self.each)(&item, count) };
            if let Err(failure) = done {
                *self.failure = Some(failure);
                return Err(serde::de::Error::custom("refused"));
            }
        }
        Ok(())
    }
}

/// A count, and nothing else: nested values are refused at their first character.
struct Count(u64);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_u64(Self(0))
    }
}

impl Visitor<'_> for Count {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a count, which is an integer from 0 to {MAX_TOTAL}")
    }

    fn visit_u64<E>(self, count: u64) -> Result<Self, E> {
        Ok(Self(count))
    }
}

struct Frequencies<'p, 'a, F>(&'p Packed<'a>, F);

impl<'a, F: Fn(&'a [u8]) -> Cow<'a, str>> Serialize for Frequencies<'_, 'a, F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.entries().map(|entry| (self.1(entry.item), entry.lower)))
    }
}
