//! What the operations on sketches cost in core alone: `cargo run --release -p tally-core --example sketch_times`.
//!
//! Each line is the best of many short runs, since other work on the machine only adds; in nanoseconds per call, on warm
//! caches. The server adds to that what a call of a function and a new value cost there.

use std::hint::black_box;
use std::time::Instant;
use tally_core::sketch::{Draft, Estimator, Owned, Packed, Packing, Params, Stop, canon};

fn stored(log2m: i64, from: i64, values: i64) -> Vec<u8> {
    let mut state = Owned::new(Params::new(log2m, 5, -1, 1).unwrap());
    (from..from + values).for_each(|value| state.add(canon::integer(value)));
    state.pack(Packing::BySize)
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
        let hash = canon::integer(-77);
        let load = |bytes: &[u8]| Owned::load(black_box(bytes)).unwrap();
        let mut state = load(&a);
        time(&format!("{label}: unite into a state"), || state.unite(black_box(&b)));
        time(&format!("{label}: estimate of a state"), || state.state().estimate(Estimator::Ertl));
        time(&format!("{label}: pack a state"), || state.pack(Packing::BySize));
        time(&format!("{label}: estimate through a state"), || load(&a).state().estimate(Estimator::Ertl));
        time(&format!("{label}: add through a state"), || {
            let mut state = load(&a);
            state.add(hash);
            state.pack(Packing::BySize)
        });
        time(&format!("{label}: union through a state"), || {
            let mut state = load(&a);
            state.unite(black_box(&b)).unwrap();
            state.pack(Packing::BySize)
        });
        let (a, b) = (Packed::read(&a).unwrap(), Packed::read(&b).unwrap());
        time(&format!("{label}: estimate by itself"), || black_box(&a).estimate(Estimator::Ertl));
        time(&format!("{label}: add by itself"), || write(black_box(&a).add(hash, Packing::BySize), &mut out));
        time(&format!("{label}: union by itself"), || write(black_box(&a).union(&b, Packing::BySize), &mut out));
        println!();
    }
}
