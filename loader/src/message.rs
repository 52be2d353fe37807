//! Messages as they come from a source: one arena for many of them, so that a row costs no allocation.

use std::ops::Range;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use crate::csv::Csv;
use crate::offsets::Anchor;

/// Many messages and their bytes. It is kept until the batch is committed, because a row that PostgreSQL refuses becomes a dead
/// letter with its original bytes.
#[derive(Debug, Default)]
pub struct Arena {
    bytes: Vec<u8>,
    messages: Vec<Entry>,
    end: Option<End>,
    csv: Option<Arc<Csv>>,
}

/// Where a part stands behind the last message, when that is not the next offset, and what it is recognised by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    pub part: i32,
    pub next: i64,
    pub anchor: Anchor,
}

#[derive(Debug)]
struct Entry {
    part: i32,
    offset: i64,
    time: Option<i64>,
    key: Option<Range<u32>>,
    value: Option<Range<u32>>,
    headers: Option<Range<u32>>,
    is_duplicate: bool,
}

/// One message, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    pub part: i32,
    pub offset: i64,
    /// The broker's timestamp in milliseconds since 1970.
    pub time: Option<i64>,
    pub key: Option<&'a [u8]>,
    /// `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// The headers as JSON text, see [`headers_as_json`].
    pub headers: Option<&'a [u8]>,
}

impl Arena {
    pub fn with_capacity(bytes: usize, messages: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), messages: Vec::with_capacity(messages), end: None, csv: None }
    }

    /// Copies a message.
    pub fn push(&mut self, message: Message<'_>) {
        let key = message.key.map(|bytes| self.store(bytes));
        let value = message.value.map(|bytes| self.store(bytes));
        let headers = message.headers.map(|bytes| self.store(bytes));
        self.messages.push(Entry {
            part: message.part,
            offset: message.offset,
            time: message.time,
            key,
            value,
            headers,
            is_duplicate: false,
        });
    }

    pub fn set_end(&mut self, end: End) {
        self.end = Some(end);
    }

    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// The values are records of CSV, not JSON.
    pub fn set_csv(&mut self, csv: Arc<Csv>) {
        self.csv = Some(csv);
    }

    pub fn csv(&self) -> Option<&Csv> {
        self.csv.as_deref()
    }

    fn store(&mut self, bytes: &[u8]) -> Range<u32> {
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(bytes);
        start..u32::try_from(self.bytes.len()).expect("an arena is closed long before 4 GiB")
    }

    pub fn get(&self, index: usize) -> Message<'_> {
        let entry = &self.messages[index];
        let slice = |range: &Option<Range<u32>>| {
            range.as_ref().map(|range| &self.bytes[range.start as usize..range.end as usize])
        };
        Message {
            part: entry.part,
            offset: entry.offset,
            time: entry.time,
            key: slice(&entry.key),
            value: slice(&entry.value),
            headers: slice(&entry.headers),
        }
    }

    /// The producer has sent this message before: it is to be left out.
    pub fn mark_duplicate(&mut self, index: usize) {
        self.messages[index].is_duplicate = true;
    }

    pub fn is_duplicate(&self, index: usize) -> bool {
        self.messages[index].is_duplicate
    }

    /// Keeps the messages that the predicate wants; the bytes of the others stay until the arena goes.
    pub fn retain(&mut self, mut keep: impl FnMut(Message<'_>) -> bool) {
        let mut wanted = Vec::new();
        for index in 0..self.len() {
            wanted.push(keep(self.get(index)));
        }
        let mut wanted = wanted.into_iter();
        self.messages.retain(|_| wanted.next().unwrap_or(true));
    }

    pub fn iter(&self) -> impl Iterator<Item = Message<'_>> {
        (0..self.len()).map(|index| self.get(index))
    }

    pub fn len(&self) -> usize {
        self.messages.len()
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// What the arena holds in memory.
    pub fn size(&self) -> usize {
        self.bytes.len() + self.messages.len() * size_of::<Entry>()
    }
}

impl Message<'_> {
    /// Recognises the record when the topic may have been created again: a hash of its key and value.
    pub fn hash(&self) -> i64 {
        let mut hasher = Xxh3::new();
        for part in [self.key, self.value] {
            match part {
                Some(bytes) => {
                    hasher.update(&(bytes.len() as u64 + 1).to_le_bytes());
                    hasher.update(bytes);
                }
                None => hasher.update(&0u64.to_le_bytes()),
            }
        }
        hasher.digest() as i64
    }
}

/// Headers as JSON: an array of `[name, value]`, because names may repeat. A value that is no text, or that holds a NUL byte,
/// which jsonb cannot store, becomes `{"hex": ".."}`.
pub fn headers_as_json<'a>(headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>) -> Vec<u8> {
    use serde_json::{Value, json};
    let list: Vec<Value> = headers
        .map(|(name, value)| {
            let value = match value {
                None => Value::Null,
                Some(bytes) => match std::str::from_utf8(bytes) {
                    Ok(text) if !text.contains('\0') => Value::from(text),
                    _ => json!({ "hex": bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() }),
                },
            };
            json!([name.replace('\0', "\u{fffd}"), value])
        })
        .collect();
    Value::from(list).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_as_they_went_in() {
        let mut arena = Arena::default();
        arena.push(Message { part: 1, offset: 7, time: Some(9), key: Some(b"k"), value: Some(b"v"), headers: None });
        arena.push(Message { part: 2, offset: 8, time: None, key: None, value: None, headers: Some(b"[]") });
        let first = arena.get(0);
        assert_eq!((first.part, first.offset, first.key, first.value), (1, 7, Some(&b"k"[..]), Some(&b"v"[..])));
        assert_eq!((arena.get(1).value, arena.get(1).headers), (None, Some(&b"[]"[..])));
        assert_eq!(arena.len(), 2);
    }

    #[test]
    fn the_hash_tells_key_value_and_absence_apart() {
        let message = |key, value| Message { part: 0, offset: 0, time: None, key, value, headers: None }.hash();
        let all = [
            message(None, None),
            message(Some(b""), None),
            message(None, Some(b"")),
            message(Some(b"ab"), Some(b"c")),
            message(Some(b"a"), Some(b"bc")),
        ];
        let distinct: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn headers_are_always_valid_jsonb() {
        let headers = [("a", Some(&b"x\"y"[..])), ("a", None), ("b", Some(&b"\xff\0"[..])), ("c", Some(&b"\0"[..]))];
        assert_eq!(
            String::from_utf8(headers_as_json(headers.into_iter())).unwrap(),
            r#"[["a","x\"y"],["a",null],["b",{"hex":"ff00"}],["c",{"hex":"00"}]]"#
        );
    }
}
