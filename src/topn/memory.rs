//! Lends memory to states of `core::topn`: they say how much they need, here it is allocated in the right context.

use crate::error::Error;
use crate::pg::aggregate::{self, Context};
use crate::pg::function::Call;
use tally_core::topn::state::FIRST_WORDS;
use tally_core::topn::{Counters, Packed, State, Stop};

/// Whose memory a state lives in. Asking an aggregate costs, so it is asked when memory is needed.
#[derive(Clone, Copy)]
pub(super) enum Owner<'c> {
    /// The running aggregate: the call, and how an error names the function.
    Aggregate(Call<'c>, &'static str),
    /// The present call.
    Call,
}

impl Owner<'_> {
    pub(super) fn context(self) -> Result<Context, Error> {
        match self {
            Self::Aggregate(call, function) => Context::of_aggregate(call, function, "aggregate"),
            Self::Call => Ok(Context::current()),
        }
    }

    /// A new empty state.
    pub(super) fn create<'a>(self, counters: Counters) -> Result<&'a mut [u64], Error> {
        let chunk = self.context()?.allocate(FIRST_WORDS);
        State::create(chunk, counters);
        Ok(chunk)
    }

    /// Runs an operation, and again in a larger chunk until the state has the room for it.
    #[inline(always)]
    pub(super) fn grow(
        self,
        chunk: &mut [u64],
        mut operation: impl FnMut(&mut State<'_>) -> Result<(), Stop>,
    ) -> Result<&mut [u64], Error> {
        match operation(&mut State::over(chunk)) {
            Ok(()) => Ok(chunk),
            Err(stop) => self.grow_after(stop, chunk, operation),
        }
    }

    #[cold]
    #[inline(never)]
    fn grow_after(
        self,
        mut stop: Stop,
        mut chunk: &mut [u64],
        mut operation: impl FnMut(&mut State<'_>) -> Result<(), Stop>,
    ) -> Result<&mut [u64], Error> {
        loop {
            match stop {
                Stop::Error(error) => return Err(error.into()),
                Stop::Room(room) => {
                    let larger = self.context()?.allocate(room.words());
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
    pub(super) fn unite<'a>(self, chunk: &'a mut [u64], packed: &Packed<'_>) -> Result<&'a mut [u64], Error> {
        self.grow(chunk, |state| state.unite(packed))
    }

    /// Unites a state into another one, which may move.
    pub(super) fn unite_state<'a>(self, chunk: &'a mut [u64], other: &State<'_>) -> Result<&'a mut [u64], Error> {
        match other.stored() {
            Some(bytes) => self.unite(chunk, &Packed::read(bytes)?),
            None => self.grow(chunk, |state| state.unite_state(other)),
        }
    }
}
