//! What is in a generated stream, counted exactly while it is generated: the oracle of end-to-end tests and of the demo.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::reference::{BROWSERS, COUNTRIES, CUSTOMERS, DEVICES, EVENT_TYPES, Event, SESSIONS};
use crate::{Error, Result};

/// Milliseconds of the grain that decides whether an event is late: the finest rollup of the reference model.
const GRAIN: i64 = 300_000;

/// The facts written to `truth.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Truth {
    pub mode: &'static str,
    pub seed: u64,
    pub rows: u64,
    /// Distinct values over all events; a group is (customer, event type, country, browser).
    pub distinct: Distinct,
    pub per_customer: PerCustomer,
    pub events_by_country: BTreeMap<&'static str, u64>,
    /// Absent when the events carry no time.
    pub event_time: Option<EventTimes>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Distinct {
    pub customers: u64,
    pub devices: u64,
    pub sessions: u64,
    pub groups: u64,
}

/// Over the customers that have events.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PerCustomer {
    pub events: Spread,
    pub devices: Spread,
    pub sessions: Spread,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub minimum: u64,
    pub mean: f64,
    pub maximum: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EventTimes {
    pub first: String,
    pub last: String,
    /// Events whose 5-minute bucket lies before one that an earlier event has already begun.
    pub late: u64,
}

/// Counts events as they are generated.
#[derive(Debug)]
pub struct Counter {
    rows: u64,
    events: Vec<u64>,
    devices: BitSet,
    sessions: BitSet,
    groups: BitSet,
    customer_devices: BitSet,
    customer_sessions: BitSet,
    countries: [u64; COUNTRIES.len()],
    /// First and last event time, and how many were late.
    times: Option<(i64, i64, u64)>,
}

impl Default for Counter {
    fn default() -> Self {
        let groups = CUSTOMERS * (EVENT_TYPES.len() * COUNTRIES.len() * BROWSERS.len()) as u64;
        Self {
            rows: 0,
            events: vec![0; CUSTOMERS as usize],
            devices: BitSet::new(DEVICES),
            sessions: BitSet::new(SESSIONS),
            groups: BitSet::new(groups),
            customer_devices: BitSet::new(CUSTOMERS * DEVICES),
            customer_sessions: BitSet::new(CUSTOMERS * SESSIONS),
            countries: [0; COUNTRIES.len()],
            times: None,
        }
    }
}

impl Counter {
    pub fn add(&mut self, event: &Event) {
        let (customer, device, session) = (event.customer_id - 1, event.device_id - 1, event.session_id - 1);
        let place =
            |names: &[&str], name: &str| names.iter().position(|known| *known == name).unwrap_or_default() as u64;
        // The first place of a country's name, so that both entries of China are one group.
        let country = place(&COUNTRIES, COUNTRIES[event.country]);
        let group = (place(&EVENT_TYPES, event.event_type) * COUNTRIES.len() as u64 + country) * BROWSERS.len() as u64
            + place(&BROWSERS, event.browser);
        self.rows += 1;
        self.events[customer as usize] += 1;
        self.devices.insert(device);
        self.sessions.insert(session);
        self.groups.insert(group * CUSTOMERS + customer);
        self.customer_devices.insert(customer * DEVICES + device);
        self.customer_sessions.insert(customer * SESSIONS + session);
        self.countries[country as usize] += 1;
        if let Some(time) = event.event_time {
            let (first, last, late) = self.times.get_or_insert((time, time, 0));
            *late += u64::from(time.div_euclid(GRAIN) < last.div_euclid(GRAIN));
            *first = time.min(*first);
            *last = time.max(*last);
        }
    }

    pub fn finish(&self, seed: u64) -> Truth {
        let customers: Vec<u64> = (0..CUSTOMERS).filter(|customer| self.events[*customer as usize] > 0).collect();
        let spread = |count: &dyn Fn(u64) -> u64| {
            let counts: Vec<u64> = customers.iter().map(|customer| count(*customer)).collect();
            Spread {
                minimum: counts.iter().copied().min().unwrap_or(0),
                mean: counts.iter().sum::<u64>() as f64 / counts.len().max(1) as f64,
                maximum: counts.iter().copied().max().unwrap_or(0),
            }
        };
        Truth {
            mode: "reference",
            seed,
            rows: self.rows,
            distinct: Distinct {
                customers: customers.len() as u64,
                devices: self.devices.count(0, DEVICES),
                sessions: self.sessions.count(0, SESSIONS),
                groups: self.groups.count(0, self.groups.size),
            },
            per_customer: PerCustomer {
                events: spread(&|customer| self.events[customer as usize]),
                devices: spread(&|customer| self.customer_devices.count(customer * DEVICES, DEVICES)),
                sessions: spread(&|customer| self.customer_sessions.count(customer * SESSIONS, SESSIONS)),
            },
            events_by_country: COUNTRIES
                .iter()
                .zip(self.countries)
                .filter(|(_, n)| *n > 0)
                .map(|(c, n)| (*c, n))
                .collect(),
            event_time: self.times.map(|(first, last, late)| EventTimes { first: text(first), last: text(last), late }),
        }
    }
}

/// Writes facts as JSON, replacing the file.
pub fn write(truth: &impl Serialize, path: &Path) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(truth).map_err(|error| Error::Bug(error.to_string()))?;
    json.push(b'\n');
    std::fs::write(path, json).map_err(|error| Error::unfit(format!("cannot write \"{}\": {error}", path.display())))
}

fn text(milliseconds: i64) -> String {
    jiff::Timestamp::from_millisecond(milliseconds).map(|time| time.to_string()).unwrap_or_default()
}

/// A set of small numbers, one bit each: exact distinct counts of 1,000 x 100,000 possible pairs take 12.5 MB.
#[derive(Debug)]
struct BitSet {
    words: Vec<u64>,
    size: u64,
}

impl BitSet {
    fn new(size: u64) -> Self {
        Self { words: vec![0; size.div_ceil(64) as usize], size }
    }

    fn insert(&mut self, number: u64) {
        self.words[(number / 64) as usize] |= 1 << (number % 64);
    }

    /// How many of the `length` numbers from `first` on are in the set.
    fn count(&self, first: u64, length: u64) -> u64 {
        let (last, mut count) = (first + length, 0);
        for word in first / 64..last.div_ceil(64) {
            let mut bits = self.words[word as usize];
            let start = word * 64;
            if start < first {
                bits &= u64::MAX << (first - start);
            }
            if start + 64 > last {
                bits &= u64::MAX >> (start + 64 - last);
            }
            count += u64::from(bits.count_ones());
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::reference::{Clock, Reference};
    use super::*;

    #[test]
    fn truth_of_two_million_events_is_that_of_the_requirements() {
        let mut counter = Counter::default();
        Reference::new(1, None).events(0, 1).take(2_000_000).for_each(|event| counter.add(&event));
        let truth = counter.finish(1);
        assert_eq!(truth.rows, 2_000_000);
        assert_eq!(truth.distinct.customers, 1_000);
        assert_eq!(truth.distinct.devices, 10_000);
        // A session is missed with probability e^-20: none is expected among 100,000.
        assert_eq!(truth.distinct.sessions, 100_000);
        // 4 x 6 x 4 groups per customer. The rarest has 1/112 of about 2,000 events: e^-18 to be missed.
        assert_eq!(truth.distinct.groups, 96_000);
        assert!((truth.per_customer.events.mean - 2_000.0).abs() < 0.001);
        assert!((truth.per_customer.devices.mean - 1_813.0).abs() < 2.0, "{:?}", truth.per_customer.devices);
        assert!((truth.per_customer.sessions.mean - 1_980.0).abs() < 2.0, "{:?}", truth.per_customer.sessions);
        let china = truth.events_by_country["China"] as f64 / 2_000_000.0;
        assert!((china - 2.0 / 7.0).abs() < 0.001, "{china}");
        assert_eq!(truth.events_by_country.len(), 6);
        assert_eq!(truth.event_time, None);
    }

    #[test]
    fn distinct_counts_equal_those_of_plain_sets() {
        let events: Vec<_> = Reference::new(3, None).events(0, 1).take(5_000).collect();
        let mut counter = Counter::default();
        events.iter().for_each(|event| counter.add(event));
        let truth = counter.finish(3);
        let distinct = |key: &dyn Fn(&Event) -> String| events.iter().map(key).collect::<BTreeSet<_>>().len() as u64;
        assert_eq!(truth.distinct.customers, distinct(&|event| event.customer_id.to_string()));
        assert_eq!(truth.distinct.devices, distinct(&|event| event.device_id.to_string()));
        assert_eq!(truth.distinct.sessions, distinct(&|event| event.session_id.to_string()));
        let group = |e: &Event| format!("{} {} {} {}", e.customer_id, e.event_type, COUNTRIES[e.country], e.browser);
        assert_eq!(truth.distinct.groups, distinct(&group));
        let of_customers = distinct(&|event| format!("{} {}", event.customer_id, event.device_id)) as f64;
        assert!((truth.per_customer.devices.mean - of_customers / truth.distinct.customers as f64).abs() < 1e-9);
    }

    #[test]
    fn late_events_are_counted_by_bucket() {
        let mut counter = Counter::default();
        let mut event = Reference::new(1, None).events(0, 1).next().unwrap();
        for time in [GRAIN, GRAIN + 5, GRAIN + 2, 2 * GRAIN, 2 * GRAIN - 1, 0] {
            event.event_time = Some(time);
            counter.add(&event);
        }
        let times = counter.finish(1).event_time.unwrap();
        assert_eq!(times.late, 2);
        assert_eq!((times.first.as_str(), times.last.as_str()), ("1970-01-01T00:00:00Z", "1970-01-01T00:10:00Z"));
    }

    #[test]
    fn a_clock_makes_events_late() {
        let mut counter = Counter::default();
        let clock = Clock::ending_at(1_700_000_000_000, 10_800_000, 20_000);
        Reference::new(1, Some(clock)).events(0, 1).take(20_000).for_each(|event| counter.add(&event));
        assert!(counter.finish(1).event_time.unwrap().late > 100);
    }
}
