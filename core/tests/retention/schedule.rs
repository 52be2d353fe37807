//! A random schedule: what happens in which order, and when everything is over.

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt, SeedableRng};
use tally_core::bucket::DAY;
use tally_core::partition::retention::State;

use crate::postgres::{Mode, Outcome, Stop, Who};
use crate::statements::{ByHand, Set};
use crate::tables::{By, Columns, Partition, Rollup, Table};
use crate::world::{DAYS, DETACHER, Fault, OWNER, SESSIONS, TODAY, WORKER, World};

const EVENTS: usize = 30;
/// Retention takes no more steps than this when nobody is in its way.
const STEPS_TO_THE_END: usize = 200;

#[derive(Clone, Copy, Debug)]
enum Event {
    Begin,
    Prepare,
    End,
    Insert,
    InsertDirectly,
    Update,
    Delete,
    /// Reads the rollups, under the locks that this takes.
    Read,
    /// The job takes steps, or ends the one that it has begun.
    Job,
    KillJob,
    /// The owner refreshes, creates a rollup, undoes .. or ends what he has begun.
    Owner,
    KillOwner,
    ByHand,
    EndGrace,
    Tomorrow,
    Crash,
}

/// How often, of so many in all.
const OFTEN: [(u32, Event); 16] = [
    (60, Event::Begin),
    (6, Event::Prepare),
    (60, Event::End),
    (60, Event::Insert),
    (20, Event::InsertDirectly),
    (30, Event::Update),
    (15, Event::Delete),
    (20, Event::Read),
    (100, Event::Job),
    (10, Event::KillJob),
    (90, Event::Owner),
    (6, Event::KillOwner),
    (60, Event::ByHand),
    (8, Event::EndGrace),
    (8, Event::Tomorrow),
    (6, Event::Crash),
];

/// A schedule that has broken the protocol.
#[derive(Debug)]
pub struct Failure {
    /// What has happened, if it was told.
    pub story: String,
    pub what: String,
}

/// Goes through the schedule of this seed. Answers how many checks.
pub fn go(seed: u64, fault: Fault, is_told: bool) -> Result<u64, Failure> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut world = World::new(fault, is_told);
    let answer = go_on(&mut world, &mut rng);
    let story = world.story.take().unwrap_or_default().join("\n");
    answer.map(|()| world.checks).map_err(|stop| Failure { story, what: stop.to_string() })
}

fn go_on(world: &mut World, rng: &mut SmallRng) -> Outcome<()> {
    for day in DAYS {
        world.attempt(0, |world| world.insert(0, columns(rng, day)))?;
    }
    world.check()?;
    for _ in 0..EVENTS {
        let (_, event) = OFTEN.choose_weighted(rng, |(weight, _)| *weight).expect("there are events");
        world.happen(*event, rng)?;
        world.check()?;
    }
    world.come_to_an_end(rng)
}

fn columns(rng: &mut SmallRng, day: u8) -> Columns {
    Columns { day, key: rng.random_range(0..3), weight: rng.random() }
}

impl World {
    /// In the open transaction, or in one of its own. A failure ends it.
    fn attempt(&mut self, who: Who, statement: impl FnOnce(&mut World) -> Outcome<()>) -> Outcome<bool> {
        let is_open = self.server.transaction(who).is_some();
        if !is_open {
            self.server.begin(who, false);
        }
        self.note_written(who);
        match statement(self) {
            Ok(()) => {
                if !is_open {
                    self.commit(who);
                }
                Ok(true)
            }
            Err(Stop::Wrong(what)) => Err(Stop::Wrong(what)),
            Err(stop) => {
                self.tell(|| format!("  {stop}"));
                self.abort(who);
                Ok(false)
            }
        }
    }

    fn happen(&mut self, event: Event, rng: &mut SmallRng) -> Outcome<()> {
        match event {
            Event::Job => {
                for _ in 0..rng.random_range(1..5) {
                    self.job(rng.random_bool(0.8))?;
                    self.check()?;
                }
            }
            Event::KillJob => self.kill_job(),
            Event::Owner => self.owner(rng)?,
            Event::KillOwner => self.abort(OWNER),
            Event::ByHand => self.somebody_interferes(rng)?,
            Event::EndGrace if self.server.transaction(OWNER).is_none() => {
                self.attempt(OWNER, World::end_grace)?;
            }
            Event::Tomorrow if self.clock.0 < i64::from(TODAY + 2) * DAY => self.clock = self.clock.plus(DAY),
            Event::EndGrace | Event::Tomorrow => {}
            Event::Crash => {
                self.tell(|| "everything crashes".into());
                self.crash();
            }
            _ => self.by_session(event, rng)?,
        }
        Ok(())
    }

    fn by_session(&mut self, event: Event, rng: &mut SmallRng) -> Outcome<()> {
        let who = rng.random_range(0..SESSIONS);
        let transaction = self.server.transaction(who);
        let (is_open, is_prepared) = (transaction.is_some(), transaction.is_some_and(|open| open.is_prepared));
        self.tell(|| format!("session {who}: {event:?}"));
        match event {
            Event::Begin if !is_open => self.server.begin(who, rng.random_bool(0.5)),
            Event::Prepare if is_open && !is_prepared => self.server.prepare(who),
            Event::End if is_open => self.end(who, rng),
            _ if is_prepared => {}
            Event::Insert => {
                let day = rng.random_range(DAYS);
                let row = columns(rng, day);
                self.attempt(who, |world| world.insert(who, row))?;
            }
            Event::InsertDirectly => {
                let (partition, _) = self.any_partition(rng);
                let (key, weight) = (rng.random_range(0..3), rng.random());
                self.attempt(who, |world| world.insert_directly(who, partition.table, key, weight))?;
            }
            Event::Update | Event::Delete => {
                let set = match rng.random_range(0..3) {
                    0 => Set::Weight(rng.random()),
                    1 => Set::Key(rng.random_range(0..3)),
                    _ => Set::Day(rng.random_range(DAYS)),
                };
                let set = Some(set).filter(|_| matches!(event, Event::Update));
                let (day, half) = (rng.random_range(DAYS), rng.random_range(0..2));
                self.attempt(who, |world| world.change(who, day, half, set))?;
            }
            Event::Read => drop(self.attempt(who, |world| world.lock_set(who, Mode::AccessShare))?),
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, who: Who, rng: &mut SmallRng) {
        let commits = rng.random_bool(0.75);
        self.tell(|| format!("  {who} ends, commits: {commits}"));
        if commits { self.commit(who) } else { self.abort(who) }
    }

    /// The job goes on: it commits the step that it has begun, sends the statement that it has asked for, waits for its end, or begins
    /// another step.
    fn job(&mut self, commits: bool) -> Outcome<()> {
        self.tell(|| "the job".into());
        if self.server.transaction(WORKER).is_some() {
            self.tell(|| "  commits".into());
            self.commit(WORKER);
        } else if self.detaching.as_ref().is_some_and(|detaching| detaching.by_job) {
            self.detacher(World::end_detach)?;
        } else if let Some(table) = self.asked.take() {
            self.tell(|| format!("  DETACH CONCURRENTLY of {table}"));
            self.detacher(|world| world.begin_detach(table, true))?;
        } else {
            self.server.begin(WORKER, false);
            match self.step() {
                Ok(()) if commits => self.commit(WORKER),
                Ok(()) => self.tell(|| "  and has not committed".into()),
                Err(Stop::Wrong(what)) => return Err(Stop::Wrong(what)),
                Err(stop) => {
                    self.tell(|| format!("  {stop}"));
                    self.abort(WORKER);
                }
            }
        }
        Ok(())
    }

    /// A transaction of DETACH CONCURRENTLY.
    fn detacher(&mut self, statement: impl FnOnce(&mut World) -> Outcome<()>) -> Outcome<()> {
        self.tell(|| "  DETACH CONCURRENTLY goes on".into());
        match statement(self) {
            Ok(()) => Ok(()),
            Err(Stop::Wrong(what)) => Err(Stop::Wrong(what)),
            Err(stop) => {
                self.tell(|| format!("  {stop}"));
                self.abort(DETACHER);
                Ok(())
            }
        }
    }

    /// Whatever it is doing. A DETACH CONCURRENTLY that waits leaves a pending partition.
    fn kill_job(&mut self) {
        self.tell(|| "the job is killed".into());
        self.abort(WORKER);
        (self.asked, self.detaching) = (None, None);
    }

    fn owner(&mut self, rng: &mut SmallRng) -> Outcome<()> {
        self.tell(|| "the owner".into());
        if let Some(rollup) = self.making.take() {
            self.tell(|| format!("  builds {rollup:?}"));
            self.attempt(OWNER, |world| world.build_rollup(OWNER, rollup))?;
            return Ok(());
        }
        if self.server.transaction(OWNER).is_some() {
            self.end(OWNER, rng);
            return Ok(());
        }
        self.server.begin(OWNER, false);
        let is_done = match rng.random_range(0..10) {
            0 => {
                let by = *[By::Day, By::Key, By::TwoDays].choose(rng).expect("some");
                let rollup = Rollup { id: self.next_id(), by, subtracts: rng.random_bool(0.5) };
                self.tell(|| format!("  begins to create {rollup:?}"));
                self.attempt(OWNER, |world| world.begin_rollup(rollup))?
            }
            1 => {
                let passing = self.rollups(&self.server.latest(OWNER));
                let passing: Vec<Rollup> = passing.into_iter().filter(|rollup| World::is_passing(rollup.id)).collect();
                match passing.choose(rng) {
                    Some(rollup) => self.attempt(OWNER, |world| world.drop_rollup(OWNER, *rollup))?,
                    None => true,
                }
            }
            2..=4 => {
                let (partition, state) = self.any_partition(rng);
                let table = partition.table;
                self.tell(|| format!("  undoes {table}, {state:?}"));
                state.is_none() || self.is_forced(table) || self.attempt(OWNER, |world| world.undo(table))?
            }
            5 => self.attempt(OWNER, World::resume)?,
            _ => {
                self.tell(|| "  refreshes".into());
                self.attempt(OWNER, |world| world.tick(OWNER).map(drop))?
            }
        };
        // Or later, and others go on meanwhile.
        if is_done && self.making.is_none() && rng.random_bool(0.6) {
            self.commit(OWNER);
        }
        Ok(())
    }

    fn any_partition(&self, rng: &mut SmallRng) -> (Partition, Option<State>) {
        let now = self.server.latest(OWNER);
        let partitions = self.tables.partitions.all(&now, |_| true);
        let partitions: Vec<Partition> = partitions.into_iter().map(|(_, partition)| partition).collect();
        let of_record = |partition: &Partition| self.state(partition.table).filter(|state| *state != State::Kept);
        // Those that retention is busy with, more often.
        let busy: Vec<Partition> = partitions.iter().copied().filter(|p| of_record(p).is_some()).collect();
        let some = if !busy.is_empty() && rng.random_bool(0.6) { &busy } else { &partitions };
        let Some(partition) = some.choose(rng).copied() else { return (Partition::new(Table::MAX, 0), None) };
        (partition, self.state(partition.table))
    }

    fn state(&self, table: Table) -> Option<State> {
        let now = self.server.latest(OWNER);
        self.tables.records.find(&now, |record| record.table == table).map(|(_, record)| record.state)
    }

    /// DDL of somebody who knows nothing of retention.
    fn somebody_interferes(&mut self, rng: &mut SmallRng) -> Outcome<()> {
        if self.detaching.as_ref().is_some_and(|detaching| !detaching.by_job) {
            return self.detacher(World::end_detach);
        }
        let (partition, state) = self.any_partition(rng);
        let sensible = ByHand::ALL.iter().filter(|by_hand| self.is_sensible(**by_hand, &partition, state));
        let sensible: Vec<ByHand> = sensible.copied().collect();
        let Some(by_hand) = sensible.choose(rng).copied() else { return Ok(()) };
        if self.server.transaction(OWNER).is_some() {
            return Ok(());
        }
        self.tell(|| format!("somebody: {by_hand:?} of {partition:?}, {state:?}"));
        let weight = rng.random();
        match by_hand {
            ByHand::DetachConcurrently => {
                // Whoever does it by hand has to know that it does not wait for them.
                self.end_old_snapshots();
                self.detacher(|world| world.begin_detach(partition.table, false))
            }
            _ => {
                let statement = |world: &mut World| {
                    world.is_not_mvcc = !matches!(by_hand, ByHand::Finalize | ByHand::Move | ByHand::Force);
                    world.by_hand(by_hand, partition, weight)
                };
                self.attempt(OWNER, statement).map(drop)
            }
        }
    }

    /// Everything is ended, and retention goes on until nothing is left to do.
    fn come_to_an_end(&mut self, rng: &mut SmallRng) -> Outcome<()> {
        self.tell(|| "the end".into());
        for who in 0..=OWNER {
            if self.server.transaction(who).is_some() {
                self.end(who, rng);
            }
        }
        self.making = None;
        self.check()?;
        self.attempt(OWNER, World::resume)?;
        let mut steps = 0;
        while self.is_going_on()? {
            self.check()?;
            steps += 1;
            if steps == STEPS_TO_THE_END {
                return Err(Stop::Wrong("retention goes on for ever".into()));
            }
        }
        self.attempt(OWNER, |world| world.tick(OWNER).map(drop))?;
        self.check()?;
        self.check_end()
    }

    /// A step of the job. Answers whether anything has been done.
    fn is_going_on(&mut self) -> Outcome<bool> {
        self.attempt(OWNER, World::end_grace)?;
        let before = self.server.latest(OWNER).xmax;
        if self.asked.is_some() || self.detaching.is_some() {
            self.job(true)?;
            self.detacher(World::end_detach)?;
            return Ok(true);
        }
        // One by hand that was interrupted: the status says how to end it.
        let pending = self.pending(&self.server.latest(OWNER));
        if let Some(table) = pending.filter(|table| self.state(*table) != Some(State::Detaching)) {
            return self.attempt(OWNER, |world| world.finalize(OWNER, table));
        }
        self.job(true)?;
        Ok(self.server.latest(OWNER).xmax > before || self.asked.is_some())
    }
}
