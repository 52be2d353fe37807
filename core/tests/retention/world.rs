//! A set with its rollups, and what holds in it after every step.

use tally_core::bucket::{DAY, Timestamp};
use tally_core::partition::retention::State;
use tally_core::snapshot::Counted;

use crate::postgres::{Mode, Outcome, Server, Snapshot, Stop, Target, Who, Xid, tag};
use crate::retention::Detaching;
use crate::rollup::Sight;
use crate::tables::{By, Group, Groups, Link, Number, Partition, Record, Rollup, RollupId, Source, Table, Tables};

/// What is left out of the protocol, to see that the model notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Changes of a fenced partition are let through.
    Fence,
    /// The fence does not wait for those who are writing to the partition.
    Writers,
    /// Refreshes take transactions in progress for ended.
    InProgress,
    /// Rows of a partition that is about to leave are read although they are retained.
    Staying,
    /// Nobody waits for snapshots that are older than the retained groups.
    Wait,
    /// The table is dropped whatever is in it.
    Proof,
    /// A crash forgets what the last step has recorded, and not what it has done.
    Record,
    /// A new rollup does not keep the groups of partitions that are about to leave.
    NewRollup,
    /// What somebody has detached by hand is brought back as if retention had.
    ByHand,
    /// What comes back takes changes at once, also of those who still read its retained groups.
    Return,
    /// What is attached by hand is taken for known, also by a rollup that has come since it was detached.
    NewRollupByHand,
}

/// Connections: those who use the table, the worker that runs the job, and the owner of the table, who refreshes as well.
pub const SESSIONS: usize = 3;
pub const WORKER: Who = SESSIONS;
pub const OWNER: Who = SESSIONS + 1;
/// Where DETACH CONCURRENTLY runs, asked for by the job or by somebody else.
pub const DETACHER: Who = SESSIONS + 2;

/// The first and the last day that the set has a partition for at the beginning, and today.
pub const DAYS: std::ops::RangeInclusive<u8> = 0..=4;
pub const TODAY: u8 = 4;
/// Rollups that are there from the beginning to the end.
const LASTING: [(By, bool); 3] = [(By::Day, false), (By::Key, true), (By::TwoDays, false)];

/// What a connection has looked at last; there is nothing new to see before this changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Looked {
    /// Commits of others, unless it has one snapshot for all.
    commits: u64,
    /// Changes of what is not MVCC.
    layout: u64,
    /// Its own statements that write, and when it began.
    own: (u64, u32),
}

#[derive(Debug)]
pub struct World {
    pub server: Server,
    pub tables: Tables,
    pub fault: Fault,
    pub clock: Timestamp,
    /// The partition for which a DETACH CONCURRENTLY has been asked for.
    pub asked: Option<Table>,
    pub detaching: Option<Detaching>,
    /// The owner has begun to make this rollup.
    pub making: Option<Rollup>,
    /// Of the last step of the job that wrote something.
    last_step: Option<Xid>,
    /// What the owner is about to commit brings or takes rows in older snapshots as well, of the table as of the rollups: nobody can say
    /// what a rollup should be there.
    pub is_not_mvcc: bool,
    last_id: u32,
    commits: u64,
    layout: u64,
    written: [u64; DETACHER + 1],
    looked: [Option<Looked>; OWNER + 1],
    /// What has happened, if somebody wants to read it.
    pub story: Option<Vec<String>>,
    pub checks: u64,
}

impl World {
    pub fn new(fault: Fault, is_told: bool) -> Self {
        let mut world = World {
            server: Server::new(DETACHER + 1),
            tables: Tables::default(),
            fault,
            clock: Timestamp(i64::from(TODAY) * DAY),
            asked: None,
            detaching: None,
            making: None,
            last_step: None,
            is_not_mvcc: false,
            last_id: 0,
            commits: 0,
            layout: 0,
            written: [0; DETACHER + 1],
            looked: [None; OWNER + 1],
            story: is_told.then(Vec::new),
            checks: 0,
        };
        world.server.begin(OWNER, false);
        let xid = world.server.xid(OWNER);
        for day in DAYS {
            let table = world.next_id();
            world.tables.partitions.insert(xid, Partition::new(table, day));
        }
        let counted = Counted { next: tag(xid), open: vec![] };
        world.tables.sources.insert(xid, Source { counted, leaving: vec![] });
        for (by, subtracts) in LASTING {
            let id = world.next_id();
            world.tables.rollups.insert(xid, Rollup { id, by, subtracts });
        }
        world.commit(OWNER);
        world
    }

    pub fn next_id(&mut self) -> u32 {
        self.last_id += 1;
        self.last_id
    }

    /// Is it one that comes and goes?
    pub fn is_passing(rollup: RollupId) -> bool {
        rollup as usize > DAYS.count() + LASTING.len()
    }

    pub fn tell(&mut self, what: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(what());
        }
    }

    pub fn commit(&mut self, who: Who) {
        if who == OWNER && std::mem::take(&mut self.is_not_mvcc) {
            self.end_old_snapshots();
        }
        if who == WORKER {
            self.last_step = self.server.transaction(who).and_then(|step| step.xid).or(self.last_step);
        }
        self.commits += 1;
        self.layout += 1;
        self.server.commit(who);
        self.making = self.making.take().filter(|_| who != OWNER);
    }

    pub fn abort(&mut self, who: Who) {
        self.server.abort(who);
        self.is_not_mvcc &= who != OWNER;
        self.written[who] += 1;
        self.making = self.making.take().filter(|_| who != OWNER);
        self.asked = self.asked.take().filter(|_| who != WORKER);
    }

    /// What DDL brings or takes away it does in older snapshots too, unless they hold a lock that it waits for.
    pub fn end_old_snapshots(&mut self) {
        for who in 0..SESSIONS {
            if self.server.transaction(who).is_some_and(|open| open.repeatable.is_some()) {
                self.commit(who);
            }
        }
    }

    pub fn note_written(&mut self, who: Who) {
        self.written[who] += 1;
    }

    pub fn note_layout(&mut self) {
        self.layout += 1;
    }

    pub fn crash(&mut self) {
        let Self { server, tables, .. } = self;
        if let Some(step) = self.last_step.filter(|_| self.fault == Fault::Record) {
            tables.records.lose(step);
        }
        server.crash(&mut tables.all());
        (self.asked, self.detaching, self.making, self.is_not_mvcc) = (None, None, None, false);
        self.commits += 1;
        self.layout += 1;
    }

    /// A lock on the set and on every partition that a statement uses which is for all of them.
    pub fn lock_set(&mut self, who: Who, mode: Mode) -> Outcome<()> {
        self.server.lock(who, Target::Set, mode)?;
        let now = self.server.latest(who);
        let snapshot = self.server.snapshot(who);
        let partitions: Vec<Table> = self.tables.partitions_of(&now, &snapshot).map(|p| p.table).collect();
        partitions.into_iter().try_for_each(|table| self.server.lock(who, Target::Partition(table), mode))
    }

    pub fn must_be_there(&self, who: Who, table: Table) -> Outcome<(usize, Partition)> {
        let found = self.tables.partition(table, &self.server.latest(who));
        found.ok_or(Stop::Refused("does not exist"))
    }

    pub fn set_partition(&mut self, who: Who, partition: Partition) -> Outcome<()> {
        let (at, _) = self.must_be_there(who, partition.table)?;
        let xid = self.server.xid(who);
        self.tables.partitions.update(&self.server, at, xid, partition)
    }

    /// Attaches a table, whose partition is locked against everybody.
    pub fn attach(&mut self, who: Who, table: Table) -> Outcome<()> {
        self.server.lock(who, Target::Set, Mode::ShareUpdateExclusive)?;
        let (_, partition) = self.must_be_there(who, table)?;
        let now = self.server.latest(who);
        if self.tables.partitions.any(&now, |other| other.day == partition.day && other.link != Link::None) {
            return Err(Stop::Refused("another table has its range"));
        }
        self.set_partition(who, Partition { link: Link::Attached, is_protected: true, ..partition })?;
        if partition.is_protected { Ok(()) } else { self.follow_attach(who, table) }
    }

    /// DROP TABLE, and what the event trigger forgets then: departures of tables that can never come back.
    pub fn drop_partition(&mut self, who: Who, table: Table) -> Outcome<()> {
        let (at, _) = self.must_be_there(who, table)?;
        let (xid, now) = (self.server.xid(who), self.server.latest(who));
        self.tables.partitions.delete(&self.server, at, xid)?;
        let departures = &mut self.tables.departures;
        let orphans = departures.places(&now, |left| left.table == table && left.released_by.is_none());
        orphans.into_iter().try_for_each(|at| departures.delete(&self.server, at, xid))
    }

    pub fn change_record(&mut self, who: Who, record: &Record, change: impl FnOnce(&mut Record)) -> Outcome<()> {
        let xid = self.server.xid(who);
        let (at, mut record) = self.find_record(who, record)?;
        let before = record.state;
        change(&mut record);
        (record.changed_by, record.changed_at) = (xid, self.clock);
        let after = record.state;
        self.tell(|| format!("  {}: {before:?} -> {after:?}", record.table));
        self.tables.records.update(&self.server, at, xid, record)
    }

    pub fn delete_record(&mut self, who: Who, record: &Record) -> Outcome<()> {
        let xid = self.server.xid(who);
        let (at, _) = self.find_record(who, record)?;
        self.tables.records.delete(&self.server, at, xid)
    }

    fn find_record(&self, who: Who, record: &Record) -> Outcome<(usize, Record)> {
        let now = self.server.latest(who);
        let found = self.tables.records.find(&now, |found| found.id == record.id);
        found.ok_or(Stop::Refused("there is no such record any more"))
    }

    /// Whoever looks now sees in every rollup that he knows what is true for him: each connection in the snapshot that its next statement
    /// would have.
    pub fn check(&mut self) -> Outcome<()> {
        for who in 0..=OWNER {
            let transaction = self.server.transaction(who);
            // The worker stands for those who have no transaction open.
            if transaction.is_none() && who != WORKER || transaction.is_some_and(|open| open.is_prepared) {
                continue;
            }
            let number = transaction.map_or(0, |open| open.number);
            let is_repeatable = transaction.is_some_and(|open| open.repeatable.is_some());
            let commits = if is_repeatable { 0 } else { self.commits };
            let looked = Looked { commits, layout: self.layout, own: (self.written[who], number) };
            if self.looked[who] == Some(looked) {
                continue;
            }
            self.looked[who] = Some(looked);
            let (mut now, mut snapshot) = (self.server.latest(who), self.server.snapshot(who));
            if who == WORKER {
                (now.own, snapshot.own) = (None, None);
            }
            self.check_snapshot(who, &now, &snapshot)?;
        }
        Ok(())
    }

    fn check_snapshot(&mut self, who: Who, now: &Snapshot, snapshot: &Snapshot) -> Outcome<()> {
        let sight = Sight::new(&self.tables, now, snapshot);
        let is_there = self.rollups(now);
        for rollup in self.rollups(snapshot) {
            // What has been dropped cannot be read in any snapshot.
            if !is_there.iter().any(|found| found.id == rollup.id) {
                continue;
            }
            self.checks += 1;
            let (view, truth) = (sight.view(&rollup, self.fault), self.truth(&rollup, snapshot));
            if view != truth {
                let Snapshot { xmax, in_progress, own, .. } = snapshot;
                return Err(Stop::Wrong(format!(
                    "connection {who} sees {view:?}\nand not {truth:?}\nin {rollup:?}, in the snapshot {}:{xmax}:{in_progress:?} with {own:?}",
                    snapshot.xmin()
                )));
            }
        }
        Ok(())
    }

    fn truth(&self, rollup: &Rollup, snapshot: &Snapshot) -> Groups {
        let unknown = self.tables.unknown.seen(snapshot).map(|(_, unknown)| unknown);
        let unknown: Vec<Table> = unknown.filter(|unknown| unknown.rollup == rollup.id).map(|u| u.table).collect();
        let mut groups = Groups::default();
        for (_, row) in self.tables.truth.seen(snapshot).filter(|(_, row)| !unknown.contains(&row.table)) {
            groups[rollup.group(&row.columns)].add_row(&row.columns);
        }
        groups
    }

    /// A table is about to be dropped. Nobody has put a row into it by force, and every rollup that knows it keeps the groups of its rows.
    pub fn check_drop(&self, who: Who, record: &Record) -> Outcome<()> {
        let now = self.server.latest(who);
        if let Some((_, lost)) = self.tables.rows.find(&now, |row| row.table == record.table && row.is_forced) {
            return Err(Stop::Wrong(format!("row {} is dropped and nobody has counted it", lost.id)));
        }
        // It may have left several times, by hand.
        let departures = self.tables.departures.all(&now, |d| d.table == record.table && d.released_by.is_none());
        let departures: Vec<Number> = departures.into_iter().map(|(_, departure)| departure.number).collect();
        for rollup in self.rollups(&now) {
            if self.tables.unknown.any(&now, |it| it.rollup == rollup.id && it.table == record.table) {
                continue;
            }
            let (mut kept, mut truth) = (Groups::default(), Groups::default());
            let is_kept = |group: &Group| group.rollup == rollup.id && departures.contains(&group.departure);
            for (_, group) in self.tables.retained.all(&now, is_kept) {
                kept[group.group].add(group.value);
            }
            for (_, row) in self.tables.truth.all(&now, |row| row.table == record.table) {
                truth[rollup.group(&row.columns)].add_row(&row.columns);
            }
            if kept != truth {
                return Err(Stop::Wrong(format!(
                    "{} is dropped, and {rollup:?} keeps {kept:?}, not {truth:?}",
                    record.table
                )));
            }
        }
        Ok(())
    }

    /// Nothing is under way but what waits for somebody to look at rows that came by force.
    pub fn check_end(&self) -> Outcome<()> {
        let now = self.server.latest(OWNER);
        let records = self.records(&now);
        match records.iter().find(|record| record.state != State::Kept && !self.is_forced(record.table)) {
            Some(record) => Err(Stop::Wrong(format!("retention has not come to an end: {record:?}"))),
            None => Ok(()),
        }
    }
}

impl Partition {
    /// Attached, and known to the source.
    pub fn new(table: Table, day: u8) -> Self {
        let link = Link::Attached;
        Self { table, day, link, is_in_trash: false, is_fenced: false, is_protected: true }
    }
}
