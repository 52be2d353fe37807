//! Vector kernels for registers of 5 bits, the width that nearly every sketch has, and the scalar ones that they must equal.
//!
//! A sketch in memory has one byte per register; stored, eight registers of 5 bits fill 5 bytes, the first one in the high
//! bits. The kernels work on such groups, so that no slice can end within one.
//!
//! This module and the two below it are the only ones of the crate with unsafe code, and it has two sorts of it:
//! - calls of functions that need instructions which not every processor has: a [`Level`] stands for them, and
//!   [`Level::ask`], the only place that makes one, asks the processor first. Releases are built for any x86-64;
//! - loads and stores of vectors: each of them goes to a slice or an array that is checked to be long enough in the same
//!   function, or is masked to its length. Nothing is read or written outside of the slice, not even to be ignored.
//!
//! Everything else about vectors is safe code. Callers see safe functions over slices.

use std::sync::OnceLock;

/// The kernels over whole vectors, of what a module has for its own: `load`, `store`, `values` and `store_packed` of a vector.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! kernels {
    ($features:literal, $maximum:ident) => {
        #[target_feature(enable = $features)]
        pub(super) fn unpack(packed: &[[u8; PACKED]], registers: &mut [[u8; GROUP]]) {
            let (vectors, rest) = registers.as_flattened_mut().as_chunks_mut();
            let (packed_vectors, packed_rest) = packed.as_flattened().as_chunks();
            for (registers, packed) in vectors.iter_mut().zip(packed_vectors) {
                store(registers, values(packed));
            }
            scalar::unpack(packed_rest.as_chunks::<PACKED>().0, rest.as_chunks_mut().0);
        }

        #[target_feature(enable = $features)]
        pub(super) fn maximum_packed(registers: &mut [[u8; GROUP]], packed: &[[u8; PACKED]]) {
            let (vectors, rest) = registers.as_flattened_mut().as_chunks_mut();
            let (packed_vectors, packed_rest) = packed.as_flattened().as_chunks();
            for (registers, packed) in vectors.iter_mut().zip(packed_vectors) {
                store(registers, $maximum(load(registers), values(packed)));
            }
            scalar::maximum_packed(rest.as_chunks_mut().0, packed_rest.as_chunks::<PACKED>().0);
        }

        #[target_feature(enable = $features)]
        pub(super) fn pack(registers: &[[u8; GROUP]], packed: &mut [[u8; PACKED]]) {
            let (vectors, rest) = registers.as_flattened().as_chunks();
            let (packed_vectors, packed_rest) = packed.as_flattened_mut().as_chunks_mut();
            for (registers, packed) in vectors.iter().zip(packed_vectors) {
                store_packed(packed, load(registers));
            }
            scalar::pack(rest.as_chunks().0, packed_rest.as_chunks_mut::<PACKED>().0);
        }

        #[target_feature(enable = $features)]
        pub(super) fn union(a: &[[u8; PACKED]], b: &[[u8; PACKED]], out: &mut [[u8; PACKED]]) {
            let (a_vectors, a_rest) = a.as_flattened().as_chunks();
            let (b_vectors, b_rest) = b.as_flattened().as_chunks();
            let (out_vectors, out_rest) = out.as_flattened_mut().as_chunks_mut();
            for ((a, b), out) in a_vectors.iter().zip(b_vectors).zip(out_vectors) {
                store_packed(out, $maximum(values(a), values(b)));
            }
            scalar::union(a_rest.as_chunks::<PACKED>().0, b_rest.as_chunks().0, out_rest.as_chunks_mut().0);
        }
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use kernels;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(crate) mod scalar;

/// Registers per group.
pub(crate) const GROUP: usize = 8;
/// Bytes of a packed group of 5-bit registers.
pub(crate) const PACKED: usize = 5;

/// Bit 7 of each byte of a group; no register has it.
pub(crate) const SIGNS: u64 = 0x8080_8080_8080_8080;

/// What an estimator needs to know of registers of 5 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Harmonic {
    /// The sum of 2^(31 - value) over all registers.
    pub(crate) sum: u64,
    /// Registers with the value 0.
    pub(crate) zeros: u64,
    /// The largest value.
    pub(crate) largest: u8,
}

impl std::ops::AddAssign for Harmonic {
    fn add_assign(&mut self, other: Self) {
        self.sum += other.sum;
        self.zeros += other.zeros;
        self.largest = self.largest.max(other.largest);
    }
}

/// The instructions that the kernels may use. Only [`Level::ask`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 with the extensions for bytes (BW and VBMI): Ice Lake, Zen 4 and later. AVX2 is part of it.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Level {
    /// What this processor has. It is asked once.
    #[inline]
    fn best() -> Self {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(Self::ask)
    }

    fn ask() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vbmi")
                && is_x86_feature_detected!("avx2")
            {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") {
                return Self::Avx2;
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            return Self::Neon;
        }
        Self::Scalar
    }
}

/// Runs a kernel at a level.
macro_rules! run {
    ($level:expr, $kernel:ident($($argument:expr),+)) => {
        match $level {
            Level::Scalar => scalar::$kernel($($argument),+),
            // SAFETY: a level is only made for a processor that has its instructions.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { avx2::$kernel($($argument),+) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { avx512::$kernel($($argument),+) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Level::Neon => unsafe { neon::$kernel($($argument),+) },
        }
    };
}

/// Each register becomes the larger one of itself and its packed partner; the longer slice keeps its rest.
pub(crate) fn maximum_packed(registers: &mut [[u8; GROUP]], packed: &[[u8; PACKED]]) {
    let groups = registers.len().min(packed.len());
    run!(Level::best(), maximum_packed(&mut registers[..groups], &packed[..groups]));
}

/// The registers out of packed ones; the longer slice keeps its rest.
pub(crate) fn unpack(packed: &[[u8; PACKED]], registers: &mut [[u8; GROUP]]) {
    let groups = registers.len().min(packed.len());
    run!(Level::best(), unpack(&packed[..groups], &mut registers[..groups]));
}

/// Packs registers below 32; the longer slice keeps its rest.
pub(crate) fn pack(registers: &[[u8; GROUP]], packed: &mut [[u8; PACKED]]) {
    let groups = registers.len().min(packed.len());
    run!(Level::best(), pack(&registers[..groups], &mut packed[..groups]));
}

/// Packed registers, each the larger one of both; the longest slice keeps its rest.
pub(crate) fn union(a: &[[u8; PACKED]], b: &[[u8; PACKED]], out: &mut [[u8; PACKED]]) {
    let groups = a.len().min(b.len()).min(out.len());
    run!(Level::best(), union(&a[..groups], &b[..groups], &mut out[..groups]));
}

/// Sums up registers below 32, up to 2^17 of them.
pub(crate) fn harmonic(registers: &[u8]) -> Harmonic {
    run!(Level::best(), harmonic(registers))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The levels of this processor besides the scalar one.
    fn levels() -> &'static [Level] {
        match Level::best() {
            Level::Scalar => &[],
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => &[Level::Avx2],
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => &[Level::Avx2, Level::Avx512],
            #[cfg(target_arch = "aarch64")]
            Level::Neon => &[Level::Neon],
        }
    }

    /// More than a few vectors, and lengths on either side of each multiple. Miri is a thousand times slower.
    const GROUPS: usize = if cfg!(miri) { 10 } else { 36 };
    const OFFSETS: usize = if cfg!(miri) { 2 } else { 9 };
    const APART: usize = if cfg!(miri) { 41 } else { 7 };
    const BYTES: usize = (GROUPS + OFFSETS) * GROUP;

    /// Bytes below a limit: random ones, all zero, all of the largest, one that is not zero in many places.
    fn samples(limit: u16) -> Vec<(String, Vec<u8>)> {
        let mut x = 0x9e37_79b9_7f4a_7c15_u64;
        let mut samples: Vec<_> = (0..8)
            .map(|_| {
                let seed = x;
                let bytes = (0..BYTES).map(|_| {
                    x ^= x << 13;
                    x ^= x >> 7;
                    x ^= x << 17;
                    ((x >> 32) % u64::from(limit)) as u8
                });
                (format!("random from {seed:#x}"), bytes.collect())
            })
            .collect();
        let largest = (limit - 1) as u8;
        samples.push(("all zero".to_owned(), vec![0; BYTES]));
        samples.push(("all of the largest".to_owned(), vec![largest; BYTES]));
        for place in (0..BYTES).step_by(APART) {
            let mut bytes = vec![0; BYTES];
            bytes[place] = largest;
            samples.push((format!("one at {place}"), bytes));
        }
        samples
    }

    /// Calls `check` with every length and offset.
    fn each_part(mut check: impl FnMut(usize, usize)) {
        for groups in 0..=GROUPS {
            (0..OFFSETS).for_each(|offset| check(groups, offset));
        }
    }

    #[test]
    fn maximum_and_unpacking_equal_their_scalar_twins_at_every_length_and_offset() {
        let old = samples(32);
        for (label, packed) in samples(256) {
            each_part(|groups, offset| {
                let before = &old[(groups + offset) % old.len()].1;
                // One byte off at a time: neither side is aligned.
                let packed = &packed[offset..][..groups * PACKED];
                let run = |level, only| {
                    let mut all = before.clone();
                    let registers = all[offset..][..groups * GROUP].as_chunks_mut().0;
                    let packed = packed.as_chunks::<PACKED>().0;
                    if only {
                        run!(level, unpack(packed, registers));
                    } else {
                        run!(level, maximum_packed(registers, packed));
                    }
                    all
                };
                for (level, only) in levels().iter().flat_map(|level| [(*level, false), (*level, true)]) {
                    let (found, expected) = (run(level, only), run(Level::Scalar, only));
                    assert_eq!(found, expected, "{level:?}, {groups} groups at {offset}, {label}");
                }
            });
        }
    }

    #[test]
    fn packing_equals_its_scalar_twin_at_every_length_and_offset() {
        for (label, registers) in samples(32) {
            each_part(|groups, offset| {
                let registers = &registers[offset..][..groups * GROUP];
                let run = |level| {
                    let mut all = vec![0xa5; BYTES];
                    let packed = all[offset..][..groups * PACKED].as_chunks_mut::<PACKED>().0;
                    run!(level, pack(registers.as_chunks().0, packed));
                    all
                };
                for level in levels() {
                    assert_eq!(run(*level), run(Level::Scalar), "{level:?}, {groups} groups at {offset}, {label}");
                }
            });
        }
    }

    #[test]
    fn union_equals_its_scalar_twin_at_every_length_and_offset() {
        let others = samples(256);
        for (label, a) in &others {
            each_part(|groups, offset| {
                let b = &others[(groups + offset) % others.len()].1[OFFSETS - offset..][..groups * PACKED];
                let a = &a[offset..][..groups * PACKED];
                let run = |level| {
                    let mut all = vec![0xa5; BYTES];
                    let out = all[offset..][..groups * PACKED].as_chunks_mut::<PACKED>().0;
                    run!(level, union(a.as_chunks().0, b.as_chunks().0, out));
                    all
                };
                for level in levels() {
                    assert_eq!(run(*level), run(Level::Scalar), "{level:?}, {groups} groups at {offset}, {label}");
                }
            });
        }
    }

    #[test]
    fn sums_equal_their_scalar_twin_at_every_length_and_offset() {
        for (label, registers) in samples(32) {
            for offset in 0..OFFSETS {
                for length in 0..=GROUPS * GROUP {
                    let registers = &registers[offset..][..length];
                    for level in levels() {
                        let found = run!(*level, harmonic(registers));
                        assert_eq!(found, scalar::harmonic(registers), "{level:?}, {length} at {offset}, {label}");
                    }
                }
            }
        }
    }

    /// As many registers as a sketch can have: no counter overflows.
    #[test]
    #[cfg_attr(miri, ignore = "4 million registers")]
    fn sums_of_the_longest_sketch_are_exact() {
        for value in 0..32 {
            let registers = vec![value; 1 << 17];
            for level in levels() {
                let zeros = if value == 0 { 1 << 17 } else { 0 };
                let expected = Harmonic { sum: 1 << (17 + 31 - value), zeros, largest: value };
                assert_eq!(run!(*level, harmonic(&registers)), expected, "{level:?}");
            }
        }
    }

    #[test]
    fn the_longer_side_keeps_its_rest() {
        let (mut registers, mut packed) = ([[1; GROUP]; 9], [[0xff; PACKED]; 12]);
        maximum_packed(&mut registers, &packed[..5]);
        assert_eq!(registers, [31, 31, 31, 31, 31, 1, 1, 1, 1].map(|value| [value; GROUP]));
        pack(&[[0; GROUP]; 5], &mut packed);
        assert_eq!(packed.as_flattened()[..], [[0; 25].as_slice(), &[0xff; 35]].concat());
    }
}
