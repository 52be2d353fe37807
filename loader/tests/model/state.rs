//! What the server holds and what each loader knows, with the transactions between them.

use std::collections::BTreeMap;

use tally_loader::membership::{self, Plan};
use uuid::Uuid;

use crate::protocol::{Planted, Protocol, Record};

/// `tally.loader_offsets`, the lease, and what is loaded of one part.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    pub next: u8,
    pub epoch: u8,
    pub lease: Option<usize>,
    /// For each offset how often it is in the table or in the dead letters.
    pub loaded: Vec<u8>,
    /// Every committed range began where the one before ended, under the epoch of the last claim.
    pub in_order: bool,
}

/// See `batch::Move`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Move {
    pub part: usize,
    pub expected: u8,
    pub next: u8,
    pub epoch: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Rows and dead letters are sent: `Sink::copy`.
    Copied,
    /// Planted only: compared without a lock.
    Compared,
    /// The position is moved and locked, COMMIT is sent or about to be: `Sink::commit`.
    Advanced,
    /// The server has committed, the answer is under way.
    Committed,
    /// The connection is gone, and the loader does not know what became of the transaction.
    Lost,
}

/// A data transaction of a loader.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Transaction {
    pub moves: Vec<Move>,
    pub stage: Stage,
}

/// See `batch::Owned`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owned {
    pub next: u8,
    pub epoch: u8,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Loader {
    pub runs: bool,
    /// Its membership has not expired. A loader that is not alive may run on: it does not know.
    pub renewed: bool,
    /// It has claimed since its last connection.
    pub joined: bool,
    pub owned: BTreeMap<usize, Owned>,
    /// Transactions, the oldest first.
    pub queue: Vec<Transaction>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// What a crash of the server may go back to, the present last. `synchronous_commit` is off for data only, so a claim makes
    /// everything before it durable.
    pub versions: Vec<Vec<Row>>,
    pub loaders: Vec<Loader>,
    /// Transactions whose COMMIT was sent by a loader that is gone or does not listen any more.
    pub orphans: Vec<Transaction>,
    pub faults: u8,
    /// A loader was fenced although nobody else had claimed its part.
    pub fenced_in_vain: bool,
}

impl Loader {
    pub fn is_alive(&self) -> bool {
        self.runs && self.renewed
    }

    /// Where it reads on.
    pub fn reads_from(&self, part: usize) -> u8 {
        let sent = self.queue.iter().rev().flat_map(|transaction| &transaction.moves).find(|moved| moved.part == part);
        sent.map_or_else(|| self.owned[&part].next, |moved| moved.next)
    }

    /// Mirrors what `pipeline::Lane::keep_loading` does with a batch after a failure.
    pub fn begin_again(&mut self, orphans: &mut Vec<Transaction>) {
        self.joined = false;
        orphans.extend(self.queue.drain(..).filter(|transaction| transaction.stage == Stage::Advanced));
        orphans.sort_unstable();
    }
}

impl State {
    pub fn tables(&self) -> &[Row] {
        self.versions.last().expect("there is always a version")
    }

    /// Changes that are durable at once, and with them all before.
    pub fn durably(&mut self, change: impl FnOnce(&mut Vec<Row>)) {
        let mut tables = self.versions.pop().expect("there is always a version");
        change(&mut tables);
        self.versions = vec![tables];
    }

    /// Whether a transaction other than this one holds the lock on the position of a part.
    pub fn is_locked(&self, part: usize, except: Option<(usize, usize)>) -> bool {
        let of_loaders = self.loaders.iter().enumerate().flat_map(|(loader, state)| {
            state.queue.iter().enumerate().map(move |(slot, transaction)| (Some((loader, slot)), transaction))
        });
        let of_nobody = self.orphans.iter().map(|transaction| (None, transaction));
        of_loaders.chain(of_nobody).any(|(whose, transaction)| {
            (whose.is_none() || whose != except)
                && transaction.stage == Stage::Advanced
                && transaction.moves.iter().any(|moved| moved.part == part)
        })
    }

    /// Mirrors `offsets::ownership` with the looks at it in `pipeline::Lane`.
    pub fn plan(&self, me: usize) -> Plan {
        let id = |loader: usize| Uuid::from_u128(loader as u128);
        let mut owners: BTreeMap<i32, Option<Uuid>> = BTreeMap::new();
        for (part, row) in self.tables().iter().enumerate() {
            let living = row.lease.filter(|&owner| self.loaders[owner].is_alive()).map(id);
            let owned = self.loaders[me].joined && self.loaders[me].owned.contains_key(&part);
            owners.insert(part as i32, living.or(owned.then(|| id(me))));
        }
        let members: Vec<Uuid> =
            (0..self.loaders.len()).filter(|&loader| self.loaders[loader].is_alive()).map(id).collect();
        membership::plan(&owners, &members, id(me))
    }

    /// What a loader claims now, of it what nobody alive holds: `pipeline::Lane::stretch` and `share`, `offsets::claim`.
    pub fn claimable(&self, me: usize) -> Vec<usize> {
        let loader = &self.loaders[me];
        let mut wanted: Vec<usize> = self.plan(me).claim.iter().map(|part| *part as usize).collect();
        if !loader.joined {
            let leased = self.tables().iter().enumerate().filter(|(_, row)| row.lease == Some(me));
            wanted.extend(loader.owned.keys().copied().chain(leased.map(|(part, _)| part)));
            wanted.sort_unstable();
            wanted.dedup();
        }
        wanted.retain(|&part| {
            self.tables()[part].lease.is_none_or(|owner| owner == me || !self.loaders[owner].is_alive())
        });
        wanted
    }

    /// One short transaction, which waits for open advances: `offsets::claim`.
    pub fn claim(&mut self, me: usize) {
        let parts = self.claimable(me);
        if !self.loaders[me].joined {
            self.loaders[me].owned.clear();
            self.loaders[me].joined = true;
        }
        let loader = &mut self.loaders[me];
        let mut tables = self.versions.pop().expect("there is always a version");
        for &part in &parts {
            let row = &mut tables[part];
            (row.lease, row.epoch) = (Some(me), row.epoch + 1);
            loader.owned.insert(part, Owned { next: row.next, epoch: row.epoch });
        }
        if parts.is_empty() {
            self.versions.push(tables);
        } else {
            self.versions = vec![tables];
        }
    }

    pub fn commit(&mut self, transaction: &Transaction, protocol: &Protocol) {
        let mut tables = self.tables().to_vec();
        for moved in &transaction.moves {
            let row = &mut tables[moved.part];
            row.in_order &= row.next == moved.expected && row.epoch == moved.epoch;
            row.next = moved.next;
        }
        if protocol.planted == Some(Planted::PositionApart) {
            self.versions.push(tables.clone());
        }
        for moved in &transaction.moves {
            let log = protocol.logs[moved.part];
            for offset in (moved.expected..moved.next).map(usize::from) {
                tables[moved.part].loaded[offset] += u8::from(log[offset] != Record::Marker);
            }
        }
        self.versions.push(tables);
    }
}
