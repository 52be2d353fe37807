//! The tables of the model: the set and what tally keeps about it.

use tally_core::bucket::Timestamp;
use tally_core::partition::retention::State;
use tally_core::snapshot::Counted;

use crate::postgres::{Heap, Recover, Snapshot, Xid};

/// The OID of a table that is, or was, a partition.
pub type Table = u32;
pub type RollupId = u32;
/// The number of a departure.
pub type Number = u32;

/// What a rollup reads of a row. The sum of many weights says which rows are in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    pub day: u8,
    pub key: u8,
    pub weight: i64,
}

/// A row of the source, in one of its partitions or in a table that has been one.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub id: u32,
    pub table: Table,
    pub tag: i64,
    pub columns: Columns,
    /// It has come past the fence.
    pub is_forced: bool,
}

/// A row that counts: what every rollup has to equal. No statement of retention touches it.
#[derive(Clone, Copy, Debug)]
pub struct Truth {
    pub id: u32,
    pub table: Table,
    pub columns: Columns,
}

/// `pg_inherits`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    None,
    Attached,
    /// A DETACH CONCURRENTLY has committed for the first time, by this transaction.
    Pending(Xid),
}

/// `pg_class`, `pg_inherits` and `pg_trigger`, of a table that holds the rows of a day.
#[derive(Clone, Copy, Debug)]
pub struct Partition {
    pub table: Table,
    pub day: u8,
    pub link: Link,
    pub is_in_trash: bool,
    /// `tally_fence`
    pub is_fenced: bool,
    /// `tally_truncate`: ATTACH takes it for a partition that the source knows.
    pub is_protected: bool,
}

/// `tally.sources`, of which there is one row.
#[derive(Clone, Debug)]
pub struct Source {
    pub counted: Counted,
    pub leaving: Vec<Table>,
}

/// The change log.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    pub writer: i64,
    pub tag: i64,
    pub sign: i8,
    pub columns: Columns,
}

/// `tally.departures`
#[derive(Clone, Copy, Debug)]
pub struct Departure {
    pub number: Number,
    pub table: Table,
    pub released_by: Option<i64>,
}

/// `tally.retirements`
#[derive(Clone, Debug)]
pub struct Record {
    pub id: u32,
    pub table: Table,
    pub day: u8,
    pub state: State,
    pub changed_by: Xid,
    pub changed_at: Timestamp,
    pub departure: Option<Number>,
    pub rollups: Vec<RollupId>,
    pub counted: Option<(i64, Counted)>,
    pub drop_after: Option<Timestamp>,
}

/// What the groups of a rollup are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// As partitions.
    Day,
    /// Across all partitions.
    Key,
    /// Across the edge of two partitions.
    TwoDays,
}

/// `tally.rollups`
#[derive(Clone, Copy, Debug)]
pub struct Rollup {
    pub id: RollupId,
    pub by: By,
    /// Rows can be taken out of its groups; others, as of a maximum, are made anew.
    pub subtracts: bool,
}

/// There are at most so many groups in a rollup.
pub const GROUPS: usize = 8;

impl Rollup {
    pub fn group(&self, columns: &Columns) -> usize {
        usize::from(match self.by {
            By::Day => columns.day,
            By::Key => columns.key,
            By::TwoDays => columns.day.div_ceil(2),
        })
    }
}

/// What is in a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Value {
    pub rows: i64,
    pub sum: i64,
}

impl Value {
    pub fn add(&mut self, other: Value) {
        self.rows += other.rows;
        self.sum = self.sum.wrapping_add(other.sum);
    }

    pub fn add_row(&mut self, columns: &Columns) {
        self.add(Value { rows: 1, sum: columns.weight });
    }

    pub fn take_row(&mut self, columns: &Columns) {
        self.add(Value { rows: -1, sum: columns.weight.wrapping_neg() });
    }
}

pub type Groups = [Value; GROUPS];

/// The table of stored groups of a rollup, or that of its retained groups.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    pub rollup: RollupId,
    pub group: usize,
    pub value: Value,
    /// Of a retained group.
    pub departure: Number,
}

/// What a rollup never knew, because it was created while the table was no partition.
#[derive(Clone, Copy, Debug)]
pub struct Unknown {
    pub rollup: RollupId,
    pub table: Table,
}

#[derive(Debug, Default)]
pub struct Tables {
    pub rows: Heap<Row>,
    pub truth: Heap<Truth>,
    pub unknown: Heap<Unknown>,
    pub partitions: Heap<Partition>,
    pub sources: Heap<Source>,
    pub log: Heap<Change>,
    pub departures: Heap<Departure>,
    pub records: Heap<Record>,
    pub rollups: Heap<Rollup>,
    pub stored: Heap<Group>,
    pub retained: Heap<Group>,
}

impl Tables {
    pub fn all(&mut self) -> [&mut dyn Recover; 11] {
        [
            &mut self.rows,
            &mut self.truth,
            &mut self.unknown,
            &mut self.partitions,
            &mut self.sources,
            &mut self.log,
            &mut self.departures,
            &mut self.records,
            &mut self.rollups,
            &mut self.stored,
            &mut self.retained,
        ]
    }

    /// The row of the source and its place.
    pub fn source<'a>(&'a self, snapshot: &'a Snapshot) -> (usize, &'a Source) {
        self.sources.seen(snapshot).next().expect("the source has a row")
    }

    pub fn partition(&self, table: Table, now: &Snapshot) -> Option<(usize, Partition)> {
        self.partitions.find(now, |partition| partition.table == table)
    }

    /// The partitions that a statement reads: PostgreSQL looks them up as of now, but a pending one is there for whoever has a snapshot
    /// from before.
    pub fn partitions_of<'a>(
        &'a self,
        now: &'a Snapshot,
        snapshot: &'a Snapshot,
    ) -> impl Iterator<Item = &'a Partition> {
        self.partitions.seen(now).map(|(_, partition)| partition).filter(|partition| match partition.link {
            Link::None => false,
            Link::Attached => true,
            Link::Pending(by) => !snapshot.sees(by),
        })
    }
}
