//! Too many dead letters stop the loader: a wrong mapping would otherwise turn a whole topic into dead letters.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::config::DeadLetters;

/// Messages that the ratio looks back on, and the number from which on it is looked at.
const WINDOW: u64 = 10_000;
const FROM: u64 = 1_000;

/// Counts messages and dead letters over a sliding window.
#[derive(Clone, Debug)]
pub struct Gauge {
    ratio: f64,
    per_minute: u64,
    /// (messages, dead letters), newest last; together about [`WINDOW`] messages.
    recent: VecDeque<(u64, u64)>,
    messages: u64,
    /// Dead letters of the last minute.
    minute: VecDeque<(Instant, u64)>,
}

impl Gauge {
    pub fn new(policy: &DeadLetters) -> Self {
        Self {
            ratio: policy.stop_above_ratio,
            per_minute: policy.stop_above_per_minute,
            recent: VecDeque::new(),
            messages: 0,
            minute: VecDeque::new(),
        }
    }

    /// Which limit a batch would pass, if any.
    pub fn passed_limit(&self, messages: u64, dead: u64, now: Instant) -> Option<String> {
        let (mut all, mut all_dead) = (messages, dead);
        for (older, older_dead) in self.recent.iter().rev() {
            if all >= WINDOW {
                break;
            }
            all += older;
            all_dead += older_dead;
        }
        if all >= FROM && all_dead as f64 > self.ratio * all as f64 {
            return Some(format!(
                "{all_dead} of the last {all} messages became dead letters, more than policy.dead_letters.stop_above_ratio = {}",
                self.ratio
            ));
        }
        let minute = self.last_minute(now) + dead;
        (minute > self.per_minute).then(|| {
            format!(
                "{minute} messages became dead letters within a minute, more than policy.dead_letters.stop_above_per_minute = {}",
                self.per_minute
            )
        })
    }

    /// Notes a committed batch.
    pub fn note(&mut self, messages: u64, dead: u64, now: Instant) {
        self.recent.push_back((messages, dead));
        self.messages += messages;
        while let Some(&(oldest, _)) = self.recent.front()
            && self.messages - oldest >= WINDOW
        {
            self.messages -= oldest;
            self.recent.pop_front();
        }
        if dead > 0 {
            self.minute.push_back((now, dead));
        }
        while self.minute.front().is_some_and(|(at, _)| now.duration_since(*at) > Duration::from_secs(60)) {
            self.minute.pop_front();
        }
    }

    fn last_minute(&self, now: Instant) -> u64 {
        let recent = self.minute.iter().filter(|(at, _)| now.duration_since(*at) <= Duration::from_secs(60));
        recent.map(|(_, dead)| dead).sum()
    }

    /// How many of the next `messages` may become dead letters before a limit is passed for sure.
    pub fn allowance(&self, messages: u64, now: Instant) -> u64 {
        let by_minute = self.per_minute.saturating_sub(self.last_minute(now));
        let window = (self.messages + messages).max(FROM) as f64;
        by_minute.min((self.ratio * window).ceil() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gauge() -> Gauge {
        Gauge::new(&DeadLetters::default())
    }

    /// Notes a batch if it passes no limit.
    fn offer(gauge: &mut Gauge, messages: u64, dead: u64, now: Instant) -> Option<String> {
        let limit = gauge.passed_limit(messages, dead, now);
        if limit.is_none() {
            gauge.note(messages, dead, now);
        }
        limit
    }

    #[test]
    fn a_few_dead_letters_never_stop() {
        let mut gauge = gauge();
        let now = Instant::now();
        assert_eq!(offer(&mut gauge, 10, 10, now), None);
        for _ in 0..1_000 {
            assert_eq!(offer(&mut gauge, 100, 1, now), None);
        }
    }

    #[test]
    fn the_ratio_looks_at_the_last_ten_thousand() {
        let mut gauge = gauge();
        let now = Instant::now();
        assert_eq!(offer(&mut gauge, 100_000, 0, now), None);
        assert_eq!(offer(&mut gauge, 9_000, 0, now), None);
        assert_eq!(offer(&mut gauge, 1_000, 400, now), None);
        assert!(offer(&mut gauge, 1_000, 400, now).unwrap().contains("stop_above_ratio"));
    }

    #[test]
    fn the_rate_looks_at_the_last_minute() {
        let mut gauge = gauge();
        let start = Instant::now();
        assert_eq!(offer(&mut gauge, 1_000_000, 5_000, start), None);
        assert_eq!(offer(&mut gauge, 1_000_000, 5_000, start + Duration::from_secs(61)), None);
        assert!(offer(&mut gauge, 1_000_000, 1, start + Duration::from_secs(62)).unwrap().contains("per_minute"));
    }

    #[test]
    fn the_allowance_ends_a_hopeless_batch_early() {
        assert_eq!(gauge().allowance(20_000, Instant::now()), 1_000);
        assert_eq!(gauge().allowance(10, Instant::now()), 50);
    }
}
