//! As much of PostgreSQL as retention meets: transactions that commit, roll back or are lost in a crash; snapshots; rows of which
//! each change leaves a version; locks. A lock that is taken is not waited for: whoever wants it gives up, as after a lock_timeout.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

use tally_core::snapshot;

pub type Xid = u64;

/// Ids below are PostgreSQL's own.
const FIRST_XID: Xid = 3;

/// Why a statement fails.
#[derive(Debug)]
pub enum Stop {
    /// Somebody else has the lock, or has changed the row first.
    Busy,
    /// It is refused to whoever asks; this is why.
    Refused(&'static str),
    /// It must not happen: the protocol is broken.
    Wrong(String),
}

pub type Outcome<T> = Result<T, Stop>;

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => write!(f, "somebody is in the way"),
            Self::Refused(why) => write!(f, "refused: {why}"),
            Self::Wrong(what) => write!(f, "{what}"),
        }
    }
}

/// What a snapshot sees, which never changes but for what its own transaction does.
#[derive(Clone, Debug)]
pub struct Snapshot {
    committed: Rc<Vec<bool>>,
    /// The first id that had not been given out.
    pub xmax: Xid,
    pub in_progress: Vec<Xid>,
    pub own: Option<Xid>,
}

impl Snapshot {
    pub fn sees(&self, xid: Xid) -> bool {
        self.committed.get(xid as usize).is_some_and(|is_committed| *is_committed)
            || self.own.is_some_and(|own| own == xid)
    }

    /// The oldest transaction that was running, as others see it in `pg_stat_activity.backend_xmin`.
    pub fn xmin(&self) -> Xid {
        self.in_progress.iter().copied().min().unwrap_or(self.xmax)
    }
}

#[derive(Clone, Debug)]
struct Version<T> {
    xmin: Xid,
    /// Who has deleted it or made a newer version, or 0.
    xmax: Xid,
    value: T,
}

/// A table: every version of every row.
#[derive(Clone, Debug)]
pub struct Heap<T>(Vec<Version<T>>);

impl<T> Default for Heap<T> {
    fn default() -> Self {
        Self(vec![])
    }
}

impl<T> Heap<T> {
    /// The rows that a snapshot sees, each with its place.
    pub fn seen<'a>(&'a self, snapshot: &'a Snapshot) -> impl Iterator<Item = (usize, &'a T)> {
        let is_seen =
            |version: &Version<T>| snapshot.sees(version.xmin) && !(version.xmax != 0 && snapshot.sees(version.xmax));
        self.0.iter().enumerate().filter(move |(_, version)| is_seen(version)).map(|(at, version)| (at, &version.value))
    }

    /// Where the rows are that meet a condition.
    pub fn places(&self, snapshot: &Snapshot, condition: impl Fn(&T) -> bool) -> Vec<usize> {
        self.seen(snapshot).filter(|(_, row)| condition(row)).map(|(at, _)| at).collect()
    }

    pub fn any(&self, snapshot: &Snapshot, condition: impl Fn(&T) -> bool) -> bool {
        self.seen(snapshot).any(|(_, row)| condition(row))
    }

    pub fn insert(&mut self, xid: Xid, value: T) {
        self.0.push(Version { xmin: xid, xmax: 0, value });
    }

    /// Deletes a row that the transaction sees, unless somebody else does or has done so since.
    pub fn delete(&mut self, server: &Server, at: usize, xid: Xid) -> Outcome<()> {
        let version = &mut self.0[at];
        match server.status(version.xmax) {
            Status::Running if version.xmax != xid => return Err(Stop::Busy),
            Status::Committed => return Err(Stop::Refused("could not serialize access due to concurrent update")),
            Status::Running | Status::Aborted => version.xmax = xid,
        }
        Ok(())
    }

    pub fn update(&mut self, server: &Server, at: usize, xid: Xid, value: T) -> Outcome<()> {
        self.delete(server, at, xid)?;
        self.insert(xid, value);
        Ok(())
    }

    /// What one transaction has done to the table is undone, although it has committed.
    pub fn lose(&mut self, xid: Xid) {
        self.0.retain(|version| version.xmin != xid);
        for version in self.0.iter_mut().filter(|version| version.xmax == xid) {
            version.xmax = 0;
        }
    }

    /// TRUNCATE, which is not MVCC: the rows are gone in every snapshot.
    pub fn remove(&mut self, is_gone: impl Fn(&T) -> bool) {
        self.0.retain(|version| !is_gone(&version.value));
    }
}

impl<T: Clone> Heap<T> {
    /// A row that meets a condition, and its place.
    pub fn find(&self, snapshot: &Snapshot, condition: impl Fn(&T) -> bool) -> Option<(usize, T)> {
        self.seen(snapshot).find(|(_, row)| condition(row)).map(|(at, row)| (at, row.clone()))
    }

    /// All rows that meet a condition, each with its place.
    pub fn all(&self, snapshot: &Snapshot, condition: impl Fn(&T) -> bool) -> Vec<(usize, T)> {
        self.seen(snapshot).filter(|(_, row)| condition(row)).map(|(at, row)| (at, row.clone())).collect()
    }
}

/// What a crash leaves of a table.
pub trait Recover {
    fn recover(&mut self, server: &Server);
}

impl<T> Recover for Heap<T> {
    fn recover(&mut self, server: &Server) {
        self.0.retain(|version| server.status(version.xmin) != Status::Aborted);
        for version in &mut self.0 {
            if server.status(version.xmax) == Status::Aborted {
                version.xmax = 0;
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Running,
    Committed,
    /// Or lost.
    Aborted,
}

/// What can be locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The refreshes of the table: only one goes on at a time.
    Refresh,
    /// The partitioned table.
    Set,
    Partition(u32),
}

/// In the order of their strength.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    AccessShare,
    RowExclusive,
    ShareUpdateExclusive,
    ShareRowExclusive,
    AccessExclusive,
}

impl Mode {
    fn conflicts(self, other: Mode) -> bool {
        use Mode::{AccessExclusive, AccessShare, RowExclusive, ShareRowExclusive, ShareUpdateExclusive};
        match self {
            AccessShare => other == AccessExclusive,
            RowExclusive => matches!(other, ShareRowExclusive | AccessExclusive),
            ShareUpdateExclusive => matches!(other, ShareUpdateExclusive | ShareRowExclusive | AccessExclusive),
            ShareRowExclusive => other != AccessShare,
            AccessExclusive => true,
        }
    }
}

/// Which connection.
pub type Who = usize;

#[derive(Clone, Debug)]
pub struct Transaction {
    /// No other transaction has it, also when this one has no id.
    pub number: u32,
    pub xid: Option<Xid>,
    /// The one snapshot of a REPEATABLE READ transaction.
    pub repeatable: Option<Snapshot>,
    locks: Vec<(Target, Mode)>,
    /// PREPARE TRANSACTION: it outlives a crash.
    pub is_prepared: bool,
}

#[derive(Debug)]
pub struct Server {
    /// By id.
    status: Vec<Status>,
    committed: Rc<Vec<bool>>,
    open: Vec<Option<Transaction>>,
    next_number: Cell<u32>,
}

impl Server {
    pub fn new(connections: usize) -> Self {
        let first = FIRST_XID as usize;
        Self {
            status: vec![Status::Aborted; first],
            committed: Rc::new(vec![false; first]),
            open: vec![None; connections],
            next_number: Cell::default(),
        }
    }

    pub fn status(&self, xid: Xid) -> Status {
        self.status[xid as usize]
    }

    pub fn transaction(&self, who: Who) -> Option<&Transaction> {
        self.open[who].as_ref()
    }

    pub fn open(&self) -> impl Iterator<Item = (Who, &Transaction)> {
        self.open.iter().enumerate().filter_map(|(who, open)| Some((who, open.as_ref()?)))
    }

    pub fn begin(&mut self, who: Who, is_repeatable: bool) {
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        let repeatable = is_repeatable.then(|| self.latest(who));
        self.open[who] = Some(Transaction { number, xid: None, repeatable, locks: vec![], is_prepared: false });
    }

    pub fn prepare(&mut self, who: Who) {
        let transaction = self.open[who].as_mut().expect("a transaction");
        transaction.repeatable = None;
        transaction.is_prepared = true;
    }

    /// The id of the transaction, which it gets at its first write.
    pub fn xid(&mut self, who: Who) -> Xid {
        let transaction = self.open[who].as_mut().expect("a transaction");
        if let Some(xid) = transaction.xid {
            return xid;
        }
        let xid = self.status.len() as Xid;
        self.status.push(Status::Running);
        Rc::make_mut(&mut self.committed).push(false);
        transaction.xid = Some(xid);
        if let Some(snapshot) = &mut transaction.repeatable {
            snapshot.own = Some(xid);
        }
        xid
    }

    /// What is committed now, and what the transaction itself has done.
    pub fn latest(&self, who: Who) -> Snapshot {
        let own = self.open[who].as_ref().and_then(|transaction| transaction.xid);
        let running = self.open().filter_map(|(_, transaction)| transaction.xid);
        Snapshot {
            committed: Rc::clone(&self.committed),
            xmax: self.status.len() as Xid,
            in_progress: running.filter(|xid| own != Some(*xid)).collect(),
            own,
        }
    }

    /// What a statement of the transaction sees.
    pub fn snapshot(&self, who: Who) -> Snapshot {
        let repeatable = self.open[who].as_ref().and_then(|transaction| transaction.repeatable.clone());
        repeatable.unwrap_or_else(|| self.latest(who))
    }

    /// Until the end of the transaction.
    pub fn lock(&mut self, who: Who, target: Target, mode: Mode) -> Outcome<()> {
        let is_taken = self.open().any(|(other, transaction)| {
            let holds = |(held, of): &(Target, Mode)| *held == target && of.conflicts(mode);
            other != who && transaction.locks.iter().any(holds)
        });
        if is_taken {
            return Err(Stop::Busy);
        }
        let transaction = self.open[who].as_mut().expect("a transaction");
        if !transaction.locks.contains(&(target, mode)) {
            transaction.locks.push((target, mode));
        }
        Ok(())
    }

    /// The numbers of the transactions that hold any lock on it.
    pub fn holders(&self, target: Target) -> Vec<u32> {
        let holds = |transaction: &&Transaction| transaction.locks.iter().any(|(held, _)| *held == target);
        self.open.iter().flatten().filter(holds).map(|transaction| transaction.number).collect()
    }

    pub fn is_open(&self, number: u32) -> bool {
        self.open.iter().flatten().any(|transaction| transaction.number == number)
    }

    pub fn commit(&mut self, who: Who) {
        if let Some(xid) = self.end(who) {
            self.status[xid as usize] = Status::Committed;
            Rc::make_mut(&mut self.committed)[xid as usize] = true;
        }
    }

    pub fn abort(&mut self, who: Who) {
        if let Some(xid) = self.end(who) {
            self.status[xid as usize] = Status::Aborted;
        }
    }

    fn end(&mut self, who: Who) -> Option<Xid> {
        self.open[who].take()?.xid
    }

    /// What has not been committed or prepared is lost, and so are the ids that no such transaction has carried past: they are given
    /// out again.
    pub fn crash(&mut self, tables: &mut [&mut dyn Recover]) {
        for who in 0..self.open.len() {
            if !self.open[who].as_ref().is_some_and(|transaction| transaction.is_prepared) {
                self.abort(who);
            }
        }
        for table in tables {
            table.recover(self);
        }
        let last = self.status.iter().rposition(|status| *status != Status::Aborted);
        let next = last.map_or(FIRST_XID as usize, |last| last + 1);
        self.status.truncate(next);
        Rc::make_mut(&mut self.committed).truncate(next);
    }
}

/// The tag of the rows that a transaction writes.
pub fn tag(xid: Xid) -> i64 {
    snapshot::tag(1, xid).expect("ids are small")
}
