//! One session of the random test: it takes random steps and says after each whether what it sees is right.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use postgres::Error;
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use tally_server_tests::cluster::Database;

use super::history::{Action, Actor, Check, Expect, Failure, Step, judge};
use super::statements::{self, Weighted, pick};
use super::{patience, schema};
use crate::oracle;

#[derive(Debug)]
pub struct Rollup {
    pub name: String,
    pub source: &'static str,
    /// The user's own text.
    pub query: String,
    /// Other sessions never drop it.
    pub permanent: bool,
    /// Built in slices, which takes steps of its own.
    pub sliced: bool,
    pub check: Arc<Check>,
}

impl Rollup {
    /// `after` is the number of the last rows that have left the source before.
    pub fn new(name: String, source: &'static str, query: String, permanent: bool, after: usize) -> Rollup {
        let title = format!("{name} differs from {query}");
        let answer = schema::with_gone(source, &query, after);
        let check = Arc::new(Check { title, query: oracle::difference(&name, &answer) });
        Rollup { name, source, query, permanent, sliced: false, check }
    }
}

/// What the sessions of one test share.
pub struct World {
    pub rollups: Mutex<Vec<Arc<Rollup>>>,
    /// Defining queries, by source.
    queries: HashMap<&'static str, Vec<String>>,
    history: Mutex<Vec<Step>>,
    days: AtomicUsize,
    names: AtomicUsize,
    /// Numbers of rows that have left a source.
    departures: AtomicUsize,
    /// Are steps of several sessions carried out at the same moment? Then refreshes may wait for each other.
    pub parallel: bool,
}

impl World {
    pub fn new(queries: HashMap<&'static str, Vec<String>>, parallel: bool) -> World {
        World {
            rollups: Mutex::default(),
            queries,
            history: Mutex::default(),
            days: AtomicUsize::new(schema::FIRST_DAYS),
            names: AtomicUsize::new(0),
            departures: AtomicUsize::new(0),
            parallel,
        }
    }

    fn new_name(&self, kind: &str) -> String {
        format!("{kind}_{}", self.names.fetch_add(1, Ordering::Relaxed))
    }

    /// Carries out a step, and keeps it. The answer is whether it succeeded.
    pub fn take(&self, actor: &mut Actor, step: Step) -> Result<bool, Failure> {
        let number = {
            let mut history = self.history.lock().unwrap();
            history.push(step.clone());
            history.len() - 1
        };
        let answer = actor.carry_out(&step.action);
        if let Err(error) = &answer {
            self.history.lock().unwrap()[number].error = Some(error.to_string());
        }
        judge(&step, &answer).map(|()| answer.is_ok())
    }

    pub fn history(&self) -> Vec<Step> {
        self.history.lock().unwrap().clone()
    }

    /// Statements and checks so far.
    pub fn count(&self) -> (usize, usize) {
        let history = self.history.lock().unwrap();
        let checks = history.iter().filter(|step| step.is_check()).count();
        (history.len() - checks, checks)
    }

    /// The last statements, for the message of a red test.
    pub fn story(&self) -> String {
        let history = self.history.lock().unwrap();
        let statements: Vec<&Step> = history.iter().filter(|step| !step.is_check()).collect();
        let lines = statements[statements.len().saturating_sub(60)..].iter().map(|step| {
            let error = step.error.as_ref().map(|error| format!("\n  -> {error}")).unwrap_or_default();
            format!("session {}: {}{error}", step.session, step.action)
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

pub struct Session {
    number: usize,
    pub actor: Actor,
    world: Arc<World>,
    transaction: Option<Transaction>,
    prepared: Vec<String>,
}

struct Transaction {
    read_committed: bool,
    /// Number of rollups that this transaction had created at each savepoint.
    savepoints: Vec<usize>,
    created: Vec<Arc<Rollup>>,
    failed: bool,
}

type Kind = fn(&mut Session, &mut StdRng) -> Result<(), Failure>;

/// What a session does while it has no transaction, and how often.
const OUTSIDE: &[Weighted<Kind>] = &[
    (35, Session::begin),
    (15, Session::write),
    (2, Session::copy),
    (13, Session::change_any_rows),
    (15, Session::refresh),
    (8, Session::end_prepared),
    (3, Session::create_rollup),
    (2, Session::drop_rollup),
    (2, Session::add_partition),
    (2, Session::truncate),
    (3, Session::try_what_is_refused),
    (1, Session::drop_partition),
    (1, Session::detach_partition),
    (3, Session::forget),
    (6, Session::build_slice),
    (2, Session::rebuild),
    (2, Session::seal),
];

/// What it does when nobody has a transaction: most of it needs a table for itself.
const ALONE: &[Weighted<Kind>] = &[
    (3, Session::drop_partition),
    (3, Session::detach_partition),
    (2, Session::truncate),
    (1, Session::add_partition),
    (2, Session::create_rollup),
    (1, Session::drop_rollup),
    (2, Session::forget),
    (2, Session::seal),
];

/// What it does in a transaction.
const INSIDE: &[Weighted<Kind>] = &[
    (19, Session::write),
    (3, Session::copy),
    (16, Session::change_any_rows),
    (12, Session::change_own_rows),
    (10, Session::set_savepoint),
    (8, Session::leave_savepoint),
    (8, Session::refresh),
    (4, Session::try_what_is_refused),
    (2, Session::create_rollup),
    (10, |session, _| session.end("COMMIT")),
    (4, |session, _| session.end("ROLLBACK")),
    (4, |session, _| session.prepare()),
];

/// What it does after an error in a transaction.
const FAILED: &[Weighted<Kind>] = &[(1, |session, _| session.end("ROLLBACK")), (1, Session::roll_back_to)];

impl Session {
    pub fn new(number: usize, database: &Database, world: Arc<World>) -> Session {
        let actor = Actor::new(database, patience(world.parallel));
        Session { number, actor, world, transaction: None, prepared: vec![] }
    }

    pub fn step(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let kinds = match &self.transaction {
            None => OUTSIDE,
            Some(transaction) if transaction.failed => FAILED,
            Some(_) => INSIDE,
        };
        pick(kinds, rng)(self, rng)
    }

    /// A step of a session that has no transaction, as nobody has.
    pub fn step_alone(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        pick(ALONE, rng)(self, rng)
    }

    fn begin(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let level = *["READ COMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"].choose(rng).unwrap();
        let read_committed = level == "READ COMMITTED";
        self.transaction = Some(Transaction { read_committed, savepoints: vec![], created: vec![], failed: false });
        // TRUNCATE is not MVCC-safe: whoever keeps a snapshot keeps the tables as well.
        let keep = if read_committed { "" } else { "; LOCK TABLE events, clicks IN ACCESS SHARE MODE; SELECT" };
        self.run(format!("BEGIN ISOLATION LEVEL {level}{keep}"), Expect::SuccessOrBusy)
    }

    fn set_savepoint(&mut self, _: &mut StdRng) -> Result<(), Failure> {
        let transaction = self.transaction.as_mut().expect("inside");
        transaction.savepoints.push(transaction.created.len());
        let name = transaction.savepoints.len();
        self.run(format!("SAVEPOINT s{name}"), Expect::Success)
    }

    fn leave_savepoint(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let transaction = self.transaction.as_mut().expect("inside");
        let depth = transaction.savepoints.len();
        if depth == 0 {
            return Ok(());
        }
        if rng.random_bool(0.7) {
            return self.roll_back_to(rng);
        }
        transaction.savepoints.pop();
        self.run(format!("RELEASE s{depth}"), Expect::Success)
    }

    fn roll_back_to(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let transaction = self.transaction.as_mut().expect("inside");
        if transaction.savepoints.is_empty() {
            return self.end("ROLLBACK");
        }
        let number = rng.random_range(1..=transaction.savepoints.len());
        transaction.savepoints.truncate(number);
        transaction.created.truncate(transaction.savepoints[number - 1]);
        transaction.failed = false;
        self.run(format!("ROLLBACK TO s{number}"), Expect::Success)
    }

    /// COMMIT or ROLLBACK. PostgreSQL may refuse to commit a SERIALIZABLE transaction.
    fn end(&mut self, how: &str) -> Result<(), Failure> {
        self.run(how.into(), Expect::Success)?;
        if let Some(mut transaction) = self.transaction.take()
            && how == "COMMIT"
            && !transaction.failed
        {
            self.world.rollups.lock().unwrap().append(&mut transaction.created);
        }
        Ok(())
    }

    fn prepare(&mut self) -> Result<(), Failure> {
        if self.transaction.as_ref().is_some_and(|transaction| !transaction.created.is_empty()) {
            return self.end("ROLLBACK");
        }
        let name = self.world.new_name(&format!("prepared by {}", self.number));
        self.run(format!("PREPARE TRANSACTION '{name}'"), Expect::Success)?;
        if let Some(transaction) = self.transaction.take()
            && !transaction.failed
        {
            self.prepared.push(name);
        }
        Ok(())
    }

    fn end_prepared(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        if self.prepared.is_empty() {
            return Ok(());
        }
        let name = self.prepared.swap_remove(rng.random_range(0..self.prepared.len()));
        let how = if rng.random_bool(0.7) { "COMMIT" } else { "ROLLBACK" };
        self.run(format!("{how} PREPARED '{name}'"), Expect::Success)
    }

    /// Ends whatever is open.
    pub fn finish(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        if self.transaction.is_some() {
            self.end(if rng.random_bool(0.7) { "COMMIT" } else { "ROLLBACK" })?;
        }
        while !self.prepared.is_empty() {
            self.end_prepared(rng)?;
        }
        Ok(())
    }

    fn write(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let statement = pick(statements::WRITES, rng)(rng, self.days());
        self.run(statement, Expect::Success)
    }

    fn copy(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let days = self.days();
        self.act(statements::copy(rng, days))
    }

    fn change_own_rows(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let statement = pick(statements::CHANGES_OF_OWN_ROWS, rng)(rng, self.days());
        self.run(statement, Expect::Success)
    }

    fn change_any_rows(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let statement = pick(statements::CHANGES_OF_ANY_ROWS, rng)(rng, self.days());
        self.run(statement, Expect::Change)
    }

    fn days(&self) -> usize {
        self.world.days.load(Ordering::Relaxed)
    }

    fn refresh(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let rollup = Arc::clone(self.world.rollups.lock().unwrap().choose(rng).expect("some are permanent"));
        if self.world.parallel && !rollup.permanent {
            return Ok(());
        }
        let must_be_refused = match self.transaction.as_ref().map(|transaction| transaction.read_committed) {
            None => false,
            Some(read_committed) => !read_committed || self.has_xid()?,
        };
        let expect = if must_be_refused { Expect::Refusal("25001") } else { Expect::SuccessOrBusy };
        self.run(format!("CALL tally.refresh('{}')", rollup.name), expect)
    }

    fn has_xid(&mut self) -> Result<bool, Failure> {
        self.ask("SELECT pg_current_xact_id_if_assigned() IS NOT NULL")
    }

    fn create_rollup(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        if self.world.rollups.lock().unwrap().len() > 24 {
            return Ok(());
        }
        let source = statements::source(rng);
        let query = self.world.queries[source].choose(rng).unwrap().clone();
        let after = self.world.departures.load(Ordering::Relaxed);
        let mut rollup = Rollup::new(self.world.new_name("extra"), source, query, false, after);
        rollup.sliced = self.transaction.is_none() && !self.world.parallel && rng.random_bool(0.5);
        let rollup = Arc::new(rollup);
        let expect = match &self.transaction {
            Some(transaction) if !transaction.read_committed => Expect::Refusal("25001"),
            // In a transaction refused with 25001 only if another refresh came between its first write and now.
            _ => Expect::SuccessOrBusy,
        };
        self.run(create(&rollup), expect)?;
        if !self.exists(&rollup.name)? {
            return Ok(());
        }
        match &mut self.transaction {
            None => self.world.rollups.lock().unwrap().push(rollup),
            Some(transaction) => transaction.created.push(rollup),
        }
        Ok(())
    }

    fn exists(&mut self, name: &str) -> Result<bool, Failure> {
        if self.transaction.as_ref().is_some_and(|transaction| transaction.failed) {
            return Ok(false);
        }
        self.ask(&format!("SELECT to_regclass('{name}') IS NOT NULL"))
    }

    /// For the test itself: it is not part of the history.
    fn ask(&mut self, question: &str) -> Result<bool, Failure> {
        let failure = |error: Error| Failure::Error {
            session: self.number,
            action: question.into(),
            state: oracle::state(&error).code().into(),
            error: format!("{error:?}"),
        };
        self.actor.client.query_one(question, &[]).map(|row| row.get(0)).map_err(failure)
    }

    fn drop_rollup(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        // Taken off the list first, so that no other session drops it too.
        let rollup = {
            let mut rollups = self.world.rollups.lock().unwrap();
            let extras: Vec<usize> = (0..rollups.len()).filter(|number| !rollups[*number].permanent).collect();
            let Some(number) = extras.choose(rng) else { return Ok(()) };
            rollups.swap_remove(*number)
        };
        self.run(format!("SELECT tally.drop_rollup('{}')", rollup.name), Expect::SuccessOrBusy)?;
        if self.exists(&rollup.name)? {
            self.world.rollups.lock().unwrap().push(rollup);
        }
        Ok(())
    }

    fn add_partition(&mut self, _: &mut StdRng) -> Result<(), Failure> {
        if self.world.parallel && self.number != 0 {
            return Ok(());
        }
        let day = self.days();
        let Some(attach) = statements::attach(day) else { return Ok(()) };
        self.act(attach)?;
        if self.exists(&format!("day_{day}"))? {
            self.world.days.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Nobody may have an old snapshot then. One step after the other, the lock of TRUNCATE sees to that.
    fn truncate(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        if self.world.parallel { Ok(()) } else { self.act(statements::truncate(rng)) }
    }

    /// Nor is DROP or DETACH of a partition MVCC-safe.
    fn drop_partition(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        if self.world.parallel {
            return Ok(());
        }
        let number = self.next_departure();
        self.act(statements::drop_partition(rng, number))
    }

    fn detach_partition(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        if self.world.parallel {
            return Ok(());
        }
        let number = self.next_departure();
        let [detach, attach] = statements::detach(rng, number);
        if !self.act_alone(detach)? {
            return Ok(());
        }
        self.check(rng)?;
        if rng.random_bool(0.3) {
            self.refresh(rng)?;
        }
        self.act(attach)
    }

    fn forget(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        if self.world.parallel {
            return Ok(());
        }
        let number = self.next_departure();
        let [copy, forget] = statements::forget(rng, number);
        if self.act_alone(copy)? { self.act(forget) } else { Ok(()) }
    }

    fn next_departure(&self) -> usize {
        self.world.departures.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn build_slice(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let rollups = self.world.rollups.lock().unwrap();
        let sliced: Vec<&Arc<Rollup>> = rollups.iter().filter(|rollup| rollup.sliced).collect();
        let Some(statement) = sliced.choose(rng).map(|rollup| format!("SELECT tally.build_slice('{}')", rollup.name))
        else {
            return Ok(());
        };
        drop(rollups);
        self.run(statement, Expect::SuccessOrBusy)
    }

    /// The partitions up to a day. The next refresh settles them.
    fn seal(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let day = ["2024-03-31Z", "2024-04-01Z", "2024-04-02Z"].choose(rng).unwrap();
        self.run(format!("CALL tally.seal_partitions('events', '{day}')"), Expect::SuccessOrBusy)
    }

    fn rebuild(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let rollups = self.world.rollups.lock().unwrap();
        let whole: Vec<&Arc<Rollup>> = rollups.iter().filter(|rollup| rollup.permanent).collect();
        let statement = format!("CALL tally.rebuild('{}')", whole.choose(rng).expect("some are permanent").name);
        drop(rollups);
        self.run(statement, Expect::SuccessOrBusy)
    }

    fn try_what_is_refused(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let lie = statements::lie(rng);
        if self.transaction.is_none() {
            return self.act(lie);
        }
        self.run("SAVEPOINT refused".into(), Expect::Success)?;
        self.act(lie)?;
        self.run("ROLLBACK TO refused; RELEASE refused".into(), Expect::Success)?;
        if let Some(transaction) = &mut self.transaction {
            transaction.failed = false;
        }
        Ok(())
    }

    fn run(&mut self, statement: String, expect: Expect) -> Result<(), Failure> {
        self.act(Action::Statement(statement, expect))
    }

    fn act(&mut self, action: Action) -> Result<(), Failure> {
        self.act_alone(action).map(drop)
    }

    /// The answer is whether it succeeded.
    fn act_alone(&mut self, action: Action) -> Result<bool, Failure> {
        let is_serializable = self.transaction.as_ref().is_some_and(|transaction| !transaction.read_committed);
        let tolerated: &[_] = match (&action, is_serializable) {
            // A rollup that another transaction is creating may keep readers of the others waiting.
            (Action::Check(_), _) if self.world.parallel => &["40001", "40P01", "55P03"],
            (_, true) => &["40001"],
            (_, false) => &[],
        };
        let step = Step { session: self.number, action, tolerated, error: None };
        let succeeded = self.world.take(&mut self.actor, step)?;
        if let Some(transaction) = &mut self.transaction
            && !succeeded
        {
            transaction.failed = true;
        }
        Ok(succeeded)
    }

    /// Every rollup that this session can see equals its query, in the snapshot of this session. At the same time as others, a
    /// session looks at a few: the more often.
    pub fn check(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let mut rollups = self.world.rollups.lock().unwrap().clone();
        if let Some(transaction) = &self.transaction {
            rollups.extend(transaction.created.iter().cloned());
        }
        if self.world.parallel {
            rollups.retain(|rollup| rollup.permanent);
            rollups = rollups.sample(rng, 3).cloned().collect();
        }
        for rollup in &rollups {
            if self.transaction.as_ref().is_some_and(|transaction| transaction.failed) {
                break;
            }
            self.act(Action::Check(Arc::clone(&rollup.check)))?;
        }
        Ok(())
    }

    pub fn is_open(&self) -> bool {
        self.transaction.is_some()
    }
}

pub fn create(rollup: &Rollup) -> String {
    let create = format!("SELECT tally.create_rollup('{}', $rollup${}$rollup$, '1 second')", rollup.name, rollup.query);
    if rollup.sliced { format!("SET tally.build_rows = 30; {create}; RESET tally.build_rows") } else { create }
}
