//! AVX-512: 64 registers at a time. What is left over goes to the scalar kernels.

use super::{GROUP, PACKED, scalar};
use std::arch::x86_64::*;

/// Wider vectors gain nothing here.
pub(super) use super::avx2::harmonic;

type Registers = [u8; 8 * GROUP];
type Packed = [u8; 8 * PACKED];

#[inline]
#[target_feature(enable = "avx512f")]
fn load(registers: &Registers) -> __m512i {
    // SAFETY: the array has the 64 bytes of the vector.
    unsafe { _mm512_loadu_si512(registers.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(registers: &mut Registers, values: __m512i) {
    // SAFETY: the array has the 64 bytes of the vector.
    unsafe { _mm512_storeu_si512(registers.as_mut_ptr().cast(), values) }
}

/// The bytes of a group, in reverse, become the top of a 64-bit lane.
const SPREAD: [u8; 64] = {
    let mut order = [63; 64];
    let mut byte = 0;
    while byte < size_of::<Packed>() {
        order[byte / PACKED * 8 + 7 - byte % PACKED] = byte as u8;
        byte += 1;
    }
    order
};

/// Where each register of a group begins in its lane.
const SHIFTS: [u8; 64] = {
    let mut shifts = [0; 64];
    let mut register = 0;
    while register < 64 {
        shifts[register] = 59 - 5 * (register % 8) as u8;
        register += 1;
    }
    shifts
};

/// The low 40 bits of each lane, in reverse, become the bytes of a group.
const GATHER: [u8; 64] = {
    let mut order = [0; 64];
    let mut byte = 0;
    while byte < size_of::<Packed>() {
        order[byte] = (byte / PACKED * 8 + 4 - byte % PACKED) as u8;
        byte += 1;
    }
    order
};

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn values(packed: &Packed) -> __m512i {
    // SAFETY: the mask leaves the 40 bytes of the array; the others are not read.
    let bytes = unsafe { _mm512_maskz_loadu_epi8((1 << size_of::<Packed>()) - 1, packed.as_ptr().cast()) };
    let groups = _mm512_permutexvar_epi8(load(&SPREAD), bytes);
    let values = _mm512_multishift_epi64_epi8(load(&SHIFTS), groups);
    _mm512_and_si512(values, _mm512_set1_epi8(31))
}

/// Neighbours unite: 8 x 5 -> 4 x 10 -> 2 x 20 -> 40 bits, of which the low bytes are then put in order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn store_packed(packed: &mut Packed, values: __m512i) {
    let tens = _mm512_maddubs_epi16(values, _mm512_set1_epi16(0x0120));
    let twenties = _mm512_madd_epi16(tens, _mm512_set1_epi32(0x0001_0400));
    let forties = _mm512_or_si512(_mm512_slli_epi64::<20>(twenties), _mm512_srli_epi64::<32>(twenties));
    let bytes = _mm512_permutexvar_epi8(load(&GATHER), forties);
    // Not by a store under a mask, which some processors are slow at.
    // SAFETY: the array has 40 bytes; the stores fill bytes 0..32 and 32..40.
    unsafe {
        let place = packed.as_mut_ptr();
        _mm256_storeu_si256(place.cast(), _mm512_castsi512_si256(bytes));
        _mm_storel_epi64(place.add(32).cast(), _mm512_extracti32x4_epi32::<2>(bytes));
    }
}

super::kernels!("avx512f,avx512bw,avx512vbmi", _mm512_max_epu8);
