//! AVX2: 32 registers at a time. What is left over goes to the scalar kernels.

use super::{GROUP, Harmonic, PACKED, scalar};
use std::arch::x86_64::*;

type Registers = [u8; 4 * GROUP];
type Packed = [u8; 4 * PACKED];

#[inline]
#[target_feature(enable = "avx2")]
fn load(registers: &Registers) -> __m256i {
    // SAFETY: the array has the 32 bytes of the vector.
    unsafe { _mm256_loadu_si256(registers.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(registers: &mut Registers, values: __m256i) {
    // SAFETY: the array has the 32 bytes of the vector.
    unsafe { _mm256_storeu_si256(registers.as_mut_ptr().cast(), values) }
}

/// Each word of 5 bits gets a 16-bit window: a shuffle brings the bytes that hold it, a multiplication moves it to the top
/// and what is before it out, a shift to the right drops what is behind it.
#[inline]
#[target_feature(enable = "avx2")]
fn values(packed: &Packed) -> __m256i {
    // SAFETY: the array has 20 bytes; the loads take bytes 0..16 and 4..20.
    let (low, high) = unsafe {
        let bytes = packed.as_ptr();
        (_mm_loadu_si128(bytes.cast()), _mm_loadu_si128(bytes.add(4).cast()))
    };
    let bytes = _mm256_set_m128i(high, low);
    let windows = _mm256_broadcastsi128_si256(_mm_setr_epi8(1, 0, 1, 0, 2, 1, 2, 1, 3, 2, 4, 3, 4, 3, 4, 4));
    let shifts = _mm256_broadcastsi128_si256(_mm_setr_epi16(1, 32, 4, 128, 16, 2, 64, 8));
    let windows_at = |starts| {
        let windows = _mm256_shuffle_epi8(bytes, _mm256_add_epi8(windows, starts));
        _mm256_srli_epi16::<11>(_mm256_mullo_epi16(windows, shifts))
    };
    // Where the groups begin in their half: 0 and 1 in the lower one, 2 and 3 in the upper one.
    let even = windows_at(_mm256_set_m128i(_mm_set1_epi8(6), _mm_set1_epi8(0)));
    let odd = windows_at(_mm256_set_m128i(_mm_set1_epi8(11), _mm_set1_epi8(5)));
    _mm256_packus_epi16(even, odd)
}

/// Neighbours unite: 8 x 5 -> 4 x 10 -> 2 x 20 -> 40 bits, of which the low bytes are then put in order.
#[inline]
#[target_feature(enable = "avx2")]
fn store_packed(packed: &mut Packed, values: __m256i) {
    let tens = _mm256_maddubs_epi16(values, _mm256_set1_epi16(0x0120));
    let twenties = _mm256_madd_epi16(tens, _mm256_set1_epi32(0x0001_0400));
    let forties = _mm256_or_si256(_mm256_slli_epi64::<20>(twenties), _mm256_srli_epi64::<32>(twenties));
    // Two groups at the beginning of the lower half, two at the end of the upper one.
    let order = _mm256_setr_epi8(
        4, 3, 2, 1, 0, 12, 11, 10, 9, 8, -1, -1, -1, -1, -1, -1, //
        -1, -1, -1, -1, -1, -1, 4, 3, 2, 1, 0, 12, 11, 10, 9, 8,
    );
    let bytes = _mm256_shuffle_epi8(forties, order);
    let first = _mm256_castsi256_si128(bytes);
    let last = _mm_or_si128(_mm256_extracti128_si256::<1>(bytes), _mm_srli_si128::<4>(first));
    // SAFETY: the array has 20 bytes; the stores fill bytes 0..16 and 4..20.
    unsafe {
        let place = packed.as_mut_ptr();
        _mm_storeu_si128(place.cast(), first);
        _mm_storeu_si128(place.add(4).cast(), last);
    }
}

super::kernels!("avx2", _mm256_max_epu8);

/// 2^(31 - value) has one byte that is not 0, and the upper half of the value chooses it: four tables give that byte, and the
/// bytes of each table are summed up apart.
#[target_feature(enable = "avx2")]
pub(super) fn harmonic(registers: &[u8]) -> Harmonic {
    let (vectors, rest) = registers.as_chunks();
    let mut found = scalar::harmonic(rest);
    let zero = _mm256_setzero_si256();
    let first = _mm_setr_epi8(-128, 64, 32, 16, 8, 4, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    let first = _mm256_broadcastsi128_si256(first);
    let second = _mm256_slli_si256::<8>(first);
    // Values 0..8, 8..16 and, after 16 has been subtracted, 16..24, 24..32.
    let tables = [first, second, first, second];
    let mut sums = [zero; 4];
    let mut largest = zero;
    // So many that bytes can count the zeros.
    for vectors in vectors.chunks(255) {
        let mut zeros = zero;
        for vector in vectors {
            let values = load(vector);
            // A shuffle gives 0 where bit 7 is set: for values above 15, and below 16.
            let below = _mm256_add_epi8(values, _mm256_set1_epi8(0x70));
            let above = _mm256_sub_epi8(values, _mm256_set1_epi8(16));
            for ((sum, table), index) in sums.iter_mut().zip(tables).zip([below, below, above, above]) {
                *sum = _mm256_add_epi64(*sum, _mm256_sad_epu8(_mm256_shuffle_epi8(table, index), zero));
            }
            zeros = _mm256_sub_epi8(zeros, _mm256_cmpeq_epi8(values, zero));
            largest = _mm256_max_epu8(largest, values);
        }
        found.zeros += add_up(_mm256_sad_epu8(zeros, zero));
    }
    for (sum, shift) in sums.into_iter().zip([24, 16, 8, 0]) {
        found.sum += add_up(sum) << shift;
    }
    let mut lanes = [0; 32];
    store(&mut lanes, largest);
    found.largest = lanes.into_iter().fold(found.largest, u8::max);
    found
}

#[inline]
#[target_feature(enable = "avx2")]
fn add_up(lanes: __m256i) -> u64 {
    let lanes = _mm_add_epi64(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256::<1>(lanes));
    (_mm_cvtsi128_si64(lanes) + _mm_extract_epi64::<1>(lanes)) as u64
}
