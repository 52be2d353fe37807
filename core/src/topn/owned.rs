//! A state with memory of its own: for tests, measurements, and whoever is no server.
#![forbid(unsafe_code)]

use super::state::{FIRST_WORDS, Packing, State, Stop};
use super::{Counters, Error, Packed};

/// What fresh memory holds: nothing that a state may rely on.
const RUBBISH: u64 = 0xdead_beef_dead_beef;

/// A state that lends itself memory, as an aggregate of the extension does.
#[derive(Clone, Debug)]
pub struct Owned(pub(super) Vec<u64>);

impl Owned {
    /// A state without items.
    #[must_use]
    pub fn new(counters: Counters) -> Self {
        Self::in_chunk(counters, FIRST_WORDS)
    }

    /// The same in more memory than it needs.
    pub(super) fn in_chunk(counters: Counters, words: usize) -> Self {
        let mut chunk = vec![RUBBISH; words];
        State::create(&mut chunk, counters);
        Self(chunk)
    }

    /// A state as it arrives from a parallel worker: stored bytes that nothing has been done with.
    ///
    /// # Errors
    /// The bytes are no stored value.
    pub fn received(bytes: &[u8]) -> Result<Self, Error> {
        let packed = Packed::read(bytes)?;
        let mut chunk = vec![RUBBISH; State::packed_words(&packed)];
        State::create_packed(&mut chunk, &packed);
        Ok(Self(chunk))
    }

    /// The state in its memory.
    pub fn state(&mut self) -> State<'_> {
        debug_assert_eq!(State::chunk_words(&[self.0[0], self.0[1]]), self.0.len());
        State::over(&mut self.0)
    }

    /// See [`State::add`].
    ///
    /// # Errors
    /// Those of [`State::add`] but for a lack of room.
    pub fn add(&mut self, item: &[u8]) -> Result<(), Error> {
        self.repeat(|state| state.add(item))
    }

    /// See [`State::add_count`].
    ///
    /// # Errors
    /// Those of [`State::add_count`] but for a lack of room.
    pub fn add_count(&mut self, item: &[u8], count: u64) -> Result<(), Error> {
        self.repeat(|state| state.add_count(item, count))
    }

    /// See [`State::unite`].
    ///
    /// # Errors
    /// The bytes are no stored value; those of [`State::unite`] but for a lack of room.
    pub fn unite(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let packed = Packed::read(bytes)?;
        self.repeat(|state| state.unite(&packed))
    }

    /// See [`State::unite_state`].
    ///
    /// # Errors
    /// Those of [`State::unite_state`] but for a lack of room.
    pub fn unite_state(&mut self, other: &mut Self) -> Result<(), Error> {
        let other = other.state();
        self.repeat(|state| state.unite_state(&other))
    }

    /// The stored bytes.
    pub fn pack(&mut self, packing: Packing) -> Vec<u8> {
        let mut state = self.state();
        let layout = state.layout(packing);
        let mut out = vec![0xee; layout.size()];
        state.pack(layout, &mut out);
        out
    }

    /// Asks again until the state has the room.
    fn repeat(&mut self, mut operation: impl FnMut(&mut State<'_>) -> Result<(), Stop>) -> Result<(), Error> {
        loop {
            match operation(&mut self.state()) {
                Ok(()) => return Ok(()),
                Err(Stop::Error(error)) => return Err(error),
                Err(Stop::Room(room)) => {
                    let mut chunk = vec![RUBBISH; room.words()];
                    self.state().move_to(&mut chunk, room);
                    self.0 = chunk;
                }
            }
        }
    }
}
