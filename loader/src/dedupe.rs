//! Which messages a producer has sent before: the same text in a field, within a window of broker time of the same part.
//!
//! A message is a duplicate when an earlier one of its part with the same text lies at most the window before it, whether that
//! one was a duplicate itself or not. So the answer is a function of the topic alone: after a claim the window is filled again
//! by reading the part from that much earlier on, and the answers are those that another loader would have given.
//!
//! A window holds 128-bit hashes (XXH3) and times; by 2^-128 n^2 / 2 for n messages two texts never share a hash.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_128;

use crate::config;

/// What a message takes at most: 33 bytes a bucket of the table, which is 7/16 full at least, and 32 bytes of the queue.
const ENTRY_BYTES: usize = 112;

/// The windows of all parts of a loader.
#[derive(Debug)]
pub struct Deduplicator {
    field: String,
    span: i64,
    /// Of all parts together.
    capacity: usize,
    windows: BTreeMap<i32, Window>,
}

impl Deduplicator {
    pub fn new(settings: &config::Dedupe) -> Self {
        Self {
            field: settings.field.clone(),
            span: milliseconds(settings),
            capacity: settings.memory.0 / ENTRY_BYTES,
            windows: BTreeMap::new(),
        }
    }

    /// Empty windows for these parts, which share the memory, and for no others.
    pub fn assign(&mut self, parts: impl ExactSizeIterator<Item = i32>) {
        // Given back before the new ones are made.
        self.windows.clear();
        let capacity = capacity_of_each(self.capacity, parts.len());
        self.windows = parts.map(|part| (part, Window::new(self.span, capacity))).collect();
    }

    /// Takes note of a message and tells whether it is a duplicate. Messages without the field, or without JSON, never are.
    /// `time`: of the broker, in milliseconds since 1970.
    pub fn see(&mut self, part: i32, value: Option<&[u8]>, time: Option<i64>) -> bool {
        let Some(window) = self.windows.get_mut(&part) else { return false };
        let Some(text) = value.and_then(|value| field_text(value, &self.field)) else { return false };
        window.see(xxh3_128(text.as_bytes()), time)
    }

    /// How many messages had to be forgotten before their time, since this was asked last.
    pub fn take_forgotten(&mut self) -> u64 {
        self.windows.values_mut().map(|window| std::mem::take(&mut window.forgotten)).sum()
    }
}

/// How far back the source has to read to fill windows again.
#[derive(Clone, Copy, Debug)]
pub struct Refill {
    span: i64,
    capacity: usize,
}

impl Refill {
    pub fn new(settings: &config::Dedupe) -> Self {
        Self { span: milliseconds(settings), capacity: settings.memory.0 / ENTRY_BYTES }
    }

    /// The earliest broker time that matters to what follows a message of this time, in milliseconds since 1970.
    pub fn since(self, time: i64) -> i64 {
        time.saturating_sub(self.span)
    }

    /// No message before this offset has room in the window of one of `parts` parts that goes on at `next`.
    pub fn floor(self, next: i64, parts: usize) -> i64 {
        next.saturating_sub(i64::try_from(capacity_of_each(self.capacity, parts)).unwrap_or(i64::MAX)).max(0)
    }
}

fn milliseconds(settings: &config::Dedupe) -> i64 {
    i64::try_from(settings.window.0.as_millis()).unwrap_or(i64::MAX)
}

fn capacity_of_each(capacity: usize, parts: usize) -> usize {
    (capacity / parts.max(1)).max(1)
}

/// What one part has sent lately.
#[derive(Debug)]
struct Window {
    span: i64,
    /// Messages that are remembered at most.
    capacity: usize,
    /// The latest broker time seen; that of producers may fall, this one never does.
    clock: i64,
    /// When each hash was seen last.
    last: HashMap<u128, i64>,
    /// All messages remembered, in order.
    queue: VecDeque<(i64, u128)>,
    forgotten: u64,
}

impl Window {
    fn new(span: i64, capacity: usize) -> Self {
        // All room at once: growing would need the old room and the new one together. What is not used is not touched.
        let (last, queue) = (HashMap::with_capacity(capacity), VecDeque::with_capacity(capacity));
        Self { span, capacity, clock: i64::MIN, last, queue, forgotten: 0 }
    }

    fn see(&mut self, hash: u128, time: Option<i64>) -> bool {
        self.clock = self.clock.max(time.unwrap_or(i64::MIN));
        let oldest = self.clock.saturating_sub(self.span);
        while self.queue.front().is_some_and(|(time, _)| *time < oldest) {
            self.forget_first();
        }
        if self.queue.len() == self.capacity {
            self.forget_first();
            self.forgotten += 1;
        }
        self.queue.push_back((self.clock, hash));
        self.last.insert(hash, self.clock).is_some()
    }

    fn forget_first(&mut self) {
        if let Some((time, hash)) = self.queue.pop_front()
            // Seen again since then: that time counts.
            && self.last.get(&hash) == Some(&time)
        {
            self.last.remove(&hash);
        }
    }
}

/// The JSON text of a field of the outermost object; of a field that comes twice, the last one's. `None`: the field is absent or
/// null, or the value is no object.
fn field_text<'a>(value: &'a [u8], field: &str) -> Option<&'a str> {
    let mut deserializer = serde_json::Deserializer::from_slice(value);
    let found = Find { field }.deserialize(&mut deserializer).ok()?;
    deserializer.end().ok()?;
    found.map(RawValue::get).filter(|text| *text != "null")
}

struct Find<'a> {
    field: &'a str,
}

impl<'de> DeserializeSeed<'de> for Find<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Find<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(is_it) = map.next_key_seed(Is { name: self.field })? {
            if is_it {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Whether a field has this name.
struct Is<'a> {
    name: &'a str,
}

impl<'de> DeserializeSeed<'de> for Is<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Is<'_> {
    type Value = bool;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the name of a field")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.name)
    }
}

#[cfg(test)]
mod tests;
