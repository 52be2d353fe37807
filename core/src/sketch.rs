//! The distinct-count sketch (HyperLogLog): add, union, estimate, in memory lent by the caller.
//!
//! A sketch sees 64-bit hashes and nothing else. It has one stored form, the storage specification v1.0.0 of postgresql-hll
//! ([`wire`]), and one form in memory while an aggregate runs ([`state`]). What a stored value can do by itself needs no
//! state ([`Packed::estimate`], [`Packed::add`], [`Packed::union`]):
//!
//! ```text
//! value --canon--> bytes --hash--> u64 --add--> State --pack--> stored bytes
//!                                                 ^                   |
//!                                                 +------- union -----+
//! ```
//!
//! What must stay true:
//! - the stored bytes depend only on the *set* of hashes and on the parameters, never on the order of rows, the plan, or
//!   how the set was split before its parts were united;
//! - [`hash`] and [`canon`] are fixed for ever: stored sketches of different times are merged;
//! - nothing here allocates per row, and no input, however broken, makes it panic.
#![forbid(unsafe_code)]

pub mod canon;
mod error;
pub mod estimate;
pub mod hash;
pub mod modifier;
mod owned;
pub mod params;
mod print;
mod registers;
pub mod state;
mod stored;
pub mod wire;

pub use error::Error;
pub use estimate::Estimator;
pub use modifier::Modifier;
pub use owned::Owned;
pub use params::Params;
pub use state::{Room, State, Stop};
pub use stored::Draft;
pub use wire::{Kind, Packed, Packing};

#[cfg(test)]
mod tests;
