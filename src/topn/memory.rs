//! Lends memory to states of `core::topn`: they say how much they need, here it is allocated in the right context.

use crate::error::Error;
use crate::pg::aggregate::{self, Owner};
use tally_core::topn::state::FIRST_WORDS;
use tally_core::topn::{Counters, Packed, State, Stop};

/// A new empty state.
pub(super) fn create<'a>(owner: Owner<'_>, counters: Counters) -> Result<&'a mut [u64], Error> {
    let chunk = owner.context()?.allocate(FIRST_WORDS);
    State::create(chunk, counters);
    Ok(chunk)
}

/// Runs an operation, and again in a larger chunk until the state has the room for it.
#[inline(always)]
pub(super) fn grow<'a>(
    owner: Owner<'_>,
    chunk: &'a mut [u64],
    mut operation: impl FnMut(&mut State<'_>) -> Result<(), Stop>,
) -> Result<&'a mut [u64], Error> {
    match operation(&mut State::over(chunk)) {
        Ok(()) => Ok(chunk),
        Err(stop) => grow_after(owner, stop, chunk, operation),
    }
}

#[cold]
#[inline(never)]
fn grow_after<'a>(
    owner: Owner<'_>,
    mut stop: Stop,
    mut chunk: &'a mut [u64],
    mut operation: impl FnMut(&mut State<'_>) -> Result<(), Stop>,
) -> Result<&'a mut [u64], Error> {
    loop {
        match stop {
            Stop::Error(error) => return Err(error.into()),
            Stop::Room(room) => {
                let larger = owner.context()?.allocate(room.words());
                State::over(chunk).move_to(larger, room);
                aggregate::free(chunk);
                chunk = larger;
            }
        }
        match operation(&mut State::over(chunk)) {
            Ok(()) => return Ok(chunk),
            Err(more) => stop = more,
        }
    }
}

/// Unites a stored value into a state, which may move.
pub(super) fn unite<'a>(owner: Owner<'_>, chunk: &'a mut [u64], packed: &Packed<'_>) -> Result<&'a mut [u64], Error> {
    grow(owner, chunk, |state| state.unite(packed))
}

/// Unites a state into another one, which may move.
pub(super) fn unite_state<'a>(
    owner: Owner<'_>,
    chunk: &'a mut [u64],
    other: &State<'_>,
) -> Result<&'a mut [u64], Error> {
    match other.stored() {
        Some(bytes) => unite(owner, chunk, &Packed::read(bytes)?),
        None => grow(owner, chunk, |state| state.unite_state(other)),
    }
}
