//! In which order two batches of a lane commit, decided without I/O. Each connection has one transaction: while the older batch
//! is being committed, the rows of the younger one are already copied. The younger one moves the position only after the COMMIT
//! of the older one has been answered. It could send that call earlier, as soon as the same call of the older one has returned,
//! but the row's lock would hold it up until that COMMIT anyway; so it gains one round trip at most, and a failure of the older
//! one would leave two transactions in doubt instead of one.

use std::time::Duration;

use crate::postgres::{self, Verdict};
use crate::sink::{Checks, Failure};

/// How long the younger batch waits with its rows copied. Something in the commit of the older one (a deferred trigger) may wait
/// for those rows, which no server can see; and an open transaction holds back retention.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// Batches that commit one after the other once something has gone wrong.
pub(super) const BATCHES_IN_TURN: u32 = 20;

/// What is known of the older batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Older {
    /// There is none, or it has committed.
    Settled,
    /// For so long the younger one has waited for it.
    UnderWay(Duration),
    /// It did not commit, and can be copied again from memory.
    Repeats,
    /// It did not commit, or nobody knows.
    Lost,
}

/// What happens with the younger batch when its rows are complete, and its transaction perhaps open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Younger {
    /// It is its turn.
    Commits,
    Waits,
    /// Its rows are rolled back and kept in memory; then it waits.
    IsTakenBack,
    /// It is forgotten with the older one: both are read again after a claim.
    IsDropped,
}

pub(super) fn younger(older: Older, is_open: bool) -> Younger {
    match older {
        Older::Settled => Younger::Commits,
        Older::UnderWay(waited) if waited >= PATIENCE && is_open => Younger::IsTakenBack,
        // The rows that come again could wait for those that came behind them.
        Older::Repeats if is_open => Younger::IsTakenBack,
        Older::UnderWay(_) | Older::Repeats => Younger::Waits,
        Older::Lost => Younger::IsDropped,
    }
}

/// Whether a batch that failed may be copied again from memory, by the same connection.
pub(super) fn may_repeat(failure: &Failure, checks: Checks) -> bool {
    match failure {
        Failure::TableChanged | Failure::NoLeaf | Failure::Rows(_) => true,
        Failure::Deferred(_) => !checks.immediate,
        Failure::Postgres(error) => postgres::verdict(error) == Verdict::Recompile,
        Failure::Fenced(_) | Failure::Superseded | Failure::TooManyRefused(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Older = Older::UnderWay(Duration::from_millis(999));
    const LONG: Older = Older::UnderWay(PATIENCE);

    #[test]
    fn a_batch_commits_only_when_the_one_before_has() {
        for is_open in [true, false] {
            assert_eq!(younger(Older::Settled, is_open), Younger::Commits);
            for older in [SHORT, LONG, Older::Repeats, Older::Lost] {
                assert_ne!(younger(older, is_open), Younger::Commits, "{older:?}");
            }
        }
    }

    #[test]
    fn what_was_lost_takes_the_younger_one_with_it() {
        for is_open in [true, false] {
            assert_eq!(younger(Older::Lost, is_open), Younger::IsDropped);
        }
    }

    #[test]
    fn an_open_transaction_never_stands_in_the_way_of_the_older_one() {
        assert_eq!(younger(SHORT, true), Younger::Waits);
        assert_eq!(younger(LONG, true), Younger::IsTakenBack);
        assert_eq!(younger(Older::Repeats, true), Younger::IsTakenBack);
        // Without one there is nothing to take back.
        assert_eq!(younger(LONG, false), Younger::Waits);
        assert_eq!(younger(Older::Repeats, false), Younger::Waits);
    }

    #[test]
    fn a_deferred_constraint_is_looked_at_once() {
        assert!(may_repeat(&Failure::TableChanged, Checks::default()));
        assert!(may_repeat(&Failure::NoLeaf, Checks::default()));
        assert!(!may_repeat(&Failure::Fenced("part 0".into()), Checks::default()));
        assert!(!may_repeat(&Failure::TooManyRefused("no".into()), Checks::default()));
    }
}
