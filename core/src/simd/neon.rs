//! NEON: 16 registers at a time; every 64-bit ARM processor has it. What is left over goes to the scalar kernels.

use super::{GROUP, Harmonic, PACKED, scalar};
use std::arch::aarch64::*;

type Registers = [u8; 2 * GROUP];
type Packed = [u8; 2 * PACKED];

#[inline]
#[target_feature(enable = "neon")]
fn load(registers: &Registers) -> uint8x16_t {
    // SAFETY: the array has the 16 bytes of the vector.
    unsafe { vld1q_u8(registers.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn store(registers: &mut Registers, values: uint8x16_t) {
    // SAFETY: the array has the 16 bytes of the vector.
    unsafe { vst1q_u8(registers.as_mut_ptr(), values) }
}

/// The bytes that hold each word of the first group, the high one last. The second group begins 11 bytes behind: see [`values`].
const WINDOWS: [u8; 16] = [1, 0, 1, 0, 2, 1, 2, 1, 3, 2, 4, 3, 4, 3, 4, 4];
/// What moves each word to the top of its window.
const SHIFTS: [u16; 8] = [1, 32, 4, 128, 16, 2, 64, 8];
/// Bytes 0 to 7 of two packed groups, then bytes 2 to 9, out of two lanes of 40 bits.
const ORDER: [u8; 16] = [4, 3, 2, 1, 0, 12, 11, 10, 2, 1, 0, 12, 11, 10, 9, 8];

/// As with AVX2: windows of 16 bits, a multiplication, a shift.
#[inline]
#[target_feature(enable = "neon")]
fn values(packed: &Packed) -> uint8x16_t {
    // SAFETY: the array has 10 bytes; the loads take bytes 0..8 and 2..10.
    let bytes = unsafe { vcombine_u8(vld1_u8(packed.as_ptr()), vld1_u8(packed.as_ptr().add(2))) };
    // SAFETY: the arrays have the 16 bytes of the vectors.
    let (windows, shifts) = unsafe { (vld1q_u8(WINDOWS.as_ptr()), vld1q_u16(SHIFTS.as_ptr())) };
    let words = |windows| {
        let windows = vreinterpretq_u16_u8(vqtbl1q_u8(bytes, windows));
        vmovn_u16(vshrq_n_u16::<11>(vmulq_u16(windows, shifts)))
    };
    vcombine_u8(words(windows), words(vaddq_u8(windows, vdupq_n_u8(11))))
}

/// Neighbours unite: 8 x 5 -> 4 x 10 -> 2 x 20 -> 40 bits, of which the low bytes are then put in order.
#[inline]
#[target_feature(enable = "neon")]
fn store_packed(packed: &mut Packed, values: uint8x16_t) {
    let pairs = vreinterpretq_u16_u8(values);
    let tens = vorrq_u16(vshlq_n_u16::<5>(vandq_u16(pairs, vdupq_n_u16(0xff))), vshrq_n_u16::<8>(pairs));
    let pairs = vreinterpretq_u32_u16(tens);
    let twenties = vorrq_u32(vshlq_n_u32::<10>(vandq_u32(pairs, vdupq_n_u32(0xffff))), vshrq_n_u32::<16>(pairs));
    let pairs = vreinterpretq_u64_u32(twenties);
    let forties = vorrq_u64(vshlq_n_u64::<20>(vandq_u64(pairs, vdupq_n_u64(0xffff_ffff))), vshrq_n_u64::<32>(pairs));
    // SAFETY: the first array has the 16 bytes of the vector; the second one 10, of which the stores fill 0..8 and 2..10.
    unsafe {
        let bytes = vqtbl1q_u8(vreinterpretq_u8_u64(forties), vld1q_u8(ORDER.as_ptr()));
        vst1_u8(packed.as_mut_ptr(), vget_low_u8(bytes));
        vst1_u8(packed.as_mut_ptr().add(2), vget_high_u8(bytes));
    }
}

super::kernels!("neon", vmaxq_u8);

/// For each value the byte of 2^(31 - value) that is not 0, behind 24 bytes of 0 and before as many: at 24, 16, 8 and 0 begin the tables
/// for the highest byte down to the lowest one.
const POWERS: [u8; 56] = {
    let mut powers = [0; 56];
    let mut value = 0;
    while value < 8 {
        powers[24 + value] = 0x80 >> value;
        value += 1;
    }
    powers
};

#[target_feature(enable = "neon")]
pub(super) fn harmonic(registers: &[u8]) -> Harmonic {
    let (vectors, rest) = registers.as_chunks();
    let mut found = scalar::harmonic(rest);
    let table = |start: usize| {
        let bytes: &[u8; 32] = POWERS[start..].first_chunk().unwrap_or(&[0; 32]);
        // SAFETY: the array has the 32 bytes of both vectors.
        unsafe { uint8x16x2_t(vld1q_u8(bytes.as_ptr()), vld1q_u8(bytes.as_ptr().add(16))) }
    };
    let tables = [table(24), table(16), table(8), table(0)];
    let mut largest = vdupq_n_u8(0);
    // So many that bytes can count the zeros, and words of 16 bits the sums of two bytes.
    for vectors in vectors.chunks(255) {
        let (mut sums, mut zeros) = ([vdupq_n_u16(0); 4], vdupq_n_u8(0));
        for vector in vectors {
            let values = load(vector);
            for (sum, table) in sums.iter_mut().zip(tables) {
                *sum = vpadalq_u8(*sum, vqtbl2q_u8(table, values));
            }
            zeros = vsubq_u8(zeros, vceqzq_u8(values));
            largest = vmaxq_u8(largest, values);
        }
        for (sum, shift) in sums.into_iter().zip([24, 16, 8, 0]) {
            found.sum += u64::from(vaddlvq_u16(sum)) << shift;
        }
        found.zeros += u64::from(vaddlvq_u8(zeros));
    }
    found.largest = found.largest.max(vmaxvq_u8(largest));
    found
}
