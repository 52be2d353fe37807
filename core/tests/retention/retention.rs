//! What the job does, one step per transaction: `src/partition/retention.rs` without its SQL. What comes next is decided by
//! `tally_core::partition::retention`, the very code that the job asks.

use tally_core::bucket::{DAY, Timestamp, Utc};
use tally_core::partition::retention::{self, Detach, Place, Round, State, Step, WayBack};
use tally_core::partition::{Interval, Key};

use crate::postgres::{Mode, Outcome, Snapshot, Stop, Target, Who};
use crate::rollup::Sight;
use crate::tables::{By, Link, Partition, Record, Table};
use crate::world::{DETACHER, Fault, OWNER, WORKER, World};

pub const RETENTION: Interval = Interval { months: 0, days: 2, microseconds: 0 };
pub const GRACE: i64 = DAY;
/// Nobody reads for as long as this.
const DETACH_DEADLINE: i64 = 1000 * DAY;

/// A DETACH CONCURRENTLY that has committed for the first time and waits.
#[derive(Clone, Debug)]
pub struct Detaching {
    pub table: Table,
    /// The job waits for it.
    pub by_job: bool,
    /// Transactions that had a lock on the set.
    pub holders: Vec<u32>,
}

pub fn upper(day: u8) -> Timestamp {
    Timestamp((i64::from(day) + 1) * DAY)
}

impl World {
    pub fn records(&self, now: &Snapshot) -> Vec<Record> {
        let mut records = self.tables.records.all(now, |_| true);
        records.sort_by_key(|(_, record)| record.id);
        records.into_iter().map(|(_, record)| record).collect()
    }

    /// Where the catalogs say that it is.
    pub fn place(&self, table: Table, now: &Snapshot) -> Place {
        match self.tables.partition(table, now).map(|(_, partition)| (partition.link, partition.is_in_trash)) {
            None => Place::Gone,
            Some((Link::Pending(_), _)) => Place::Pending,
            Some((Link::Attached, _)) => Place::Attached,
            Some((Link::None, true)) => Place::Trash,
            Some((Link::None, false)) => Place::Detached,
        }
    }

    /// Takes the next step, in a transaction that has been begun.
    pub fn step(&mut self) -> Outcome<()> {
        let now = self.server.latest(WORKER);
        let records = self.records(&now);
        let mut round = Round::default();
        for record in &records {
            let place = self.place(record.table, &now);
            let step = round.look(record.state, place, record.drop_after, self.clock);
            if step != Step::Wait {
                self.tell(|| format!("  {step:?} of {}, {:?} and {place:?}", record.table, record.state));
                return self.take(step, record);
            }
        }
        if round.is_busy {
            return Ok(());
        }
        let has_record = |partition: &Partition| records.iter().any(|record| record.table == partition.table);
        let others = self.tables.partitions.all(&now, |other| other.link != Link::None && !has_record(other));
        let Some((_, oldest)) = others.into_iter().min_by_key(|(_, partition)| partition.day) else { return Ok(()) };
        let is_due = retention::is_due(Key::Instant, &Utc, self.clock, RETENTION, upper(oldest.day));
        if is_due && self.pending(&now).is_none() {
            self.tell(|| format!("  fences {}", oldest.table));
            return self.fence(oldest);
        }
        Ok(())
    }

    fn take(&mut self, step: Step, record: &Record) -> Outcome<()> {
        match step {
            Step::Count => self.count(record),
            Step::Verify => self.verify(record),
            Step::Detach => self.detach(record),
            Step::Finalize => self.finalize(WORKER, record.table),
            Step::Discard => self.discard(record),
            Step::Drop => self.drop_table(record),
            Step::Release => self.release(record),
            Step::LetGo => self.let_go(record),
            Step::Wait => Ok(()),
        }
    }

    pub fn pending(&self, now: &Snapshot) -> Option<Table> {
        let found = self.tables.partitions.find(now, |partition| matches!(partition.link, Link::Pending(_)));
        found.map(|(_, partition)| partition.table)
    }

    /// A lock that no writer has. Whoever writes goes first.
    fn lock_against_writers(&mut self, table: Table) -> Outcome<()> {
        self.server.lock(WORKER, Target::Partition(table), Mode::ShareRowExclusive)
    }

    fn fence(&mut self, partition: Partition) -> Outcome<()> {
        if self.fault != Fault::Writers {
            self.lock_against_writers(partition.table)?;
        }
        if partition.is_fenced {
            return Err(Stop::Wrong(format!("trigger tally_fence of {} is there", partition.table)));
        }
        self.set_partition(WORKER, Partition { is_fenced: true, ..partition })?;
        let (id, changed_by) = (self.next_id(), self.server.xid(WORKER));
        let record = Record {
            id,
            table: partition.table,
            day: partition.day,
            state: State::Fenced,
            changed_by,
            changed_at: self.clock,
            departure: None,
            rollups: vec![],
            counted: None,
            drop_after: None,
        };
        self.tables.records.insert(changed_by, record);
        Ok(())
    }

    /// Has every rollup count its rows, which are the last ones, and keep their groups.
    fn count(&mut self, record: &Record) -> Outcome<()> {
        let (now, counted) = self.tick(WORKER)?;
        if self.tables.rows.any(&now, |row| row.table == record.table && !counted.counts(row.tag)) {
            return Ok(());
        }
        let departure = self.insert_departure(WORKER, record.table);
        let rollups = self.rollups(&self.server.latest(WORKER));
        self.retain(WORKER, record.table, &rollups, departure);
        self.update_source(WORKER, |source| source.leaving.push(record.table))?;
        let latest = self.server.latest(WORKER);
        let rows = self.tables.rows.places(&latest, |row| row.table == record.table).len() as i64;
        self.change_record(WORKER, record, |record| {
            record.state = State::Counted;
            record.departure = Some(departure);
            record.rollups = rollups.iter().map(|rollup| rollup.id).collect();
            record.counted = Some((rows, counted));
        })
    }

    /// Compares every rollup with the rows that are about to go.
    fn verify(&mut self, record: &Record) -> Outcome<()> {
        let (now, counted) = self.tick(WORKER)?;
        let latest = self.server.latest(WORKER);
        let sight = Sight::new(&self.tables, &latest, &now);
        let mut compared = self.rollups(&now).into_iter().filter(|rollup| rollup.by == By::Day);
        if compared.any(|rollup| sight.has_difference(&rollup, record.day, &counted, self.fault)) {
            return Err(Stop::Wrong(format!("a rollup differs from the rows of {}", record.table)));
        }
        self.change_record(WORKER, record, |record| record.state = State::Verified)
    }

    /// Asks for DETACH CONCURRENTLY, once no snapshot is left that does not know of the retained groups.
    fn detach(&mut self, record: &Record) -> Outcome<()> {
        let is_retained = self.is_leaving(WORKER, record) && self.knows_all(WORKER, record);
        let is_waited_for = is_retained && self.is_waited_for(record);
        let deadline = if self.fault == Fault::Wait { 0 } else { DETACH_DEADLINE };
        let waited = self.clock.since(record.changed_at);
        match retention::detach(is_retained, is_waited_for, waited, deadline) {
            Detach::CountAgain => {
                self.lock_out(WORKER)?;
                self.take_back(WORKER, record)?;
                self.change_record(WORKER, record, |record| record.state = State::Fenced)
            }
            Detach::Wait => Ok(()),
            Detach::Now => {
                self.asked = Some(record.table);
                match record.state {
                    State::Detaching => Ok(()),
                    State::Verified => self.change_record(WORKER, record, |record| record.state = State::Detaching),
                    _ => Err(Stop::Wrong(format!("{} leaves and has not been compared", record.table))),
                }
            }
        }
    }

    /// Are its rows retained and not read?
    fn is_leaving(&self, who: Who, record: &Record) -> bool {
        let now = self.server.latest(who);
        record.departure.is_some() && self.tables.source(&now).1.leaving.contains(&record.table)
    }

    /// Does every rollup keep its groups?
    pub fn knows_all(&self, who: Who, record: &Record) -> bool {
        self.rollups(&self.server.latest(who)).iter().all(|rollup| record.rollups.contains(&rollup.id))
    }

    /// Has any transaction a snapshot from before the record was changed last? A prepared one, which has none, is taken to be as old as
    /// its id.
    fn is_waited_for(&self, record: &Record) -> bool {
        self.server.open().filter(|(who, _)| *who != WORKER).any(|(_, transaction)| {
            let prepared = transaction.xid.filter(|_| transaction.is_prepared);
            let xmin = transaction.repeatable.as_ref().map(Snapshot::xmin).or(prepared);
            xmin.is_some_and(|xmin| xmin <= record.changed_by)
        })
    }

    /// `ALTER TABLE .. DETACH PARTITION .. CONCURRENTLY` at top level, until it commits for the first time.
    pub fn begin_detach(&mut self, table: Table, by_job: bool) -> Outcome<()> {
        self.server.begin(DETACHER, false);
        self.server.lock(DETACHER, Target::Set, Mode::ShareUpdateExclusive)?;
        self.server.lock(DETACHER, Target::Partition(table), Mode::ShareUpdateExclusive)?;
        let (now, (_, partition)) = (self.server.latest(DETACHER), self.must_be_there(DETACHER, table)?);
        if partition.link != Link::Attached || self.pending(&now).is_some() {
            return Err(Stop::Refused("is not attached, or another one is pending"));
        }
        // The event trigger.
        if !self.tables.source(&now).1.leaving.contains(&table) {
            return Err(Stop::Refused("DETACH CONCURRENTLY would take rows from rollups"));
        }
        let is_it = |record: &Record| record.table == table && record.state == State::Detaching;
        if !self.tables.records.any(&now, is_it) {
            return Err(Stop::Refused("retention is not ready to detach"));
        }
        let pending = Link::Pending(self.server.xid(DETACHER));
        self.set_partition(DETACHER, Partition { link: pending, ..partition })?;
        self.commit(DETACHER);
        self.detaching = Some(Detaching { table, by_job, holders: self.server.holders(Target::Set) });
        Ok(())
    }

    /// Its second transaction, once those are gone who had a lock on the set.
    pub fn end_detach(&mut self) -> Outcome<()> {
        let Some(detaching) = self.detaching.clone() else { return Ok(()) };
        if detaching.holders.iter().any(|number| self.server.is_open(*number)) {
            return Err(Stop::Busy);
        }
        self.server.begin(DETACHER, false);
        let ended = self.unlink(DETACHER, detaching.table);
        match &ended {
            Ok(()) => self.commit(DETACHER),
            Err(_) => self.abort(DETACHER),
        }
        // Somebody may have ended it with FINALIZE.
        if !matches!(ended, Err(Stop::Busy)) {
            self.detaching = None;
        }
        ended
    }

    fn unlink(&mut self, who: Who, table: Table) -> Outcome<()> {
        self.server.lock(who, Target::Set, Mode::ShareUpdateExclusive)?;
        self.server.lock(who, Target::Partition(table), Mode::AccessExclusive)?;
        match self.tables.partition(table, &self.server.latest(who)) {
            Some((_, partition)) if matches!(partition.link, Link::Pending(_)) => {
                self.set_partition(who, Partition { link: Link::None, ..partition })
            }
            _ => Err(Stop::Refused("is not pending")),
        }
    }

    /// Ends a DETACH CONCURRENTLY that was interrupted. FINALIZE waits for every older snapshot of the database.
    pub fn finalize(&mut self, who: Who, table: Table) -> Outcome<()> {
        let own = self.server.latest(who).xmin();
        let is_older = |snapshot: &Snapshot| snapshot.xmin() <= own;
        let others = self.server.open().filter(|(other, _)| *other != who);
        if others.filter_map(|(_, transaction)| transaction.repeatable.as_ref()).any(is_older) {
            return Err(Stop::Busy);
        }
        self.unlink(who, table)
    }

    /// Moves the detached table to the trash.
    fn discard(&mut self, record: &Record) -> Outcome<()> {
        self.server.lock(WORKER, Target::Partition(record.table), Mode::AccessExclusive)?;
        let (_, partition) = self.must_be_there(WORKER, record.table)?;
        self.set_partition(WORKER, Partition { is_in_trash: true, is_protected: false, ..partition })?;
        let drop_after = self.clock.plus(GRACE);
        self.change_record(WORKER, record, |record| {
            record.state = State::Trash;
            record.drop_after = Some(drop_after);
        })
    }

    /// The grace of whatever lies in the trash is over.
    pub fn end_grace(&mut self) -> Outcome<()> {
        let (xid, now, clock) = (self.server.xid(OWNER), self.server.latest(OWNER), self.clock);
        let records = &mut self.tables.records;
        for (at, record) in records.all(&now, |record| record.drop_after.is_some_and(|at| at > clock)) {
            records.update(&self.server, at, xid, Record { drop_after: Some(clock), ..record })?;
        }
        Ok(())
    }

    /// Drops the table, if it is proven once more that all of its rows are counted.
    fn drop_table(&mut self, record: &Record) -> Outcome<()> {
        self.server.lock(WORKER, Target::Refresh, Mode::AccessExclusive)?;
        self.server.lock(WORKER, Target::Partition(record.table), Mode::AccessExclusive)?;
        let now = self.server.latest(WORKER);
        let in_it = self.tables.rows.all(&now, |row| row.table == record.table);
        if let Some((rows, counted)) = &record.counted {
            let uncounted = in_it.iter().filter(|(_, row)| !counted.counts(row.tag)).count() as i64;
            if !retention::is_proven(*rows, in_it.len() as i64, uncounted) && self.fault != Fault::Proof {
                return self.change_record(WORKER, record, |record| record.state = State::Mismatch);
            }
        }
        self.check_drop(WORKER, record)?;
        self.delete_record(WORKER, record)?;
        self.forget_leaving(WORKER, record.table)?;
        self.drop_partition(WORKER, record.table)
    }

    /// A partition has been attached again: its groups are no longer kept apart, and then it takes changes again. Whoever would not see
    /// his own changes, because he still reads the groups, is waited for.
    fn release(&mut self, record: &Record) -> Outcome<()> {
        if self.is_waited_for(record) {
            return Ok(());
        }
        self.lock_against_writers(record.table)?;
        self.lock_out(WORKER)?;
        if self.place(record.table, &self.server.latest(WORKER)) != Place::Attached {
            return Ok(());
        }
        if self.is_leaving(WORKER, record) {
            self.take_back(WORKER, record)?;
            if self.fault != Fault::Return {
                return self.change_record(WORKER, record, |record| record.state = State::Returning);
            }
        }
        self.unfence(WORKER, record.table)?;
        self.change_record(WORKER, record, |record| record.state = State::Kept)
    }

    /// Keeps refreshes and other DDL of the set away.
    fn lock_out(&mut self, who: Who) -> Outcome<()> {
        self.server.lock(who, Target::Refresh, Mode::AccessExclusive)?;
        self.server.lock(who, Target::Set, Mode::ShareUpdateExclusive)
    }

    /// The retained groups stop counting: the rows are where they were, and have not changed.
    fn take_back(&mut self, who: Who, record: &Record) -> Outcome<()> {
        let Some(number) = record.departure else { return Ok(()) };
        let now = self.server.latest(who);
        // What has come back by hand has been released by that.
        if !self.tables.source(&now).1.leaving.contains(&record.table) {
            return Ok(());
        }
        let (xid, tables) = (self.server.xid(who), &mut self.tables);
        for at in tables.retained.places(&now, |group| group.departure == number) {
            tables.retained.delete(&self.server, at, xid)?;
        }
        for at in tables.departures.places(&now, |departure| departure.number == number) {
            tables.departures.delete(&self.server, at, xid)?;
        }
        self.forget_leaving(who, record.table)
    }

    /// Somebody took the matter into his own hands.
    fn let_go(&mut self, record: &Record) -> Outcome<()> {
        let place = self.place(record.table, &self.server.latest(WORKER));
        if place != Place::Gone && record.state != State::Kept {
            self.lock_against_writers(record.table)?;
            self.unfence(WORKER, record.table)?;
        }
        if place == Place::Detached {
            let (_, partition) = self.must_be_there(WORKER, record.table)?;
            self.set_partition(WORKER, Partition { is_protected: false, ..partition })?;
        }
        self.forget_leaving(WORKER, record.table)?;
        self.delete_record(WORKER, record)
    }

    fn unfence(&mut self, who: Who, table: Table) -> Outcome<()> {
        self.server.lock(who, Target::Partition(table), Mode::AccessExclusive)?;
        let (_, partition) = self.must_be_there(who, table)?;
        self.set_partition(who, Partition { is_fenced: false, ..partition })
    }

    /// `tally.undo_retention()`: becomes what it was.
    pub fn undo(&mut self, table: Table) -> Outcome<()> {
        self.lock_out(OWNER)?;
        let now = self.server.latest(OWNER);
        let records = self.records(&now);
        let Some(record) = records.iter().find(|record| record.table == table) else {
            return Err(Stop::Refused("retention is not removing it"));
        };
        match retention::way_back(record.state, self.place(table, &now)) {
            WayBack::Done => Ok(()),
            WayBack::Gone => Err(Stop::Refused("does not exist any more")),
            WayBack::Wait => Err(Stop::Refused("is being detached just now")),
            WayBack::Stay => {
                self.take_back(OWNER, record)?;
                let is_back = record.departure.is_none() || self.fault == Fault::Return;
                if is_back {
                    self.unfence(OWNER, table)?;
                }
                self.change_record(OWNER, record, |record| {
                    record.state = if is_back { State::Kept } else { State::Returning };
                })
            }
            WayBack::Attach => self.attach_again(record),
        }
    }

    fn attach_again(&mut self, record: &Record) -> Outcome<()> {
        self.server.lock(OWNER, Target::Partition(record.table), Mode::AccessExclusive)?;
        let (_, partition) = self.must_be_there(OWNER, record.table)?;
        let is_leaving = self.is_leaving(OWNER, record) || self.fault == Fault::ByHand && record.departure.is_some();
        // As the event trigger of ATTACH sees it: its rows are counted, and nobody reads them.
        let is_known = is_leaving && record.state != State::Mismatch && self.knows_all(OWNER, record);
        let is_fenced = partition.is_fenced && is_known;
        // Otherwise it is as any ATTACH.
        self.is_not_mvcc |= !is_known;
        self.set_partition(OWNER, Partition { is_in_trash: false, is_protected: is_known, is_fenced, ..partition })?;
        self.attach(OWNER, record.table)?;
        let now = self.server.latest(OWNER);
        let is_fast = self.tables.source(&now).1.leaving.contains(&record.table);
        self.know(record.table)?;
        self.change_record(OWNER, record, |record| record.state = if is_fast { State::Returning } else { State::Kept })
    }

    /// `tally.resume_partitions()`
    pub fn resume(&mut self) -> Outcome<()> {
        let (xid, now) = (self.server.xid(OWNER), self.server.latest(OWNER));
        let records = &mut self.tables.records;
        for at in records.places(&now, |record| record.state == State::Kept) {
            records.delete(&self.server, at, xid)?;
        }
        for (at, record) in records.all(&now, |record| record.state == State::Mismatch) {
            let state = if record.drop_after.is_none() { State::Counted } else { State::Trash };
            records.update(&self.server, at, xid, Record { state, ..record })?;
        }
        Ok(())
    }
}
