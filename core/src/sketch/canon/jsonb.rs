//! The byte form of a jsonb, from how PostgreSQL stores it (`jsonb.h`): its keys are in order already, and none comes twice.
#![forbid(unsafe_code)]

use super::{count, numeric, with_length};
use std::convert::Infallible;

// What a node is, in the byte form.
const NULL: u8 = 0;
const FALSE: u8 = 1;
const TRUE: u8 = 2;
const NUMBER: u8 = 3;
const STRING: u8 = 4;
const ARRAY: u8 = 5;
const OBJECT: u8 = 6;

// The head of a container: number of elements or pairs, and what it is.
const COUNT: u32 = 0x0FFF_FFFF;
const IS_SCALAR: u32 = 0x1000_0000;
const IS_OBJECT: u32 = 0x2000_0000;

// The entry of a child: its length, or where it ends, and what it is.
const LENGTH: u32 = 0x0FFF_FFFF;
const HAS_END: u32 = 0x8000_0000;
const KIND: u32 = 0x7000_0000;
const STRING_KIND: u32 = 0x0000_0000;
const NUMERIC_KIND: u32 = 0x1000_0000;
const FALSE_KIND: u32 = 0x2000_0000;
const TRUE_KIND: u32 = 0x3000_0000;
const NULL_KIND: u32 = 0x4000_0000;
const CONTAINER_KIND: u32 = 0x5000_0000;

/// The stored bytes are no jsonb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

/// Writes a jsonb, from its stored payload: a node is a tag and what belongs to it. Numbers are written as [`numeric`], so that
/// `{"a": 1.0}` is `{"a": 1.00}`; a scalar is no array of it.
///
/// # Errors
/// The payload is not what PostgreSQL stores.
pub fn jsonb(payload: &[u8], out: &mut Vec<u8>) -> Result<(), Damaged> {
    // No recursion: a value may be nested more deeply than the stack allows.
    let root = Container::read(payload)?;
    root.write_head(out);
    let mut open = vec![root];
    while let Some(container) = open.last_mut() {
        let Some(child) = container.next_child() else {
            open.pop();
            continue;
        };
        if let Some(inner) = child?.write(out)? {
            inner.write_head(out);
            open.push(inner);
        }
    }
    Ok(())
}

/// A container whose first children have been written.
struct Container<'a> {
    head: u32,
    entries: &'a [[u8; 4]],
    data: &'a [u8],
    /// Where each child ends.
    ends: Vec<usize>,
    next: usize,
}

struct Child<'a> {
    kind: u32,
    bytes: &'a [u8],
    is_key: bool,
}

impl<'a> Container<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, Damaged> {
        let (words, _) = bytes.as_chunks::<4>();
        let head = u32::from_ne_bytes(*words.first().ok_or(Damaged)?);
        let children = (head & COUNT) as usize * if head & IS_OBJECT == 0 { 1 } else { 2 };
        let entries = words.get(1..).and_then(|words| words.get(..children)).ok_or(Damaged)?;
        let data = bytes.get(4 + children * 4..).ok_or(Damaged)?;
        let mut end = 0usize;
        let ends = entries
            .iter()
            .map(|entry| {
                let entry = u32::from_ne_bytes(*entry);
                let length = (entry & LENGTH) as usize;
                end = if entry & HAS_END == 0 { end + length } else { length };
                end
            })
            .collect();
        Ok(Self { head, entries, data, ends, next: 0 })
    }

    fn write_head(&self, out: &mut Vec<u8>) {
        if self.head & IS_SCALAR != 0 {
            return;
        }
        out.push(if self.head & IS_OBJECT == 0 { ARRAY } else { OBJECT });
        count(out, self.head & COUNT);
    }

    /// In an object all keys are stored first, then all values; here each value follows its key.
    fn next_child(&mut self) -> Option<Result<Child<'a>, Damaged>> {
        let (turn, children) = (self.next, self.entries.len());
        if turn == children {
            return None;
        }
        self.next += 1;
        let is_object = self.head & IS_OBJECT != 0;
        let position = match (is_object, turn % 2) {
            (false, _) => turn,
            (true, 0) => turn / 2,
            (true, _) => children / 2 + turn / 2,
        };
        let kind = u32::from_ne_bytes(self.entries[position]) & KIND;
        let start = if position == 0 { 0 } else { self.ends[position - 1] };
        // Numbers and containers are aligned, by bytes that belong to them.
        let start = if matches!(kind, NUMERIC_KIND | CONTAINER_KIND) { start.next_multiple_of(4) } else { start };
        let bytes = self.data.get(start..self.ends[position]).ok_or(Damaged);
        Some(bytes.map(|bytes| Child { kind, bytes, is_key: is_object && turn % 2 == 0 }))
    }
}

impl<'a> Child<'a> {
    /// Writes it, or answers with the container that it is.
    fn write(&self, out: &mut Vec<u8>) -> Result<Option<Container<'a>>, Damaged> {
        match self.kind {
            CONTAINER_KIND => return Container::read(self.bytes).map(Some),
            NULL_KIND => out.push(NULL),
            FALSE_KIND => out.push(FALSE),
            TRUE_KIND => out.push(TRUE),
            STRING_KIND => {
                if !self.is_key {
                    out.push(STRING);
                }
                count(out, self.bytes.len() as u32);
                out.extend_from_slice(self.bytes);
            }
            NUMERIC_KIND => {
                out.push(NUMBER);
                let payload = numeric_payload(self.bytes)?;
                let written: Result<(), Infallible> = with_length(out, |out| {
                    numeric(payload, out);
                    Ok(())
                });
                let Ok(()) = written;
            }
            _ => return Err(Damaged),
        }
        Ok(None)
    }
}

/// Without the header that says how long the value is: of 4 bytes, or of one.
fn numeric_payload(bytes: &[u8]) -> Result<&[u8], Damaged> {
    let first = *bytes.first().ok_or(Damaged)?;
    let is_short = if cfg!(target_endian = "little") { first & 1 == 1 } else { first & 0x80 != 0 };
    bytes.get(if is_short { 1 } else { 4 }..).ok_or(Damaged)
}
