//! Messages that were polled together, decoded: the unit that goes from the decoder to the batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use bytes::Bytes;

use crate::decode::{CsvProgram, Decoder, Outcome, Reason, Rejection};
use crate::message::Arena;
use crate::offsets::Anchor;
use crate::program::Program;

/// The memory that messages and rows take, across all threads.
#[derive(Clone, Debug, Default)]
pub struct Budget(Arc<AtomicUsize>);

impl Budget {
    pub fn used(&self) -> usize {
        self.0.load(Relaxed)
    }

    fn hold(&self, bytes: usize) -> Held {
        self.0.fetch_add(bytes, Relaxed);
        Held { budget: self.clone(), bytes }
    }
}

/// Gives its bytes back when it is dropped.
#[derive(Debug)]
struct Held {
    budget: Budget,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(self.bytes, Relaxed);
    }
}

/// Decoded messages of one poll.
#[derive(Debug)]
pub struct Chunk {
    /// Number of the assignment that the messages came under; those of an older one are dropped.
    pub assignment: u64,
    pub polled_at: Instant,
    pub arena: Arc<Arena>,
    /// The rows one after the other, without header and trailer.
    pub rows: Bytes,
    /// For each row its message and where it starts.
    pub starts: Vec<(u32, u32)>,
    pub dead: Vec<(u32, Rejection)>,
    /// Messages that are skipped because they were sent before.
    pub duplicates: u64,
    pub parts: Vec<PartMove>,
    /// The program that made the rows.
    pub program: Arc<Program>,
    _held: Held,
}

/// How far a chunk takes a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartMove {
    pub part: i32,
    /// Offset behind the last message.
    pub next: i64,
    pub messages: i64,
    pub skipped: i64,
    /// The last message.
    pub anchor: Anchor,
}

impl Chunk {
    /// Decodes all messages of an arena.
    pub fn decode(
        decoder: &mut Decoder,
        program: Arc<Program>,
        topic: &str,
        arena: Arc<Arena>,
        assignment: u64,
        polled_at: Instant,
        budget: &Budget,
    ) -> Self {
        let mut rows = Vec::with_capacity(arena.size());
        let mut starts = Vec::with_capacity(arena.len());
        let (mut dead, mut duplicates) = (Vec::new(), 0);
        let mut parts: Vec<(PartMove, usize)> = Vec::new();
        let mut csv = arena.csv().map(|csv| CsvProgram::new(csv, &program));
        for (index, message) in arena.iter().enumerate() {
            let start = rows.len() as u32;
            let is_duplicate = arena.is_duplicate(index);
            duplicates += u64::from(is_duplicate);
            let outcome = match &mut csv {
                _ if is_duplicate => Outcome::Skip,
                Some(csv) => decoder.decode_csv(&program, csv, topic, message, &mut rows),
                None => decoder.decode(&program, topic, message, &mut rows),
            };
            let skipped = i64::from(outcome == Outcome::Skip);
            match outcome {
                Outcome::Row => starts.push((index as u32, start)),
                Outcome::Dead(rejection) => dead.push((index as u32, rejection)),
                Outcome::Skip => {}
            }
            let next = message.offset + 1;
            match parts.iter_mut().find(|(other, _)| other.part == message.part) {
                Some((part, last)) => {
                    (part.next, part.messages, part.skipped) = (next, part.messages + 1, part.skipped + skipped);
                    *last = index;
                }
                None => {
                    let anchor = Anchor { offset: 0, time: None, hash: 0 };
                    parts.push((PartMove { part: message.part, next, messages: 1, skipped, anchor }, index));
                }
            }
        }
        let parts = parts
            .into_iter()
            .map(|(part, last)| {
                if let Some(end) = arena.end().filter(|end| end.part == part.part) {
                    return PartMove { next: end.next, anchor: end.anchor, ..part };
                }
                let message = arena.get(last);
                PartMove { anchor: Anchor { offset: message.offset, time: message.time, hash: message.hash() }, ..part }
            })
            .collect();
        let held = budget.hold(arena.size() + rows.capacity() + starts.capacity() * 8);
        Self { assignment, polled_at, arena, rows: rows.into(), starts, dead, duplicates, parts, program, _held: held }
    }

    /// The same messages under another program.
    pub fn decode_again(&self, program: Arc<Program>, topic: &str) -> Self {
        let (arena, budget) = (self.arena.clone(), &self._held.budget);
        Self::decode(&mut Decoder::default(), program, topic, arena, self.assignment, self.polled_at, budget)
    }

    /// The bytes of one row.
    pub fn row(&self, index: usize) -> Bytes {
        let start = self.starts[index].1 as usize;
        let end = self.starts.get(index + 1).map_or(self.rows.len(), |next| next.1 as usize);
        self.rows.slice(start..end)
    }

    /// Whether any message was refused for want of a leaf.
    pub fn lacks_leaf(&self) -> bool {
        self.dead.iter().any(|(_, rejection)| rejection.reason == Reason::NoPartition)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::message::Message;
    use crate::program::tests::{column, compile, table};

    /// A chunk of messages (part, offset, value) for a table with one integer column `a`.
    pub(crate) fn chunk(messages: &[(i32, i64, Option<&str>)]) -> Chunk {
        let mut arena = Arena::default();
        for (part, offset, value) in messages {
            let value = value.map(str::as_bytes);
            arena.push(Message { part: *part, offset: *offset, time: Some(5), key: None, value, headers: None });
        }
        let program = Arc::new(compile(&table(vec![column("a", "int4")]), "").unwrap());
        Chunk::decode(&mut Decoder::default(), program, "t", Arc::new(arena), 1, Instant::now(), &Budget::default())
    }

    #[test]
    fn rows_dead_letters_and_skips_are_counted_by_part() {
        let chunk =
            chunk(&[(0, 7, Some(r#"{"a": 1}"#)), (1, 3, Some("broken")), (0, 9, None), (0, 12, Some(r#"{"a": 2}"#))]);
        assert_eq!(chunk.starts.len(), 2);
        assert_eq!(chunk.dead.len(), 1);
        assert_eq!((chunk.parts[0].part, chunk.parts[0].next), (0, 13));
        assert_eq!((chunk.parts[0].messages, chunk.parts[0].skipped), (3, 1));
        assert_eq!((chunk.parts[1].part, chunk.parts[1].next, chunk.parts[1].messages), (1, 4, 1));
        assert_eq!(chunk.parts[0].anchor.offset, 12);
        assert_eq!(chunk.row(1), b"\0\x01\0\0\0\x04\0\0\0\x02"[..]);
        assert_eq!([chunk.row(0), chunk.row(1)].concat(), chunk.rows);
    }

    #[test]
    fn memory_is_given_back() {
        let chunk = chunk(&[(0, 0, Some("{}"))]);
        let budget = chunk._held.budget.clone();
        assert!(budget.used() > 0);
        drop(chunk);
        assert_eq!(budget.used(), 0);
    }
}
