//! What is in a realistic stream: what a loader has to make of it, message by message where something is wrong.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{BLOCK, Blocks, Defect, Message, NULLABLE, Realistic};

/// The facts written to `truth.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Truth {
    pub mode: &'static str,
    pub seed: u64,
    pub messages: u64,
    /// Messages that are whole, duplicates among them: the rows of a loader that takes duplicates for messages.
    pub rows: u64,
    /// Over the rows.
    pub distinct: Distinct,
    pub rows_by_customer: BTreeMap<u64, u64>,
    pub rows_by_event_type: BTreeMap<&'static str, u64>,
    pub rows_by_country: BTreeMap<&'static str, u64>,
    /// Rows in which the field is null.
    pub nulls: BTreeMap<&'static str, u64>,
    /// First and last time of a row, RFC 3339.
    pub event_time: Option<(String, String)>,
    pub defects_by_kind: BTreeMap<&'static str, u64>,
    pub defects: Vec<Planted>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Distinct {
    pub events: u64,
    pub customers: u64,
    pub devices: u64,
    pub sessions: u64,
}

/// A defect and its place.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Planted {
    /// `"duplicate"`, or the reason of the dead letter.
    pub kind: &'static str,
    /// As a loader counts: of a file, part 0 and the byte where the line begins.
    pub part: u32,
    pub offset: u64,
    /// Of a file, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// Of a duplicate: the offset of the first message with this `event_id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<u64>,
}

/// How a place is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Places {
    Topic,
    Lines,
}

impl Truth {
    /// Makes all messages once, and counts. Takes memory for the defects, the customers and the devices.
    pub fn count(events: &Realistic, len: u64, places: Places) -> Self {
        let mut counter = Counter::default();
        let mut blocks = Blocks::new(events);
        let producers = u64::from(events.producers);
        // Of the blocks at hand, by part, where their lines begin.
        let mut lines = vec![[0; BLOCK as usize]; if places == Places::Lines { events.producers as usize } else { 0 }];
        let (mut byte, mut json) = (0, Vec::new());
        for index in 0..len {
            let message = blocks.message(index);
            let (part, offset) = (index % producers, index / producers);
            let place = match places {
                Places::Topic => (part as u32, offset, None),
                Places::Lines => {
                    lines[part as usize][(offset % BLOCK) as usize] = byte;
                    (0, byte, Some(index + 1))
                }
            };
            // A message is repeated within its block.
            let place_of = |of: u64| match places {
                Places::Topic => of,
                Places::Lines => lines[part as usize][(of % BLOCK) as usize],
            };
            counter.add(producers, message, place, place_of);
            if places == Places::Lines {
                json.clear();
                message.write_json(&mut json);
                byte += json.len() as u64 + 1;
            }
        }
        counter.finish(events.seed, len)
    }
}

#[derive(Debug, Default)]
struct Counter {
    rows: u64,
    customers: BTreeMap<u64, u64>,
    devices: BTreeSet<u64>,
    sessions: Sessions,
    event_types: BTreeMap<&'static str, u64>,
    countries: BTreeMap<&'static str, u64>,
    nulls: BTreeMap<&'static str, u64>,
    times: Option<(i64, i64)>,
    duplicates: u64,
    defects: Vec<Planted>,
}

/// Counts distinct sessions. Their numbers rise along a part and a session lives in one block, so only those of the blocks at
/// hand have to be kept.
#[derive(Debug, Default)]
struct Sessions {
    count: u64,
    /// By part: the number of the block over all parts, and the sessions in it.
    at_hand: BTreeMap<u64, (u64, BTreeSet<u64>)>,
}

impl Sessions {
    fn add(&mut self, producers: u64, session: u64) {
        let block = (session - 1) / BLOCK;
        let (held, sessions) = self.at_hand.entry(block % producers).or_default();
        if *held != block {
            *held = block;
            sessions.clear();
        }
        self.count += u64::from(sessions.insert(session));
    }
}

impl Counter {
    fn add(
        &mut self,
        producers: u64,
        message: &Message,
        (part, offset, line): (u32, u64, Option<u64>),
        place_of: impl Fn(u64) -> u64,
    ) {
        let planted = match message.defect {
            None => None,
            Some(Defect::DuplicateOf(of)) => Some(("duplicate", Some(place_of(of)))),
            Some(Defect::Malformed(reason)) => Some((reason.as_str(), None)),
        };
        if let Some((kind, of)) = planted {
            self.defects.push(Planted { kind, part, offset, line, of });
            if of.is_none() {
                return;
            }
            self.duplicates += 1;
        }
        self.rows += 1;
        *self.customers.entry(message.customer_id).or_default() += 1;
        self.devices.extend(message.device());
        self.sessions.add(producers, message.session_id);
        *self.event_types.entry(message.event_type).or_default() += 1;
        if let Some(country) = message.country() {
            *self.countries.entry(country).or_default() += 1;
        }
        if let Some(field) = message.null {
            *self.nulls.entry(NULLABLE[field]).or_default() += 1;
        }
        let (first, last) = self.times.get_or_insert((message.event_time, message.event_time));
        *first = message.event_time.min(*first);
        *last = message.event_time.max(*last);
    }

    fn finish(self, seed: u64, messages: u64) -> Truth {
        let text = |time| jiff::Timestamp::from_millisecond(time).map(|time| time.to_string()).unwrap_or_default();
        let mut defects_by_kind = BTreeMap::new();
        for planted in &self.defects {
            *defects_by_kind.entry(planted.kind).or_default() += 1;
        }
        Truth {
            mode: "realistic",
            seed,
            messages,
            rows: self.rows,
            distinct: Distinct {
                events: self.rows - self.duplicates,
                customers: self.customers.len() as u64,
                devices: self.devices.len() as u64,
                sessions: self.sessions.count,
            },
            rows_by_customer: self.customers,
            rows_by_event_type: self.event_types,
            rows_by_country: self.countries,
            nulls: self.nulls,
            event_time: self.times.map(|(first, last)| (text(first), text(last))),
            defects_by_kind,
            defects: self.defects,
        }
    }
}
