//! Kernels over registers, one byte per register: the scalar versions. Vector versions may replace them; they must give the
//! same results at every length.
//!
//! Packed registers are words of w bits, the first one in the high bits. Eight of them fill w bytes exactly, so a group of
//! eight is read as one integer and spread over the bytes of another one by halves: 8 w -> 2 x 4 w -> 4 x 2 w -> 8 x w.
//! Only sketches of fewer than eight registers need single bits ([`Bits`]).
#![forbid(unsafe_code)]

/// Registers per group.
const GROUP: usize = 8;
const LOW_HALVES: u64 = 0x0000_0001_0000_0001;
const LOW_QUARTERS: u64 = 0x0001_0001_0001_0001;
const SIGNS: u64 = 0x8080_8080_8080_8080;

/// How often each register value occurs; a register has at most 7 bits.
pub(super) type Histogram = [u32; 128];

/// Adds a hash: the low bits choose the register, the trailing zeros of the rest are the value. A rest of 0 counts for
/// nothing, a quirk of the stored format that has to stay.
#[inline(always)]
pub(super) fn raise(registers: &mut [u8], log2m: u32, width: u32, hash: u64) {
    let index = (hash & ((1u64 << log2m) - 1)) as usize;
    let rest = hash >> log2m;
    if rest == 0 {
        return;
    }
    let value = (rest.trailing_zeros() + 1).min((1 << width) - 1) as u8;
    if let Some(register) = registers.get_mut(index)
        && *register < value
    {
        *register = value;
    }
}

/// Each register becomes the larger one of both.
pub(super) fn maximum(registers: &mut [u8], others: &[u8]) {
    for (register, other) in registers.iter_mut().zip(others) {
        *register = (*register).max(*other);
    }
}

/// The same with packed registers.
pub(super) fn maximum_packed(registers: &mut [u8], packed: &[u8], width: u32) {
    match width {
        1 => maximum_groups::<1>(registers, packed),
        2 => maximum_groups::<2>(registers, packed),
        3 => maximum_groups::<3>(registers, packed),
        4 => maximum_groups::<4>(registers, packed),
        5 => maximum_groups::<5>(registers, packed),
        6 => maximum_groups::<6>(registers, packed),
        _ => maximum_groups::<7>(registers, packed),
    }
}

/// Writes registers as packed words.
pub(super) fn pack(registers: &[u8], packed: &mut [u8], width: u32) {
    match width {
        1 => pack_groups::<1>(registers, packed),
        2 => pack_groups::<2>(registers, packed),
        3 => pack_groups::<3>(registers, packed),
        4 => pack_groups::<4>(registers, packed),
        5 => pack_groups::<5>(registers, packed),
        6 => pack_groups::<6>(registers, packed),
        _ => pack_groups::<7>(registers, packed),
    }
}

/// Number of registers that are not 0.
pub(super) fn filled(registers: &[u8]) -> usize {
    registers.iter().filter(|register| **register != 0).count()
}

/// Four tables, because neighbours often are equal and one counter would have to wait for itself.
pub(super) fn histogram(registers: &[u8]) -> Histogram {
    let mut counts = [[0u32; 128]; 4];
    let (quads, rest) = registers.as_chunks::<4>();
    for quad in quads {
        for (table, register) in counts.iter_mut().zip(quad) {
            table[usize::from(register & 0x7f)] += 1;
        }
    }
    for register in rest {
        counts[0][usize::from(register & 0x7f)] += 1;
    }
    std::array::from_fn(|value| counts[0][value] + counts[1][value] + counts[2][value] + counts[3][value])
}

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

fn maximum_groups<const W: usize>(registers: &mut [u8], packed: &[u8]) {
    if registers.len() < GROUP {
        let words = Bits::new(packed, W as u32);
        for (register, value) in registers.iter_mut().zip(words) {
            *register = (*register).max(value as u8);
        }
        return;
    }
    let (groups, _) = registers.as_chunks_mut::<GROUP>();
    let (words, _) = packed.as_chunks::<W>();
    for (group, word) in groups.iter_mut().zip(words) {
        let mut padded = [0u8; 8];
        padded[8 - W..].copy_from_slice(word);
        let value = spread::<W>(u64::from_be_bytes(padded));
        *group = larger(u64::from_le_bytes(*group), value).to_le_bytes();
    }
}

fn pack_groups<const W: usize>(registers: &[u8], packed: &mut [u8]) {
    if registers.len() < GROUP {
        let mut out = BitWriter::new(packed);
        for register in registers {
            out.put(u32::from(*register), W as u32);
        }
        return out.finish();
    }
    let (groups, _) = registers.as_chunks::<GROUP>();
    let (words, _) = packed.as_chunks_mut::<W>();
    for (group, word) in groups.iter().zip(words) {
        let padded = gather::<W>(u64::from_le_bytes(*group)).to_be_bytes();
        word.copy_from_slice(&padded[8 - W..]);
    }
}

/// Words of up to 24 bits out of bytes, highest bit first; leftover bits are no word.
#[derive(Clone, Debug)]
pub(super) struct Bits<'a> {
    bytes: std::slice::Iter<'a, u8>,
    width: u32,
    held: u32,
    held_bits: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(bytes: &'a [u8], width: u32) -> Self {
        Self { bytes: bytes.iter(), width, held: 0, held_bits: 0 }
    }
}

impl Iterator for Bits<'_> {
    type Item = u32;

    #[inline]
    fn next(&mut self) -> Option<u32> {
        while self.held_bits < self.width {
            self.held = (self.held << 8) | u32::from(*self.bytes.next()?);
            self.held_bits += 8;
        }
        self.held_bits -= self.width;
        Some((self.held >> self.held_bits) & ((1 << self.width) - 1))
    }
}

/// Words of up to 24 bits into bytes, highest bit first; the last byte ends in zero bits.
#[derive(Debug)]
pub(super) struct BitWriter<'a> {
    bytes: std::slice::IterMut<'a, u8>,
    held: u32,
    held_bits: u32,
}

impl<'a> BitWriter<'a> {
    pub(super) fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes: bytes.iter_mut(), held: 0, held_bits: 0 }
    }

    pub(super) fn put(&mut self, word: u32, width: u32) {
        self.held = (self.held << width) | word;
        self.held_bits += width;
        while self.held_bits >= 8 {
            self.held_bits -= 8;
            self.write((self.held >> self.held_bits) as u8);
        }
    }

    pub(super) fn finish(mut self) {
        if self.held_bits > 0 {
            self.write((self.held << (8 - self.held_bits)) as u8);
        }
    }

    fn write(&mut self, byte: u8) {
        if let Some(place) = self.bytes.next() {
            *place = byte;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    proptest! {
        #[test]
        fn packing_and_unpacking_agree_with_a_plain_bit_reader(
            log2m in 0u32..12,
            width in 1u32..8,
            seed in any::<u64>(),
        ) {
            let m = 1usize << log2m;
            let mut x = seed | 1;
            let mut next = || {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                (x as u8) & ((1 << width) - 1)
            };
            let registers: Vec<u8> = (0..m).map(|_| next()).collect();
            let others: Vec<u8> = (0..m).map(|_| next()).collect();
            let mut packed = vec![0xff; (m * width as usize).div_ceil(8)];
            pack(&registers, &mut packed, width);
            let read: Vec<u8> = Bits::new(&packed, width).take(m).map(|word| word as u8).collect();
            prop_assert_eq!(&read, &registers);

            let expected: Vec<u8> = registers.iter().zip(&others).map(|(a, b)| *a.max(b)).collect();
            let mut united = others.clone();
            maximum_packed(&mut united, &packed, width);
            prop_assert_eq!(&united, &expected);
            let mut united = others.clone();
            maximum(&mut united, &registers);
            prop_assert_eq!(&united, &expected);

            let counts = histogram(&registers);
            for value in 0..128u8 {
                let count = registers.iter().filter(|register| **register == value).count();
                prop_assert_eq!(counts[usize::from(value)] as usize, count);
            }
            prop_assert_eq!(filled(&registers), m - counts[0] as usize);
        }
    }
}
