//! The messages to send, wherever they come from: made from a seed, or lines of a file. Message `i` is the same bytes each time.
//! A message is `None` when it has no value.

use std::io;
use std::ops::ControlFlow;

use super::lines::Lines;
use super::realistic::{self, Realistic};
use super::reference::Reference;

#[derive(Debug)]
pub enum Records {
    Generated { events: Reference, len: u64 },
    Realistic { events: Box<Realistic>, len: u64 },
    Lines(Lines),
}

/// What is done with each message.
pub type Visit<'a> = dyn FnMut(Option<&[u8]>) -> ControlFlow<()> + 'a;

impl Records {
    pub fn len(&self) -> u64 {
        match self {
            Self::Generated { len, .. } | Self::Realistic { len, .. } => *len,
            Self::Lines(lines) => lines.len(),
        }
    }

    /// How many parts the messages are made for, if that is a part of what they are.
    #[cfg(feature = "kafka")]
    pub fn producers(&self) -> Option<u32> {
        match self {
            Self::Realistic { events, .. } => Some(events.producers()),
            Self::Generated { .. } | Self::Lines(_) => None,
        }
    }

    /// When message `index` reaches the broker, in milliseconds since 1970, if the messages say so themselves.
    pub fn arrival(&self, index: u64) -> Option<i64> {
        match self {
            Self::Generated { events, .. } => events.arrival(index),
            Self::Realistic { events, .. } => Some(events.arrival(index)),
            Self::Lines(_) => None,
        }
    }

    /// Calls `visit` with the messages `first`, `first + step`, and so on, until it breaks or they end.
    pub fn visit(&self, first: u64, step: u64, visit: &mut Visit<'_>) -> io::Result<()> {
        match self {
            Self::Lines(lines) => lines.visit(first, step, &mut |line| visit(Some(line))),
            Self::Generated { events, len } => {
                let count = len.saturating_sub(first).div_ceil(step);
                let mut json = Vec::with_capacity(256);
                for (event, _) in events.events(first, step).zip(0..count) {
                    json.clear();
                    event.write_json(&mut json);
                    if visit(Some(&json)).is_break() {
                        break;
                    }
                }
                Ok(())
            }
            Self::Realistic { events, len } => {
                let mut blocks = realistic::Blocks::new(events);
                let (mut index, mut json) = (first, Vec::with_capacity(256));
                while index < *len {
                    json.clear();
                    let has_value = blocks.message(index).write_json(&mut json);
                    if visit(has_value.then_some(&json)).is_break() {
                        break;
                    }
                    index = index.saturating_add(step);
                }
                Ok(())
            }
        }
    }
}
