//! Registers to a count.
//!
//! *ertl*: the improved raw estimator (Otmar Ertl, New cardinality estimation algorithms for HyperLogLog sketches, 2017,
//! arXiv 1702.01284): one formula for every size, without the bias that the classic one has where it changes formulas.
//! *classic*: Flajolet et al. 2007 with linear counting, bit for bit as postgresql-hll computes it.
#![forbid(unsafe_code)]

use super::error::Error;
use super::params::Params;
use super::registers;
use crate::simd::{self, Harmonic};
use std::str::FromStr;

/// Which formula turns registers into a count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Estimator {
    #[default]
    Ertl,
    Classic,
}

impl FromStr for Estimator {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "ertl" => Ok(Self::Ertl),
            "classic" => Ok(Self::Classic),
            _ => Err(Error::UnknownEstimator(name.to_owned())),
        }
    }
}

/// The estimate of all registers of a sketch, one byte each, as for [`Packed::estimate`](super::Packed::estimate).
///
/// # Errors
/// `classic` has no constant for fewer than 16 registers.
pub fn of_registers(params: Params, registers: &[u8], estimator: Estimator) -> Result<f64, Error> {
    count(params, estimator, |see| {
        see(registers);
        Ok::<_, Error>(())
    })
}

/// The estimate of registers that `visit` hands over, in order and in any number of slices; it may be asked twice.
///
/// # Errors
/// `classic` has no constant for fewer than 16 registers. Those of `visit`.
pub(super) fn count<E: From<Error>>(
    params: Params,
    estimator: Estimator,
    visit: impl Fn(&mut dyn FnMut(&[u8])) -> Result<(), E>,
) -> Result<f64, E> {
    if params.width() == 5 {
        let mut sums = Harmonic::default();
        visit(&mut |registers| sums += simd::harmonic(registers))?;
        if let Some(count) = from_sums(sums, params, estimator)? {
            return Ok(count);
        }
    }
    match estimator {
        Estimator::Ertl => {
            let mut counts = [0; 128];
            visit(&mut |registers| registers::histogram(registers, &mut counts))?;
            Ok(ertl(filled(&counts, params), f64::from(counts[0]), params))
        }
        Estimator::Classic => {
            let (mut sum, mut zeros) = (0.0, 0);
            visit(&mut |registers| {
                // 2^-value for values below 128 is exact; its bits are the exponent alone.
                let powers = registers.iter().map(|value| f64::from_bits((1023 - u64::from(value & 0x7f)) << 52));
                sum = powers.fold(sum, |sum, power| sum + power);
                zeros += registers.len() - registers::filled(registers);
            })?;
            Ok(classic(sum, zeros as f64, params)?)
        }
    }
}

/// The estimate from sums over registers of 5 bits, with the same bits as the long way gives: a sum of 2^-value is exact in
/// any order as long as no value is above 31. `None` if they are not enough.
///
/// # Errors
/// `classic` has no constant for fewer than 16 registers.
pub(super) fn from_sums(sums: Harmonic, params: Params, estimator: Estimator) -> Result<Option<f64>, Error> {
    let Harmonic { sum, zeros, largest } = sums;
    let unit = 2f64.powi(-31);
    match estimator {
        // Without a register of the largest value each step of the recursion is exact: its result is this sum.
        Estimator::Ertl if largest < 31 => Ok(Some(ertl((sum - (zeros << 31)) as f64 * unit, zeros as f64, params))),
        Estimator::Ertl => Ok(None),
        Estimator::Classic => classic(sum as f64 * unit, zeros as f64, params).map(Some),
    }
}

/// What the registers that are not 0 add to the denominator: sum of count * 2^-value, with a correction for the largest
/// value, behind which others hide.
fn filled(counts: &registers::Histogram, params: Params) -> f64 {
    let m = params.registers() as f64;
    let q = ((1usize << params.width()) - 2).min(64 - params.log2m() as usize);
    // A foreign sketch may hold values that our rule never makes; they count as the largest one.
    let largest: u32 = counts[q + 1..].iter().sum();
    let z = m * tau(1.0 - f64::from(largest) / m);
    counts[1..=q].iter().rev().fold(z, |z, count| 0.5 * (z + f64::from(*count)))
}

fn ertl(filled: f64, zeros: f64, params: Params) -> f64 {
    let m = params.registers() as f64;
    let z = filled + m * sigma(zeros / m);
    m / (2.0 * std::f64::consts::LN_2) * m / z
}

fn sigma(mut x: f64) -> f64 {
    if x == 1.0 {
        return f64::INFINITY;
    }
    let (mut sum, mut weight) = (x, 1.0);
    loop {
        x *= x;
        let before = sum;
        sum += x * weight;
        weight += weight;
        if sum == before {
            return sum;
        }
    }
}

fn tau(mut x: f64) -> f64 {
    if x == 0.0 || x == 1.0 {
        return 0.0;
    }
    let (mut sum, mut weight) = (1.0 - x, 1.0);
    loop {
        x = x.sqrt();
        let before = sum;
        weight *= 0.5;
        sum -= (1.0 - x).powi(2) * weight;
        if sum == before {
            return sum / 3.0;
        }
    }
}

/// `sum` is the sum of 2^-value over all registers.
fn classic(sum: f64, zeros: f64, params: Params) -> Result<f64, Error> {
    let m = params.registers() as f64;
    let alpha = match params.log2m() {
        0..=3 => return Err(Error::TooFewRegisters),
        4 => 0.673,
        5 => 0.697,
        6 => 0.709,
        _ => 0.7213 / (1.0 + 1.079 / m),
    };
    let estimate = alpha * m * m / sum;
    if zeros > 0.0 && estimate < 2.5 * m {
        return Ok(m * (m / zeros).ln());
    }
    let limit = 2f64.powi((1 << params.width()) - 2 + params.log2m() as i32);
    Ok(if estimate <= limit / 30.0 { estimate } else { -limit * (1.0 - estimate / limit).ln() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The sum over registers of 5 bits gives the same bits as the counts of values (ertl), and as adding up register by
        /// register as postgresql-hll does (classic).
        #[test]
        fn the_short_way_gives_the_bits_of_the_long_one(
            log2m in 4u32..=17,
            level in 1u32..32,
            below in 1u8..=32,
            seed in any::<u64>(),
        ) {
            let params = Params::new(i64::from(log2m), 5, 0, 1).unwrap();
            let mut x = seed | 1;
            let registers: Vec<u8> = (0..params.registers()).map(|_| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                // Around a level, as in a real sketch, or anywhere below a limit.
                let value = if seed & 2 == 0 { level + (x >> 8).trailing_zeros() } else { (x >> 32) as u32 };
                if seed & 4 == 0 { value.min(31) as u8 } else { value as u8 % below }
            }).collect();
            let half = registers.len() / 2;
            let visit = |see: &mut dyn FnMut(&[u8])| {
                see(&registers[..half]);
                see(&registers[half..]);
                Ok::<_, Error>(())
            };
            let mut counts = [0; 128];
            registers::histogram(&registers, &mut counts);
            let expected = ertl(filled(&counts, params), f64::from(counts[0]), params);
            prop_assert_eq!(count(params, Estimator::Ertl, visit).unwrap().to_bits(), expected.to_bits());

            let sum: f64 = registers.iter().map(|value| 0.5f64.powi(i32::from(*value))).sum();
            let expected = classic(sum, f64::from(counts[0]), params).unwrap();
            prop_assert_eq!(count(params, Estimator::Classic, visit).unwrap().to_bits(), expected.to_bits());
        }
    }
}
