//! What the operations on sketches cost in core alone: `cargo run --release -p tally-core --example sketch_times`.
//!
//! Each line is the best of many short runs, since other work on the machine only adds; in nanoseconds per call, on warm
//! caches. The server adds to that what a call of a function and a new value cost there.

use std::hint::black_box;
use std::time::Instant;
use tally_core::sketch::{Draft, Estimator, Packed, Packing, Params, Room, State, Stop, canon, state::FIRST_WORDS};

/// A state that lends itself memory.
struct Owned(Vec<u64>);

impl Owned {
    fn new(params: Params) -> Self {
        let mut chunk = vec![0; FIRST_WORDS];
        State::create(&mut chunk, params);
        Self(chunk)
    }

    fn make(&mut self, room: Room) {
        let mut chunk = vec![0; room.words()];
        State::over(&mut self.0).move_to(&mut chunk, room);
        self.0 = chunk;
    }

    fn add(&mut self, hash: u64) {
        while let Err(room) = State::over(&mut self.0).add(hash) {
            self.make(room);
        }
    }

    fn load(packed: &Packed<'_>) -> Self {
        let mut new = Self::new(packed.params());
        new.unite(packed);
        new
    }

    fn unite(&mut self, packed: &Packed<'_>) {
        while let Err(Stop::Room(room)) = State::over(&mut self.0).unite(packed) {
            self.make(room);
        }
    }

    fn pack(&mut self, out: &mut Vec<u8>) {
        let state = State::over(&mut self.0);
        let layout = state.layout(Packing::BySize);
        out.resize(layout.size(), 0);
        state.pack(layout, out);
    }

    fn estimate(&mut self) -> Option<f64> {
        State::over(&mut self.0).estimate(Estimator::Ertl).unwrap()
    }
}

fn stored(log2m: i64, from: i64, values: i64) -> Vec<u8> {
    let mut state = Owned::new(Params::new(log2m, 5, -1, 1).unwrap());
    (from..from + values).for_each(|value| state.add(canon::integer(value)));
    let mut out = Vec::new();
    state.pack(&mut out);
    out
}

/// Writes what a stored value has become; false if that takes a state.
fn write(draft: Result<Draft<'_>, Stop>, out: &mut Vec<u8>) -> bool {
    let Ok(draft) = draft else { return false };
    out.resize(draft.size(), 0);
    draft.write(out);
    true
}

fn time<T>(label: &str, mut call: impl FnMut() -> T) {
    const CALLS: u32 = 500;
    let best = (0..201)
        .map(|_| {
            let start = Instant::now();
            (0..CALLS).for_each(|_| {
                black_box(call());
            });
            start.elapsed().as_nanos() as f64 / f64::from(CALLS)
        })
        .fold(f64::INFINITY, f64::min);
    println!("{label:60} {best:9.1} ns");
}

fn main() {
    let mut out = Vec::new();
    for (label, log2m, values) in [
        ("EXPLICIT of 20", 11, 20),
        ("SPARSE of 500, m = 2048", 11, 500),
        ("SPARSE of 3000, m = 16384", 14, 3000),
        ("FULL of 5000, m = 2048", 11, 5000),
        ("FULL of 1000000, m = 2048", 11, 1_000_000),
        ("FULL of 1000000, m = 16384", 14, 1_000_000),
    ] {
        let (a, b) = (stored(log2m, 0, values), stored(log2m, values, values));
        let (a, b) = (Packed::read(&a).unwrap(), Packed::read(&b).unwrap());
        let hash = canon::integer(-77);
        let mut state = Owned::load(&a);
        time(&format!("{label}: unite into a state"), || state.unite(black_box(&b)));
        time(&format!("{label}: estimate of a state"), || state.estimate());
        time(&format!("{label}: pack a state"), || state.pack(&mut out));
        time(&format!("{label}: estimate through a state"), || Owned::load(black_box(&a)).estimate());
        time(&format!("{label}: add through a state"), || {
            let mut state = Owned::load(black_box(&a));
            state.add(hash);
            state.pack(&mut out);
        });
        time(&format!("{label}: union through a state"), || {
            let mut state = Owned::load(black_box(&a));
            state.unite(black_box(&b));
            state.pack(&mut out);
        });
        time(&format!("{label}: estimate by itself"), || black_box(&a).estimate(Estimator::Ertl));
        time(&format!("{label}: add by itself"), || write(black_box(&a).add(hash, Packing::BySize), &mut out));
        time(&format!("{label}: union by itself"), || write(black_box(&a).union(&b, Packing::BySize), &mut out));
        println!();
    }
}
