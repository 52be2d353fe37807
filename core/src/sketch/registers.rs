//! Operations on registers, one byte per register, and their packed form: words of w bits, the first one in the high bits.
//!
//! Registers of 5 bits have vector kernels ([`simd`]); the other widths and sketches of fewer than eight registers, which do
//! not fill whole bytes ([`Bits`]), go through scalar code.
#![forbid(unsafe_code)]

use crate::simd::{self, SIGNS, scalar};

pub(super) use crate::simd::GROUP;

/// How often each register value occurs; a register has at most 7 bits.
pub(super) type Histogram = [u32; 128];

/// Which register a hash raises, and to which value: the low bits choose the register, the trailing zeros of the rest are
/// the value. A rest of 0 counts for nothing, a quirk of the stored format that has to stay.
#[inline(always)]
pub(super) fn place(log2m: u32, width: u32, hash: u64) -> Option<(usize, u8)> {
    let index = (hash & ((1u64 << log2m) - 1)) as usize;
    let rest = hash >> log2m;
    if rest == 0 {
        return None;
    }
    Some((index, (rest.trailing_zeros() + 1).min((1 << width) - 1) as u8))
}

/// Adds a hash.
#[inline(always)]
pub(super) fn raise(registers: &mut [u8], log2m: u32, width: u32, hash: u64) {
    if let Some((index, value)) = place(log2m, width, hash)
        && let Some(register) = registers.get_mut(index)
        && *register < value
    {
        *register = value;
    }
}

/// Raises one packed register to a value, if that is larger.
#[inline]
pub(super) fn raise_packed(packed: &mut [u8], width: u32, index: usize, value: u8) {
    let bit = index * width as usize;
    let Some([first, rest @ ..]) = packed.get_mut(bit / 8..) else { return };
    // A word of up to 7 bits lies in one byte or in two.
    let held = u16::from_be_bytes([*first, rest.first().copied().unwrap_or(0)]);
    let shift = 16 - width - (bit % 8) as u32;
    let mask = ((1 << width) - 1) << shift;
    let word = u16::from(value) << shift;
    if held & mask < word {
        let [high, low] = ((held & !mask) | word).to_be_bytes();
        *first = high;
        if let Some(second) = rest.first_mut() {
            *second = low;
        }
    }
}

/// Where a register goes, and with which value, when the registers are folded to 2^`log2m`, `steps` times to half of them.
///
/// A bit of the index becomes a bit of the rest of the hash with each step. The lowest one that is set has made the value
/// out of all that is known; if none is, the value has grown by the zeros. What has been cut to the largest value stays cut.
#[inline]
pub(super) fn folded(index: usize, value: u8, log2m: u32, steps: u32, width: u32) -> (usize, u8) {
    let taken = index >> log2m;
    let value = if taken == 0 { u32::from(value) + steps } else { taken.trailing_zeros() + 1 };
    (index & ((1 << log2m) - 1), value.min((1 << width) - 1) as u8)
}

/// Each register becomes the larger one of both.
pub(super) fn maximum(registers: &mut [u8], others: &[u8]) {
    for (register, other) in registers.iter_mut().zip(others) {
        *register = (*register).max(*other);
    }
}

/// The same with packed registers.
pub(super) fn maximum_packed(registers: &mut [u8], packed: &[u8], width: u32) {
    fn groups<const W: usize>(registers: &mut [u8], packed: &[u8]) {
        scalar::maximum_packed(registers.as_chunks_mut().0, packed.as_chunks::<W>().0);
    }
    if registers.len() < GROUP {
        for (register, value) in registers.iter_mut().zip(Bits::new(packed, width)) {
            *register = (*register).max(value as u8);
        }
        return;
    }
    match width {
        1 => groups::<1>(registers, packed),
        2 => groups::<2>(registers, packed),
        3 => groups::<3>(registers, packed),
        4 => groups::<4>(registers, packed),
        5 => simd::maximum_packed(registers.as_chunks_mut().0, packed.as_chunks().0),
        6 => groups::<6>(registers, packed),
        _ => groups::<7>(registers, packed),
    }
}

/// Packed registers, each the larger one of both; at least [`GROUP`] of them.
pub(super) fn union(a: &[u8], b: &[u8], out: &mut [u8], width: u32) {
    fn groups<const W: usize>(a: &[u8], b: &[u8], out: &mut [u8]) {
        scalar::union(a.as_chunks::<W>().0, b.as_chunks().0, out.as_chunks_mut().0);
    }
    match width {
        1 => groups::<1>(a, b, out),
        2 => groups::<2>(a, b, out),
        3 => groups::<3>(a, b, out),
        4 => groups::<4>(a, b, out),
        5 => simd::union(a.as_chunks().0, b.as_chunks().0, out.as_chunks_mut().0),
        6 => groups::<6>(a, b, out),
        _ => groups::<7>(a, b, out),
    }
}

/// The registers out of packed words.
pub(super) fn unpack(packed: &[u8], registers: &mut [u8], width: u32) {
    if width == 5 && registers.len() >= GROUP {
        return simd::unpack(packed.as_chunks().0, registers.as_chunks_mut().0);
    }
    registers.fill(0);
    maximum_packed(registers, packed, width);
}

/// Writes registers as packed words.
pub(super) fn pack(registers: &[u8], packed: &mut [u8], width: u32) {
    fn groups<const W: usize>(registers: &[u8], packed: &mut [u8]) {
        scalar::pack(registers.as_chunks().0, packed.as_chunks_mut::<W>().0);
    }
    if registers.len() < GROUP {
        let mut out = BitWriter::new(packed);
        for register in registers {
            out.put(u32::from(*register), width);
        }
        return out.finish();
    }
    match width {
        1 => groups::<1>(registers, packed),
        2 => groups::<2>(registers, packed),
        3 => groups::<3>(registers, packed),
        4 => groups::<4>(registers, packed),
        5 => simd::pack(registers.as_chunks().0, packed.as_chunks_mut().0),
        6 => groups::<6>(registers, packed),
        _ => groups::<7>(registers, packed),
    }
}

/// Number of registers that are not 0.
pub(super) fn filled(registers: &[u8]) -> usize {
    let (groups, rest) = registers.as_chunks::<GROUP>();
    // A byte of a sum counts one register of each group. Registers are below 128, so bit 7 is free to say "not 0".
    let sums = groups.chunks(255).map(|groups| {
        let bits = groups.iter().map(|group| ((u64::from_le_bytes(*group) + !SIGNS) & SIGNS) >> 7);
        bits.sum::<u64>().to_le_bytes().iter().map(|count| usize::from(*count)).sum::<usize>()
    });
    sums.sum::<usize>() + rest.iter().filter(|register| **register != 0).count()
}

/// Adds how often each value occurs. Four tables, because neighbours often are equal and one counter would have to wait for
/// itself.
pub(super) fn histogram(registers: &[u8], counts: &mut Histogram) {
    let mut tables = [[0u32; 128]; 4];
    let (quads, rest) = registers.as_chunks::<4>();
    for quad in quads {
        for (table, register) in tables.iter_mut().zip(quad) {
            table[usize::from(register & 0x7f)] += 1;
        }
    }
    for register in rest {
        tables[0][usize::from(register & 0x7f)] += 1;
    }
    for (value, count) in counts.iter_mut().enumerate() {
        *count += tables.iter().map(|table| table[value]).sum::<u32>();
    }
}

/// Words of up to 24 bits out of bytes, highest bit first; leftover bits are no word.
#[derive(Clone, Debug)]
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    width: u32,
    /// The first bit of the next word.
    next: usize,
}

impl<'a> Bits<'a> {
    pub(super) fn new(bytes: &'a [u8], width: u32) -> Self {
        Self { bytes, width, next: 0 }
    }
}

impl Iterator for Bits<'_> {
    type Item = u32;

    #[inline]
    fn next(&mut self) -> Option<u32> {
        let start = self.next;
        let end = start + self.width as usize;
        if end > self.bytes.len() * 8 {
            return None;
        }
        self.next = end;
        let rest = &self.bytes[start / 8..];
        // A word begins in the first of these four bytes and ends in one of them.
        let window = match rest.first_chunk() {
            Some(window) => *window,
            None => std::array::from_fn(|at| rest.get(at).copied().unwrap_or(0)),
        };
        Some((u32::from_be_bytes(window) << (start % 8)) >> (32 - self.width))
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
            let mut unpacked = others.clone();
            unpack(&packed, &mut unpacked, width);
            prop_assert_eq!(&unpacked, &registers);
            let mut united = others.clone();
            maximum_packed(&mut united, &packed, width);
            prop_assert_eq!(&united, &expected);
            let mut united = others.clone();
            maximum(&mut united, &registers);
            prop_assert_eq!(&united, &expected);

            let mut counts = [0; 128];
            histogram(&registers, &mut counts);
            for value in 0..128u8 {
                let count = registers.iter().filter(|register| **register == value).count();
                prop_assert_eq!(counts[usize::from(value)] as usize, count);
            }
            prop_assert_eq!(filled(&registers), m - counts[0] as usize);
        }
    }
}
