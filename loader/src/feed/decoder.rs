//! The thread that decodes: drops what was applied before and what came under an older assignment, and makes chunks of the rest.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use std::time::Instant;

use tokio::sync::mpsc as async_mpsc;

use super::{Event, Item};
use crate::chunk::{Budget, Chunk};
use crate::decode::Decoder;
use crate::dedupe::Deduplicator;
use crate::message::{Arena, Message};
use crate::metrics::{Metrics, Phase};
use crate::offsets::Anchor;
use crate::program::Program;
use crate::source::{Finding, Polled};

/// The thread between the source and the pipeline.
pub(super) struct DecoderThread {
    pub items: mpsc::Receiver<Item>,
    pub events: async_mpsc::Sender<Event>,
    pub program: Arc<RwLock<Arc<Program>>>,
    pub topic: String,
    pub budget: Budget,
    pub metrics: Arc<Metrics>,
    pub expected: BTreeMap<i32, Expected>,
    pub dedupe: Option<Deduplicator>,
    /// It is logged that windows are too small.
    pub has_forgotten: bool,
    pub assignment: u64,
}

/// What comes next of a part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    next: i64,
    anchor: Option<Anchor>,
}

/// What the first look at a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Take,
    /// It was applied before, or its part is not ours.
    Drop,
    AnotherRecord,
}

impl Expected {
    fn look(&mut self, message: Message<'_>) -> Look {
        // Messages before it only fill a window.
        if let Some(anchor) = self.anchor.take_if(|anchor| message.offset >= anchor.offset)
            && message.offset == anchor.offset
            && (message.hash() != anchor.hash || message.time != anchor.time)
        {
            return Look::AnotherRecord;
        }
        // librdkafka repeats some messages after a resume.
        if message.offset < self.next {
            return Look::Drop;
        }
        self.next = message.offset + 1;
        Look::Take
    }
}

impl DecoderThread {
    pub(super) fn run(mut self) {
        let mut decoder = Decoder::default();
        while let Ok(item) = self.items.recv() {
            let sent = match item {
                Item::Assigned(assignment, starts) => {
                    self.assignment = assignment;
                    if let Some(dedupe) = &mut self.dedupe {
                        dedupe.assign(starts.iter().map(|start| start.part));
                    }
                    self.expected = starts
                        .iter()
                        .map(|start| (start.part, Expected { next: start.next, anchor: start.anchor }))
                        .collect();
                    true
                }
                Item::Polled { assignment, arena, polled_at, then } => {
                    assignment != self.assignment || self.decode(&mut decoder, arena, polled_at, then)
                }
            };
            if !sent {
                return;
            }
        }
    }

    fn decode(&mut self, decoder: &mut Decoder, mut arena: Arena, polled_at: Instant, then: Polled) -> bool {
        let assignment = self.assignment;
        self.mark_duplicates(&mut arena);
        let mut others = Vec::new();
        let expected = &mut self.expected;
        arena.retain(|message| match expected.get_mut(&message.part).map(|part| part.look(message)) {
            Some(Look::Take) => true,
            Some(Look::Drop) | None => false,
            Some(Look::AnotherRecord) => {
                others.push(message.part);
                false
            }
        });
        for part in others {
            self.expected.remove(&part);
            // What the arena still holds of the part comes from another topic than the rows before.
            arena.retain(|message| message.part != part);
            let finding = Finding::AnotherRecord;
            if self.events.blocking_send(Event::Changed { assignment, part, finding }).is_err() {
                return false;
            }
        }
        if !arena.is_empty() {
            let start = Instant::now();
            let program = self.program.read().unwrap_or_else(PoisonError::into_inner).clone();
            let chunk =
                Chunk::decode(decoder, program, &self.topic, Arc::new(arena), assignment, polled_at, &self.budget);
            self.metrics.add_time(Phase::Decode, start.elapsed());
            if self.events.blocking_send(Event::Chunk(chunk)).is_err() {
                return false;
            }
        }
        let event = match then {
            Polled::EndOfPart { part, position } => {
                let Some(expected) = self.expected.get_mut(&part) else { return true };
                expected.next = expected.next.max(position);
                Event::EndOfPart { assignment, part, position: expected.next }
            }
            Polled::OutOfRange { part } => Event::OutOfRange { assignment, part },
            Polled::Broken { part, reason } => Event::Stop { assignment, part, reason },
            Polled::Idle | Polled::Messages => return true,
        };
        self.events.blocking_send(event).is_ok()
    }

    /// Shows all messages to the windows, and marks those that were sent before.
    fn mark_duplicates(&mut self, arena: &mut Arena) {
        let Some(dedupe) = &mut self.dedupe else { return };
        for index in 0..arena.len() {
            let message = arena.get(index);
            let Some(expected) = self.expected.get(&message.part) else { continue };
            let is_new = message.offset >= expected.next;
            if dedupe.see(message.part, message.value, message.time) && is_new {
                arena.mark_duplicate(index);
            }
        }
        let forgotten = dedupe.take_forgotten();
        self.metrics.forgotten.fetch_add(forgotten, std::sync::atomic::Ordering::Relaxed);
        if forgotten > 0 && !std::mem::replace(&mut self.has_forgotten, true) {
            tracing::warn!("more messages than policy.dedupe.memory has room for: the window of duplicates is shorter");
        }
    }
}
