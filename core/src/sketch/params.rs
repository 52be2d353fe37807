//! The parameters of a sketch: number of registers, bits per register, when it stops storing hashes, and whether it may be
//! stored sparsely. They are part of every stored value; only sketches with equal parameters can be united.
#![forbid(unsafe_code)]

use super::error::{Error, Mismatch};

/// Largest log2 of the number of registers.
pub const MAX_LOG2M: u8 = 17;
/// Most hashes that a stored EXPLICIT value may hold.
pub const MAX_EXPLICIT: usize = 16383;

const AUTO: u8 = 63;
const THRESHOLD_BITS: u8 = 0x3f;
const SPARSE_BIT: u8 = 0x40;

/// The parameters of one sketch, held as in bytes 1 and 2 of a stored value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    pub(super) log2m: u8,
    pub(super) width: u8,
    /// Bit 6: may be stored sparsely; bits 5..0: code of the threshold.
    pub(super) options: u8,
}

impl Default for Params {
    /// 2048 registers of 5 bits (relative standard error 2.3 %), automatic threshold, sparse storage allowed.
    fn default() -> Self {
        Self { log2m: 11, width: 5, options: SPARSE_BIT | AUTO }
    }
}

impl Params {
    /// `threshold` is the most hashes stored one by one: -1 chooses it by size, 0 is off, else a power of 2 up to 8192.
    ///
    /// # Errors
    /// The first argument that is out of its range.
    pub fn new(log2m: i64, width: i64, threshold: i64, sparse: i64) -> Result<Self, Error> {
        match Self::checked(log2m, width, threshold, sparse)? {
            Self { width: 0, .. } => Err(Error::ZeroRegisterWidth),
            params => Ok(params),
        }
    }

    /// The same, but a width of 0 passes.
    pub(super) fn checked(log2m: i64, width: i64, threshold: i64, sparse: i64) -> Result<Self, Error> {
        if !(0..=i64::from(MAX_LOG2M)).contains(&log2m) {
            return Err(Error::Log2m);
        }
        if !(0..=7).contains(&width) {
            return Err(Error::RegisterWidth);
        }
        if !(-1..=MAX_EXPLICIT as i64).contains(&threshold) {
            return Err(Error::ThresholdRange);
        }
        let code = match threshold {
            -1 => AUTO,
            0 => 0,
            power if power.count_ones() == 1 => power.trailing_zeros() as u8 + 1,
            _ => return Err(Error::ThresholdPower),
        };
        if !(0..=1).contains(&sparse) {
            return Err(Error::SparseFlag);
        }
        Ok(Self::from_fields(log2m as u8, width as u8, code, sparse == 1))
    }

    pub(super) fn from_fields(log2m: u8, width: u8, threshold_code: u8, sparse: bool) -> Self {
        Self { log2m, width, options: threshold_code | if sparse { SPARSE_BIT } else { 0 } }
    }

    /// Bytes 1 and 2 of a stored value, not yet checked.
    pub(super) fn from_header(byte1: u8, byte2: u8) -> Self {
        Self { log2m: byte1 & 0x1f, width: (byte1 >> 5) + 1, options: byte2 & (SPARSE_BIT | THRESHOLD_BITS) }
    }

    pub(super) fn to_header(self) -> [u8; 2] {
        [((self.width - 1) << 5) | self.log2m, self.options]
    }

    /// What every stored value must obey.
    pub(super) fn check_registers(self) -> Result<(), Error> {
        if self.log2m > MAX_LOG2M {
            return Err(Error::Log2m);
        }
        if self.width > 7 {
            return Err(Error::RegisterWidth);
        }
        Ok(())
    }

    /// What stored EMPTY and EXPLICIT values must obey besides.
    pub(super) fn check_threshold(self) -> Result<(), Error> {
        if self.specified_threshold() > MAX_EXPLICIT as i64 { Err(Error::ThresholdRange) } else { Ok(()) }
    }

    /// # Errors
    /// The stored threshold is one that no value may collect hashes with; registers alone may carry it.
    pub fn check_addable(self) -> Result<(), Error> {
        let threshold = self.specified_threshold();
        if threshold > MAX_EXPLICIT as i64 { Err(Error::ThresholdTooLarge(threshold)) } else { Ok(()) }
    }

    /// Log2 of the number of registers.
    pub fn log2m(self) -> u32 {
        u32::from(self.log2m)
    }

    /// Bits per register.
    pub fn width(self) -> u32 {
        u32::from(self.width)
    }

    /// Number of registers.
    pub fn registers(self) -> usize {
        1 << self.log2m
    }

    /// Bytes of the registers when all are stored.
    pub fn full_size(self) -> usize {
        (self.registers() * usize::from(self.width)).div_ceil(8)
    }

    /// May registers be stored as a list of those that are not zero?
    pub fn sparse(self) -> bool {
        self.options & SPARSE_BIT != 0
    }

    pub(super) fn threshold_code(self) -> u8 {
        self.options & THRESHOLD_BITS
    }

    /// The threshold as it was asked for: -1 (automatic), 0 (off) or a power of 2.
    pub fn specified_threshold(self) -> i64 {
        match self.threshold_code() {
            AUTO => -1,
            0 => 0,
            code => 1 << (code - 1),
        }
    }

    /// The most hashes that are stored one by one. Automatic: as long as that is no larger than all registers.
    pub fn threshold(self) -> usize {
        match self.specified_threshold() {
            -1 => (self.full_size() / 8).min(MAX_EXPLICIT),
            specified => specified as usize,
        }
    }

    /// The relative standard error of an estimate from registers: 1.04 / sqrt(m) (Flajolet et al. 2007).
    pub fn relative_error(self) -> f64 {
        1.04 / (self.registers() as f64).sqrt()
    }

    /// The same with fewer registers. The automatic threshold goes down with them.
    ///
    /// # Errors
    /// `log2m` is out of range or above the present one.
    pub fn fold(self, log2m: i64) -> Result<Self, Error> {
        match u8::try_from(log2m) {
            Ok(log2m) if log2m <= self.log2m => Ok(Self { log2m, ..self }),
            Ok(log2m) if log2m <= MAX_LOG2M => Err(Error::Fold { from: self.log2m, to: log2m }),
            _ => Err(Error::Log2m),
        }
    }

    /// # Errors
    /// The first parameter in which a sketch to be united (`source`) differs from this one.
    #[inline]
    pub fn check_equal(self, source: Self) -> Result<(), Error> {
        if self == source { Ok(()) } else { Err(self.mismatch(source)) }
    }

    #[cold]
    fn mismatch(self, source: Self) -> Error {
        let (what, source, dest) = if self.width != source.width {
            (Mismatch::Width, i64::from(source.width), i64::from(self.width))
        } else if self.log2m != source.log2m {
            (Mismatch::Registers, source.registers() as i64, self.registers() as i64)
        } else if self.specified_threshold() != source.specified_threshold() {
            (Mismatch::Threshold, source.specified_threshold(), self.specified_threshold())
        } else {
            (Mismatch::Sparse, i64::from(source.sparse()), i64::from(self.sparse()))
        };
        Error::Mismatch { what, source, dest }
    }
}
