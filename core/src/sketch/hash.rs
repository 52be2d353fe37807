//! Bytes to a 64-bit hash: the first half of MurmurHash3_x64_128 (Austin Appleby, public domain), the hash domain of
//! java-hll, js-hll, go-hll, Guava and postgresql-hll. Fixed for ever: stored sketches depend on it.
#![forbid(unsafe_code)]

const C1: u64 = 0x87c3_7b91_1142_53d5;
const C2: u64 = 0x4cf5_ad43_2745_937f;

#[inline(always)]
fn mix1(word: u64) -> u64 {
    word.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2)
}

#[inline(always)]
fn mix2(word: u64) -> u64 {
    word.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1)
}

#[inline(always)]
fn finish(mut h: u64) -> u64 {
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

#[inline(always)]
fn close(mut h1: u64, mut h2: u64, length: u64) -> u64 {
    h1 ^= length;
    h2 ^= length;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    finish(h1).wrapping_add(finish(h2))
}

/// Up to 8 bytes, little endian, zero-extended.
#[inline(always)]
fn word(bytes: &[u8]) -> u64 {
    match bytes.first_chunk::<8>() {
        Some(whole) => u64::from_le_bytes(*whole),
        None => bytes.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte)),
    }
}

/// The hash of a byte string. A negative seed counts as the unsigned 32-bit number with the same bits.
///
/// ```
/// assert_eq!(tally_core::sketch::hash::bytes(b"hello", 0) as i64, -3758069500696749310);
/// ```
pub fn bytes(bytes: &[u8], seed: i32) -> u64 {
    let mut h1 = u64::from(seed as u32);
    let mut h2 = h1;
    let (blocks, tail) = bytes.as_chunks::<16>();
    for block in blocks {
        let (low, high) = block.split_at(8);
        h1 ^= mix1(word(low));
        h1 = h1.rotate_left(27).wrapping_add(h2).wrapping_mul(5).wrapping_add(0x52dc_e729);
        h2 ^= mix2(word(high));
        h2 = h2.rotate_left(31).wrapping_add(h1).wrapping_mul(5).wrapping_add(0x3849_5ab5);
    }
    if tail.len() > 8 {
        let (low, high) = tail.split_at(8);
        h2 ^= mix2(word(high));
        h1 ^= mix1(word(low));
    } else {
        h1 ^= mix1(word(tail));
    }
    close(h1, h2, bytes.len() as u64)
}

/// The hash of 1 to 8 bytes that are held, little endian, in the low end of a word; the same as [`bytes`] of them.
#[inline(always)]
pub fn short(word: u64, length: u64, seed: i32) -> u64 {
    let seed = u64::from(seed as u32);
    close(seed ^ mix1(word), seed, length)
}
