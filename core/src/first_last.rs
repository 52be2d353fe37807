//! The value of the earliest and of the latest row, so that the answer does not depend on the order in which rows come.

use std::cmp::Ordering;

/// Which row of a group is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    First,
    Last,
}

/// How a row compares to the one that is held.
#[derive(Clone, Copy, Debug)]
pub struct Newcomer {
    /// By the column that says what is earlier.
    pub at: Ordering,
    /// Is its value NULL?
    pub is_null: bool,
    /// Is the value NULL that is held?
    pub holds_null: bool,
}

impl End {
    /// Does the newcomer take the place of what is held? Of rows at the same time, the first one has the least value and the
    /// last one the greatest; a NULL gives way to any value. `by_value` compares the newcomer's value to the one that is held,
    /// and is asked only when neither is NULL.
    pub fn is_closer(self, newcomer: Newcomer, by_value: impl FnOnce() -> Ordering) -> bool {
        let wanted = match self {
            Self::First => Ordering::Less,
            Self::Last => Ordering::Greater,
        };
        match newcomer.at {
            Ordering::Equal if newcomer.is_null => false,
            Ordering::Equal if newcomer.holds_null => true,
            Ordering::Equal => by_value() == wanted,
            at => at == wanted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Row = (i32, Option<i32>);

    fn fold(end: End, rows: &[Row]) -> Option<Row> {
        rows.iter().copied().reduce(|held, new| {
            let newcomer = Newcomer { at: new.0.cmp(&held.0), is_null: new.1.is_none(), holds_null: held.1.is_none() };
            if end.is_closer(newcomer, || new.1.cmp(&held.1)) { new } else { held }
        })
    }

    /// Every order of these rows, by exchanging each with each.
    fn for_every_order(rows: &mut [Row], from: usize, check: &mut impl FnMut(&[Row])) {
        if from == rows.len() {
            return check(rows);
        }
        for other in from..rows.len() {
            rows.swap(from, other);
            for_every_order(rows, from + 1, check);
            rows.swap(from, other);
        }
    }

    #[test]
    fn the_order_of_rows_does_not_matter() {
        let mut rows = [(1, None), (1, Some(5)), (1, Some(3)), (2, Some(9)), (3, Some(4)), (3, None), (3, Some(6))];
        for_every_order(&mut rows, 0, &mut |rows| {
            assert_eq!(fold(End::First, rows), Some((1, Some(3))), "{rows:?}");
            assert_eq!(fold(End::Last, rows), Some((3, Some(6))), "{rows:?}");
        });
    }

    #[test]
    fn null_is_an_answer_where_no_row_of_that_time_has_a_value() {
        let mut rows = [(1, None), (1, None), (2, Some(9)), (3, None)];
        for_every_order(&mut rows, 0, &mut |rows| {
            assert_eq!(fold(End::First, rows), Some((1, None)), "{rows:?}");
            assert_eq!(fold(End::Last, rows), Some((3, None)), "{rows:?}");
        });
    }
}
