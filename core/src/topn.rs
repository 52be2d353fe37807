//! The top-N sketch: the most frequent items of a stream with proven bounds, in memory lent by the caller.
//!
//! A sketch has `k` counters, the total `N` of everything that was counted, the error `T`, and entries: an item, the
//! least that it can have occurred (`lower`) and by how much more it may have occurred (`error`, at most `T`). It has
//! one stored form ([`wire`]) and one form in memory while an aggregate runs ([`state`]):
//!
//! ```text
//! item --add--> State --pack--> stored bytes --read--> Packed: top n, bounds
//!                 ^                   |
//!                 +------- unite -----+
//! ```
//!
//! # What it promises
//! For every stream, and for every way to split it and to unite the sketches of the parts:
//! 1. `lower <= true count <= upper`, where `upper = lower + error`, for an item that is present;
//! 2. `true count <= T` for an item that is absent;
//! 3. `T <= N / (k + 1)`, so that every item with more than `N / (k + 1)` occurrences is present;
//! 4. with at most `k` different items, `T` and every error are 0, and the bytes are equal for every order and plan.
//!
//! # How, and why that holds
//! This is SpaceSaving (Metwally, Agrawal, El Abbadi, "Efficient computation of frequent and top-k elements in data
//! streams", ICDT 2005) in the form of Misra and Gries (1982): Agarwal et al. ("Mergeable summaries", PODS 2012) show
//! that the two hold the same counters but for a constant, and how to unite them. Many counters are evicted at a time,
//! which makes it constant per item (Anderson et al., "A high-performance algorithm for identifying frequent items in
//! data streams", IMC 2017).
//!
//! An entry holds the counter `c = upper - T`, at least 1, and `d = T - error`, at least 0, what was cut from the
//! counter while it has been here; so `lower = c + d`. Both refer to `T`, which makes all steps simple:
//! - *add* an item `n` times: `c += n` if present, else a new entry with `c = n`, `d = 0`; `N += n`;
//! - *evict*, when an item comes to `2k` entries: let `t` be the `(k + 1)`-th largest counter. Entries with `c <= t` go,
//!   ties included; in the others `c` falls by `t` and `d` rises by `t`, and so does `T`: their `upper` is as before;
//! - *unite*: `c` and `d` of equal items, `N` and `T` add up, `k` is the smaller one; evict if there are more than `2k`
//!   entries. An entry that only one side has gets the `T` of the other one in its `error` without being touched.
//!
//! Every step keeps two facts:
//! - the true count of an entry lies between `c + d` and `c + T`, that of an absent item is at most `T`. An eviction
//!   raises `T` by at least the counter of what it drops;
//! - `(k + 1) T` and the sum of all `c` make up at most `N`. An eviction raises the first by `(k + 1) t`, and takes at
//!   least `t` from each of the `k + 1` largest counters. The sides of a union add up, a smaller `k` only helps, and an
//!   *add* raises both sides by `n`.
//!
//! The promises follow, and so does that no number here exceeds `N`: whoever limits `N` meets no overflow.
//!
//! A union does not depend on the order of its two sides. Beyond `k` different items, sketches of one stream may differ
//! when it was split in other ways; all of them keep the promises.
#![forbid(unsafe_code)]

mod error;
pub mod json;
mod owned;
pub mod state;
pub mod text;
pub mod wire;

pub use error::Error;
pub use owned::Owned;
pub use state::{Packing, Room, State, Stop};
pub use wire::{Bounds, Entry, Header, Packed};

/// Most counters of a sketch.
pub const MAX_COUNTERS: u32 = 1_000_000;
/// Longest item in bytes.
pub const MAX_ITEM: usize = 64 * 1024;
/// Largest total: every number of a sketch fits a bigint of SQL.
pub const MAX_TOTAL: u64 = i64::MAX as u64;

/// The number of counters `k`: a sketch finds all items above a share of `1 / (k + 1)`, and keeps up to `k` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counters(u32);

impl Counters {
    /// Checks a number that a user has given.
    ///
    /// # Errors
    /// It is not between 1 and [`MAX_COUNTERS`].
    pub fn new(counters: i64) -> Result<Self, Error> {
        Self::checked(counters).ok_or(Error::Counters(counters))
    }

    fn checked(counters: i64) -> Option<Self> {
        (1..=i64::from(MAX_COUNTERS)).contains(&counters).then_some(Self(counters as u32))
    }

    /// The number itself.
    pub fn get(self) -> u32 {
        self.0
    }

    /// Most entries between two evictions.
    fn most_entries(self) -> usize {
        2 * self.0 as usize
    }
}

#[cfg(test)]
mod tests;
