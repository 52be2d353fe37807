//! Lends memory to states of `core::sketch`: they say how much they need, here it is allocated in the right context.

use crate::error::Error;
use crate::pg::aggregate::{self, Context, Owner};
use tally_core::sketch::{Packed, Params, Room, State, Stop, state::FIRST_WORDS};

/// A new empty state.
pub(super) fn create<'a>(context: Context, params: Params) -> &'a mut [u64] {
    let chunk = context.allocate(FIRST_WORDS);
    State::create(chunk, params);
    chunk
}

/// Moves a state to a new chunk and gives the old one back.
pub(super) fn enlarge(context: Context, chunk: &mut [u64], room: Room) -> &mut [u64] {
    let larger = context.allocate(room.words());
    State::over(chunk).move_to(larger, room);
    aggregate::free(chunk);
    larger
}

/// A state of the present call that holds a stored value.
pub(super) fn load<'a>(packed: &Packed<'_>) -> Result<&'a mut [u64], Error> {
    let chunk = create(Context::current(), packed.params());
    repeat(Owner::Call, chunk, |state| state.load(packed))
}

/// A state of the present call that holds a stored value with fewer registers. None: only a state of it can be folded.
pub(super) fn fold<'a>(packed: &Packed<'_>, params: Params) -> Result<Option<&'a mut [u64]>, Error> {
    let mut is_out_of_order = false;
    let chunk = create(Context::current(), params);
    let chunk = repeat(Owner::Call, chunk, |state| match state.fold(packed) {
        Err(Stop::Load) => {
            is_out_of_order = true;
            Ok(())
        }
        other => other,
    })?;
    Ok((!is_out_of_order).then_some(chunk))
}

/// Unites a stored value into a state; the state may move.
pub(super) fn unite<'a>(owner: Owner<'_>, chunk: &'a mut [u64], packed: &Packed<'_>) -> Result<&'a mut [u64], Error> {
    let mut detour = false;
    let chunk = repeat(owner, chunk, |state| match state.unite(packed) {
        Err(Stop::Load) => {
            detour = true;
            Ok(())
        }
        other => other,
    })?;
    if !detour {
        return Ok(chunk);
    }
    let loaded = load(packed)?;
    let united = unite_state(owner, chunk, &State::over(loaded));
    aggregate::free(loaded);
    united
}

/// Unites a state into another one, which may move.
pub(super) fn unite_state<'a>(
    owner: Owner<'_>,
    chunk: &'a mut [u64],
    other: &State<'_>,
) -> Result<&'a mut [u64], Error> {
    if let Some(bytes) = other.stored() {
        return unite(owner, chunk, &Packed::read(bytes)?);
    }
    repeat(owner, chunk, |state| state.unite_state(other))
}

/// Runs an operation again until the state has the room for it.
fn repeat<'a>(
    owner: Owner<'_>,
    mut chunk: &'a mut [u64],
    mut operation: impl FnMut(&mut State<'_>) -> Result<(), Stop>,
) -> Result<&'a mut [u64], Error> {
    loop {
        match operation(&mut State::over(chunk)) {
            Ok(()) => return Ok(chunk),
            Err(Stop::Room(room)) => chunk = enlarge(owner.context()?, chunk, room),
            Err(Stop::Error(error)) => return Err(error.into()),
            Err(Stop::Load) => return Err(tally_core::sketch::Error::State("it cannot be loaded").into()),
        }
    }
}
