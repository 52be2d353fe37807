//! The state of an aggregate while it grows: one flat chunk of memory that the caller lends.
//!
//! ```text
//! word 0: kind u8 | log2m u8 | bits per register u8 | options u8 | used u32
//! word 1: words of this chunk u32 | unused
//! word 2..: EMPTY, UNDEFINED: nothing
//!           HASHES:    `used` hashes, ascending as signed numbers
//!           REGISTERS: one byte per register
//!           PACKED:    `used` stored bytes as they arrived from another process; only ever read
//! ```
//!
//! Small sets cost little: a chunk starts with 32 bytes and doubles. When one does not fit, an operation answers with the
//! [`Room`] it needs and has changed nothing that matters: the caller lends a larger chunk, [`State::move_to`] fills it,
//! and the operation is asked again. Adding a hash twice changes nothing, so a union may start over.
//!
//! There is no form between hashes and registers, and hashes are kept whole. A shorter token per hash would take half the
//! memory, but two hashes could share one, and then `distinct_count(x)` would not equal `hll_count(hll_agg(x))`. Rollups
//! promise exactly that.
#![forbid(unsafe_code)]

use super::error::Error;
use super::estimate::{self, Estimator};
use super::params::Params;
use super::registers;
use super::wire::{self, HEADER, Kind, Layout, Packed, Packing};

/// Words before the data.
const HEAD: usize = 2;
/// Words of the first chunk of a state.
pub const FIRST_WORDS: usize = 4;

const UNDEFINED: u8 = 0;
const EMPTY: u8 = 1;
const HASHES: u8 = 2;
const REGISTERS: u8 = 4;
const PACKED: u8 = 5;

/// The memory that an operation needs to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    words: usize,
    registers: bool,
}

impl Room {
    fn for_hashes(hashes: usize) -> Self {
        Self { words: (HEAD + hashes).next_power_of_two().max(FIRST_WORDS), registers: false }
    }

    fn for_registers(params: Params) -> Self {
        Self { words: HEAD + params.registers().div_ceil(8), registers: true }
    }

    /// Words of 8 bytes.
    pub fn words(&self) -> usize {
        self.words
    }
}

/// Why an operation has stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It has to be asked again after the state has moved to a chunk of this size.
    Room(Room),
    /// The other side has to be loaded into a state of its own first, and that has to be united. Only foreign sketches
    /// need this: those that name a register twice.
    Load,
    /// It cannot be done.
    Error(Error),
}

impl From<Room> for Stop {
    fn from(room: Room) -> Self {
        Self::Room(room)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// A state in its chunk of memory.
#[derive(Debug)]
pub struct State<'a>(&'a mut [u64]);

impl<'a> State<'a> {
    /// Makes an empty state in a chunk of at least [`FIRST_WORDS`].
    pub fn create(chunk: &'a mut [u64], params: Params) -> Self {
        let mut state = Self(chunk);
        let words = state.0.len();
        state.set_head(EMPTY, params, 0);
        state.0[1] = words as u64;
        state
    }

    /// Makes a state out of the stored bytes, to be united into another one; the chunk has [`Self::packed_words`].
    pub fn create_packed(chunk: &'a mut [u64], packed: &Packed<'_>) -> Self {
        let mut state = Self::create(chunk, packed.params());
        let bytes = packed.bytes();
        bytemuck::cast_slice_mut::<u64, u8>(&mut state.0[HEAD..])[..bytes.len()].copy_from_slice(bytes);
        state.set_head(PACKED, packed.params(), bytes.len());
        state
    }

    /// Words of a chunk for [`Self::create_packed`].
    pub fn packed_words(packed: &Packed<'_>) -> usize {
        (HEAD + packed.bytes().len().div_ceil(8)).max(FIRST_WORDS)
    }

    /// The whole chunk of a state, whose first two words are given.
    #[inline(always)]
    pub fn chunk_words(head: &[u64; 2]) -> usize {
        head[1] as u32 as usize
    }

    /// A state that is in this chunk already.
    #[inline(always)]
    pub fn over(chunk: &'a mut [u64]) -> Self {
        Self(chunk)
    }

    /// The stored bytes, if it has only just arrived from another process. Such a state can be united into another one,
    /// and nothing else.
    pub fn stored(&self) -> Option<&[u8]> {
        self.is_packed().then(|| self.packed_bytes())
    }

    fn is_packed(&self) -> bool {
        self.kind() == PACKED
    }

    /// The parameters that it was created with.
    pub fn params(&self) -> Params {
        let [_, log2m, width, options, ..] = self.0[0].to_le_bytes();
        Params { log2m, width, options }
    }

    /// Adds a hash.
    ///
    /// # Errors
    /// The room it needs.
    #[inline(always)]
    pub fn add(&mut self, hash: u64) -> Result<(), Room> {
        let [kind, log2m, width, ..] = self.0[0].to_le_bytes();
        if kind == REGISTERS {
            registers::raise(self.bytes_mut(), u32::from(log2m) & 31, u32::from(width) & 7, hash);
            return Ok(());
        }
        self.add_to_hashes(hash as i64)
    }

    /// Unites a stored value into it.
    ///
    /// # Errors
    /// See [`Stop`].
    pub fn unite(&mut self, other: &Packed<'_>) -> Result<(), Stop> {
        self.check_not_packed()?;
        self.params().check_equal(other.params())?;
        match (other.kind(), self.kind()) {
            (Kind::Undefined, _) => self.set_head(UNDEFINED, self.params(), 0),
            (_, UNDEFINED) | (Kind::Empty, _) => {}
            (Kind::Explicit, _) => self.unite_hashes(other.hashes())?,
            (Kind::Full, _) => {
                let width = self.params().width();
                registers::maximum_packed(self.as_registers()?, other.data(), width);
            }
            (Kind::Sparse, _) if !other.has_ascending_words() => return Err(Stop::Load),
            (Kind::Sparse, _) => {
                let registers = self.as_registers()?;
                other.each_word(|index, value| {
                    if let Some(register) = registers.get_mut(index) {
                        *register = (*register).max(value);
                    }
                });
            }
        }
        Ok(())
    }

    /// Loads a stored value into a state that has been made for it, and for nothing else. Of two words for one register
    /// the last one counts.
    ///
    /// # Errors
    /// See [`Stop`]; never [`Stop::Load`].
    pub fn load(&mut self, packed: &Packed<'_>) -> Result<(), Stop> {
        if packed.has_ascending_words() {
            return self.unite(packed);
        }
        self.params().check_equal(packed.params())?;
        let registers = self.as_registers()?;
        for (index, value) in packed.sparse() {
            if let Some(register) = registers.get_mut(index) {
                *register = value;
            }
        }
        Ok(())
    }

    /// Loads a stored value with as many registers or more into a state that has been made with the parameters of
    /// [`Params::fold`], and for nothing else. The result is what its hashes give when they are added to this state, except
    /// for those that had no rest beside the number of their register: no register shows them.
    ///
    /// # Errors
    /// See [`Stop`]; for [`Stop::Load`], load the value, pack it and fold that.
    pub fn fold(&mut self, packed: &Packed<'_>) -> Result<(), Stop> {
        let (params, source) = (self.params(), packed.params());
        params.check_equal(source.fold(i64::from(params.log2m()))?)?;
        match packed.kind() {
            Kind::Undefined => self.set_head(UNDEFINED, params, 0),
            Kind::Empty => {}
            Kind::Explicit => {
                for hash in packed.hashes() {
                    self.add(hash as u64)?;
                }
            }
            Kind::Sparse | Kind::Full if !packed.has_ascending_words() => return Err(Stop::Load),
            Kind::Sparse | Kind::Full => {
                let (log2m, steps) = (params.log2m(), source.log2m() - params.log2m());
                let registers = self.as_registers()?;
                let mut start = 0;
                packed.visit(&mut |block| {
                    for (index, value) in (start..).zip(block).filter(|(_, value)| **value != 0) {
                        let (index, value) = registers::folded(index, *value, log2m, steps, params.width());
                        if let Some(register) = registers.get_mut(index) {
                            *register = (*register).max(value);
                        }
                    }
                    start += block.len();
                })?;
            }
        }
        Ok(())
    }

    /// Unites another state into it.
    ///
    /// # Errors
    /// See [`Stop`].
    pub fn unite_state(&mut self, other: &State<'_>) -> Result<(), Stop> {
        self.check_not_packed()?;
        if other.is_packed() {
            return self.unite(&Packed::read(other.packed_bytes())?);
        }
        self.params().check_equal(other.params())?;
        match (other.kind(), self.kind()) {
            (UNDEFINED, _) => self.set_head(UNDEFINED, self.params(), 0),
            (_, UNDEFINED) | (EMPTY, _) => {}
            (HASHES, _) => self.unite_hashes(other.hashes().iter().map(|hash| *hash as i64))?,
            _ => registers::maximum(self.as_registers()?, other.registers()),
        }
        Ok(())
    }

    /// Moves to a larger chunk, which has at least the words of `room`. The old one is not needed any more.
    pub fn move_to<'b>(&self, chunk: &'b mut [u64], room: Room) -> State<'b> {
        let params = self.params();
        let mut new = State::create(chunk, params);
        if room.registers {
            new.set_head(REGISTERS, params, 0);
            let registers = new.bytes_mut();
            registers.fill(0);
            for hash in self.hashes() {
                registers::raise(registers, params.log2m(), params.width(), *hash);
            }
        } else {
            let hashes = self.hashes();
            new.0[HEAD..HEAD + hashes.len()].copy_from_slice(hashes);
            new.set_head(self.kind(), params, hashes.len());
        }
        new
    }

    /// The form in which [`Self::pack`] will write it.
    pub fn layout(&self, packing: Packing) -> Layout {
        match self.kind() {
            UNDEFINED => Layout::plain(Kind::Undefined, 0),
            HASHES => Layout::plain(Kind::Explicit, self.hashes().len() * 8),
            REGISTERS => Layout::registers(self.params(), registers::filled(self.registers()), packing),
            PACKED => Layout::plain(Kind::Full, self.used().saturating_sub(HEADER)),
            _ => Layout::plain(Kind::Empty, 0),
        }
    }

    /// Writes the stored bytes; `out` has the size of the layout.
    pub fn pack(&self, layout: Layout, out: &mut [u8]) {
        if self.is_packed() {
            return out.copy_from_slice(self.packed_bytes());
        }
        let data = wire::write_header(out, layout.kind, self.params());
        match layout.kind {
            Kind::Undefined | Kind::Empty => {}
            Kind::Explicit => wire::write_hashes(data, self.hashes().iter().map(|hash| *hash as i64)),
            Kind::Sparse | Kind::Full => wire::write_registers(data, layout.kind, self.params(), self.registers()),
        }
    }

    /// The number of different hashes: exact as long as they are stored one by one, `None` for an undefined set.
    ///
    /// # Errors
    /// See [`Estimator`].
    pub fn estimate(&self, estimator: Estimator) -> Result<Option<f64>, Error> {
        match self.kind() {
            UNDEFINED => Ok(None),
            HASHES => Ok(Some(self.used() as f64)),
            REGISTERS => {
                let visit = |see: &mut dyn FnMut(&[u8])| {
                    see(self.registers());
                    Ok(())
                };
                estimate::count(self.params(), estimator, visit).map(Some)
            }
            PACKED => self.check_not_packed().map(|()| None),
            _ => Ok(Some(0.0)),
        }
    }

    fn check_not_packed(&self) -> Result<(), Error> {
        if self.is_packed() { Err(Error::State("it has not been united yet")) } else { Ok(()) }
    }

    fn kind(&self) -> u8 {
        self.0[0].to_le_bytes()[0]
    }

    fn used(&self) -> usize {
        (self.0[0] >> 32) as usize
    }

    fn set_head(&mut self, kind: u8, params: Params, used: usize) {
        let [a, b, c, d] = (used as u32).to_le_bytes();
        self.0[0] = u64::from_le_bytes([kind, params.log2m, params.width, params.options, a, b, c, d]);
    }

    fn hashes(&self) -> &[u64] {
        let used = if self.kind() == HASHES { self.used() } else { 0 };
        &self.0[HEAD..HEAD + used]
    }

    fn registers(&self) -> &[u8] {
        &bytemuck::cast_slice::<u64, u8>(&self.0[HEAD..])[..self.params().registers()]
    }

    fn packed_bytes(&self) -> &[u8] {
        &bytemuck::cast_slice::<u64, u8>(&self.0[HEAD..])[..self.used()]
    }

    #[inline(always)]
    fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.0[HEAD..])
    }

    /// The registers, or the room for them if there are none yet.
    fn as_registers(&mut self) -> Result<&mut [u8], Room> {
        let params = self.params();
        if self.kind() != REGISTERS {
            return Err(Room::for_registers(params));
        }
        Ok(&mut self.bytes_mut()[..params.registers()])
    }

    fn add_to_hashes(&mut self, hash: i64) -> Result<(), Room> {
        match self.kind() {
            EMPTY if self.params().threshold() == 0 => Err(Room::for_registers(self.params())),
            EMPTY | HASHES => self.insert(hash, self.params().threshold()),
            _ => Ok(()),
        }
    }

    /// Puts a hash in its place among the others, unless that would be more than `threshold` of them.
    fn insert(&mut self, hash: i64, threshold: usize) -> Result<(), Room> {
        let params = self.params();
        let hashes = self.hashes();
        let used = hashes.len();
        let Err(place) = hashes.binary_search_by(|held| (*held as i64).cmp(&hash)) else {
            return Ok(());
        };
        if used >= threshold {
            return Err(Room::for_registers(params));
        }
        if HEAD + used == self.0.len() {
            return Err(Room::for_hashes(used + 1));
        }
        self.0.copy_within(HEAD + place..HEAD + used, HEAD + place + 1);
        self.0[HEAD + place] = hash as u64;
        self.set_head(HASHES, params, used + 1);
        Ok(())
    }

    fn unite_hashes(&mut self, hashes: impl ExactSizeIterator<Item = i64>) -> Result<(), Room> {
        let params = self.params();
        match self.kind() {
            REGISTERS => {
                let registers = self.bytes_mut();
                for hash in hashes {
                    registers::raise(registers, params.log2m(), params.width(), hash as u64);
                }
                return Ok(());
            }
            // A value united into the empty set stays as it is, even if it has more hashes than its threshold.
            EMPTY => {
                let count = hashes.len();
                if HEAD + count > self.0.len() {
                    return Err(Room::for_hashes(count));
                }
                // Even if it has none.
                self.set_head(HASHES, params, 0);
                for hash in hashes {
                    self.insert(hash, usize::MAX)?;
                }
                return Ok(());
            }
            _ => {}
        }
        for hash in hashes {
            self.insert(hash, params.threshold())?;
        }
        Ok(())
    }
}
