//! Events of the realistic mode: tenants and devices of very different size, sessions that hold together, late events, and
//! planted defects.
//!
//! Each part of the topic is one producer, and what it sends is made in blocks of 256 messages, each from a place of its own in
//! the ChaCha stream of that producer and from nothing else. A session lives, and a message is repeated, within one block. So
//! any message can be made again from its block: the embedded broker holds no topic, a reader holds one block per part that it
//! reads.

mod truth;
mod zipf;

use std::io::Write;

use jiff::Timestamp;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::reference::{BROWSERS, COUNTRIES, Clock, below};
use crate::arguments::{MALFORMED_KINDS, RealisticArguments};
use crate::decode::Reason;
pub use truth::{Places, Truth};
use zipf::Zipf;

/// Messages in a block.
pub const BLOCK: u64 = 256;
/// Draws of 64 bits that a message owns, used or not: the meaning of each is in [`Draws`].
const DRAWS: usize = 14;
/// ChaCha counts 32-bit words.
const WORDS_PER_BLOCK: u128 = BLOCK as u128 * DRAWS as u128 * 2;
/// Sessions of a producer that run at the same time.
const LANES: usize = 16;
/// The way of a session.
pub const STEPS: [&str; 4] = ["scroll", "click", "download", "buy"];
/// How many of 100 sessions take the next step.
const NEXT_STEP: u64 = 60;
/// What may be null.
pub const NULLABLE: [&str; 3] = ["country", "browser", "device_id"];
/// Longer than any column for the name of a browser.
const TOO_LONG: usize = 300;

/// The distribution of the events: everything that decides their bytes, besides their number.
#[derive(Clone, Debug)]
pub struct Realistic {
    seed: u64,
    clock: Clock,
    producers: u32,
    tenants: Zipf,
    devices: Zipf,
    late: Share,
    late_or_very_late: Share,
    malformed: Share,
    kinds: Vec<Reason>,
    too_large: usize,
    duplicates: Share,
    nulls: Share,
}

/// A probability, as the number of 64-bit draws that hit.
#[derive(Clone, Copy, Debug)]
struct Share(u64);

impl Share {
    fn new(share: f64) -> Self {
        // A conversion from float saturates; 2^64 is exact.
        Self((share * 18_446_744_073_709_551_616.0) as u64)
    }

    fn hits(self, draw: u64) -> bool {
        draw < self.0 || self.0 == u64::MAX
    }
}

/// One message, still without its JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    event_id: u128,
    pub customer_id: u64,
    pub event_type: &'static str,
    /// Index into [`COUNTRIES`].
    country: usize,
    browser: &'static str,
    pub device_id: u64,
    pub session_id: u64,
    /// Milliseconds since 1970.
    pub event_time: i64,
    /// Index into [`NULLABLE`] of the field that is null.
    pub null: Option<usize>,
    pub defect: Option<Defect>,
    /// Bytes of padding, when the value is too large.
    padding: usize,
}

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// A loader that checks for it makes this dead letter.
    Malformed(Reason),
    /// The producer has sent the same before, at this offset of its part.
    DuplicateOf(u64),
}

/// The random numbers of one message.
struct Draws {
    duplicate: u64,
    malformed: u64,
    null: u64,
    /// Which message is repeated, what is malformed, which field is null.
    which: u64,
    lane: u64,
    tenant: u64,
    device: u64,
    country: u64,
    browser: u64,
    next_step: u64,
    lateness: u64,
    amount: u64,
    event_id: u128,
}

impl Draws {
    fn draw(random: &mut ChaCha8Rng) -> Self {
        let draws: [u64; DRAWS] = std::array::from_fn(|_| random.next_u64());
        let [
            duplicate,
            malformed,
            null,
            which,
            lane,
            tenant,
            device,
            country,
            browser,
            next_step,
            lateness,
            amount,
            ..,
        ] = draws;
        let event_id = u128::from(draws[12]) << 64 | u128::from(draws[13]);
        Self {
            duplicate,
            malformed,
            null,
            which,
            lane,
            tenant,
            device,
            country,
            browser,
            next_step,
            lateness,
            amount,
            event_id,
        }
    }
}

/// A session between two of its events.
#[derive(Clone, Copy, Debug)]
struct Session {
    id: u64,
    customer_id: u64,
    device_id: u64,
    country: usize,
    browser: &'static str,
    step: usize,
}

impl Realistic {
    /// `tombstones`: whether messages without a value can be planted, which a line cannot be.
    pub fn new(
        seed: u64,
        clock: Clock,
        producers: u16,
        tombstones: bool,
        arguments: &RealisticArguments,
    ) -> Result<Self, String> {
        if arguments.late + arguments.very_late > 1.0 {
            return Err("--late and --very-late are more than 1 together".into());
        }
        let mut kinds = arguments.malformed_kinds.clone();
        if kinds.is_empty() {
            kinds = MALFORMED_KINDS.into_iter().filter(|kind| tombstones || *kind != Reason::Tombstone).collect();
        } else if !tombstones && kinds.contains(&Reason::Tombstone) {
            return Err("a line cannot be a tombstone: --malformed-kinds without it, or --to topic".into());
        }
        Ok(Self {
            seed,
            clock,
            producers: producers.into(),
            tenants: Zipf::new(arguments.tenants, arguments.tenant_exponent),
            devices: Zipf::new(arguments.devices, arguments.device_exponent),
            late: Share::new(arguments.late),
            late_or_very_late: Share::new(arguments.late + arguments.very_late),
            malformed: Share::new(arguments.malformed),
            kinds,
            too_large: arguments.too_large as usize,
            // The first message of a block repeats nothing; the others make up for it.
            duplicates: Share::new(arguments.duplicates * BLOCK as f64 / (BLOCK - 1) as f64),
            nulls: Share::new(arguments.nulls),
        })
    }

    #[cfg(feature = "kafka")]
    pub fn producers(&self) -> u32 {
        self.producers
    }

    /// When message `index` reaches the broker, in milliseconds since 1970.
    pub fn arrival(&self, index: u64) -> i64 {
        self.clock.arrival(index)
    }

    /// The messages `number` * [`BLOCK`] and on of a producer.
    fn block(&self, producer: u32, number: u64) -> Vec<Message> {
        // The seed fills the first bytes of the key, so no expansion function of a library has a say in the bytes. The byte
        // after it parts the stream from that of the reference mode.
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8] = 1;
        let mut random = ChaCha8Rng::from_seed(key);
        random.set_stream(producer.into());
        random.set_word_pos(u128::from(number) * WORDS_PER_BLOCK);
        let first = number * BLOCK;
        let mut sessions = (number * u64::from(self.producers) + u64::from(producer)) * BLOCK;
        let mut lanes: [Option<Session>; LANES] = [None; LANES];
        let mut messages: Vec<Message> = Vec::with_capacity(BLOCK as usize);
        for slot in 0..BLOCK {
            let draws = Draws::draw(&mut random);
            if let Some(repeated) = self.repeated(first, &messages, &draws) {
                messages.push(repeated);
                continue;
            }
            let lane = &mut lanes[below(draws.lane, LANES as u64) as usize];
            let session = *lane.get_or_insert_with(|| {
                sessions += 1;
                self.session(sessions, &draws)
            });
            let goes_on = session.step + 1 < STEPS.len() && below(draws.next_step, 100) < NEXT_STEP;
            *lane = goes_on.then_some(Session { step: session.step + 1, ..session });
            let index = (first + slot).saturating_mul(self.producers.into()).saturating_add(producer.into());
            messages.push(self.message(session, self.clock.arrival(index), &draws));
        }
        messages
    }

    /// A message that the producer sends again: one that is not malformed.
    fn repeated(&self, first: u64, before: &[Message], draws: &Draws) -> Option<Message> {
        if before.is_empty() || !self.duplicates.hits(draws.duplicate) {
            return None;
        }
        let chosen = below(draws.which, before.len() as u64) as usize;
        let of = match before[chosen].defect {
            None => first + chosen as u64,
            Some(Defect::DuplicateOf(offset)) => offset,
            Some(Defect::Malformed(_)) => return None,
        };
        Some(Message { defect: Some(Defect::DuplicateOf(of)), ..before[chosen].clone() })
    }

    fn session(&self, id: u64, draws: &Draws) -> Session {
        Session {
            id,
            customer_id: self.tenants.rank(draws.tenant),
            device_id: self.devices.rank(draws.device),
            country: below(draws.country, COUNTRIES.len() as u64) as usize,
            browser: BROWSERS[below(draws.browser, BROWSERS.len() as u64) as usize],
            step: 0,
        }
    }

    fn message(&self, session: Session, arrival: i64, draws: &Draws) -> Message {
        let limit = if self.late.hits(draws.lateness) {
            600_000
        } else if self.late_or_very_late.hits(draws.lateness) {
            48 * 3_600_000
        } else {
            2_000
        };
        let malformed = self
            .malformed
            .hits(draws.malformed)
            .then(|| self.kinds[below(draws.which, self.kinds.len() as u64) as usize]);
        let is_null = malformed.is_none() && self.nulls.hits(draws.null);
        Message {
            event_id: draws.event_id,
            customer_id: session.customer_id,
            event_type: STEPS[session.step],
            country: session.country,
            browser: session.browser,
            device_id: session.device_id,
            session_id: session.id,
            event_time: arrival - below(draws.amount, limit).cast_signed(),
            null: is_null.then(|| below(draws.which, NULLABLE.len() as u64) as usize),
            defect: malformed.map(Defect::Malformed),
            padding: if malformed == Some(Reason::TooLarge) { self.too_large } else { 0 },
        }
    }
}

impl Message {
    pub fn country(&self) -> Option<&'static str> {
        (self.null != Some(0)).then(|| COUNTRIES[self.country])
    }

    /// `None` where it is null.
    pub fn device(&self) -> Option<u64> {
        (self.null != Some(2)).then_some(self.device_id)
    }

    /// Appends the message as one JSON object without a line break, or what became of it. `false`: it has no value.
    pub fn write_json(&self, out: &mut Vec<u8>) -> bool {
        let malformed = match self.defect {
            Some(Defect::Malformed(reason)) => Some(reason),
            _ => None,
        };
        if malformed == Some(Reason::Tombstone) {
            return false;
        }
        if malformed == Some(Reason::NotObject) {
            out.push(b'[');
        }
        // A random UUID (RFC 9562, version 4). No value needs escaping, and writing to a Vec cannot fail.
        let event_id = uuid::Builder::from_random_bytes(self.event_id.to_be_bytes()).into_uuid();
        let _ = write!(out, r#"{{"event_id":"{event_id}""#);
        let _ = match malformed {
            Some(Reason::MissingRequired) => Ok(()),
            Some(Reason::WrongType) => write!(out, r#","customer_id":"number {}""#, self.customer_id),
            _ => write!(out, r#","customer_id":{}"#, self.customer_id),
        };
        let _ = write!(out, r#","event_type":"{}""#, self.event_type);
        let _ = match self.country() {
            Some(country) => write!(out, r#","country":"{country}""#),
            None => write!(out, r#","country":null"#),
        };
        let _ = match malformed {
            Some(Reason::TooLong) => write!(out, r#","browser":"{:x<TOO_LONG$}""#, self.browser),
            Some(Reason::BadText) => write!(out, r#","browser":"{}\u0000""#, self.browser),
            _ if self.null == Some(1) => write!(out, r#","browser":null"#),
            _ => write!(out, r#","browser":"{}""#, self.browser),
        };
        let _ = match (malformed, self.device()) {
            // 2^63 is the first number that is no bigint.
            (Some(Reason::OutOfRange), _) => write!(out, r#","device_id":{}"#, 1_u64 << 63),
            (_, Some(device)) => write!(out, r#","device_id":{device}"#),
            (_, None) => write!(out, r#","device_id":null"#),
        };
        let sign = if malformed == Some(Reason::Constraint) { "-" } else { "" };
        let _ = write!(out, r#","session_id":{sign}{}"#, self.session_id);
        let time = if malformed == Some(Reason::NoPartition) { 0 } else { self.event_time };
        if let Ok(time) = Timestamp::from_millisecond(time) {
            let _ = write!(out, r#","event_time":"{time}""#);
        }
        match malformed {
            Some(Reason::UnknownField) => out.extend_from_slice(br#","unknown":true"#),
            Some(Reason::TooLarge) => {
                out.extend_from_slice(br#","padding":""#);
                out.resize(out.len() + self.padding, b'x');
                out.push(b'"');
            }
            _ => {}
        }
        match malformed {
            Some(Reason::NotJson) => {}
            Some(Reason::NotObject) => out.extend_from_slice(b"}]"),
            _ => out.push(b'}'),
        }
        true
    }
}

/// Looks messages up by their number in the topic, which is `offset` times the number of parts, plus the part.
#[derive(Debug)]
pub struct Blocks<'a> {
    events: &'a Realistic,
    /// By part: the number of the block at hand, and its messages.
    blocks: Vec<Option<(u64, Vec<Message>)>>,
}

impl<'a> Blocks<'a> {
    pub fn new(events: &'a Realistic) -> Self {
        Self { events, blocks: vec![None; events.producers as usize] }
    }

    pub fn message(&mut self, index: u64) -> &Message {
        let producers = u64::from(self.events.producers);
        let (producer, offset) = (index % producers, index / producers);
        let held = &mut self.blocks[producer as usize];
        if held.as_ref().is_none_or(|(number, _)| *number != offset / BLOCK) {
            *held = None;
        }
        let (_, messages) = held.get_or_insert_with(|| {
            let number = offset / BLOCK;
            (number, self.events.block(producer as u32, number))
        });
        &messages[(offset % BLOCK) as usize]
    }
}

#[cfg(test)]
mod tests;
