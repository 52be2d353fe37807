//! How a large source is cut into slices of time, so that a new rollup is built step by step, the newest rows first.

/// What is known of one table of the source.
#[derive(Clone, Debug, PartialEq)]
pub struct TableStatistics {
    /// Rows, as estimated.
    pub rows: f64,
    /// Times between which the same number of rows lie, in ascending order: the bounds of PostgreSQL's histogram.
    pub bounds: Vec<Bound>,
}

/// A time, for the order and as SQL writes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bound {
    pub microseconds: i64,
    pub text: String,
}

/// The first times of the slices, newest slice first, each with about `rows_per_slice` rows. What lies before the last one is a
/// slice as well, without a first time.
pub fn slices(tables: &[TableStatistics], rows_per_slice: f64) -> Vec<String> {
    // Each pair of neighbouring bounds has its share of the rows, and is cut at the lower one.
    let mut cuts: Vec<(&Bound, f64)> = vec![];
    for table in tables {
        let pairs = table.bounds.len().saturating_sub(1).max(1) as f64;
        cuts.extend(table.bounds.iter().map(|bound| (bound, table.rows / pairs)));
    }
    cuts.sort_by(|(a, _), (b, _)| b.cmp(a));
    let mut slices = vec![];
    let mut rows = 0.0;
    for (bound, share) in cuts {
        // At the newest bound of a table its rows have yet to come; a share too much makes the first slice smaller.
        rows += share;
        if rows >= rows_per_slice && slices.last() != Some(&bound.text) {
            slices.push(bound.text.clone());
            rows = 0.0;
        }
    }
    slices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: f64, times: impl IntoIterator<Item = i64>) -> TableStatistics {
        let bound = |time: i64| Bound { microseconds: time, text: time.to_string() };
        TableStatistics { rows, bounds: times.into_iter().map(bound).collect() }
    }

    #[test]
    fn slices_have_the_same_number_of_rows() {
        // 1,000 rows in 10 steps of time.
        assert_eq!(slices(&[table(1000.0, 0..=10)], 300.0), ["8", "5", "2"]);
        assert_eq!(slices(&[table(1000.0, 0..=10)], 5000.0), Vec::<String>::new());
    }

    #[test]
    fn tables_of_one_source_are_cut_together() {
        let both = [table(1000.0, 0..=10), table(9000.0, 100..=110)];
        let cut = slices(&both, 1800.0);
        assert_eq!(cut.first().map(String::as_str), Some("109"));
        assert!(
            cut.len() >= 5 && cut.windows(2).all(|pair| pair[0].parse::<i64>().unwrap() > pair[1].parse().unwrap())
        );
    }

    #[test]
    fn equal_times_are_not_cut_apart() {
        assert_eq!(slices(&[table(1000.0, [5; 11])], 100.0), ["5"]);
        assert_eq!(slices(&[table(1000.0, [])], 100.0), Vec::<String>::new());
    }
}
