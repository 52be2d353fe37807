//! What sessions do to rows, and what somebody does to partitions by hand who knows nothing of retention.

use tally_core::partition::retention::State;
use tally_core::snapshot::Counted;

use crate::postgres::{Mode, Outcome, Stop, Target, Who, tag};
use crate::retention::{RETENTION, upper};
use crate::rollup::Sight;
use crate::tables::{Change, Columns, Group, Groups, Link, Partition, Rollup, Row, Table, Truth, Value};
use crate::world::{Fault, OWNER, World};

const FENCED: Stop = Stop::Refused("is being removed by retention and takes no more changes");

/// What an UPDATE sets.
#[derive(Clone, Copy, Debug)]
pub enum Set {
    Weight(i64),
    Key(u8),
    /// The row moves to another partition.
    Day(u8),
}

/// DDL by hand.
#[derive(Clone, Copy, Debug)]
pub enum ByHand {
    Detach,
    DetachConcurrently,
    Finalize,
    Attach,
    Drop,
    /// Out of the trash, to another schema.
    Move,
    Truncate,
    /// The whole set.
    TruncateAll,
    /// A new partition where there is none.
    Fill,
    /// A row past the fence into the trash.
    Force,
}

impl ByHand {
    pub const ALL: [ByHand; 10] = [
        ByHand::Detach,
        ByHand::DetachConcurrently,
        ByHand::Finalize,
        ByHand::Attach,
        ByHand::Drop,
        ByHand::Move,
        ByHand::Truncate,
        ByHand::TruncateAll,
        ByHand::Fill,
        ByHand::Force,
    ];
}

impl World {
    /// INSERT into the partitioned table.
    pub fn insert(&mut self, who: Who, columns: Columns) -> Outcome<()> {
        self.server.lock(who, Target::Set, Mode::RowExclusive)?;
        let partition = self.route(who, columns.day)?;
        let id = self.next_id();
        let xid = self.server.xid(who);
        self.put(who, partition, Row { id, table: partition.table, tag: tag(xid), columns, is_forced: false })?;
        self.tables.truth.insert(xid, Truth { id, table: partition.table, columns });
        Ok(())
    }

    /// The partition that gets a row of this day, locked. Under REPEATABLE READ that is also one which is being detached.
    fn route(&mut self, who: Who, day: u8) -> Outcome<Partition> {
        let now = self.server.latest(who);
        let is_repeatable = self.server.transaction(who).is_some_and(|open| open.repeatable.is_some());
        let is_it = |partition: &Partition| {
            let is_pending = matches!(partition.link, Link::Pending(_));
            partition.day == day && (partition.link == Link::Attached || is_pending && is_repeatable)
        };
        let found = self.tables.partitions.find(&now, is_it);
        let (_, partition) = found.ok_or(Stop::Refused("no partition found for row"))?;
        self.server.lock(who, Target::Partition(partition.table), Mode::RowExclusive)?;
        Ok(partition)
    }

    /// The triggers of a partition have their say.
    fn put(&mut self, who: Who, partition: Partition, row: Row) -> Outcome<()> {
        self.refuse_change(partition)?;
        let own = self.server.xid(who);
        if row.tag != tag(own) && partition.link != Link::None {
            self.tables.log.insert(own, Change { writer: tag(own), tag: row.tag, sign: 1, columns: row.columns });
        }
        self.tables.rows.insert(own, row);
        Ok(())
    }

    /// Nobody is refused whose rows are younger than the retention.
    fn refuse_change(&self, partition: Partition) -> Outcome<()> {
        if !partition.is_fenced || self.fault == Fault::Fence {
            return Ok(());
        }
        let is_old = upper(partition.day) <= self.clock.minus(RETENTION.length());
        Err(if is_old { FENCED } else { Stop::Wrong(format!("{partition:?} takes no changes")) })
    }

    /// INSERT into a table by its own name, wherever it is.
    pub fn insert_directly(&mut self, who: Who, table: Table, key: u8, weight: i64) -> Outcome<()> {
        self.server.lock(who, Target::Partition(table), Mode::RowExclusive)?;
        let (_, partition) = self.must_be_there(who, table)?;
        let columns = Columns { day: partition.day, key, weight };
        let (id, xid) = (self.next_id(), self.server.xid(who));
        self.put(who, partition, Row { id, table, tag: tag(xid), columns, is_forced: false })?;
        if partition.link != Link::None {
            self.tables.truth.insert(xid, Truth { id, table, columns });
        }
        Ok(())
    }

    /// UPDATE, or DELETE if nothing is set, of the rows of a day that lie in this half.
    pub fn change(&mut self, who: Who, day: u8, half: u32, set: Option<Set>) -> Outcome<()> {
        self.server.lock(who, Target::Set, Mode::RowExclusive)?;
        let (now, snapshot) = (self.server.latest(who), self.server.snapshot(who));
        let found = self.tables.partitions_of(&now, &snapshot).find(|partition| partition.day == day).copied();
        let Some(partition) = found else { return Ok(()) };
        self.server.lock(who, Target::Partition(partition.table), Mode::RowExclusive)?;
        let in_half = |row: &Row| row.table == partition.table && row.id / 2 % 2 == half;
        for (at, row) in self.tables.rows.all(&snapshot, in_half) {
            self.refuse_change(partition)?;
            let xid = self.server.xid(who);
            self.tables.rows.delete(&self.server, at, xid)?;
            if row.tag != tag(xid) {
                let taken = Change { writer: tag(xid), tag: row.tag, sign: -1, columns: row.columns };
                self.tables.log.insert(xid, taken);
            }
            let snapshot = self.server.snapshot(who);
            let truth = self.tables.truth.find(&snapshot, |truth| truth.id == row.id);
            let (truth, _) = truth.ok_or_else(|| Stop::Wrong(format!("row {} does not count", row.id)))?;
            self.tables.truth.delete(&self.server, truth, xid)?;
            let Some(set) = set else { continue };
            let mut columns = row.columns;
            match set {
                Set::Weight(weight) => columns.weight = weight,
                Set::Key(key) => columns.key = key,
                Set::Day(day) => columns.day = day,
            }
            let target = if columns.day == row.columns.day { partition } else { self.route(who, columns.day)? };
            self.put(who, target, Row { table: target.table, columns, ..row })?;
            self.tables.truth.insert(xid, Truth { id: row.id, table: target.table, columns });
        }
        Ok(())
    }

    /// Is it a table that rows have been put into by force? It does not become a partition again, because nobody knows what counts.
    pub fn is_forced(&self, table: Table) -> bool {
        let now = self.server.latest(OWNER);
        self.tables.rows.any(&now, |row| row.table == table && row.is_forced)
    }

    /// May somebody do this to the table? What is left out is refused or, where it is said so, not followed.
    pub fn is_sensible(&self, by_hand: ByHand, partition: &Partition, state: Option<State>) -> bool {
        let is_pending = matches!(partition.link, Link::Pending(_));
        match by_hand {
            ByHand::Detach | ByHand::Truncate | ByHand::DetachConcurrently => partition.link == Link::Attached,
            // Half of the partitions are fenced mostly, and it is refused.
            ByHand::TruncateAll => self.pending(&self.server.latest(OWNER)).is_none(),
            ByHand::Finalize => is_pending && self.detaching.is_none(),
            ByHand::Attach => partition.link == Link::None && !self.is_forced(partition.table),
            ByHand::Drop => !is_pending,
            ByHand::Move => partition.is_in_trash && partition.link == Link::None,
            ByHand::Fill => partition.link == Link::None,
            ByHand::Force => partition.link == Link::None && partition.is_in_trash && state == Some(State::Trash),
        }
    }

    /// In a transaction of the owner.
    pub fn by_hand(&mut self, by_hand: ByHand, partition: Partition, weight: i64) -> Outcome<()> {
        let table = partition.table;
        let target = Target::Partition(table);
        match by_hand {
            ByHand::Detach => {
                self.lock_to_detach(table)?;
                self.follow_departure(OWNER, table)?;
                let (_, partition) = self.must_be_there(OWNER, table)?;
                self.set_partition(OWNER, Partition { link: Link::None, is_protected: false, ..partition })
            }
            ByHand::Drop if partition.link == Link::Attached => {
                self.lock_to_detach(table)?;
                self.follow_departure(OWNER, table)?;
                self.drop_partition(OWNER, table)
            }
            ByHand::Drop => {
                self.server.lock(OWNER, target, Mode::AccessExclusive)?;
                self.drop_partition(OWNER, table)
            }
            ByHand::Finalize => self.finalize(OWNER, table),
            ByHand::DetachConcurrently => self.begin_detach(table, false),
            ByHand::Attach => {
                self.server.lock(OWNER, target, Mode::AccessExclusive)?;
                self.attach_by_hand(partition)
            }
            ByHand::Move => {
                self.server.lock(OWNER, target, Mode::AccessExclusive)?;
                self.set_partition(OWNER, Partition { is_in_trash: false, ..partition })
            }
            ByHand::Truncate => {
                self.server.lock(OWNER, target, Mode::AccessExclusive)?;
                self.refuse_change(partition)?;
                self.log_rows(OWNER, table, 0, |row| Some(row.tag));
                self.tables.rows.remove(|row| row.table == table);
                self.tables.truth.remove(|row| row.table == table);
                self.note_layout();
                Ok(())
            }
            ByHand::TruncateAll => self.truncate_all(),
            ByHand::Fill => {
                let (xid, new) = (self.server.xid(OWNER), self.next_id());
                self.tables
                    .partitions
                    .insert(xid, Partition { link: Link::None, ..Partition::new(new, partition.day) });
                self.attach(OWNER, new)
            }
            ByHand::Force => {
                self.server.lock(OWNER, target, Mode::AccessExclusive)?;
                let (id, xid) = (self.next_id(), self.server.xid(OWNER));
                let columns = Columns { day: partition.day, key: 0, weight };
                self.tables.rows.insert(xid, Row { id, table, tag: tag(xid), columns, is_forced: true });
                Ok(())
            }
        }
    }

    /// One that is detached and not yet in the trash is known, unless a rollup has come since.
    fn attach_by_hand(&mut self, partition: Partition) -> Outcome<()> {
        let table = partition.table;
        let records = self.records(&self.server.latest(OWNER));
        let record = records.iter().find(|record| record.table == table);
        let knows_all =
            record.is_none_or(|record| self.knows_all(OWNER, record)) || self.fault == Fault::NewRollupByHand;
        let is_known = partition.is_protected && knows_all;
        self.set_partition(OWNER, Partition { is_protected: is_known, ..partition })?;
        self.attach(OWNER, table)?;
        if is_known { self.know(table) } else { self.count_what_is_there(table) }
    }

    /// The rollups become what they keep of partitions that have left, at once and in every snapshot.
    fn truncate_all(&mut self) -> Outcome<()> {
        self.lock_set(OWNER, Mode::AccessExclusive)?;
        self.server.lock(OWNER, Target::Refresh, Mode::AccessExclusive)?;
        let (xid, now) = (self.server.xid(OWNER), self.server.latest(OWNER));
        let partitions = self.tables.partitions.all(&now, |partition| partition.link == Link::Attached);
        partitions.iter().try_for_each(|(_, partition)| self.refuse_change(*partition))?;
        let is_in = |table: Table| partitions.iter().any(|(_, partition)| partition.table == table);
        self.tables.rows.remove(|row| is_in(row.table));
        self.tables.truth.remove(|row| is_in(row.table));
        self.tables.log.remove(|_| true);
        self.tables.stored.remove(|_| true);
        self.note_layout();
        let nothing = Counted { next: i64::MIN, open: vec![] };
        let sight = Sight::new(&self.tables, &now, &now);
        let kept: Vec<(Rollup, Groups)> = self
            .rollups(&now)
            .into_iter()
            .map(|rollup| (rollup, sight.made_of(&rollup, &nothing, self.fault)))
            .collect();
        for (rollup, groups) in kept {
            for (group, value) in groups.into_iter().enumerate().filter(|(_, value)| *value != Value::default()) {
                self.tables.stored.insert(xid, Group { rollup: rollup.id, group, value, departure: 0 });
            }
        }
        Ok(())
    }

    fn lock_to_detach(&mut self, table: Table) -> Outcome<()> {
        self.server.lock(OWNER, Target::Refresh, Mode::AccessExclusive)?;
        self.server.lock(OWNER, Target::Set, Mode::AccessExclusive)?;
        self.server.lock(OWNER, Target::Partition(table), Mode::AccessExclusive)?;
        match self.pending(&self.server.latest(OWNER)) {
            Some(_) => Err(Stop::Refused("another partition is pending")),
            None => Ok(()),
        }
    }

    /// Rows of a table that has been attached count from now on as they are, also for rollups that never knew it.
    pub fn count_what_is_there(&mut self, table: Table) -> Outcome<()> {
        let (xid, now) = (self.server.xid(OWNER), self.server.latest(OWNER));
        for at in self.tables.truth.places(&now, |row| row.table == table) {
            self.tables.truth.delete(&self.server, at, xid)?;
        }
        for (_, Row { id, columns, .. }) in self.tables.rows.all(&now, |row| row.table == table) {
            self.tables.truth.insert(xid, Truth { id, table, columns });
        }
        self.know(table)
    }

    /// Every rollup knows the table from now on.
    pub fn know(&mut self, table: Table) -> Outcome<()> {
        let (xid, now) = (self.server.xid(OWNER), self.server.latest(OWNER));
        let unknown = self.tables.unknown.places(&now, |unknown| unknown.table == table);
        unknown.into_iter().try_for_each(|at| self.tables.unknown.delete(&self.server, at, xid))
    }
}
