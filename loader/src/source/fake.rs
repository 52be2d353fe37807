//! A source in memory, for tests: parts with messages, log starts that move, outages.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Bounds, Polled, Probe, Sight, Source, SourceError};
use crate::message::{Arena, Message};
use crate::offsets::Anchor;

/// A topic in memory. Clones share it, so that a test can produce while a loader reads.
#[derive(Clone, Debug, Default)]
pub struct FakeTopic(Arc<Mutex<Parts>>);

#[derive(Debug, Default)]
struct Parts {
    parts: BTreeMap<i32, Part>,
    unreachable: bool,
    looks: u64,
}

#[derive(Debug, Default)]
struct Part {
    start: i64,
    /// Offsets may have holes, as after compaction.
    records: BTreeMap<i64, Record>,
    end: i64,
}

#[derive(Clone, Debug)]
struct Record {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    time: Option<i64>,
}

impl FakeTopic {
    pub fn new(parts: i32) -> Self {
        let topic = Self::default();
        topic.with(|inner| inner.parts.extend((0..parts).map(|part| (part, Part::default()))));
        topic
    }

    fn with<T>(&self, action: impl FnOnce(&mut Parts) -> T) -> T {
        action(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Appends a message and returns its offset.
    pub fn produce(&self, part: i32, key: Option<&[u8]>, value: Option<&[u8]>, time: Option<i64>) -> i64 {
        self.with(|inner| {
            let part = inner.parts.entry(part).or_default();
            let offset = part.end;
            let record = Record { key: key.map(<[u8]>::to_vec), value: value.map(<[u8]>::to_vec), time };
            part.records.insert(offset, record);
            part.end += 1;
            offset
        })
    }

    /// Offsets that hold no message, such as transaction markers.
    pub fn skip(&self, part: i32, offsets: i64) {
        self.with(|inner| inner.parts.entry(part).or_default().end += offsets);
    }

    /// Retention: everything before `start` is gone.
    pub fn delete_before(&self, part: i32, start: i64) {
        self.with(|inner| {
            let part = inner.parts.entry(part).or_default();
            part.start = start;
            part.records = part.records.split_off(&start);
        });
    }

    /// The topic is created again: empty, from offset 0.
    pub fn recreate(&self) {
        self.with(|inner| inner.parts.values_mut().for_each(|part| *part = Part::default()));
    }

    /// The topic is created again and filled at one moment, with what another one holds.
    pub fn replace(&self, other: &FakeTopic) {
        let parts = other.with(|other| std::mem::take(&mut other.parts));
        self.with(|inner| inner.parts = parts);
    }

    /// How often single records were looked at.
    pub fn looks(&self) -> u64 {
        self.with(|inner| inner.looks)
    }

    pub fn set_unreachable(&self, unreachable: bool) {
        self.with(|inner| inner.unreachable = unreachable);
    }

    /// A reader of this topic.
    pub fn source(&self) -> FakeSource {
        FakeSource { topic: self.clone(), positions: BTreeMap::new(), at_end: BTreeMap::new() }
    }
}

/// One reader of a [`FakeTopic`].
#[derive(Debug)]
pub struct FakeSource {
    topic: FakeTopic,
    positions: BTreeMap<i32, i64>,
    /// The end that was reported already.
    at_end: BTreeMap<i32, i64>,
}

impl FakeSource {
    fn reachable<T>(&self, action: impl FnOnce(&Parts) -> T) -> Result<T, SourceError> {
        self.topic.with(|inner| {
            if inner.unreachable {
                return Err(SourceError::Unreachable("the fake brokers are away".into()));
            }
            Ok(action(inner))
        })
    }
}

impl Source for FakeSource {
    fn cluster(&mut self) -> Result<String, SourceError> {
        self.reachable(|_| "fake".to_owned())
    }

    fn parts(&mut self) -> Result<Vec<i32>, SourceError> {
        self.reachable(|inner| inner.parts.keys().copied().collect())
    }

    fn bounds(&mut self, part: i32) -> Result<Bounds, SourceError> {
        self.reachable(|inner| inner.parts.get(&part).map(|part| Bounds { start: part.start, end: part.end }))?
            .ok_or_else(|| SourceError::NoTopic(format!("no part {part}")))
    }

    fn offset_at(&mut self, part: i32, time: i64) -> Result<i64, SourceError> {
        self.reachable(|inner| {
            let part = &inner.parts[&part];
            let first = part.records.iter().find(|(_, record)| record.time.is_some_and(|at| at >= time));
            first.map_or(part.end, |(offset, _)| *offset)
        })
    }

    fn probe(&self) -> Option<Box<dyn Probe>> {
        Some(Box::new(self.topic.source()))
    }

    fn assign(&mut self, starts: &[(i32, i64)]) -> Result<(), SourceError> {
        self.positions = starts.iter().copied().collect();
        self.at_end.clear();
        Ok(())
    }

    fn poll(&mut self, into: &mut Arena, limit: usize, wait: Duration) -> Result<Polled, SourceError> {
        let topic = self.topic.clone();
        let polled = topic.with(|inner| {
            if inner.unreachable {
                return Err(SourceError::Unreachable("the fake brokers are away".into()));
            }
            for (&number, position) in &mut self.positions {
                let Some(part) = inner.parts.get(&number) else { continue };
                if *position < part.start || *position > part.end {
                    return Ok(Polled::OutOfRange { part: number });
                }
                for (&offset, record) in part.records.range(*position..) {
                    if into.size() >= limit {
                        return Ok(Polled::Messages);
                    }
                    let (key, value) = (record.key.as_deref(), record.value.as_deref());
                    into.push(Message { part: number, offset, time: record.time, key, value, headers: None });
                    *position = offset + 1;
                }
                *position = part.end;
                if self.at_end.insert(number, part.end) != Some(part.end) {
                    return Ok(Polled::EndOfPart { part: number, position: part.end });
                }
            }
            Ok(Polled::Idle)
        });
        if into.is_empty() && polled != Ok(Polled::Messages) && !matches!(polled, Ok(Polled::EndOfPart { .. })) {
            std::thread::sleep(wait.min(Duration::from_millis(1)));
        }
        polled
    }
}

impl Probe for FakeSource {
    fn look(&mut self, at: &[(i32, i64)], _: &AtomicBool) -> Result<Vec<(i32, Sight)>, SourceError> {
        self.topic.with(|inner| inner.looks += 1);
        self.reachable(|inner| {
            let sight = |part: &Part, offset: i64| {
                if offset < part.start || offset > part.end {
                    return Sight::OutOfRange(Bounds { start: part.start, end: part.end });
                }
                match part.records.range(offset..).next() {
                    None => Sight::End { position: part.end },
                    Some((&offset, record)) => {
                        let (key, value, time) = (record.key.as_deref(), record.value.as_deref(), record.time);
                        let hash = Message { part: 0, offset, time, key, value, headers: None }.hash();
                        Sight::Record(Anchor { offset, time, hash })
                    }
                }
            };
            let look = |&(number, offset): &(i32, i64)| {
                let part = inner.parts.get(&number).ok_or_else(|| SourceError::NoTopic(format!("no part {number}")))?;
                Ok((number, sight(part, offset)))
            };
            at.iter().map(look).collect()
        })?
    }
}
