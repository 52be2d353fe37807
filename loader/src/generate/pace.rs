//! How fast messages are sent.

use std::time::{Duration, Instant};

/// A steady rate, or as fast as possible.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Messages per second.
    rate: Option<u64>,
}

impl Pace {
    pub fn new(rate: Option<u64>) -> Self {
        Self { rate }
    }

    /// How many messages are due after this time.
    pub fn arrived(self, elapsed: Duration) -> u64 {
        match self.rate {
            None => u64::MAX,
            Some(rate) => u64::try_from(elapsed.as_nanos() * u128::from(rate) / 1_000_000_000).unwrap_or(u64::MAX),
        }
    }

    /// When message `index` is due, from the start.
    pub fn time_of(self, index: u64) -> Duration {
        match self.rate {
            None => Duration::ZERO,
            // Rounded up, so that a message that is due by its time is counted by `arrived`.
            Some(rate) => {
                let nanos = (u128::from(index) * 1_000_000_000).div_ceil(u128::from(rate.max(1)));
                Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
            }
        }
    }

    /// How long it makes sense to wait for the next message.
    pub fn step(self) -> Duration {
        self.time_of(1).clamp(Duration::from_millis(1), Duration::from_millis(100))
    }

    /// Whether a sender is to pause before message `index`: at most a hundred times a second.
    pub fn pauses_before(self, index: u64) -> bool {
        self.rate.is_some_and(|rate| index.is_multiple_of((rate / 100).max(1)))
    }

    /// Waits until message `index` is due.
    pub fn pause(self, started: Instant, index: u64) {
        std::thread::sleep(self.time_of(index).saturating_sub(started.elapsed()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_says_how_many_messages_are_due() {
        let pace = Pace::new(Some(1_000));
        assert_eq!(pace.arrived(Duration::ZERO), 0);
        assert_eq!(pace.arrived(Duration::from_millis(1_500)), 1_500);
        assert_eq!(pace.time_of(250), Duration::from_millis(250));
        let odd = Pace::new(Some(7));
        for index in 0..1_000 {
            assert!(odd.arrived(odd.time_of(index)) >= index, "{index}");
        }
    }

    #[test]
    fn without_a_rate_everything_is_due_at_once() {
        let pace = Pace::new(None);
        assert_eq!(pace.arrived(Duration::ZERO), u64::MAX);
        assert_eq!(pace.time_of(u64::MAX), Duration::ZERO);
    }
}
