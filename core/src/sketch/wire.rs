//! The stored bytes: storage specification v1.0.0 of postgresql-hll, bit for bit.
//!
//! | byte | content |
//! |---|---|
//! | 0 | bits 7..4: version 1; bits 3..0: [`Kind`] |
//! | 1 | bits 7..5: bits per register - 1; bits 4..0: log2 of the number of registers |
//! | 2 | bit 6: sparse storage allowed; bits 5..0: code of the threshold |
//! | 3.. | EXPLICIT: hashes, big endian, ascending as signed numbers |
//! | 3.. | SPARSE: a word per register that is not 0: index in the high bits, value in the low ones |
//! | 3.. | FULL: all registers as words |
//!
//! Reading checks sizes every time, because a page can be corrupt. The order of hashes is checked once, on input
//! ([`Packed::validate`]).
#![forbid(unsafe_code)]

use super::error::Error;
use super::params::{MAX_EXPLICIT, Params};
use super::print;
use super::registers::{self, BitWriter, Bits};

/// Bytes before the data.
pub const HEADER: usize = 3;
const VERSION: u8 = 1;

/// How a stored value represents its set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A set that is not known; everything united with it is not known either.
    Undefined = 0,
    Empty = 1,
    /// The hashes themselves: the count is exact.
    Explicit = 2,
    /// The registers that are not 0.
    Sparse = 3,
    /// All registers.
    Full = 4,
}

/// A stored value whose header and sizes have been checked.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    bytes: &'a [u8],
    kind: Kind,
    params: Params,
}

impl<'a> Packed<'a> {
    /// Reads the header alone; more bytes may follow or not.
    ///
    /// # Errors
    /// Not a header of this format.
    pub fn header(bytes: &[u8]) -> Result<(Kind, Params), Error> {
        let first = *bytes.first().ok_or(Error::UnknownVersion(0))?;
        if first >> 4 != VERSION {
            return Err(Error::UnknownVersion(first >> 4));
        }
        let (kind, too_short) = match first & 0x0f {
            0 => (Kind::Undefined, Error::UndefinedValue),
            1 => (Kind::Empty, Error::EmptySize),
            2 => (Kind::Explicit, Error::ExplicitSize),
            3 => (Kind::Sparse, Error::SparseTooSmall),
            4 => (Kind::Full, Error::CompressedSize),
            _ => return Err(Error::UndefinedType),
        };
        match bytes {
            [_, byte1, byte2, ..] => Ok((kind, Params::from_header(*byte1, *byte2))),
            _ => Err(too_short),
        }
    }

    /// Reads a value that has been validated when it was stored.
    ///
    /// # Errors
    /// Header or sizes are not of this format.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Error> {
        let (kind, params) = Self::header(bytes)?;
        let size = bytes.len() - HEADER;
        match kind {
            Kind::Undefined if size > 0 => return Err(Error::UndefinedValue),
            Kind::Empty if size > 0 => return Err(Error::EmptySize),
            Kind::Explicit if !size.is_multiple_of(8) => return Err(Error::ExplicitSize),
            Kind::Explicit if size / 8 > MAX_EXPLICIT => return Err(Error::ExplicitTooLarge),
            _ => {}
        }
        params.check_registers()?;
        match kind {
            Kind::Empty | Kind::Explicit => params.check_threshold()?,
            Kind::Sparse if (size * 8) % sparse_word(params) as usize >= 8 => return Err(Error::SparsePadding),
            Kind::Full if size != params.full_size() => return Err(Error::CompressedSize),
            _ => {}
        }
        Ok(Self { bytes, kind, params })
    }

    /// Reads a value that comes from outside.
    ///
    /// # Errors
    /// Anything that the format forbids. What it merely does not produce, such as unordered sparse words, passes.
    pub fn validate(bytes: &'a [u8]) -> Result<Self, Error> {
        let packed = Self::read(bytes)?;
        if packed.kind == Kind::Explicit && !packed.hashes().is_sorted_by(|a, b| a < b) {
            return Err(Error::ExplicitOrder(print::packed(&packed)));
        }
        Ok(packed)
    }

    /// How the set is represented.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The parameters in its header.
    pub fn params(&self) -> Params {
        self.params
    }

    /// The value itself.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub(super) fn data(&self) -> &'a [u8] {
        &self.bytes[HEADER..]
    }

    /// The hashes of an EXPLICIT value.
    pub(super) fn hashes(&self) -> impl ExactSizeIterator<Item = i64> + Clone + use<'a> {
        let data = if self.kind == Kind::Explicit { self.data() } else { &[] };
        data.as_chunks::<8>().0.iter().map(|bytes| i64::from_be_bytes(*bytes))
    }

    /// Index and value per word of a SPARSE value.
    pub(super) fn sparse(&self) -> impl Iterator<Item = (usize, u8)> + Clone + use<'a> {
        let width = self.params.width();
        Bits::new(self.data(), sparse_word(self.params))
            .take(sparse_words(self.data(), sparse_word(self.params)))
            .map(move |word| ((word >> width) as usize, (word & ((1 << width) - 1)) as u8))
    }

    /// Calls `see` with the index and value of each word of a SPARSE value.
    pub(super) fn each_word(&self, mut see: impl FnMut(usize, u8)) {
        match self.whole_words() {
            Some(words) => {
                let width = self.params.width();
                for word in words {
                    let word = u16::from_be_bytes(*word);
                    see(usize::from(word >> width), (word & ((1 << width) - 1)) as u8);
                }
            }
            None => self.sparse().for_each(|(index, value)| see(index, value)),
        }
    }

    /// False if a register may occur twice in a SPARSE value; the last word then wins.
    pub(super) fn has_ascending_words(&self) -> bool {
        match self.whole_words() {
            _ if self.kind != Kind::Sparse => true,
            Some(words) => {
                let width = self.params.width();
                let index = |word: &[u8; 2]| u16::from_be_bytes(*word) >> width;
                let pairs = words.iter().zip(words.get(1..).unwrap_or_default());
                // Without an early end, so that the compiler can use vectors.
                pairs.fold(true, |ascending, (a, b)| ascending & (index(a) < index(b)))
            }
            None => self.sparse().is_sorted_by(|(a, _), (b, _)| a < b),
        }
    }

    /// The words of a SPARSE value if each of them is two bytes, as with the default parameters.
    pub(super) fn whole_words(&self) -> Option<&'a [[u8; 2]]> {
        (sparse_word(self.params) == 16).then(|| self.data().as_chunks().0)
    }
}

/// Bits of a word of a SPARSE value.
fn sparse_word(params: Params) -> u32 {
    params.log2m() + params.width()
}

/// Number of words in the data of a SPARSE value.
///
/// The padding of the last byte can hold whole words if they have fewer than 8 bits. Zero words there are padding: taken
/// as words for register 0 (as postgresql-hll takes them) they would wipe it out.
fn sparse_words(data: &[u8], word: u32) -> usize {
    let (Some(last), word) = (data.last(), word as usize) else { return 0 };
    let bits = data.len() * 8;
    let most = bits / word;
    if word >= 8 {
        return most;
    }
    let least = (bits - 8) / word + 1;
    (bits - last.trailing_zeros() as usize).div_ceil(word).clamp(least, most)
}

/// When registers are stored sparsely, if their parameters allow it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packing {
    /// Whenever that is smaller.
    #[default]
    BySize,
    /// Up to so many registers that are not 0.
    UpTo(usize),
}

impl Packing {
    /// From how many registers that are not 0 they are stored in full.
    pub(super) fn full_from(self, params: Params) -> usize {
        match self {
            _ if !params.sparse() => 0,
            Self::BySize => (params.registers() * params.width() as usize).div_ceil(sparse_word(params) as usize),
            Self::UpTo(most) => most.saturating_add(1),
        }
    }
}

/// The form that a value is going to be stored in, and its size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub(super) kind: Kind,
    size: usize,
}

impl Layout {
    pub(super) fn plain(kind: Kind, data: usize) -> Self {
        Self { kind, size: HEADER + data }
    }

    pub(super) fn registers(params: Params, filled: usize, packing: Packing) -> Self {
        if filled < packing.full_from(params) {
            Self::plain(Kind::Sparse, (filled * sparse_word(params) as usize).div_ceil(8))
        } else {
            Self::plain(Kind::Full, params.full_size())
        }
    }

    /// Size of the stored value in bytes.
    pub fn size(&self) -> usize {
        self.size
    }
}

/// Writes the header and gives the rest.
pub(super) fn write_header(out: &mut [u8], kind: Kind, params: Params) -> &mut [u8] {
    let (header, data) = out.split_at_mut(HEADER);
    let [byte1, byte2] = params.to_header();
    header.copy_from_slice(&[(VERSION << 4) | kind as u8, byte1, byte2]);
    data
}

/// The three bytes of an EMPTY value.
pub fn empty(params: Params) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    write_header(&mut bytes, Kind::Empty, params);
    bytes
}

pub(super) fn write_hashes(data: &mut [u8], hashes: impl Iterator<Item = i64>) {
    for (place, hash) in data.as_chunks_mut::<8>().0.iter_mut().zip(hashes) {
        *place = hash.to_be_bytes();
    }
}

pub(super) fn write_registers(data: &mut [u8], kind: Kind, params: Params, registers: &[u8]) {
    if kind == Kind::Full {
        return registers::pack(registers, data, params.width());
    }
    let mut out = BitWriter::new(data);
    for (index, value) in registers.iter().enumerate().filter(|(_, value)| **value != 0) {
        out.put(((index as u32) << params.width()) | u32::from(*value), sparse_word(params));
    }
    out.finish();
}
