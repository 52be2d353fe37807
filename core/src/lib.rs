//! Decisions and algorithms of tally. Values in, plans out: this crate knows no PostgreSQL, no I/O and no clock.
//!
//! The words of the project:
//! - a *source* is a table of events; a *rollup* is the stored answer to a `GROUP BY` over it;
//! - a *row tag* says which transaction wrote a row; a *tick* brings every rollup of a source up to one snapshot;
//! - a *sketch* is a small mergeable value that estimates a distinct count, or the most frequent items;
//! - a *partition set* is a partitioned table whose partitions tally makes ahead of the clock;
//! - a *job* is a piece of work that a background worker does again and again.

pub mod bucket;
pub mod error;
pub mod first_last;
pub mod ident;
pub mod partition;
pub mod rollup;
pub mod schedule;
#[allow(unsafe_code)]
mod simd;
pub mod sketch;
pub mod snapshot;
pub mod topn;
pub mod version;
