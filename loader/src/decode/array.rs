//! A JSON array into the bytes of an array column. PostgreSQL's arrays are boxes: all parts of one depth have the same length,
//! and either all or none of them are arrays again.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::Reason;
use super::scalar::Failure;
use super::value::ValueSeed;
use crate::copy::{self, MAXIMUM_DIMENSIONS};
use crate::kind::Kind;

const RAGGED: Failure = (Reason::WrongType, "an array whose parts differ in length or depth");
const EMPTY_PARTS: Failure = (Reason::WrongType, "an array with empty arrays in it, which PostgreSQL cannot store");
const TOO_DEEP: Failure = (Reason::OutOfRange, "an array of more than 6 dimensions");
const TOO_LARGE: Failure = (Reason::OutOfRange, "an array of more than 1 GB");

/// The limit of any value in PostgreSQL.
const MAXIMUM_BYTES: usize = (1 << 30) - 1;

/// Appends length and bytes of one array.
pub(super) struct Builder<'a> {
    element: &'a Kind,
    oid: u32,
    digits_in_string: bool,
    out: &'a mut Vec<u8>,
    start: usize,
    /// The length of the parts at each depth, known once the first of them has ended.
    lengths: Vec<Option<u32>>,
    /// How deep the elements are.
    dimensions: Option<usize>,
    has_null: bool,
}

impl<'a> Builder<'a> {
    pub fn new(element: &'a Kind, oid: u32, digits_in_string: bool, out: &'a mut Vec<u8>) -> Self {
        let start = out.len();
        Self { element, oid, digits_in_string, out, start, lengths: Vec::new(), dimensions: None, has_null: false }
    }

    pub fn build<'de, A: SeqAccess<'de>>(mut self, sequence: A, failure: &mut Option<Failure>) -> Result<(), A::Error> {
        let mut fault = None;
        let result = Part { builder: &mut self, depth: 0, failure: &mut fault }.visit_seq(sequence);
        if let Some(fault) = fault {
            *failure = Some(fault);
        }
        result?;
        self.finish().map_err(|fault| {
            *failure = Some(fault);
            A::Error::custom(fault.1)
        })
    }

    /// Puts the header before the elements.
    pub fn finish(self) -> Result<(), Failure> {
        let lengths: Vec<u32> = match self.dimensions {
            Some(_) => self.lengths.iter().copied().flatten().collect(),
            None => Vec::new(),
        };
        let header = copy::array_header(self.oid, &lengths, self.has_null);
        let length = header.len() + self.out.len() - self.start;
        if length > MAXIMUM_BYTES {
            return Err(TOO_LARGE);
        }
        let length = (length as u32).to_be_bytes();
        self.out.splice(self.start..self.start, length.into_iter().chain(header));
        Ok(())
    }

    /// Notes an element at a depth.
    pub fn note_element(&mut self, depth: usize) -> Result<(), Failure> {
        if *self.dimensions.get_or_insert(depth) == depth { Ok(()) } else { Err(RAGGED) }
    }

    /// Appends an element; `encode` gets the kind of all elements.
    pub fn push(&mut self, encode: impl FnOnce(&mut Vec<u8>, &Kind) -> Result<(), Failure>) -> Result<(), Failure> {
        encode(self.out, self.element)
    }

    pub fn push_null(&mut self) {
        self.has_null = true;
        self.out.extend_from_slice(copy::NULL);
    }

    /// Notes an array that begins at a depth.
    pub fn open(&mut self, depth: usize) -> Result<(), Failure> {
        if self.dimensions.is_some_and(|dimensions| depth >= dimensions) {
            return Err(RAGGED);
        }
        if depth >= MAXIMUM_DIMENSIONS {
            return Err(TOO_DEEP);
        }
        if self.lengths.len() == depth {
            self.lengths.push(None);
        }
        Ok(())
    }

    /// Notes the end of an array at a depth.
    pub fn close(&mut self, depth: usize, length: u32) -> Result<(), Failure> {
        if length == 0 && depth > 0 {
            return Err(EMPTY_PARTS);
        }
        if self.out.len() - self.start > MAXIMUM_BYTES {
            return Err(TOO_LARGE);
        }
        if *self.lengths[depth].get_or_insert(length) == length { Ok(()) } else { Err(RAGGED) }
    }
}

/// An array at a depth, outermost 0.
struct Part<'a, 'b> {
    builder: &'a mut Builder<'b>,
    depth: usize,
    failure: &'a mut Option<Failure>,
}

impl Part<'_, '_> {
    fn check<E: Error>(&mut self, result: Result<(), Failure>) -> Result<(), E> {
        result.map_err(|failure| {
            *self.failure = Some(failure);
            E::custom(failure.1)
        })
    }
}

impl<'de> Visitor<'de> for Part<'_, '_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut sequence: A) -> Result<(), A::Error> {
        let opened = self.builder.open(self.depth);
        self.check(opened)?;
        let mut length = 0u32;
        while sequence
            .next_element_seed(Element { builder: self.builder, depth: self.depth + 1, failure: self.failure })?
            .is_some()
        {
            length = length.saturating_add(1);
        }
        let closed = self.builder.close(self.depth, length);
        self.check(closed)
    }
}

/// What stands in an array: an element, or an array of the next dimension.
struct Element<'a, 'b> {
    builder: &'a mut Builder<'b>,
    depth: usize,
    failure: &'a mut Option<Failure>,
}

impl<'de> DeserializeSeed<'de> for Element<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let Self { builder, depth, failure } = self;
        let raw = <&RawValue>::deserialize(deserializer)?.get();
        let mut json = serde_json::Deserializer::from_str(raw);
        // An array in an array of JSON is an element: nothing tells it from a dimension otherwise.
        if raw.starts_with('[') && !matches!(builder.element, Kind::Json | Kind::Jsonb) {
            return json.deserialize_seq(Part { builder, depth, failure }).map_err(D::Error::custom);
        }
        builder.note_element(depth).map_err(|fault| {
            *failure = Some(fault);
            D::Error::custom(fault.1)
        })?;
        let (kind, digits_in_string) = (builder.element, builder.digits_in_string);
        let seed = ValueSeed::<false> { kind, digits_in_string, out: builder.out, failure };
        if !seed.deserialize(&mut json).map_err(D::Error::custom)? {
            builder.push_null();
        }
        Ok(())
    }
}
