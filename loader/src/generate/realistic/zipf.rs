//! Zipf's distribution by a table: rank k of n has a share proportional to k^-s.
//!
//! A rejection sampler as that of `rand_distr` takes powers and logarithms of the standard library for each draw, whose last
//! digit may differ between machines. Here a draw is compared with whole numbers, and these come from `libm`, which is the same
//! everywhere. The table takes 8 bytes a rank.

#[derive(Clone, Debug)]
pub struct Zipf {
    /// For each rank but the last, the draws below which it or a lower one is taken.
    bounds: Vec<u64>,
}

impl Zipf {
    /// `ranks` of at least 1.
    pub fn new(ranks: u32, exponent: f64) -> Self {
        let mut sum = 0.0;
        let sums: Vec<f64> = (1..=ranks)
            .map(|rank| {
                sum += libm::pow(f64::from(rank), -exponent);
                sum
            })
            .collect();
        let last = sums.len().saturating_sub(1);
        // A conversion from float saturates; 2^64 is exact.
        Self { bounds: sums[..last].iter().map(|below| (below / sum * 18_446_744_073_709_551_616.0) as u64).collect() }
    }

    /// The rank, from 1 on, that a uniform 64-bit number stands for.
    pub fn rank(&self, uniform: u64) -> u64 {
        1 + self.bounds.partition_point(|bound| *bound <= uniform) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_fall_with_the_rank() {
        // 1 + 1/2 + 1/3 = 11/6: the shares are 6/11, 3/11 and 2/11.
        let zipf = Zipf::new(3, 1.0);
        let at = |share: f64| zipf.rank((share * 2_f64.powi(64)) as u64);
        assert_eq!([at(0.0), at(0.545), at(0.546), at(0.818), at(0.819), at(1.0)], [1, 1, 2, 2, 3, 3]);
    }

    #[test]
    fn without_an_exponent_all_are_equal() {
        let zipf = Zipf::new(4, 0.0);
        assert_eq!([0, 1, 2, 3].map(|quarter| zipf.rank(quarter << 62)), [1, 2, 3, 4]);
        assert_eq!(zipf.rank((1 << 62) - 1), 1);
    }

    #[test]
    fn one_rank_takes_all() {
        assert_eq!([0, u64::MAX].map(|draw| Zipf::new(1, 1.1).rank(draw)), [1, 1]);
    }
}
