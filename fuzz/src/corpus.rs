//! Inputs: valid values and what becomes of them when they are damaged.

use crate::Target;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, RngExt, SeedableRng};
use std::collections::HashSet;
use tally_core::sketch;
use tally_core::topn;

/// Valid values to begin with.
const SEEDS: usize = if cfg!(miri) { 40 } else { 200 };
/// With those that have been interesting.
const MOST: usize = 4_000;
/// How often a partner is looked for.
const TRIES: usize = 8;
/// Bytes that headers, lengths and numbers of variable length turn on.
const EDGES: &[u8] = &[0x00, 0x01, 0x0f, 0x10, 0x3f, 0x40, 0x7f, 0x80, 0xfe, 0xff];
/// What JSON is made of.
const LETTERS: &[u8] = b"{}[]\"\"\",,::0123456789.-+eE\\u tfna";

/// An endless row of inputs for one target; equal for equal seeds.
#[derive(Debug)]
pub struct Corpus {
    target: Target,
    rng: StdRng,
    known: Vec<Vec<u8>>,
    /// What inputs have led to so far.
    outcomes: HashSet<u64>,
    input: Vec<u8>,
}

impl Corpus {
    /// A corpus of valid values.
    #[must_use]
    pub fn new(target: Target, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let known = (0..SEEDS).map(|_| valid(target, &mut rng)).collect();
        Self { target, rng, known, outcomes: HashSet::new(), input: Vec::new() }
    }

    /// The next input, and another one to unite it with.
    pub fn draw(&mut self) -> (&[u8], &[u8]) {
        let Self { rng, known, input, .. } = self;
        input.clear();
        if rng.random_ratio(1, 50) {
            input.resize(rng.random_range(0..64), 0);
            rng.fill_bytes(input);
        } else {
            input.extend_from_slice(known.choose(rng).expect("there are some"));
        }
        for _ in 0..rng.random_range(0..5) {
            let other = known.choose(rng).expect("there are some");
            damage(input, other, self.target, rng);
        }
        // Sketches of one header can be united; others are refused at once.
        let mut others = (0..TRIES).map(|_| known.choose(rng).expect("there are some"));
        let other = others.find(|other| other.get(1..3) == input.get(1..3));
        (input, other.map_or(input.as_slice(), Vec::as_slice))
    }

    /// How many different things inputs have led to.
    #[must_use]
    pub fn outcomes(&self) -> usize {
        self.outcomes.len()
    }

    /// Keeps the last input if nothing before it led to the same.
    pub fn note(&mut self, outcome: u64) {
        if self.known.len() < MOST && self.outcomes.insert(outcome) {
            self.known.push(self.input.clone());
        }
    }
}

fn damage(input: &mut Vec<u8>, other: &[u8], target: Target, rng: &mut StdRng) {
    if input.is_empty() {
        input.push(rng.random());
    }
    let at = match rng.random_range(0..3) {
        0 => rng.random_range(0..input.len().min(4)),
        _ => rng.random_range(0..input.len()),
    };
    let is_text = target == Target::TopnJson;
    let edges = if is_text { LETTERS } else { EDGES };
    let byte = |rng: &mut StdRng| if is_text { *edges.choose(rng).expect("there are some") } else { rng.random() };
    match rng.random_range(0..10) {
        0 => input[at] ^= 1 << rng.random_range(0..8),
        1 => input[at] = byte(rng),
        2 => input[at] = *edges.choose(rng).expect("there are some"),
        3 => input[at] = input[at].wrapping_add(if rng.random() { 1 } else { 255 }),
        4 => input.truncate(at),
        5 => input.insert(at, byte(rng)),
        6 => {
            input.remove(at);
        }
        7 => {
            let more = rng.random_range(1..20);
            input.extend((0..more).map(|_| byte(rng)));
        }
        8 => {
            let from = other.len().min(at);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => {
            let to = rng.random_range(at..=input.len().min(at + 16));
            let part = input[at..to].to_vec();
            let place = rng.random_range(0..=input.len());
            input.splice(place..place, part);
        }
    }
    input.truncate(target.longest());
}

fn valid(target: Target, rng: &mut StdRng) -> Vec<u8> {
    match target {
        Target::Hll => hll(rng),
        Target::Topn => topn(rng, topn::Packing::Partial),
        Target::TopnJson => {
            let bytes = topn(rng, topn::Packing::Final);
            let packed = topn::Packed::read(&bytes).expect("it has just been packed");
            topn::json::write(&packed, String::from_utf8_lossy).into_bytes()
        }
        Target::Value => value(rng),
    }
}

/// A sketch of any parameters, mostly a small one.
fn hll(rng: &mut StdRng) -> Vec<u8> {
    let log2m = if !cfg!(miri) && rng.random_ratio(1, 20) { rng.random_range(9..=17) } else { rng.random_range(0..=8) };
    let width = if rng.random() { 5 } else { rng.random_range(1..=7) };
    let threshold = *[-1, 0, 1, 4, 64].choose(rng).expect("there are some");
    let params = sketch::Params::new(log2m, width, threshold, rng.random_range(0..=1)).expect("they are allowed");
    let mut state = sketch::Owned::new(params);
    let most = *[0, 2, 40, 400].choose(rng).expect("there are some");
    (0..rng.random_range(0..=most)).for_each(|_| state.add(rng.random()));
    state.pack(sketch::Packing::BySize)
}

/// A list of some items of one to three letters, some of which occur often.
fn topn(rng: &mut StdRng, packing: topn::Packing) -> Vec<u8> {
    let counters = topn::Counters::new(rng.random_range(1..=12)).expect("it is allowed");
    let mut state = topn::Owned::new(counters);
    for _ in 0..rng.random_range(0..60) {
        let length = rng.random_range(0..=3);
        let item: Vec<u8> = (0..length).map(|_| b'a' + rng.random_range(0..4)).collect();
        let count = if rng.random_ratio(1, 8) { rng.random_range(0..1 << 40) } else { 1 };
        state.add_count(&item, count).expect("so few items are counted");
    }
    state.pack(packing)
}

/// Bytes as PostgreSQL keeps them in values of jsonb, numeric, inet and others: an object or array of numbers, texts and nothing, or a few
/// short words.
fn value(rng: &mut StdRng) -> Vec<u8> {
    const OBJECT: u32 = 0x2000_0000;
    const ARRAY: u32 = 0x4000_0000;
    let words = rng.random_range(0..6);
    if rng.random() {
        return (0..words * 2).map(|_| rng.random::<u16>() & 0x3fff).flat_map(u16::to_le_bytes).collect();
    }
    let (kind, children) = if rng.random() { (OBJECT, words * 2) } else { (ARRAY, words) };
    let mut bytes = (kind | words).to_le_bytes().to_vec();
    let mut data = Vec::new();
    for child in 0..children {
        let text = || (0x0000_0003, b"abc".as_slice());
        let (entry, payload) = match rng.random_range(0..4) {
            _ if kind == OBJECT && child < words => text(),
            0 => (0x4000_0000, b"".as_slice()),
            1 => (0x3000_0000, b"".as_slice()),
            _ => text(),
        };
        bytes.extend_from_slice(&u32::to_le_bytes(entry));
        data.extend_from_slice(payload);
    }
    bytes.append(&mut data);
    bytes
}
