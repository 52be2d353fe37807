//! The state of an aggregate while it grows: one flat chunk of memory that the caller lends.
//!
//! ```text
//! word 0: kind u8 | log2m u8 | bits per register u8 | options u8 | used u32
//! word 1: words of this chunk u32 | buffered u16 | limit u16
//! word 2..: EMPTY, UNDEFINED: nothing
//!           HASHES:    a buffer of up to 14 hashes as they came, then `used` hashes, ascending as signed numbers
//!           REGISTERS: one byte per register
//!           PACKED:    `used` stored bytes as they arrived from another process; only ever read
//! ```
//!
//! Small sets cost little: a chunk starts with 32 bytes and doubles. When one does not fit, an operation answers with the
//! [`Room`] it needs and has changed nothing that matters: the caller lends a larger chunk, [`State::move_to`] fills it,
//! and the operation is asked again. Adding a hash twice changes nothing, so a union may start over.
//!
//! A row of a group that is not in the cache should wait for memory once, so it only goes into the buffer, which lies beside
//! the head. A full buffer is sorted and merged into the ascending hashes at once. The first `buffered` places hold hashes
//! that differ from each other, perhaps not from the ascending ones; all further places repeat hashes of the set, so that
//! a look at the whole buffer, whatever it holds, finds only what is in the set. Hashes are buffered up to `limit`: never so
//! many that the threshold could be passed before anybody looks.
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
/// Hashes that wait to be put in order: as many as fill two cache lines together with the head.
const BUFFER: usize = 14;

const UNDEFINED: u8 = 0;
const EMPTY: u8 = 1;
const HASHES: u8 = 2;
/// An EXPLICIT value without hashes, which is stored as that and not as EMPTY.
const NO_HASHES: u8 = 3;
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
        if kind == HASHES
            && let Some(buffer) = self.0.get_mut(HEAD..).and_then(|data| data.first_chunk_mut::<BUFFER>())
        {
            // All places are compared, without a branch for each.
            if buffer.iter().fold(false, |found, held| found | (*held == hash)) {
                return Ok(());
            }
            let (buffered, limit) = self.fill();
            if buffered < limit {
                self.push(hash, buffered);
                return Ok(());
            }
        }
        self.add_to_hashes(hash)
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
            (Kind::Explicit, _) => self.unite_hashes(other.hashes().len(), other.hashes().map(|hash| hash as u64))?,
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
            (HASHES | NO_HASHES, _) => self.unite_hashes(other.hashes().count(), other.hashes())?,
            _ => registers::maximum(self.as_registers()?, other.registers()),
        }
        Ok(())
    }

    /// Moves to a larger chunk, which has at least the words of `room`. The old one is not needed any more.
    pub fn move_to<'b>(&mut self, chunk: &'b mut [u64], room: Room) -> State<'b> {
        let params = self.params();
        let mut new = State::create(chunk, params);
        if room.registers {
            new.set_head(REGISTERS, params, 0);
            let registers = new.bytes_mut();
            registers.fill(0);
            for hash in self.hashes() {
                registers::raise(registers, params.log2m(), params.width(), hash);
            }
            return new;
        }
        new.set_head(self.kind(), params, 0);
        let count = self.settle();
        let mut hashes = self.ascending();
        let (buffer, sorted) = new.zones();
        let used = count.min(sorted.len());
        sorted.iter_mut().zip(&mut hashes).for_each(|(place, hash)| *place = hash);
        let mut last = sorted.first().copied().unwrap_or_default();
        for place in buffer {
            last = hashes.next().unwrap_or(last);
            *place = last;
        }
        new.set_head(self.kind(), params, used);
        new.set_fill(count - used, params.threshold());
        new
    }

    /// The form in which [`Self::pack`] will write it.
    pub fn layout(&mut self, packing: Packing) -> Layout {
        match self.kind() {
            UNDEFINED => Layout::plain(Kind::Undefined, 0),
            HASHES | NO_HASHES => Layout::plain(Kind::Explicit, self.settle() * 8),
            REGISTERS => Layout::registers(self.params(), registers::filled(self.registers()), packing),
            PACKED => Layout::plain(Kind::Full, self.used().saturating_sub(HEADER)),
            _ => Layout::plain(Kind::Empty, 0),
        }
    }

    /// Writes the stored bytes; `out` has the size of the layout.
    pub fn pack(&mut self, layout: Layout, out: &mut [u8]) {
        if self.is_packed() {
            return out.copy_from_slice(self.packed_bytes());
        }
        let data = wire::write_header(out, layout.kind, self.params());
        match layout.kind {
            Kind::Undefined | Kind::Empty => {}
            Kind::Explicit => {
                self.settle();
                wire::write_hashes(data, self.ascending().map(|hash| hash as i64));
            }
            Kind::Sparse | Kind::Full => wire::write_registers(data, layout.kind, self.params(), self.registers()),
        }
    }

    /// The number of different hashes: exact as long as they are stored one by one, `None` for an undefined set.
    ///
    /// # Errors
    /// See [`Estimator`].
    pub fn estimate(&mut self, estimator: Estimator) -> Result<Option<f64>, Error> {
        match self.kind() {
            UNDEFINED => Ok(None),
            HASHES => Ok(Some(self.settle() as f64)),
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

    /// How many hashes are buffered, and how many may be.
    #[inline(always)]
    fn fill(&self) -> (usize, usize) {
        let fill = self.0[1] >> 32;
        (usize::from(fill as u16), usize::from((fill >> 16) as u16))
    }

    fn set_fill(&mut self, buffered: usize, threshold: usize) {
        let limit = threshold.saturating_sub(self.used()).min(self.zones().0.len());
        self.0[1] = u64::from(self.0[1] as u32) | (buffered as u64) << 32 | (limit as u64) << 48;
    }

    /// Buffers a hash as the one with this number.
    #[inline(always)]
    fn push(&mut self, hash: u64, buffered: usize) {
        self.0[HEAD + buffered] = hash;
        self.0[1] += 1 << 32;
    }

    /// The buffer, and the place for ascending hashes.
    fn zones(&mut self) -> (&mut [u64], &mut [u64]) {
        let data = &mut self.0[HEAD..];
        data.split_at_mut(data.len().min(BUFFER))
    }

    /// The hashes that are buffered, and the ascending ones; the latter may repeat some of the former.
    fn lists(&self) -> (&[u64], &[u64]) {
        if self.kind() != HASHES {
            return (&[], &[]);
        }
        let (buffer, sorted) = self.0[HEAD..].split_at((self.0.len() - HEAD).min(BUFFER));
        (&buffer[..self.fill().0], &sorted[..self.used()])
    }

    /// All hashes in any order; some may come twice.
    fn hashes(&self) -> impl Iterator<Item = u64> {
        let (buffered, sorted) = self.lists();
        buffered.iter().chain(sorted).copied()
    }

    /// All hashes, ascending, of a state that is settled.
    fn ascending(&self) -> impl Iterator<Item = u64> {
        let (mut buffered, mut sorted) = self.lists();
        std::iter::from_fn(move || {
            let list = match (buffered.first(), sorted.first()) {
                (Some(a), Some(b)) if is_less(*a, *b) => &mut buffered,
                (Some(_), None) => &mut buffered,
                _ => &mut sorted,
            };
            list.split_off_first().copied()
        })
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

    #[inline(never)]
    fn add_to_hashes(&mut self, hash: u64) -> Result<(), Room> {
        match self.kind() {
            EMPTY | NO_HASHES | HASHES => self.insert(hash, self.params().threshold()),
            _ => Ok(()),
        }
    }

    /// Takes a hash among the others, unless that would be more than `threshold` of them.
    fn insert(&mut self, hash: u64, threshold: usize) -> Result<(), Room> {
        let params = self.params();
        if self.kind() != HASHES {
            if threshold == 0 {
                return Err(Room::for_registers(params));
            }
            self.set_head(HASHES, params, 0);
            self.zones().0.fill(hash);
            self.set_fill(1, threshold);
            return Ok(());
        }
        let (buffered, limit) = self.fill();
        if self.zones().0.contains(&hash) {
            return Ok(());
        }
        if buffered < limit {
            self.push(hash, buffered);
            return Ok(());
        }
        let count = self.settle();
        if find(self.lists().1, hash).is_ok() {
            return Ok(());
        }
        if count >= threshold {
            return Err(Room::for_registers(params));
        }
        if HEAD + count == self.0.len() {
            return Err(Room::for_hashes(count + 1));
        }
        let buffered = self.merge(threshold);
        self.push(hash, buffered);
        Ok(())
    }

    /// Sorts the buffered hashes and drops those that are among the ascending ones too. Returns how many hashes there are.
    /// This changes what lies where, never the set.
    fn settle(&mut self) -> usize {
        if self.kind() != HASHES {
            return 0;
        }
        let (used, (buffered, _)) = (self.used(), self.fill());
        let (buffer, sorted) = self.zones();
        buffer[..buffered].sort_unstable_by_key(|hash| *hash as i64);
        let mut kept = 0;
        for at in 0..buffered {
            if find(&sorted[..used], buffer[at]).is_err() {
                buffer.swap(kept, at);
                kept += 1;
            }
        }
        self.0[1] -= ((buffered - kept) as u64) << 32;
        used + kept
    }

    /// Moves hashes of a settled buffer among the ascending ones: as many as have a place there. Returns how many stay.
    fn merge(&mut self, threshold: usize) -> usize {
        let (params, used, (buffered, _)) = (self.params(), self.used(), self.fill());
        let (buffer, sorted) = self.zones();
        let moved = buffered.min(sorted.len() - used);
        // From above: first those that are larger than the largest new one move up by all that come below them.
        let mut end = used;
        for (below, hash) in buffer[..moved].iter().enumerate().rev() {
            let place = find(&sorted[..end], *hash).unwrap_or_else(|place| place);
            sorted.copy_within(place..end, place + below + 1);
            sorted[place + below] = *hash;
            end = place;
        }
        buffer[..buffered].rotate_left(moved);
        self.set_head(HASHES, params, used + moved);
        self.set_fill(buffered - moved, threshold);
        buffered - moved
    }

    /// `count` is at least the number of different hashes.
    fn unite_hashes(&mut self, count: usize, hashes: impl Iterator<Item = u64>) -> Result<(), Room> {
        let params = self.params();
        match self.kind() {
            REGISTERS => {
                let registers = self.bytes_mut();
                for hash in hashes {
                    registers::raise(registers, params.log2m(), params.width(), hash);
                }
            }
            // A value united into the empty set stays as it is, even if it has more hashes than its threshold.
            EMPTY => {
                if HEAD + count > self.0.len() {
                    return Err(Room::for_hashes(count));
                }
                // Even if it has none.
                self.set_head(NO_HASHES, params, 0);
                for hash in hashes {
                    self.insert(hash, usize::MAX)?;
                }
                if self.kind() == HASHES {
                    self.set_fill(self.fill().0, params.threshold());
                }
            }
            _ => {
                for hash in hashes {
                    self.insert(hash, params.threshold())?;
                }
            }
        }
        Ok(())
    }
}

fn is_less(a: u64, b: u64) -> bool {
    (a as i64) < (b as i64)
}

/// Where a hash is among ascending ones, or belongs.
fn find(ascending: &[u64], hash: u64) -> Result<usize, usize> {
    ascending.binary_search_by_key(&(hash as i64), |held| *held as i64)
}
