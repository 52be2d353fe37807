//! Registers to a count.
//!
//! *ertl*: the improved raw estimator (Otmar Ertl, New cardinality estimation algorithms for HyperLogLog sketches, 2017,
//! arXiv 1702.01284): one formula for every size, without the bias that the classic one has where it changes formulas.
//! *classic*: Flajolet et al. 2007 with linear counting, bit for bit as postgresql-hll computes it.
#![forbid(unsafe_code)]

use super::error::Error;
use super::params::Params;
use super::registers;
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

/// # Errors
/// `classic` has no constant for fewer than 16 registers.
pub(super) fn count(registers: &[u8], params: Params, estimator: Estimator) -> Result<f64, Error> {
    match estimator {
        Estimator::Ertl => Ok(ertl(&registers::histogram(registers), params)),
        Estimator::Classic => classic(registers, params),
    }
}

fn ertl(counts: &registers::Histogram, params: Params) -> f64 {
    let m = params.registers() as f64;
    let q = ((1usize << params.width()) - 2).min(64 - params.log2m() as usize);
    // A foreign sketch may hold values that our rule never makes; they count as the largest one.
    let largest: u32 = counts[q + 1..].iter().sum();
    let mut z = m * tau(1.0 - f64::from(largest) / m);
    for count in counts[1..=q].iter().rev() {
        z = 0.5 * (z + f64::from(*count));
    }
    z += m * sigma(f64::from(counts[0]) / m);
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

fn classic(registers: &[u8], params: Params) -> Result<f64, Error> {
    let m = params.registers() as f64;
    let alpha = match params.log2m() {
        0..=3 => return Err(Error::TooFewRegisters),
        4 => 0.673,
        5 => 0.697,
        6 => 0.709,
        _ => 0.7213 / (1.0 + 1.079 / m),
    };
    // 2^-v for v below 128 is exact; its bits are the exponent alone.
    let sum: f64 = registers.iter().map(|value| f64::from_bits((1023 - u64::from(value & 0x7f)) << 52)).sum();
    let zeros = registers.len() - registers::filled(registers);
    let estimate = alpha * m * m / sum;
    if zeros > 0 && estimate < 2.5 * m {
        return Ok(m * (m / zeros as f64).ln());
    }
    let limit = 2f64.powi((1 << params.width()) - 2 + params.log2m() as i32);
    Ok(if estimate <= limit / 30.0 { estimate } else { -limit * (1.0 - estimate / limit).ln() })
}
