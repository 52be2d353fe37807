//! One session of the random test: it takes random steps and says after each whether what it sees is right.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use postgres::Error;
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use tally_server_tests::cluster::Database;

use super::history::{Action, Actor, Expect, Failure, Step, judge};
use super::rollup::{Change, Definition, Rollup};
use super::statements::{self, Weighted, pick};
use super::{SESSIONS, patience, schema};
use crate::oracle;

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

    /// How many steps have been begun.
    fn moment(&self) -> usize {
        self.history.lock().unwrap().len()
    }

    /// A rollup that is new, or that has become another one.
    pub fn put(&self, rollup: Arc<Rollup>) {
        rollup.begin(self.moment());
        put(&mut self.rollups.lock().unwrap(), rollup);
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

/// In the place of the one with its name, if there is one.
fn put(rollups: &mut Vec<Arc<Rollup>>, rollup: Arc<Rollup>) {
    match rollups.iter_mut().find(|known| known.name == rollup.name) {
        Some(known) => *known = rollup,
        None => rollups.push(rollup),
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
    level: &'static str,
    /// The step that began it.
    since: usize,
    /// It keeps no lock on what it has only looked at, so that others can change that.
    in_passing: bool,
    /// Number of rollups that this transaction had made at each savepoint.
    savepoints: Vec<usize>,
    /// Created or altered, one after the other.
    made: Vec<Arc<Rollup>>,
    failed: bool,
}

impl Transaction {
    fn is_read_committed(&self) -> bool {
        self.level == "READ COMMITTED"
    }
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
    (5, Session::alter_rollup),
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
    (3, Session::alter_rollup),
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
    (3, Session::alter_rollup),
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
        let (since, in_passing) = (self.world.moment(), rng.random_bool(0.7));
        let transaction = Transaction { level, since, in_passing, savepoints: vec![], made: vec![], failed: false };
        // TRUNCATE is not MVCC-safe: whoever keeps a snapshot keeps the tables as well.
        let keep = match transaction.is_read_committed() {
            true => "",
            false => "; LOCK TABLE events, clicks IN ACCESS SHARE MODE; SELECT",
        };
        self.transaction = Some(transaction);
        self.run(format!("BEGIN ISOLATION LEVEL {level}{keep}"), Expect::SuccessOrBusy)
    }

    fn set_savepoint(&mut self, _: &mut StdRng) -> Result<(), Failure> {
        let transaction = self.transaction.as_mut().expect("inside");
        transaction.savepoints.push(transaction.made.len());
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
        transaction.made.truncate(transaction.savepoints[number - 1]);
        transaction.failed = false;
        self.run(format!("ROLLBACK TO s{number}"), Expect::Success)
    }

    /// COMMIT or ROLLBACK. PostgreSQL may refuse to commit a SERIALIZABLE transaction.
    fn end(&mut self, how: &str) -> Result<(), Failure> {
        self.run(how.into(), Expect::Success)?;
        if let Some(transaction) = self.transaction.take()
            && how == "COMMIT"
            && !transaction.failed
        {
            transaction.made.into_iter().for_each(|rollup| self.world.put(rollup));
        }
        Ok(())
    }

    fn prepare(&mut self) -> Result<(), Failure> {
        if self.transaction.as_ref().is_some_and(|transaction| !transaction.made.is_empty()) {
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
        let must_be_refused = match self.transaction.as_ref().map(Transaction::is_read_committed) {
            None => false,
            Some(is_read_committed) => !is_read_committed || self.has_xid()?,
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
        let definition = Definition::new(source, query, after);
        let mut rollup = Rollup::new(self.world.new_name("extra"), definition, false);
        rollup.sliced = self.may_be_sliced(rng);
        // In a transaction refused with 25001 only if another refresh came between its first write and now.
        let expect = if self.has_one_snapshot() { Expect::Refusal("25001") } else { Expect::SuccessOrBusy };
        self.run(rollup.create(), expect)?;
        if self.exists(&rollup.name)? {
            self.keep(rollup);
        }
        Ok(())
    }

    fn may_be_sliced(&self, rng: &mut StdRng) -> bool {
        self.transaction.is_none() && !self.world.parallel && rng.random_bool(0.5)
    }

    fn has_one_snapshot(&self) -> bool {
        self.transaction.as_ref().is_some_and(|transaction| !transaction.is_read_committed())
    }

    /// A rollup that this session has created or altered.
    fn keep(&mut self, rollup: Rollup) {
        match &mut self.transaction {
            None => self.world.put(Arc::new(rollup)),
            Some(transaction) => transaction.made.push(Arc::new(rollup)),
        }
    }

    /// All rollups as this session sees them.
    fn rollups(&self) -> Vec<Arc<Rollup>> {
        let mut rollups = self.world.rollups.lock().unwrap().clone();
        let made = self.transaction.iter().flat_map(|transaction| &transaction.made);
        made.for_each(|rollup| put(&mut rollups, Arc::clone(rollup)));
        rollups
    }

    /// One that may be altered. At the same time as others each session has its own: the second of two that alter the same one may
    /// be refused.
    fn any_rollup_to_alter(&self, rng: &mut StdRng) -> Option<Arc<Rollup>> {
        let rollups = self.rollups();
        let feeds = |rollup: &Rollup| rollups.iter().any(|above| above.definition.reads(&rollup.name));
        let is_own = |number: usize, rollup: &Rollup| rollup.permanent && number % SESSIONS == self.number;
        let candidates: Vec<_> = rollups
            .iter()
            .enumerate()
            .filter(|(number, rollup)| !self.world.parallel || is_own(*number, rollup))
            .filter(|(_, rollup)| !feeds(rollup) && !rollup.definition.casts())
            .collect();
        candidates.choose(rng).map(|(_, rollup)| Arc::clone(rollup))
    }

    /// Another definition, or the same once more. At the same time as others all keep theirs, since somebody may be looking.
    fn alter_rollup(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let Some(old) = self.any_rollup_to_alter(rng) else { return Ok(()) };
        let change = if self.world.parallel { Change::Nothing } else { old.definition.random_change(rng) };
        let has_retained = !self.has_one_snapshot()
            && !self.world.parallel
            && self.ask(&format!("SELECT EXISTS (SELECT FROM {}_retained)", old.name))?;
        let expect = match &change {
            _ if self.has_one_snapshot() => Expect::Refusal("25001"),
            Change::Query(_) if has_retained => Expect::RefusalOrBusy("55000"),
            _ => Expect::SuccessOrBusy,
        };
        let mut definition = old.definition.clone();
        definition.change(&change, has_retained, self.world.departures.load(Ordering::Relaxed));
        let mut rollup = Rollup::new(old.name.clone(), definition, old.permanent);
        rollup.sliced = self.may_be_sliced(rng);
        let statement = match change {
            Change::Column(aggregate) if rng.random_bool(0.5) => rollup.add(aggregate),
            _ => rollup.alter(),
        };
        if !self.act_alone(Action::Statement(statement, expect))? {
            return Ok(());
        }
        self.keep(rollup);
        let is_known = self.world.rollups.lock().unwrap().iter().any(|rollup| rollup.name == old.name);
        if self.transaction.is_some() && is_known {
            // Nobody else can look before this ends.
            self.check(rng)?;
            return self.end(if rng.random_bool(0.7) { "COMMIT" } else { "ROLLBACK" });
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
        let Some(rollup) = sliced.choose(rng).map(|rollup| Arc::clone(rollup)) else { return Ok(()) };
        drop(rollups);
        let build = format!("SELECT tally.build_slice('{}')", rollup.name);
        if !self.act_alone(Action::Statement(build, Expect::SuccessOrBusy))? {
            return Ok(());
        }
        // It may have been a slice of another one, or the end of all.
        let is_concerned = |other: &Rollup| other.sliced && other.definition.source == rollup.definition.source;
        self.rollups().into_iter().filter(|other| is_concerned(other)).for_each(|other| self.world.put(other));
        Ok(())
    }

    /// The partitions up to a day. The next refresh settles them.
    fn seal(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let day = ["2024-03-31Z", "2024-04-01Z", "2024-04-02Z"].choose(rng).unwrap();
        self.run(format!("CALL tally.seal_partitions('events', '{day}')"), Expect::SuccessOrBusy)
    }

    fn rebuild(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let rollups = self.world.rollups.lock().unwrap();
        let permanent: Vec<&Arc<Rollup>> = rollups.iter().filter(|rollup| rollup.permanent).collect();
        let rollup = Arc::clone(permanent.choose(rng).expect("some are permanent"));
        drop(rollups);
        let is_unbuilt = format!(
            "SELECT EXISTS (SELECT FROM tally.builds WHERE stored = '{}_stored'::regclass AND unbuilt_before <> '-infinity')",
            rollup.name
        );
        let is_refused = rollup.sliced && self.ask(&is_unbuilt)?;
        let expect = if is_refused { Expect::RefusalOrBusy("55000") } else { Expect::SuccessOrBusy };
        self.run(format!("CALL tally.rebuild('{}')", rollup.name), expect)
    }

    fn try_what_is_refused(&mut self, rng: &mut StdRng) -> Result<(), Failure> {
        let lie = statements::lie(rng);
        if self.transaction.is_none() {
            return self.act(lie);
        }
        self.run("SAVEPOINT refused".into(), Expect::Success)?;
        self.act(lie)?;
        self.go_back("ROLLBACK TO refused; RELEASE refused")
    }

    fn run(&mut self, statement: String, expect: Expect) -> Result<(), Failure> {
        self.act(Action::Statement(statement, expect))
    }

    fn act(&mut self, action: Action) -> Result<(), Failure> {
        self.act_alone(action).map(drop)
    }

    /// The answer is whether it succeeded.
    fn act_alone(&mut self, action: Action) -> Result<bool, Failure> {
        let tolerated: &[_] = if self.has_one_snapshot() { &["40001"] } else { &[] };
        self.take(action, tolerated)
    }

    fn take(&mut self, action: Action, tolerated: &'static [&'static str]) -> Result<bool, Failure> {
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
        if self.has_failed() {
            return Ok(());
        }
        let mut rollups = self.rollups();
        if self.world.parallel {
            rollups.retain(|rollup| rollup.permanent);
            rollups = rollups.sample(rng, 3).cloned().collect();
        }
        let in_passing = self.transaction.as_ref().is_some_and(|transaction| transaction.in_passing);
        if in_passing {
            self.run("SAVEPOINT look".into(), Expect::Success)?;
        }
        for rollup in &rollups {
            self.take(Action::Check(Arc::clone(&rollup.check)), self.tolerated_of(rollup))?;
            if self.has_failed() {
                if !in_passing {
                    return Ok(());
                }
                self.go_back("ROLLBACK TO look")?;
            }
        }
        if in_passing { self.go_back("ROLLBACK TO look; RELEASE look") } else { Ok(()) }
    }

    fn has_failed(&self) -> bool {
        self.transaction.as_ref().is_some_and(|transaction| transaction.failed)
    }

    fn go_back(&mut self, statement: &str) -> Result<(), Failure> {
        self.run(statement.into(), Expect::Success)?;
        if let Some(transaction) = &mut self.transaction {
            transaction.failed = false;
        }
        Ok(())
    }

    /// What may happen to a look at this rollup.
    fn tolerated_of(&self, rollup: &Rollup) -> &'static [&'static str] {
        let refuses = |transaction: &Transaction| match transaction.level {
            "READ COMMITTED" => false,
            "REPEATABLE READ" => rollup.is_younger_than(transaction.since),
            _ => true,
        };
        match &self.transaction {
            // A rollup that another transaction is creating or altering may keep readers waiting.
            _ if self.world.parallel => &["40001", "40P01", "55P03"],
            Some(transaction) if refuses(transaction) => &["40001"],
            _ => &[],
        }
    }

    pub fn is_open(&self) -> bool {
        self.transaction.is_some()
    }
}
