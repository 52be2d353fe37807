//! The topic of the embedded broker: a log that is computed. Message `i` is in part `i mod parts` at offset `i div parts`, so each
//! answer can be generated from the place that was asked for, and a topic of any length can be served. Batches that are complete
//! are kept once they were made, as far as there is room.

use std::io;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::stored::Stored;
use super::wire::Batch;
use crate::generate::pace::Pace;
use crate::generate::records::Records;

/// Records in one batch, at most: about what a producer with default settings makes of 120-byte messages.
const BATCH_OFFSETS: i64 = 512;

#[derive(Debug)]
pub struct Log {
    records: Records,
    parts: u32,
    pace: Pace,
    started: Instant,
    /// The same moment in milliseconds since 1970.
    started_at: i64,
    stored: Stored,
}

impl Log {
    pub fn new(records: Records, parts: u32, pace: Pace, started_at: i64) -> Self {
        Self { records, parts, pace, started: Instant::now(), started_at, stored: Stored::default() }
    }

    pub fn parts(&self) -> u32 {
        self.parts
    }

    /// The offset after the last message that has arrived in a part by now.
    pub fn end(&self, part: u32) -> i64 {
        let arrived = self.pace.arrived(self.started.elapsed()).min(self.records.len());
        let (parts, part) = (u64::from(self.parts), u64::from(part));
        ((arrived + parts - 1 - part) / parts).cast_signed()
    }

    /// How long until more can have arrived; `None` when everything has.
    pub fn next_arrival(&self) -> Option<Duration> {
        let elapsed = self.started.elapsed();
        (self.pace.arrived(elapsed) < self.records.len()).then(|| self.pace.step())
    }

    /// When the message at an offset arrived, in milliseconds since 1970. It never falls along a part.
    pub fn time(&self, part: u32, offset: i64) -> i64 {
        let index = self.index(part, offset);
        self.records.arrival(index).unwrap_or_else(|| {
            let after = i64::try_from(self.pace.time_of(index).as_millis()).unwrap_or(i64::MAX);
            self.started_at.saturating_add(after)
        })
    }

    /// The first message of a part that arrived at `time` or later.
    pub fn offset_at(&self, part: u32, time: i64) -> Option<i64> {
        let (mut low, mut high) = (0, self.end(part));
        while low < high {
            let middle = low + (high - low) / 2;
            if self.time(part, middle) < time {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        (low < self.end(part)).then_some(low)
    }

    /// Appends whole batches of messages from `offset` on, at most `limit` bytes; where `at_least_one` says so, the first message
    /// is there however long it is, because a client would wait for ever for it otherwise.
    pub fn read(&self, part: u32, offset: i64, limit: usize, at_least_one: bool, out: &mut Vec<u8>) -> io::Result<()> {
        let (end, start) = (self.end(part), out.len());
        let mut next = offset;
        let into_batch = offset % BATCH_OFFSETS;
        if into_batch != 0 {
            let rest = end.min(offset - into_batch + BATCH_OFFSETS);
            next = self.make(part, offset, rest, limit, at_least_one, out)?;
            if next < rest {
                return Ok(());
            }
        }
        while next % BATCH_OFFSETS == 0 && next + BATCH_OFFSETS <= end {
            let make = || {
                let mut batch = Vec::new();
                self.make(part, next, next + BATCH_OFFSETS, usize::MAX, true, &mut batch)?;
                io::Result::Ok(batch)
            };
            let Some(batch) = self.stored.get((part, next / BATCH_OFFSETS), make)? else { break };
            if out.len() - start + batch.len() > limit {
                if next == offset {
                    break;
                }
                return Ok(());
            }
            out.extend_from_slice(&batch);
            next += BATCH_OFFSETS;
        }
        let limit = limit.saturating_sub(out.len() - start);
        self.make(part, next, end, limit, at_least_one && next == offset, out)?;
        Ok(())
    }

    /// Appends batches of the messages from `offset` on, up to `end`, as [`Self::read`] does. Returns the offset behind the last.
    fn make(
        &self,
        part: u32,
        offset: i64,
        end: i64,
        limit: usize,
        at_least_one: bool,
        out: &mut Vec<u8>,
    ) -> io::Result<i64> {
        if offset >= end {
            return Ok(offset);
        }
        let start = out.len();
        let mut next = offset;
        let mut batch = Some(Batch::begin(out, offset, self.time(part, offset)));
        self.records.visit(self.index(part, offset), u64::from(self.parts), &mut |value| {
            let Some(mut open) = batch.take() else { return ControlFlow::Break(()) };
            let first = next == offset;
            let size = open.end() - start + Batch::record_size(value);
            if next >= end || (size > limit && !(first && at_least_one)) {
                batch = Some(open);
                return ControlFlow::Break(());
            }
            let time = self.time(part, next);
            // At the same places, wherever the client begins: then the next batches are complete ones.
            if !first && next % BATCH_OFFSETS == 0 {
                open = Batch::begin(open.finish(), next, time);
            }
            open.push(time, value);
            batch = Some(open);
            next += 1;
            ControlFlow::Continue(())
        })?;
        if let Some(open) = batch {
            open.finish();
        }
        Ok(next)
    }

    fn index(&self, part: u32, offset: i64) -> u64 {
        offset.max(0).unsigned_abs().saturating_mul(self.parts.into()).saturating_add(part.into())
    }
}
