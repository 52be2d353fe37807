//! Row tags and snapshots as values: which rows of a source are counted, and which are new.
//!
//! ```text
//!  bit 63      62 .. 48          47 .. 0
//!     0   incarnation (15)   transaction id (48)
//! ```
//!
//! A tag names the transaction that wrote a row. Transaction ids mean nothing in another cluster, so the incarnation, which
//! grows whenever the database wakes up in another cluster, is the high part: every later tag is greater than every earlier one.
//!
//! The state of a source is one snapshot, stored as tags. A row is *counted* when its tag lies below `next` and is not one
//! of `open`; otherwise it is *new*. Nothing waits for the transactions in `open`: their rows are found when they commit.

use crate::error::Explain;
use std::fmt;

const XID_BITS: u32 = 48;
const LARGEST_XID: u64 = (1 << XID_BITS) - 1;
/// The largest incarnation: the sign bit of the tag stays clear.
pub const LARGEST_INCARNATION: u16 = 0x7fff;

/// The tag of rows that were in the table before tally tracked it. It is below every tag that [`tag`] makes, so such a row
/// always counts as counted: the build of a new rollup reads it, no tick does.
pub const BEFORE_TRACKING: i64 = 0;

/// The tag of the rows that a transaction writes.
///
/// ```
/// assert_eq!(tally_core::snapshot::tag(1, 1000).unwrap(), 281_474_976_711_656);
/// ```
pub fn tag(incarnation: u16, xid: u64) -> Result<i64, Error> {
    if incarnation == 0 || incarnation > LARGEST_INCARNATION {
        return Err(Error::IncarnationOutOfRange { incarnation });
    }
    if xid > LARGEST_XID {
        return Err(Error::XidOutOfRange { xid });
    }
    Ok((i64::from(incarnation) << XID_BITS) | xid as i64)
}

/// A tag that a row brings along when it is inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// Of a transaction that has ended for certain.
    Ended,
    /// Of this transaction of the same cluster, which must have ended.
    Of { xid: u64 },
    /// Of no transaction so far.
    FromTheFuture,
}

/// Whose tag a row brings along. `next` is the tag of the next transaction id.
pub fn copied(tag: i64, next: i64) -> Copied {
    if !(BEFORE_TRACKING..next).contains(&tag) {
        Copied::FromTheFuture
    } else if tag >> XID_BITS == next >> XID_BITS {
        Copied::Of { xid: tag as u64 & LARGEST_XID }
    } else {
        Copied::Ended
    }
}

/// Which rows of a source are counted: a snapshot, stored as tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Tags from here on belong to transactions that the snapshot did not know.
    pub next: i64,
    /// Transactions below `next` that were still running.
    pub open: Vec<i64>,
}

impl Counted {
    /// The state of a snapshot that was taken in the cluster of `incarnation`.
    ///
    /// `xmax` is the first id that was not yet assigned when the snapshot was taken, `in_progress` the top-level
    /// transactions that were running then, `own` the id of the transaction that will store the state, if it has one already.
    ///
    /// A transaction that has an id before it takes the snapshot counts nothing from its own id on. Ids above its own may
    /// belong to transactions that ended without a trace in the write-ahead log, and after a crash such an id is given out
    /// again: had it been stored as counted, the rows of its second owner would be lost. Below its own id that cannot
    /// happen, because the record of this transaction carries the counter past them.
    pub fn from_snapshot(incarnation: u16, xmax: u64, in_progress: &[u64], own: Option<u64>) -> Result<Self, Error> {
        let next_xid = own.map_or(xmax, |own| own.min(xmax));
        let mut open = in_progress
            .iter()
            .filter(|xid| **xid < next_xid)
            .map(|xid| tag(incarnation, *xid))
            .collect::<Result<Vec<_>, _>>()?;
        open.sort_unstable();
        open.dedup();
        Ok(Self { next: tag(incarnation, next_xid)?, open })
    }

    /// Checks that storing this state after `previous` makes no counted row new again.
    ///
    /// It would if another tick has come between the first write of this transaction and its snapshot: see
    /// [`from_snapshot`](Self::from_snapshot), which counts nothing from the own id on.
    pub fn follows(&self, previous: &Self) -> Result<(), Error> {
        if self.next < previous.next { Err(Error::WroteBeforeRefresh) } else { Ok(()) }
    }

    /// Is a row with this tag counted?
    pub fn counts(&self, tag: i64) -> bool {
        tag < self.next && self.open.binary_search(&tag).is_err()
    }

    /// A condition on `column` that finds the rows that are not counted: an index probe for the tail, and one for each open
    /// transaction. The upper bound is always true; it keeps the planner of a table without statistics from expecting a third
    /// of the rows.
    pub fn is_new(&self, column: &str) -> String {
        let tail = format!(
            "({column} OPERATOR(pg_catalog.>=) {}::bigint AND {column} OPERATOR(pg_catalog.<=) {}::bigint)",
            self.next,
            i64::MAX
        );
        if self.open.is_empty() {
            return tail;
        }
        format!("({tail} OR {column} OPERATOR(pg_catalog.=) ANY ('{}'::bigint[]))", self.open_array())
    }

    /// A condition on `column` that finds the rows that are counted.
    pub fn is_counted(&self, column: &str) -> String {
        let below = format!("{column} OPERATOR(pg_catalog.<) {}::bigint", self.next);
        if self.open.is_empty() {
            return below;
        }
        format!("({below} AND {column} OPERATOR(pg_catalog.<>) ALL ('{}'::bigint[]))", self.open_array())
    }

    /// The open transactions as the text of a PostgreSQL array.
    pub fn open_array(&self) -> String {
        let tags: Vec<String> = self.open.iter().map(i64::to_string).collect();
        format!("{{{}}}", tags.join(","))
    }
}

/// A snapshot that cannot be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    IncarnationOutOfRange {
        incarnation: u16,
    },
    XidOutOfRange {
        xid: u64,
    },
    /// The transaction has written something before it came to refresh.
    WroteBeforeRefresh,
    /// The transaction looks at an old snapshot.
    NotReadCommitted,
    /// A row carries the tag of a transaction that does not exist yet.
    TagFromTheFuture {
        source: String,
    },
    /// A row that is being inserted carries such a tag.
    CopiedFromTheFuture {
        source: String,
    },
    /// A row that is being inserted carries the tag of a transaction that has not ended.
    CopiedFromOpen {
        source: String,
    },
    /// An UPDATE gives a row another tag.
    TagChanged {
        source: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IncarnationOutOfRange { incarnation } => {
                write!(f, "incarnation {incarnation} is not between 1 and {LARGEST_INCARNATION}")
            }
            Self::XidOutOfRange { xid } => write!(f, "transaction id {xid} needs more than {XID_BITS} bits"),
            Self::WroteBeforeRefresh => write!(f, "a refresh cannot run after its transaction has written something"),
            Self::NotReadCommitted => write!(f, "a refresh needs the isolation level READ COMMITTED"),
            Self::TagFromTheFuture { source } => {
                write!(f, "{source} has rows with the tag of a transaction that does not exist yet")
            }
            Self::CopiedFromTheFuture { source } => {
                write!(f, "a row for {source} has the tally_tag of a transaction that does not exist yet")
            }
            Self::CopiedFromOpen { source } => {
                write!(f, "a row for {source} has the tally_tag of a transaction that is still running")
            }
            Self::TagChanged { source } => write!(f, "column tally_tag of {source} cannot be changed"),
        }
    }
}

impl Explain for Error {
    fn sqlstate(&self) -> &'static str {
        match self {
            Self::IncarnationOutOfRange { .. } | Self::XidOutOfRange { .. } => "54000",
            Self::WroteBeforeRefresh | Self::NotReadCommitted => "25001",
            Self::TagFromTheFuture { .. } | Self::CopiedFromOpen { .. } => "55000",
            Self::CopiedFromTheFuture { .. } => "22023",
            Self::TagChanged { .. } => "428C9",
        }
    }

    fn detail(&self) -> Option<String> {
        match self {
            Self::TagFromTheFuture { .. } => Some(
                "They were copied from another cluster together with their column tally_tag, past the triggers of tally.".into(),
            ),
            Self::CopiedFromTheFuture { .. } => Some("It was copied from another cluster, or made up.".into()),
            Self::TagChanged { .. } => Some("It says which transaction wrote the row.".into()),
            _ => None,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::IncarnationOutOfRange { .. } | Self::XidOutOfRange { .. } => {
                "Drop the rollups of the table and create them anew."
            }
            Self::WroteBeforeRefresh => "Run it in a transaction of its own, or before the first write.",
            Self::NotReadCommitted => "BEGIN ISOLATION LEVEL READ COMMITTED, or run it outside of a transaction block.",
            Self::TagFromTheFuture { .. } => {
                "Leave tally_tag out of what you copy, so that its default applies; drop the rollups and create them anew."
            }
            Self::CopiedFromTheFuture { .. } | Self::CopiedFromOpen { .. } => {
                "Leave the column tally_tag out, so that its default applies."
            }
            Self::TagChanged { .. } => "Leave the column tally_tag out of SET.",
        };
        Some(hint.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_later_incarnation_is_greater_than_every_earlier_tag() {
        assert!(tag(2, 3).unwrap() > tag(1, LARGEST_XID).unwrap());
        assert!(tag(LARGEST_INCARNATION, LARGEST_XID).unwrap() > 0);
        assert!(tag(1, 0).unwrap() > BEFORE_TRACKING);
    }

    #[test]
    fn values_out_of_range_are_refused() {
        assert_eq!(tag(0, 3), Err(Error::IncarnationOutOfRange { incarnation: 0 }));
        assert_eq!(tag(0x8000, 3), Err(Error::IncarnationOutOfRange { incarnation: 0x8000 }));
        assert_eq!(tag(1, 1 << 48), Err(Error::XidOutOfRange { xid: 1 << 48 }));
        assert_eq!(tag(1, 1 << 48).unwrap_err().sqlstate(), "54000");
    }

    #[test]
    fn a_copied_tag_is_of_a_transaction_that_has_begun() {
        let next = tag(2, 100).unwrap();
        assert_eq!(copied(BEFORE_TRACKING, next), Copied::Ended);
        assert_eq!(copied(tag(1, 500).unwrap(), next), Copied::Ended);
        assert_eq!(copied(tag(2, 99).unwrap(), next), Copied::Of { xid: 99 });
        for future in [next, tag(3, 1).unwrap(), -1, i64::MAX, i64::MIN] {
            assert_eq!(copied(future, next), Copied::FromTheFuture, "{future}");
        }
    }

    #[test]
    fn an_open_transaction_stays_new() {
        let counted = Counted::from_snapshot(1, 110, &[105, 101], None).unwrap();
        let at = |xid| tag(1, xid).unwrap();
        assert!(counted.counts(BEFORE_TRACKING));
        assert!(counted.counts(at(100)) && !counted.counts(at(101)) && counted.counts(at(104)));
        assert!(!counted.counts(at(105)) && counted.counts(at(109)) && !counted.counts(at(110)));
    }

    #[test]
    fn nothing_from_the_own_id_on_is_counted() {
        let counted = Counted::from_snapshot(1, 110, &[101, 107], Some(105)).unwrap();
        assert_eq!(counted.next, tag(1, 105).unwrap());
        assert_eq!(counted.open, [tag(1, 101).unwrap()]);
    }

    #[test]
    fn a_state_that_would_forget_counted_rows_is_refused() {
        let earlier = Counted::from_snapshot(1, 110, &[105], None).unwrap();
        assert!(Counted::from_snapshot(1, 110, &[], None).unwrap().follows(&earlier).is_ok());
        let late = Counted::from_snapshot(1, 120, &[], Some(105)).unwrap();
        assert_eq!(late.follows(&earlier), Err(Error::WroteBeforeRefresh));
    }

    #[test]
    fn conditions_name_the_tail_and_each_open_transaction() {
        let counted = Counted { next: 30, open: vec![10, 20] };
        assert_eq!(
            counted.is_new("r.tally_tag"),
            "((r.tally_tag OPERATOR(pg_catalog.>=) 30::bigint AND r.tally_tag OPERATOR(pg_catalog.<=) 9223372036854775807::bigint) \
             OR r.tally_tag OPERATOR(pg_catalog.=) ANY ('{10,20}'::bigint[]))"
        );
        assert_eq!(
            counted.is_counted("t"),
            "(t OPERATOR(pg_catalog.<) 30::bigint AND t OPERATOR(pg_catalog.<>) ALL ('{10,20}'::bigint[]))"
        );
        assert!(!Counted { next: 30, open: vec![] }.is_new("t").contains("ANY"));
    }

    proptest! {
        /// Whatever the sequence of snapshots, a transaction that ends is counted by exactly one tick.
        #[test]
        fn every_transaction_is_counted_once(
            starts in proptest::collection::vec((0u64..50, 1u64..50), 1..40),
            ticks in proptest::collection::vec(0u64..120, 1..20),
        ) {
            let mut ticks = ticks;
            ticks.sort_unstable();
            ticks.push(1000);
            // Transaction i gets id 3 + i at time start and ends at start + length; ids are given in order of start.
            let mut spans: Vec<(u64, u64)> = starts.iter().map(|(start, length)| (*start, start + length)).collect();
            spans.sort_unstable();
            let mut counted = Counted::from_snapshot(1, 3, &[], None).unwrap();
            let mut times = vec![0; spans.len()];
            for now in ticks {
                let started = spans.iter().filter(|(start, _)| *start <= now).count() as u64;
                let running: Vec<u64> = spans.iter().enumerate()
                    .filter(|(_, (start, end))| *start <= now && *end > now).map(|(i, _)| 3 + i as u64).collect();
                let next = Counted::from_snapshot(1, 3 + started, &running, None).unwrap();
                for (i, (_, end)) in spans.iter().enumerate() {
                    let tag = tag(1, 3 + i as u64).unwrap();
                    if *end <= now && !counted.counts(tag) && next.counts(tag) {
                        times[i] += 1;
                    }
                }
                counted = next;
            }
            prop_assert!(times.iter().all(|n| *n == 1), "{times:?}");
        }
    }
}
