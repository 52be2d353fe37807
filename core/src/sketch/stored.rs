//! Operations on stored values that need no [`State`](super::State): an estimate, and a hash or another value added to a
//! FULL value, which nearly always stays FULL.
//!
//! They give the bytes that a state gives. Where only a state can, the answer is [`Stop::Load`].
#![forbid(unsafe_code)]

use super::estimate::{self, Estimator};
use super::registers::{self, GROUP};
use super::state::Stop;
use super::wire::{self, Kind, Packed, Packing};
use crate::simd::{self, Harmonic};

/// Registers that are seen at a time, on the stack. A sum over them costs something by itself, and so does the block.
const BLOCK: usize = 2048;
/// The same where a few of them may be enough.
const SMALL_BLOCK: usize = 256;

/// A stored value that has been decided upon and is to be written to memory that the caller lends.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a> {
    base: Packed<'a>,
    change: Change<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Change<'a> {
    /// An unknown set stays one: there is only a header.
    Undefined,
    Register(usize, u8),
    Union(Packed<'a>),
}

impl<'a> Packed<'a> {
    /// The number of different hashes, as [`State::estimate`](super::State::estimate) gives it.
    ///
    /// # Errors
    /// [`Stop::Load`] for a foreign sketch that may name a register twice. See [`Estimator`].
    pub fn estimate(&self, estimator: Estimator) -> Result<Option<f64>, Stop> {
        match self.kind() {
            Kind::Undefined => Ok(None),
            Kind::Empty => Ok(Some(0.0)),
            Kind::Explicit => Ok(Some(self.hashes().len() as f64)),
            Kind::Sparse if !self.has_ascending_words() => Err(Stop::Load),
            Kind::Sparse if self.params().width() == 5 => {
                match estimate::from_sums(self.sparse_sums(), self.params(), estimator)? {
                    Some(count) => Ok(Some(count)),
                    None => self.estimate_in_order(estimator),
                }
            }
            Kind::Sparse | Kind::Full => self.estimate_in_order(estimator),
        }
    }

    fn estimate_in_order(&self, estimator: Estimator) -> Result<Option<f64>, Stop> {
        estimate::count(self.params(), estimator, |see| self.visit(see)).map(Some)
    }

    /// Sums over the registers of a SPARSE value, without putting them in their places.
    fn sparse_sums(&self) -> Harmonic {
        let (mut sums, mut words) = (Harmonic::default(), 0);
        let mut block = [0; BLOCK];
        let mut add = |values: &[u8]| {
            sums += simd::harmonic(values);
            words += values.len();
        };
        if let Some(words) = self.whole_words() {
            for words in words.chunks(BLOCK) {
                block.iter_mut().zip(words).for_each(|(value, [_, low])| *value = low & 31);
                add(&block[..words.len()]);
            }
        } else {
            let mut values = self.sparse().map(|(_, value)| value);
            loop {
                let mut count = 0;
                for (place, value) in block.iter_mut().zip(values.by_ref()) {
                    *place = value;
                    count += 1;
                }
                add(&block[..count]);
                if count < BLOCK {
                    break;
                }
            }
        }
        let others = (self.params().registers() - words) as u64;
        sums += Harmonic { sum: others << 31, zeros: others, largest: 0 };
        sums
    }

    /// All registers in order, some at a time.
    ///
    /// # Errors
    /// [`Stop::Load`] for a SPARSE value whose words do not ascend.
    pub(super) fn visit(&self, see: &mut dyn FnMut(&[u8])) -> Result<(), Stop> {
        let params = self.params();
        let mut block = [0; BLOCK];
        let block = &mut block[..params.registers().min(BLOCK)];
        if self.kind() == Kind::Full {
            for packed in self.data().chunks(BLOCK / 8 * params.width() as usize) {
                registers::unpack(packed, block, params.width());
                see(block);
            }
            return Ok(());
        }
        // The first register of the block, and the first one that may come.
        let (mut start, mut next, mut ascending) = (0, 0, true);
        self.each_word(|index, value| {
            if index < next {
                ascending = false;
                return;
            }
            next = index + 1;
            while index >= start + BLOCK {
                see(block);
                block.fill(0);
                start += BLOCK;
            }
            block[index - start] = value;
        });
        if !ascending {
            return Err(Stop::Load);
        }
        see(block);
        for _ in (start + BLOCK..params.registers()).step_by(BLOCK) {
            block.fill(0);
            see(block);
        }
        Ok(())
    }

    /// The value with one more hash.
    ///
    /// # Errors
    /// See [`Stop`]; [`Stop::Load`] unless it is a FULL value that stays one, or UNDEFINED.
    pub fn add(&self, hash: u64, packing: Packing) -> Result<Draft<'a>, Stop> {
        let params = self.params();
        if self.kind() == Kind::Undefined {
            return Ok(self.undefined());
        }
        params.check_addable()?;
        if !self.stays_full(packing) {
            return Err(Stop::Load);
        }
        // A value of 0 raises nothing.
        let (index, value) = registers::place(params.log2m(), params.width(), hash).unwrap_or_default();
        Ok(Draft { base: *self, change: Change::Register(index, value) })
    }

    /// The union with another value. One of them is only stored anew if the other one is empty: a FULL value with few registers in use
    /// becomes SPARSE.
    ///
    /// # Errors
    /// See [`Stop`]; [`Stop::Load`] if no side is a FULL value that stays one.
    pub fn union(&self, other: &Self, packing: Packing) -> Result<Draft<'a>, Stop> {
        self.params().check_equal(other.params())?;
        match (self.kind(), other.kind()) {
            (Kind::Undefined, _) | (_, Kind::Undefined) => return Ok(self.undefined()),
            (_, Kind::Empty) => return self.stored_anew(packing),
            (Kind::Empty, _) => return other.stored_anew(packing),
            _ => {}
        }
        let (base, other) = if self.stays_full(packing) {
            (self, other)
        } else if other.stays_full(packing) {
            (other, self)
        } else {
            return Err(Stop::Load);
        };
        if !other.has_ascending_words() {
            return Err(Stop::Load);
        }
        Ok(Draft { base: *base, change: Change::Union(*other) })
    }

    fn stored_anew(&self, packing: Packing) -> Result<Draft<'a>, Stop> {
        // A value of 0 raises nothing.
        let same = Draft { base: *self, change: Change::Register(0, 0) };
        if self.stays_full(packing) { Ok(same) } else { Err(Stop::Load) }
    }

    fn undefined(&self) -> Draft<'a> {
        Draft { base: *self, change: Change::Undefined }
    }

    /// Is it FULL, and will it be whatever is added? That is so if enough registers are not 0. Registers that do not fill
    /// whole bytes are left to a state.
    fn stays_full(&self, packing: Packing) -> bool {
        let params = self.params();
        if self.kind() != Kind::Full || params.registers() < GROUP {
            return false;
        }
        let enough = packing.full_from(params);
        let mut block = [0; SMALL_BLOCK];
        let block = &mut block[..params.registers().min(SMALL_BLOCK)];
        let mut filled = 0;
        enough == 0
            || self.data().chunks(SMALL_BLOCK / 8 * params.width() as usize).any(|packed| {
                registers::unpack(packed, block, params.width());
                filled += registers::filled(block);
                filled >= enough
            })
    }
}

impl Draft<'_> {
    /// Size of the stored value in bytes.
    pub fn size(&self) -> usize {
        match self.change {
            Change::Undefined => wire::HEADER,
            _ => self.base.bytes().len(),
        }
    }

    /// Writes the stored value; `out` has the size.
    pub fn write(&self, out: &mut [u8]) {
        let params = self.base.params();
        let (log2m, width) = (params.log2m(), params.width());
        match self.change {
            Change::Undefined => {
                wire::write_header(out, Kind::Undefined, params);
            }
            Change::Register(index, value) => {
                let data = self.copy(out);
                registers::raise_packed(data, width, index, value);
            }
            Change::Union(other) if other.kind() == Kind::Full => {
                let data = wire::write_header(out, Kind::Full, params);
                registers::union(self.base.data(), other.data(), data, width);
            }
            Change::Union(other) if other.kind() == Kind::Sparse => {
                let data = self.copy(out);
                other.each_word(|index, value| registers::raise_packed(data, width, index, value));
            }
            Change::Union(other) => {
                let data = self.copy(out);
                for (index, value) in other.hashes().filter_map(|hash| registers::place(log2m, width, hash as u64)) {
                    registers::raise_packed(data, width, index, value);
                }
            }
        }
    }

    /// Writes the value as it is; gives the place of its registers.
    fn copy<'o>(&self, out: &'o mut [u8]) -> &'o mut [u8] {
        let data = wire::write_header(out, Kind::Full, self.base.params());
        data.copy_from_slice(self.base.data());
        data
    }
}
