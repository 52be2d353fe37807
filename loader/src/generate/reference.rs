//! Events of the reference mode: independent, uniform fields. It is the worst case for a rollup (every group occurs), and what
//! existing producers of this event format send.
//!
//! Event `i` is made from block `i` of a ChaCha8 stream and from nothing else. So any event can be made again without those
//! before it: the embedded broker serves a topic of any length from no memory at all, and a part of the topic is the same bytes
//! whoever asks. ChaCha is a published algorithm; the generators that `rand` calls "standard" change between its releases.

use std::io::Write;

use jiff::Timestamp;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Number of tenants, devices and sessions; each id is drawn from `1..=` its number.
pub const CUSTOMERS: u64 = 1_000;
pub const DEVICES: u64 = 10_000;
pub const SESSIONS: u64 = 100_000;

pub const EVENT_TYPES: [&str; 4] = ["click", "buy", "scroll", "download"];
/// China is there twice: 2/7 against 1/7 for each of the others.
pub const COUNTRIES: [&str; 7] = ["United States", "United Kingdom", "India", "France", "Germany", "China", "China"];
pub const BROWSERS: [&str; 4] = ["chrome", "firefox", "safari", "opera"];

/// ChaCha counts 32-bit words; an event owns one block of 16, which is 8 draws of 64 bits.
const WORDS_PER_EVENT: u128 = 16;

/// The distribution of the events: everything that decides their bytes, besides their number.
#[derive(Clone, Debug)]
pub struct Reference {
    seed: u64,
    clock: Option<Clock>,
}

/// When events arrive and how late they are. Without a clock events carry no time, and the broker's timestamp is theirs.
#[derive(Clone, Debug)]
pub struct Clock {
    /// Arrival of the first event, milliseconds since 1970.
    start: i64,
    /// From the first arrival to the end, milliseconds.
    span: u64,
    /// The number of events spread evenly over the span.
    events: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub customer_id: u64,
    pub event_type: &'static str,
    /// Index into [`COUNTRIES`].
    pub country: usize,
    pub browser: &'static str,
    pub device_id: u64,
    pub session_id: u64,
    /// Milliseconds since 1970.
    pub event_time: Option<i64>,
}

impl Reference {
    pub fn new(seed: u64, clock: Option<Clock>) -> Self {
        Self { seed, clock }
    }

    /// When event `index` reaches the broker, in milliseconds since 1970, if the events have a clock.
    pub fn arrival(&self, index: u64) -> Option<i64> {
        self.clock.as_ref().map(|clock| clock.arrival(index))
    }

    /// The events `first`, `first + step`, and so on.
    pub fn events(&self, first: u64, step: u64) -> Events<'_> {
        // The seed fills the first bytes of the key, so no expansion function of a library has a say in the bytes.
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        let mut random = ChaCha8Rng::from_seed(key);
        random.set_word_pos(u128::from(first) * WORDS_PER_EVENT);
        Events { reference: self, random, next: first, step }
    }
}

impl Clock {
    /// Arrivals spread evenly over the `span` milliseconds that end at `end` (milliseconds since 1970).
    pub fn ending_at(end: i64, span: u64, events: u64) -> Self {
        Self { start: end.saturating_sub_unsigned(span), span, events }
    }

    /// When event `index` reaches the broker, in milliseconds since 1970.
    pub fn arrival(&self, index: u64) -> i64 {
        let passed = u128::from(self.span) * u128::from(index) / u128::from(self.events.max(1));
        self.start.saturating_add(i64::try_from(passed).unwrap_or(i64::MAX))
    }

    /// 95 % of the events are less than 2 seconds late, 4.9 % less than 10 minutes, 0.1 % less than 48 hours.
    fn lateness(class: u64, amount: u64) -> i64 {
        let limit = match below(class, 1_000) {
            0..950 => 2_000,
            950..999 => 600_000,
            _ => 48 * 3_600_000,
        };
        below(amount, limit).cast_signed()
    }
}

/// An endless iterator over events; it seeks in the stream only where it has to.
#[derive(Debug)]
pub struct Events<'a> {
    reference: &'a Reference,
    random: ChaCha8Rng,
    next: u64,
    step: u64,
}

impl Iterator for Events<'_> {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        // Always all eight draws: the stream must stand at the next block afterwards.
        let [customer, kind, country, browser, device, session, class, amount] =
            std::array::from_fn(|_| self.random.next_u64());
        let index = self.next;
        self.next += self.step;
        if self.step != 1 {
            self.random.set_word_pos(u128::from(self.next) * WORDS_PER_EVENT);
        }
        Some(Event {
            customer_id: 1 + below(customer, CUSTOMERS),
            event_type: EVENT_TYPES[below(kind, 4) as usize],
            country: below(country, 7) as usize,
            browser: BROWSERS[below(browser, 4) as usize],
            device_id: 1 + below(device, DEVICES),
            session_id: 1 + below(session, SESSIONS),
            event_time: self.reference.arrival(index).map(|arrival| arrival - Clock::lateness(class, amount)),
        })
    }
}

impl Event {
    /// Appends the event as one JSON object, without a line break.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        // No value needs escaping. Writing to a Vec cannot fail.
        let _ = write!(
            out,
            r#"{{"customer_id":{},"event_type":"{}","country":"{}","browser":"{}","device_id":{},"session_id":{}"#,
            self.customer_id, self.event_type, COUNTRIES[self.country], self.browser, self.device_id, self.session_id
        );
        if let Some(time) = self.event_time.and_then(|time| Timestamp::from_millisecond(time).ok()) {
            let _ = write!(out, r#","event_time":"{time}""#);
        }
        out.push(b'}');
    }
}

/// Maps a uniform 64-bit number to `0..limit`. The bias is below limit / 2^64: not one event in the life of a test.
pub fn below(uniform: u64, limit: u64) -> u64 {
    ((u128::from(uniform) * u128::from(limit)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(reference: &Reference, index: u64) -> String {
        let mut bytes = Vec::new();
        reference.events(index, 1).next().unwrap().write_json(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn same_seed_gives_the_same_bytes_for_ever() {
        let reference = Reference::new(1, None);
        assert_eq!(json(&reference, 0), FIRST_OF_SEED_1);
        assert_eq!(json(&reference, 1_999_999), LAST_OF_SEED_1);
    }

    #[test]
    fn an_event_does_not_depend_on_the_way_to_it() {
        let reference = Reference::new(7, Some(Clock::ending_at(1_700_000_000_000, 10_800_000, 1_000)));
        let in_order: Vec<_> = reference.events(0, 1).take(1_000).collect();
        for part in 0..4 {
            for (event, offset) in reference.events(part, 4).zip(0..250) {
                assert_eq!(event, in_order[(part + 4 * offset) as usize]);
            }
        }
    }

    #[test]
    fn other_seeds_give_other_events() {
        assert_ne!(json(&Reference::new(1, None), 0), json(&Reference::new(2, None), 0));
    }

    #[test]
    fn an_event_has_six_fields_and_no_time_by_default() {
        let value: serde_json::Value = serde_json::from_str(&json(&Reference::new(1, None), 5)).unwrap();
        let fields: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        let mut wanted =
            ["customer_id", "event_type", "country", "browser", "device_id", "session_id"].map(String::from);
        wanted.sort();
        assert_eq!(fields, wanted);
    }

    #[test]
    fn a_clock_spreads_arrivals_and_makes_some_events_late() {
        let (end, span, events) = (1_700_000_000_000, 10_800_000, 100_000);
        let reference = Reference::new(1, Some(Clock::ending_at(end, span, events)));
        let mut lateness: Vec<i64> = Vec::new();
        for (index, event) in (0..events).zip(reference.events(0, 1)) {
            let arrival = reference.arrival(index).unwrap();
            assert!((end - 10_800_000..end).contains(&arrival));
            lateness.push(arrival - event.event_time.unwrap());
        }
        assert_eq!(reference.arrival(0), Some(end - 10_800_000));
        let share = |limit| lateness.iter().filter(|late| **late >= limit).count() as f64 / events as f64;
        assert!(lateness.iter().all(|late| (0..48 * 3_600_000).contains(late)));
        // 5 % come from the later classes, and nearly all of those exceed 2 seconds; 0.1 % from the last.
        assert!((0.047..0.053).contains(&share(2_000)), "{}", share(2_000));
        assert!((0.000_6..0.001_5).contains(&share(600_000)), "{}", share(600_000));
    }

    // Computed by another implementation of ChaCha8.
    const FIRST_OF_SEED_1: &str = r#"{"customer_id":382,"event_type":"buy","country":"China","browser":"opera","device_id":8559,"session_id":13919}"#;
    const LAST_OF_SEED_1: &str = r#"{"customer_id":673,"event_type":"click","country":"China","browser":"chrome","device_id":3611,"session_id":29280}"#;
}
