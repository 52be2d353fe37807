//! Loaders and their server, as far as exactly-once depends on them. Names are those of the code: `membership::plan` itself is
//! called, and what is mirrored says of what.
//!
//! A transaction that holds its locks and is not committed has no effect that others could see, so what others would wait for is
//! one step here: the claim as a whole, the advance as a whole. The copied rows and the COMMIT are steps of their own, because
//! loaders, sessions and the server may go in between.

use stateright::{Model, Property};
use tally_loader::membership::Plan;

use crate::state::{Loader, Move, Owned, Row, Stage, State, Transaction};

/// What is at an offset of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    Row,
    DeadLetter,
    /// The end of a transaction of a producer: an offset without a message.
    Marker,
}

/// When a batch may move the position, with the batch before it still under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// There is one transaction at a time.
    OneAtATime,
    /// Two; the second calls `advance_offsets` after the COMMIT of the first has returned: `pipeline::order`.
    AfterCommit,
    /// Two; the second calls `advance_offsets` after that call of the first has returned.
    AfterAdvance,
    /// Two; planted: the second calls it whenever it likes.
    Unordered,
}

/// A fault in the protocol, for the checker to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// Leases alone: nothing is compared.
    NoFence,
    /// SELECT, compare, UPDATE: what is compared may change before the update.
    CompareWithoutLock,
    /// `UPDATE .. WHERE next_offset = expected`, which looks at a snapshot and does not wait.
    PlainCompareAndSet,
    /// After a lost connection the position is read, not claimed.
    ReadWithoutClaim,
    /// Only the position is compared.
    NoEpoch,
    /// Only the epoch is compared.
    NoPosition,
    /// The position is committed before the rows.
    PositionApart,
}

/// A model: sizes, order, and perhaps a planted fault.
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    /// The log of each part.
    pub logs: &'static [&'static [Record]],
    pub loaders: usize,
    pub order: Order,
    /// How many faults may happen in a run.
    pub faults: u8,
    pub planted: Option<Planted>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Start(usize),
    Renew(usize),
    /// Claims what was its own and its share.
    Claim(usize),
    /// Claims or gives back, as the present owners and members suggest.
    Share(usize),
    /// Ends the sessions that its claim waits for.
    EndBlockers(usize),
    /// Reads and sends this many records of each of the owned parts whose bit is set.
    Copy(usize, u8, u8),
    Advance(usize, usize),
    Update(usize, usize),
    Commit(usize, usize),
    Answer(usize),
    /// Finds a connection gone and begins again.
    Learn(usize),
    OrphanCommits(usize),
    OrphanEnds(usize),
    /// The server ends a session that is idle in its transaction: `idle_in_transaction_session_timeout`.
    TimeOut(usize, usize),
    // Faults.
    Kill(usize),
    Leave(usize),
    Expire(usize),
    /// A session ends, or its connection does; a COMMIT that was sent may still be carried out.
    Cut(usize, usize),
    /// The server crashes and has lost the versions from this one on.
    CrashServer(usize),
}

impl Protocol {
    fn depth(&self) -> usize {
        if self.order == Order::OneAtATime { 1 } else { 2 }
    }

    /// Whether `tally.advance_offsets` takes these moves.
    fn accepts(&self, moves: &[Move], tables: &[Row]) -> bool {
        moves.iter().all(|moved| {
            let row = &tables[moved.part];
            let (position, epoch) = (row.next == moved.expected, row.epoch == moved.epoch);
            match self.planted {
                Some(Planted::NoFence) => true,
                Some(Planted::NoEpoch) => position,
                Some(Planted::NoPosition) => epoch,
                _ => position && epoch,
            }
        })
    }

    /// Everything that happens by itself, without a fault.
    pub fn steps(&self, state: &State, steps: &mut Vec<Action>) {
        for (me, loader) in state.loaders.iter().enumerate() {
            if !loader.runs {
                steps.push(Action::Start(me));
            } else if !loader.renewed {
                steps.push(Action::Renew(me));
            }
            self.steps_of(state, me, steps);
        }
        self.steps_of_server(state, steps);
    }

    /// What becomes of sessions whose loader does not look after them.
    pub fn steps_of_server(&self, state: &State, steps: &mut Vec<Action>) {
        for (me, loader) in state.loaders.iter().enumerate().filter(|(_, loader)| !loader.is_alive()) {
            let waits = loader.queue.iter().enumerate().filter(|(_, transaction)| transaction.stage == Stage::Advanced);
            steps.extend(waits.map(|(slot, _)| Action::TimeOut(me, slot)));
        }
        for orphan in 0..state.orphans.len() {
            steps.extend([Action::OrphanCommits(orphan), Action::OrphanEnds(orphan)]);
        }
    }

    /// What one loader can do.
    pub fn steps_of(&self, state: &State, me: usize, steps: &mut Vec<Action>) {
        let loader = &state.loaders[me];
        if !loader.runs {
            return;
        }
        // A loader claims only while it is a member.
        let asks = loader.renewed && loader.queue.is_empty() && (!loader.joined || state.plan(me) != Plan::default());
        if asks {
            if state.claimable(me).iter().any(|&part| state.is_locked(part, None)) {
                steps.push(Action::EndBlockers(me));
            } else {
                steps.push(if loader.joined { Action::Share(me) } else { Action::Claim(me) });
            }
        }
        if !loader.joined {
            return;
        }
        if loader.queue.iter().any(|transaction| transaction.stage == Stage::Lost) {
            steps.push(Action::Learn(me));
        }
        if loader.queue.len() < self.depth() {
            let mut unread = 0;
            for &part in loader.owned.keys() {
                unread |= u8::from(usize::from(loader.reads_from(part)) < self.logs[part].len()) << part;
            }
            for parts in (1..=unread).filter(|parts| parts & !unread == 0) {
                steps.extend([Action::Copy(me, parts, 1), Action::Copy(me, parts, 2)]);
            }
        }
        for (slot, transaction) in loader.queue.iter().enumerate() {
            let is_locked = || transaction.moves.iter().any(|moved| state.is_locked(moved.part, Some((me, slot))));
            match transaction.stage {
                Stage::Copied if self.may_advance(loader, slot) => {
                    let waits = match self.planted {
                        Some(Planted::CompareWithoutLock) => false,
                        Some(Planted::PlainCompareAndSet) => {
                            is_locked() && self.accepts(&transaction.moves, state.tables())
                        }
                        _ => is_locked(),
                    };
                    steps.extend((!waits).then_some(Action::Advance(me, slot)));
                }
                Stage::Compared => steps.extend((!is_locked()).then_some(Action::Update(me, slot))),
                Stage::Advanced => steps.push(Action::Commit(me, slot)),
                Stage::Committed if slot == 0 => steps.push(Action::Answer(me)),
                Stage::Copied | Stage::Committed | Stage::Lost => {}
            }
        }
    }

    fn may_advance(&self, loader: &Loader, slot: usize) -> bool {
        match self.order {
            Order::OneAtATime | Order::AfterCommit => slot == 0,
            // It has returned, whatever became of the transaction since.
            Order::AfterAdvance => slot == 0 || loader.queue[0].stage > Stage::Compared,
            Order::Unordered => true,
        }
    }

    fn faults(&self, state: &State, faults: &mut Vec<Action>) {
        if state.faults == 0 {
            return;
        }
        for (me, loader) in state.loaders.iter().enumerate().filter(|(_, loader)| loader.runs) {
            faults.push(Action::Kill(me));
            faults.extend(loader.renewed.then_some(Action::Expire(me)));
            faults.extend((loader.joined && loader.queue.is_empty()).then_some(Action::Leave(me)));
            let open = loader.queue.iter().enumerate().filter(|(_, transaction)| transaction.stage != Stage::Lost);
            faults.extend(open.map(|(slot, _)| Action::Cut(me, slot)));
        }
        faults.extend((0..state.versions.len()).map(Action::CrashServer));
    }

    fn advance(&self, state: &mut State, me: usize, slot: usize) {
        let transaction = &state.loaders[me].queue[slot];
        if self.accepts(&transaction.moves, state.tables()) {
            let waits = self.planted == Some(Planted::CompareWithoutLock);
            state.loaders[me].queue[slot].stage = if waits { Stage::Compared } else { Stage::Advanced };
            return;
        }
        // Under the present epoch only the failure of a predecessor is a reason.
        let is_current = transaction.moves.iter().all(|moved| state.tables()[moved.part].epoch == moved.epoch);
        let has_failed = state.loaders[me].queue[..slot].iter().any(|earlier| earlier.stage == Stage::Lost);
        state.fenced_in_vain |= is_current && !has_failed;
        state.loaders[me].begin_again(&mut state.orphans);
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let row = |log: &&[Record]| Row { next: 0, epoch: 0, lease: None, loaded: vec![0; log.len()], in_order: true };
        vec![State {
            versions: vec![self.logs.iter().map(row).collect()],
            loaders: vec![Loader::default(); self.loaders],
            orphans: Vec::new(),
            faults: self.faults,
            fenced_in_vain: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.steps(state, actions);
        self.faults(state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut state = state.clone();
        match action {
            Action::Start(me) => {
                state.loaders[me] = Loader { runs: true, renewed: true, ..Loader::default() };
            }
            Action::Renew(me) => state.loaders[me].renewed = true,
            Action::Claim(me) => state.claim(me),
            Action::Share(me) => {
                let release = state.plan(me).release;
                if release.is_empty() {
                    state.claim(me);
                } else {
                    for part in release.iter().map(|part| *part as usize) {
                        state.loaders[me].owned.remove(&part);
                        state.durably(|tables| {
                            if tables[part].lease == Some(me) {
                                tables[part].lease = None;
                            }
                        });
                    }
                }
            }
            Action::EndBlockers(me) => {
                let parts = state.claimable(me);
                let blocks = |transaction: &Transaction| {
                    transaction.stage == Stage::Advanced
                        && transaction.moves.iter().any(|moved| parts.contains(&moved.part))
                };
                state.orphans.retain(|orphan| !blocks(orphan));
                for transaction in state.loaders.iter_mut().flat_map(|loader| &mut loader.queue) {
                    if blocks(transaction) {
                        transaction.stage = Stage::Lost;
                    }
                }
            }
            Action::Copy(me, parts, records) => {
                let loader = &mut state.loaders[me];
                let moves = loader.owned.iter().filter(|(part, _)| parts >> **part & 1 == 1).map(|(&part, owned)| {
                    let expected = loader.reads_from(part);
                    let next = (expected + records).min(self.logs[part].len() as u8);
                    Move { part, expected, next, epoch: owned.epoch }
                });
                let transaction = Transaction { moves: moves.collect(), stage: Stage::Copied };
                loader.queue.push(transaction);
            }
            Action::Advance(me, slot) => self.advance(&mut state, me, slot),
            Action::Update(me, slot) => state.loaders[me].queue[slot].stage = Stage::Advanced,
            Action::Commit(me, slot) => {
                state.loaders[me].queue[slot].stage = Stage::Committed;
                let transaction = state.loaders[me].queue[slot].clone();
                state.commit(&transaction, self);
            }
            Action::Answer(me) => {
                let loader = &mut state.loaders[me];
                for moved in loader.queue.remove(0).moves {
                    loader.owned.insert(moved.part, Owned { next: moved.next, epoch: moved.epoch });
                }
            }
            Action::Learn(me) => {
                state.loaders[me].begin_again(&mut state.orphans);
                if self.planted == Some(Planted::ReadWithoutClaim) {
                    let tables = state.tables().to_vec();
                    let loader = &mut state.loaders[me];
                    loader.owned.iter_mut().for_each(|(part, owned)| owned.next = tables[*part].next);
                    loader.joined = true;
                }
            }
            Action::OrphanCommits(orphan) => {
                let transaction = state.orphans.remove(orphan);
                state.commit(&transaction, self);
            }
            Action::OrphanEnds(orphan) => _ = state.orphans.remove(orphan),
            Action::TimeOut(me, slot) => state.loaders[me].queue[slot].stage = Stage::Lost,
            fault => return self.fail(state, fault),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        crate::properties::all()
    }
}

impl Protocol {
    fn fail(&self, mut state: State, fault: Action) -> Option<State> {
        state.faults -= 1;
        match fault {
            Action::Kill(me) | Action::Leave(me) => {
                state.loaders[me].begin_again(&mut state.orphans);
                state.loaders[me] = Loader::default();
                // It comes back under another name, so its leases are those of nobody.
                for row in state.versions.iter_mut().flatten().filter(|row| row.lease == Some(me)) {
                    row.lease = None;
                }
            }
            Action::Expire(me) => state.loaders[me].renewed = false,
            Action::Cut(me, slot) => {
                let transaction = &mut state.loaders[me].queue[slot];
                if transaction.stage == Stage::Advanced {
                    state.orphans.push(transaction.clone());
                    state.orphans.sort_unstable();
                }
                transaction.stage = Stage::Lost;
            }
            Action::CrashServer(version) => {
                state.versions.truncate(version + 1);
                state.orphans.clear();
                for loader in state.loaders.iter_mut().filter(|loader| loader.runs) {
                    loader.queue.clear();
                    loader.joined = false;
                    loader.renewed = false;
                }
            }
            _ => return None,
        }
        Some(state)
    }
}
