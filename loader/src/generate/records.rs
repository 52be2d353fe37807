//! The messages to send, wherever they come from: made from a seed, or lines of a file. Message `i` is the same bytes each time.

use std::io;
use std::ops::ControlFlow;

use super::lines::Lines;
use super::reference::Reference;

#[derive(Debug)]
pub enum Records {
    Generated { events: Reference, len: u64 },
    Lines(Lines),
}

impl Records {
    pub fn len(&self) -> u64 {
        match self {
            Self::Generated { len, .. } => *len,
            Self::Lines(lines) => lines.len(),
        }
    }

    /// When message `index` reaches the broker, in milliseconds since 1970, if the messages say so themselves.
    pub fn arrival(&self, index: u64) -> Option<i64> {
        match self {
            Self::Generated { events, .. } => events.arrival(index),
            Self::Lines(_) => None,
        }
    }

    /// Calls `visit` with the messages `first`, `first + step`, and so on, until it breaks or they end.
    pub fn visit(&self, first: u64, step: u64, visit: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> io::Result<()> {
        match self {
            Self::Lines(lines) => lines.visit(first, step, visit),
            Self::Generated { events, len } => {
                let count = len.saturating_sub(first).div_ceil(step);
                let mut json = Vec::with_capacity(256);
                for (event, _) in events.events(first, step).zip(0..count) {
                    json.clear();
                    event.write_json(&mut json);
                    if visit(&json).is_break() {
                        break;
                    }
                }
                Ok(())
            }
        }
    }
}
