//! The kernels without vectors: what the vector ones must equal, what other processors run, and the only ones for registers
//! of other widths than 5 bits.
//!
//! Packed registers are words of W bits, the first one in the high bits. Eight of them fill W bytes exactly, so a group of
//! eight is read as one integer and spread over the bytes of another one by halves: 8 W -> 2 x 4 W -> 4 x 2 W -> 8 x W.
#![forbid(unsafe_code)]

use super::{GROUP, Harmonic, SIGNS};

const LOW_HALVES: u64 = 0x0000_0001_0000_0001;
const LOW_QUARTERS: u64 = 0x0001_0001_0001_0001;

const fn low(bits: usize) -> u64 {
    (1u64 << bits) - 1
}

/// Eight words of W bits, the first one highest, become the eight bytes of an integer, the first one lowest.
#[inline(always)]
fn spread<const W: usize>(words: u64) -> u64 {
    let halves = (words & low(4 * W)) | ((words >> (4 * W)) << 32);
    let mask = LOW_HALVES * low(2 * W);
    let quarters = (halves & mask) | (((halves >> (2 * W)) & mask) << 16);
    let mask = LOW_QUARTERS * low(W);
    let bytes = (quarters & mask) | (((quarters >> W) & mask) << 8);
    bytes.swap_bytes()
}

/// The reverse of [`spread`].
#[inline(always)]
fn gather<const W: usize>(bytes: u64) -> u64 {
    let bytes = bytes.swap_bytes();
    let mask = LOW_QUARTERS * low(W);
    let quarters = (bytes & mask) | (((bytes >> 8) & mask) << W);
    let mask = LOW_HALVES * low(2 * W);
    let halves = (quarters & mask) | (((quarters >> 16) & mask) << (2 * W));
    (halves & low(4 * W)) | ((halves >> 32) << (4 * W))
}

/// The larger byte of each pair; all bytes are below 128, so bit 7 is free to hold the borrow of a comparison.
#[inline(always)]
fn larger(a: u64, b: u64) -> u64 {
    let not_smaller = (((a | SIGNS) - b) & SIGNS) >> 7;
    let take_a = not_smaller * 0xff;
    (a & take_a) | (b & !take_a)
}

#[inline(always)]
fn unpack_group<const W: usize>(words: &[u8; W]) -> u64 {
    let mut padded = [0u8; 8];
    padded[8 - W..].copy_from_slice(words);
    spread::<W>(u64::from_be_bytes(padded))
}

#[inline(always)]
fn pack_group<const W: usize>(registers: u64, words: &mut [u8; W]) {
    words.copy_from_slice(&gather::<W>(registers).to_be_bytes()[8 - W..]);
}

pub(crate) fn unpack<const W: usize>(packed: &[[u8; W]], registers: &mut [[u8; GROUP]]) {
    for (group, words) in registers.iter_mut().zip(packed) {
        *group = unpack_group(words).to_le_bytes();
    }
}

pub(crate) fn maximum_packed<const W: usize>(registers: &mut [[u8; GROUP]], packed: &[[u8; W]]) {
    for (group, words) in registers.iter_mut().zip(packed) {
        *group = larger(u64::from_le_bytes(*group), unpack_group(words)).to_le_bytes();
    }
}

pub(crate) fn pack<const W: usize>(registers: &[[u8; GROUP]], packed: &mut [[u8; W]]) {
    for (group, words) in registers.iter().zip(packed) {
        pack_group(u64::from_le_bytes(*group), words);
    }
}

pub(crate) fn union<const W: usize>(a: &[[u8; W]], b: &[[u8; W]], out: &mut [[u8; W]]) {
    for ((a, b), out) in a.iter().zip(b).zip(out) {
        pack_group(larger(unpack_group(a), unpack_group(b)), out);
    }
}

/// Registers whose sum stays below the count of zeros.
const SUMMED: usize = 1 << 12;
const ZEROS: u32 = 48;

/// What a register adds: 2^(31 - value) to the sum, and one to the count of zeros above it.
const TERMS: [u64; 32] = {
    let mut terms = [0; 32];
    let mut value = 0;
    while value < 32 {
        terms[value] = 1 << (31 - value);
        value += 1;
    }
    terms[0] += 1 << ZEROS;
    terms
};

pub(crate) fn harmonic(registers: &[u8]) -> Harmonic {
    let mut found = Harmonic::default();
    for registers in registers.chunks(SUMMED) {
        let terms: u64 = registers.iter().map(|register| TERMS[usize::from(register & 31)]).sum();
        found.sum += terms & ((1 << ZEROS) - 1);
        found.zeros += terms >> ZEROS;
        found.largest = registers.iter().copied().fold(found.largest, u8::max);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_and_gather_are_inverse_for_every_width() {
        fn check<const W: usize>() {
            let words = 0x0123_4567_89ab_cdef_u64.wrapping_mul(W as u64 * 77 + 1) & low(8 * W);
            let bytes = spread::<W>(words).to_le_bytes();
            for (position, byte) in bytes.iter().enumerate() {
                let expected = (words >> ((7 - position) * W)) & low(W);
                assert_eq!(u64::from(*byte), expected, "width {W}, register {position}");
            }
            assert_eq!(gather::<W>(u64::from_le_bytes(bytes)), words);
        }
        check::<1>();
        check::<2>();
        check::<3>();
        check::<4>();
        check::<5>();
        check::<6>();
        check::<7>();
    }
}
