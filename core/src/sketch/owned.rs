//! A state with memory of its own: for tests, measurements, and whoever is no server.
#![forbid(unsafe_code)]

use super::state::{FIRST_WORDS, Room, State, Stop};
use super::wire::{Packed, Packing};
use super::{Error, Params};

/// What fresh memory holds: nothing that a state may rely on.
const RUBBISH: u64 = 0xdead_beef_dead_beef;

/// A state that lends itself memory, as an aggregate of the extension does.
#[derive(Clone, Debug)]
pub struct Owned(pub(super) Vec<u64>);

impl Owned {
    /// An EMPTY state.
    #[must_use]
    pub fn new(params: Params) -> Self {
        let mut chunk = vec![RUBBISH; FIRST_WORDS];
        State::create(&mut chunk, params);
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

    /// The state of stored bytes, whatever their words are.
    ///
    /// # Errors
    /// The bytes are no stored value.
    pub fn load(bytes: &[u8]) -> Result<Self, Error> {
        let packed = Packed::read(bytes)?;
        let mut new = Self::new(packed.params());
        new.repeat(|state| state.load(&packed))?;
        Ok(new)
    }

    /// The state in its memory.
    pub fn state(&mut self) -> State<'_> {
        debug_assert_eq!(State::chunk_words(&[self.0[0], self.0[1]]), self.0.len());
        State::over(&mut self.0)
    }

    /// See [`State::add`].
    pub fn add(&mut self, hash: u64) {
        while let Err(room) = self.state().add(hash) {
            self.make(room);
        }
    }

    /// See [`State::unite`].
    ///
    /// # Errors
    /// The parameters differ, or the bytes are no stored value.
    pub fn unite(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let packed = Packed::read(bytes)?;
        match self.repeat(|state| state.unite(&packed))? {
            Done::AsAsked => Ok(()),
            Done::WantsLoad => self.unite_state(Self::load(bytes)?),
        }
    }

    /// See [`State::unite_state`].
    ///
    /// # Errors
    /// The parameters differ, or the other state was received and holds no stored value.
    pub fn unite_state(&mut self, mut other: Self) -> Result<(), Error> {
        match self.repeat(|state| state.unite_state(&other.state()))? {
            Done::AsAsked => Ok(()),
            Done::WantsLoad => {
                let mut loaded = Self::load(&other.pack(Packing::BySize))?;
                self.repeat(|state| state.unite_state(&loaded.state())).map(|_| ())
            }
        }
    }

    /// The state of stored bytes with fewer registers: see [`State::fold`].
    ///
    /// # Errors
    /// The bytes are no stored value, or have no more than `log2m`.
    pub fn folded(bytes: &[u8], log2m: i64) -> Result<Self, Error> {
        let packed = Packed::read(bytes)?;
        let mut new = Self::new(packed.params().fold(log2m)?);
        match new.repeat(|state| state.fold(&packed))? {
            Done::AsAsked => Ok(new),
            Done::WantsLoad => Self::folded(&Self::load(bytes)?.pack(Packing::BySize), log2m),
        }
    }

    /// The stored bytes.
    pub fn pack(&mut self, packing: Packing) -> Vec<u8> {
        let mut state = self.state();
        let layout = state.layout(packing);
        let mut out = vec![0xee; layout.size()];
        state.pack(layout, &mut out);
        out
    }

    fn make(&mut self, room: Room) {
        let mut chunk = vec![RUBBISH; room.words()];
        self.state().move_to(&mut chunk, room);
        self.0 = chunk;
    }

    /// Asks again until the state has the room.
    fn repeat(&mut self, mut operation: impl FnMut(&mut State<'_>) -> Result<(), Stop>) -> Result<Done, Error> {
        loop {
            match operation(&mut self.state()) {
                Ok(()) => return Ok(Done::AsAsked),
                Err(Stop::Load) => return Ok(Done::WantsLoad),
                Err(Stop::Room(room)) => self.make(room),
                Err(Stop::Error(error)) => return Err(error),
            }
        }
    }
}

/// How an operation has ended.
#[derive(Clone, Copy, Debug)]
enum Done {
    AsAsked,
    /// Not: the other side has to be loaded first.
    WantsLoad,
}
