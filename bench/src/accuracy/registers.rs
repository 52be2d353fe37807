//! Registers as n different hashes leave them, without hashing anything.
//!
//! A hash goes to one of m registers, and carries the value v with probability 2^-v; of several values in a register the largest stays. So
//! the hashes are drawn from the largest value down: how many of the n carry it, how many of these meet a register that no larger value has
//! reached, and how many such registers they fill. That is exact for any n, and takes some three steps per register however many hashes
//! there are. (Hashes without any bit behind the number of their register are left out: of 10^9 there is none in most trials.)

use rand::RngExt;
use rand::rngs::SmallRng;
use rand_distr::{Binomial, Distribution};

/// The largest value of a register of 5 bits stands for all that are larger.
pub const LARGEST: usize = 31;

/// How many registers have each value.
pub type Counts = [u32; LARGEST + 1];

/// Counts of the values of `registers` registers after `hashes` different hashes.
pub fn draw(registers: u32, hashes: u64, rng: &mut SmallRng) -> Counts {
    let mut counts = [0; LARGEST + 1];
    let (mut left, mut empty) = (hashes, registers);
    for value in (1..=LARGEST).rev() {
        if empty == 0 {
            break;
        }
        // Of hashes that carry no larger value.
        let chance = match value {
            LARGEST => 2f64.powi(1 - value as i32),
            _ => 0.5f64.powi(value as i32) / (1.0 - 0.5f64.powi(value as i32)),
        };
        let carriers = binomial(left, chance, rng);
        left -= carriers;
        let hits = binomial(carriers, f64::from(empty) / f64::from(registers), rng);
        let filled = fill(empty, hits, rng);
        counts[value] = filled;
        empty -= filled;
    }
    counts[0] = empty;
    counts
}

fn binomial(trials: u64, chance: f64, rng: &mut SmallRng) -> u64 {
    if trials == 0 || chance >= 1.0 {
        return trials;
    }
    Binomial::new(trials, chance).expect("a chance is between 0 and 1").sample(rng)
}

/// How many of the empty registers so many hits fill.
fn fill(empty: u32, hits: u64, rng: &mut SmallRng) -> u32 {
    let mut filled = 0;
    for _ in 0..hits {
        if filled == empty {
            break;
        }
        filled += u32::from(rng.random_range(0..empty) >= filled);
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng as _, SeedableRng};
    use tally_core::sketch::{Estimator, Owned, Packed, Packing, Params, estimate};

    /// Mean of each count over many trials, and its standard error.
    fn means(trials: u32, mut counts: impl FnMut() -> Counts) -> Vec<(f64, f64)> {
        let (mut sums, mut squares) = ([0.0; LARGEST + 1], [0.0; LARGEST + 1]);
        for _ in 0..trials {
            for (value, count) in counts().into_iter().enumerate() {
                sums[value] += f64::from(count);
                squares[value] += f64::from(count) * f64::from(count);
            }
        }
        let trials = f64::from(trials);
        let of =
            |(sum, square): (f64, f64)| (sum / trials, ((square / trials - (sum / trials).powi(2)) / trials).sqrt());
        sums.into_iter().zip(squares).map(of).collect()
    }

    #[test]
    fn drawn_registers_are_those_of_real_hashes() {
        const REGISTERS: u32 = 64;
        let mut rng = SmallRng::seed_from_u64(7);
        for hashes in [1, 10, 64, 200, 5_000] {
            let drawn = means(20_000, || draw(REGISTERS, hashes, &mut rng));
            let mut real_rng = SmallRng::seed_from_u64(8);
            let real = means(20_000, || {
                let mut registers = [0usize; REGISTERS as usize];
                for _ in 0..hashes {
                    let hash = real_rng.next_u64();
                    let value = ((hash >> 6).trailing_zeros() as usize + 1).min(LARGEST);
                    let register = &mut registers[(hash % u64::from(REGISTERS)) as usize];
                    *register = value.max(*register);
                }
                let mut counts = [0; LARGEST + 1];
                registers.iter().for_each(|value| counts[*value] += 1);
                counts
            });
            for (value, ((drawn, error), (real, real_error))) in drawn.iter().zip(&real).enumerate() {
                let allowed = 5.0 * error.hypot(*real_error) + 1e-3;
                assert!((drawn - real).abs() < allowed, "{hashes} hashes, value {value}: {drawn} and {real}");
            }
        }
    }

    #[test]
    fn registers_are_estimated_as_stored_sketches_are() {
        let params = Params::new(8, 5, 0, 0).unwrap();
        let mut rng = SmallRng::seed_from_u64(9);
        let mut state = Owned::new(params);
        let mut registers = vec![0u8; params.registers()];
        for _ in 0..1_000 {
            let hash = rng.next_u64();
            state.add(hash);
            let register = &mut registers[(hash % 256) as usize];
            *register = (((hash >> 8).trailing_zeros() + 1).min(31) as u8).max(*register);
        }
        let bytes = state.pack(Packing::BySize);
        for estimator in [Estimator::Ertl, Estimator::Classic] {
            let stored = Packed::read(&bytes).unwrap().estimate(estimator).unwrap();
            assert_eq!(Some(estimate::of_registers(params, &registers, estimator).unwrap()), stored);
        }
    }
}
